"""What `Accelerator.prepare` returns for an optimizer, with the names of the optimizer it wraps."""

from __future__ import annotations

from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor

from wpadamw.optimizer import WeightPrediction

NAMES = ("weights_are", "true_weights", "predict", "restore", "reset_time", "clip_grad_norm_")


class _Forward:
    """An attribute of the class that is read from the wrapped optimizer, if it is one of ours."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, prepared: Any, owner: type) -> Any:
        if prepared is None:
            return self
        # A copy in the making has no attributes yet.
        optimizer = vars(prepared).get("optimizer")
        if not isinstance(optimizer, WeightPrediction):
            raise AttributeError(
                f"{type(prepared).__name__!r} object has no attribute {self.name!r}"
            )
        return self.value(prepared, optimizer)

    def value(self, prepared: Any, optimizer: WeightPrediction) -> Any:
        return getattr(optimizer, self.name)


class _Clip(_Forward):
    """Clipping between accelerate's gradient scaler and its accumulation."""

    def value(self, prepared: Any, optimizer: WeightPrediction) -> Any:
        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Tensor | None:
            if not prepared.gradient_state.sync_gradients:
                return None  # no step follows, and the gradients are not complete
            if prepared.scaler is not None:
                prepared.scaler.unscale_(optimizer)
            return optimizer.clip_grad_norm_(*args, **kwargs)

        return clip_grad_norm_


def forward_names() -> None:
    """Let prepared optimizers answer to what they do not forward by themselves.

    Gives accelerate's ``AcceleratedOptimizer`` the names ``weights_are``, ``true_weights``,
    ``predict``, ``restore``, ``reset_time`` and ``clip_grad_norm_``, as far as the class lacks
    them. For other optimizers nothing changes: prepared, they have no such attributes. A second
    call does nothing.

    ``clip_grad_norm_`` of a prepared optimizer does nothing and returns None while gradients
    accumulate, as its ``step`` does nothing then. With a gradient scaler it calls ``unscale_``, as
    ``Accelerator.clip_grad_norm_`` does.

    Example:
        >>> wpadamw.integrations.accelerate.forward_names()
        >>> model, opt = accelerator.prepare(model, opt)
        >>> with opt.true_weights():
        ...     ema.step(model.parameters())
    """
    for name in NAMES:
        if not hasattr(AcceleratedOptimizer, name):
            make = _Clip if name == "clip_grad_norm_" else _Forward
            setattr(AcceleratedOptimizer, name, make(name))
