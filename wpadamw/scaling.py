"""What gradients are multiplied by in a step: the sign, the loss scale, the clipping."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw.compat import total_norm, warn_caller
from wpadamw.rules.rule import sqrt

Group = dict[str, Any]


class Scaling(NamedTuple):
    """What a gradient scaler and clipping left for the next step, as tensors of one element."""

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None  # not 0: the step does nothing
    clip_factor: Tensor | None = None

    def seen_by_host(self, groups: Sequence[Group]) -> Scaling | None:
        """Itself, without the flag if the host had to look at it; None if the step is void."""
        devices = (param.device for group in groups for param in group["params"])
        if self.found_inf is None or all(map(layout.host_must_not_wait, devices)):
            return self
        return None if float(self.found_inf) != 0.0 else self._replace(found_inf=None)

    def factor(self, sign: float, device: torch.device) -> float | Tensor:
        """``sign / grad_scale * clip_factor`` for gradients on a device.

        A float64 tensor there if it would have to be waited for, otherwise a number.
        """
        factor: float | Tensor = sign
        if self.grad_scale is not None:
            factor = factor / _operand(self.grad_scale, device)
        if self.clip_factor is not None:
            factor = factor * _operand(self.clip_factor, device)
        return factor

    def found_inf_on(self, device: torch.device) -> Tensor | None:
        """The flag as a float32 tensor on a device."""
        if self.found_inf is None:
            return None
        return self.found_inf.to(device=device, dtype=torch.float32, non_blocking=True)


def _operand(value: Tensor | float, device: torch.device) -> float | Tensor:
    if not layout.host_must_not_wait(device) or not isinstance(value, Tensor):
        return float(value)
    return value.to(device=device, dtype=torch.float64, non_blocking=True)


class Clipping(NamedTuple):
    """A factor, and the gradients that it was computed from: those that carry this very mark."""

    factor: Tensor
    mark: object

    def belongs_to(self, groups: Sequence[Group]) -> bool:
        """Whether the gradients of this moment are those, as they were."""
        grads = _grads(groups)
        marks = [getattr(grad, _MARK, (None, None)) for grad in grads]
        if not any(mark is self.mark for mark, _ in marks):
            return False  # they are gone, and the factor with them
        if all(
            mark is self.mark and version == _version(grad)
            for grad, (mark, version) in zip(grads, marks, strict=True)
        ):
            return True
        warn_caller(CLIPPED_OTHERS)
        return False


CLIPPED_OTHERS = (
    "Gradients were written to after clip_grad_norm_, or others came to them. Its factor belongs "
    "to those that it was computed from, so this step is not clipped. Clip last, after "
    "accumulation and after the gradient scaler's unscale_."
)
_MARK = "_wpadamw_clipping"


def clip(
    groups: Sequence[Group],
    max_norm: float,
    norm_type: float,
    error_if_nonfinite: bool,
    squares: Callable[[], Tensor],
) -> tuple[Tensor, Clipping]:
    """The norm of all gradients of parameter groups together, and the factor that clips it.

    The factor of at most 1 is that of `torch.nn.utils.clip_grad_norm_`. ``squares`` sums the
    squares of all gradients, in float64.
    """
    grads = _grads(groups)
    if norm_type == 2.0 and grads and not any(map(layout.is_dtensor, grads)):
        norm = sqrt(squares()).to(_norm_dtype(grads))
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(NONFINITE.format(norm_type=norm_type))
    else:
        norm = total_norm(grads, norm_type, error_if_nonfinite)
    clipping = Clipping(torch.clamp(max_norm / (norm + 1e-6), max=1.0), object())
    for grad in grads:
        # On the tensor itself: the mark goes when the gradient goes, and keeps nothing alive.
        setattr(grad, _MARK, (clipping.mark, _version(grad)))
    return norm, clipping


NONFINITE = (
    "The total norm of order {norm_type} for gradients from `parameters` is non-finite, so it "
    "cannot be clipped. To disable this error and scale the gradients by the non-finite norm "
    "anyway, set `error_if_nonfinite=False`"
)


def _norm_dtype(grads: list[Tensor]) -> torch.dtype:
    """That of the gradients, float32 at least."""
    dtypes = [grad.dtype.to_real() for grad in grads]
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def _grads(groups: Sequence[Group]) -> list[Tensor]:
    grads = [param.grad for group in groups for param in group["params"]]
    return [grad for grad in grads if grad is not None]


def _version(grad: Tensor) -> int:
    return -1 if grad.is_inference() else grad._version
