"""What accelerate makes of an optimizer, with the names of the optimizer in it.

`Accelerator.prepare` wraps optimizers in a class of its own, which forwards what torch's optimizers
have and nothing else.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

NAMES = (
    "weights_are",
    "true_weights",
    "averaged_weights",
    "switch_to_average",
    "set_true_weights",
    "prediction_stats",
    "predict",
    "restore",
    "reset_time",
    "clip_grad_norm_",
)


class _Forward:
    """An attribute of the class that is read from the wrapped optimizer, if it is one of ours."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, prepared: Any, owner: type) -> Any:
        if prepared is None:
            return self
        # A copy in the making has no attributes yet.
        optimizer = vars(prepared).get("optimizer")
        if not hasattr(optimizer, "weights_are"):
            raise AttributeError(
                f"{type(prepared).__name__!r} object has no attribute {self.name!r}"
            )
        return self.value(prepared, optimizer)

    def value(self, prepared: Any, optimizer: Any) -> Any:
        return getattr(optimizer, self.name)


class _Clip(_Forward):
    """Clipping between accelerate's gradient scaler and its accumulation."""

    def value(self, prepared: Any, optimizer: Any) -> Any:
        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Tensor | None:
            if not prepared.gradient_state.sync_gradients:
                return None  # no step follows, and the gradients are not complete
            if prepared.scaler is not None:
                prepared.scaler.unscale_(optimizer)
            norm: Tensor = optimizer.clip_grad_norm_(*args, **kwargs)
            return norm

        return clip_grad_norm_


def answer_through_accelerate() -> None:
    """Have prepared optimizers answer to what accelerate does not forward by itself.

    Where accelerate has been imported, its ``AcceleratedOptimizer`` gets the names of `NAMES`, as
    far as it lacks them. For other optimizers nothing changes: prepared, they have no such
    attributes. A second call does nothing.

    ``clip_grad_norm_`` of a prepared optimizer does nothing and returns None while gradients
    accumulate, as its ``step`` does nothing then. With a gradient scaler it calls ``unscale_``, as
    ``Accelerator.clip_grad_norm_`` does.
    """
    wrapper = getattr(sys.modules.get("accelerate.optimizer"), "AcceleratedOptimizer", None)
    for name in NAMES if wrapper is not None else ():
        if not hasattr(wrapper, name):
            make = _Clip if name == "clip_grad_norm_" else _Forward
            setattr(wrapper, name, make(name))
