"""What gradients are multiplied by in a step: the sign, the loss scale, the clipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw.compat import total_norm

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


def grad_norm(groups: Sequence[Group], norm_type: float, error_if_nonfinite: bool) -> Tensor:
    """The norm of all gradients of parameter groups together."""
    grads = [param.grad for group in groups for param in group["params"]]
    return total_norm([g for g in grads if g is not None], norm_type, error_if_nonfinite)


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """The factor of at most 1 of `torch.nn.utils.clip_grad_norm_`."""
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)
