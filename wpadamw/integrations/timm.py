"""The optimizers under their names in timm's registry."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from timm.optim._optim_factory import OptimInfo, default_registry

from wpadamw import optimizers
from wpadamw.optimizer import WeightPrediction

LOOKAHEAD = (
    "timm's Lookahead (opt='lookahead_...') would average predicted weights: create the optimizer "
    "without it"
)


class _Defaults(dict[str, Any]):
    """An optimizer's defaults, to which timm's Lookahead adds its own when it wraps one."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Like dict's; raises ValueError for Lookahead."""
        added = dict(*args, **kwargs)
        if "lookahead_k" in added:
            raise ValueError(LOOKAHEAD)
        super().update(added)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)  # copies and pickles load without timm


def register() -> None:
    """Add all optimizers to timm's registry: ``wpadamw``, ``wpadam``, ``wpsgd``, ...

    The names are those of the classes, in lower case. What timm gives them is what it gives the
    originals: ``wpsgd`` has momentum 0.9 and ``nesterov=True``, like timm's ``sgd``, unless others
    are asked for. A name that the registry has already is left alone, so a second call does
    nothing.

    ``opt="lookahead_wpadamw"`` raises ValueError when the optimizer is created.

    Example:
        >>> wpadamw.integrations.timm.register()
        >>> opt = timm.optim.create_optimizer_v2(model, "wpadamw", lr=1e-3, weight_decay=0.05)
        >>> wpadamw.attach(model, opt)
    """
    known = default_registry.list_optimizers()
    for class_name in optimizers.__all__:
        if class_name.lower() not in known:
            default_registry.register(_entry(getattr(optimizers, class_name)))


def _entry(kind: type[WeightPrediction]) -> OptimInfo:
    is_sgd = kind is optimizers.WPSGD
    return OptimInfo(
        name=kind.__name__.lower(),
        opt_class=cast(Any, partial(_create, kind)),  # timm takes any callable
        description=f"{kind.__name__.removeprefix('WP')} with weight prediction",
        has_eps=not is_sgd,
        has_betas=not is_sgd,
        has_momentum=is_sgd,
        defaults={"nesterov": True} if is_sgd else None,
    )


def _create(kind: type[WeightPrediction], params: Any, **options: Any) -> WeightPrediction:
    """What timm calls as the class of an optimizer."""
    optimizer = kind(params, **options)
    optimizer.defaults = _Defaults(optimizer.defaults)
    return optimizer
