"""Hooks on a model that make mode calls unnecessary."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn

from wpadamw.compat import disable_dynamo
from wpadamw.weight_prediction import WeightPrediction


class _Hook:
    """A hook that acts on one module object only: copies of the model carry an inert one."""

    def __init__(self, module: nn.Module, optimizer: WeightPrediction) -> None:
        self.module = weakref.ref(module)
        self.optimizer: WeightPrediction | None = optimizer

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, (type(self),)

    def _owner(self, module: nn.Module) -> WeightPrediction | None:
        return self.optimizer if self.module() is module else None


class _FollowMode(_Hook):
    """Before a forward: predicted weights in training mode, true weights in evaluation mode."""

    @disable_dynamo
    def __call__(self, module: nn.Module, *args: Any) -> None:
        if (optimizer := self._owner(module)) is not None:
            if module.training:
                optimizer.predict()
            else:
                optimizer.restore()


class _RestoreBeforeSaving(_Hook):
    """Before ``state_dict()``: true weights. The next training forward predicts again."""

    def __call__(self, module: nn.Module, *args: Any) -> None:
        if (optimizer := self._owner(module)) is not None:
            optimizer.restore()


def _inert(kind: type[_Hook]) -> _Hook:
    hook = kind.__new__(kind)
    hook.module, hook.optimizer = _nothing, None  # type: ignore[assignment]
    return hook


def _nothing() -> None:
    return None


class Attachment:
    """What `attach` returns."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def remove(self) -> None:
        """Take the hooks off. The parameters keep the weights that they hold."""
        for handle in self._handles:
            handle.remove()


def attach(model: nn.Module, optimizer: WeightPrediction) -> Attachment:
    """Let a model's own modes decide which weights it holds.

    A forward of ``model`` in training mode sees predicted weights, one in evaluation mode true
    weights, and ``state_dict()`` of it or of a part returns true weights. As in torch the returned
    tensors are the parameters' own: the next training forward changes them.

    Args:
        model: the module whose ``forward`` the training loop calls.
        optimizer: holds the model's parameters.

    Returns:
        A handle; its ``remove()`` takes the hooks off.

    Raises:
        TypeError: if an argument is of another type.

    Example:
        >>> wpadamw.attach(model, opt)
        >>> model.eval(); evaluate(model)              # true weights
        >>> torch.save(model.state_dict(), "model.pt")  # true weights
        >>> model.train(); train(model)                # predicted weights
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    optimizer = getattr(optimizer, "optimizer", optimizer)  # a wrapper of accelerate
    if not isinstance(optimizer, WeightPrediction):
        raise TypeError(f"optimizer must be one of wpadamw's, got {type(optimizer).__name__}")
    handles = [model.register_forward_pre_hook(_FollowMode(model, optimizer), prepend=True)]
    for module in model.modules():
        hook = _RestoreBeforeSaving(module, optimizer)
        handles.append(module.register_state_dict_pre_hook(hook))  # type: ignore[no-untyped-call]
    return Attachment(handles)
