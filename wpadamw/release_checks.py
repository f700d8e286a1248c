"""What cannot be done while gradients are released. Checks raise before anything is written."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from wpadamw import layout
from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.rule import Rules

IN_PIPELINE = "an optimizer of a pipeline must not release gradients: micro-batches add them up"
REPLICATED = (
    "model must not be replicated, got one in DistributedDataParallel, which adds gradients up "
    "after they would have been used: train it without release_gradients"
)


def check_model(model: Any) -> None:
    """Raises TypeError for what is no model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def check_no_replicas(params: Iterable[Tensor]) -> None:
    """Raises TypeError for parameters of a model in DistributedDataParallel.

    Parameters and models do not know of it, and it keeps no list: so this looks at all objects.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    own = set(map(id, params))
    kind = nn.parallel.DistributedDataParallel
    models = [each for each in gc.get_objects() if issubclass(type(each), kind)]
    if not all(own.isdisjoint(map(id, model.parameters())) for model in models):
        raise TypeError(REPLICATED)


def check_params(names: Mapping[Tensor, str], optimizer: WeightPrediction) -> None:
    """Raises for parameters whose gradients cannot be released, by their names in the model."""
    if not names:
        raise ValueError("model must hold parameters of the optimizer, got one that has none")
    if optimizer.releases_gradients:
        raise ValueError("optimizer releases gradients already: call remove() of that before")
    for param, name in names.items():
        if layout.is_dtensor(param):
            raise TypeError(f"{name} must not be sharded, got a DTensor: use hand_over, or attach")
    check_no_replicas(names)


def check_running(optimizer: WeightPrediction) -> None:
    """Raises for what needs more than the gradient of one parameter."""
    clients = optimizer._clients
    clients.check_no_averages("backward() with released gradients")
    if any(_is_of_pipeline(hook) for hook in clients.mode_hooks.values()):
        raise RuntimeError(IN_PIPELINE)
    if optimizer.amp:
        raise ValueError("amp must be False with released gradients, got True")
    for i, group in enumerate(optimizer.param_groups):
        _check_group(group, optimizer._rules(group), f"param_groups[{i}]")


def _check_group(group: Group, rules: Rules, where: str) -> None:
    for name in ("capturable", "track_prediction"):
        if group[name]:
            found = f"got {group[name]!r:.200} in {where}"
            raise ValueError(f"{name} must be False with released gradients, {found}")
    for rule in rules:
        if rule.num_terms and (scope := rule.scope(group)) != "tensor":
            raise ValueError(
                f"rule {rule.name!r} must sum over each tensor with released gradients, got "
                f"norm_scope={scope!r} in {where}"
            )


def _is_of_pipeline(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("wpadamw.pipeline.")
