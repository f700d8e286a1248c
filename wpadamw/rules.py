"""The update rules in plain PyTorch: the specification that every other backend equals bit for bit.

Out of place, one rounding per operation, in this order (docs/numerics.md). A rule is an object
without state of its own: the tensors come in and go out.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from wpadamw.scalars import Scalars

State = tuple[Tensor, ...]


def sqrt(x: Tensor) -> Tensor:
    """The correctly rounded square root of float32 or float64."""
    # torch.sqrt calls a vector library on CPU that is off by one ulp for some inputs. float32 goes
    # through float64; float64 through the complex root, which is libm's and exact for reals.
    if x.dtype == torch.float64 and x.device.type == "cpu":
        root = torch.complex(x, torch.zeros_like(x)).sqrt().real
        return torch.where(x > 0, root, x.sqrt())  # negative numbers have no real root: NaN
    return x.double().sqrt().to(x.dtype)


class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2)."""

    name: ClassVar[str] = "adamw"
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    def update(self, state: State, grad: Tensor, s: Scalars) -> State:
        """The moments after gradient ``grad``."""
        exp_avg, exp_avg_sq = state
        exp_avg = exp_avg + (grad - exp_avg) * s.one_minus_beta1
        exp_avg_sq = exp_avg_sq * s.beta2 + (grad * grad) * s.one_minus_beta2
        return exp_avg, exp_avg_sq

    def direction(self, state: State, s: Scalars) -> Tensor:
        """``u = m / (sqrt(v)*inv_sqrt_bc2 + eps)``."""
        return state[0] / (sqrt(state[-1]) * s.inv_sqrt_bc2 + s.eps)

    def step_weight(self, weight: Tensor, direction: Tensor, s: Scalars) -> Tensor:
        """``w = w*decay - u*step_size``."""
        return weight * s.decay - direction * s.step_size

    def predict_weight(self, weight: Tensor, direction: Tensor, s: Scalars) -> Tensor:
        """``p = w*predict_decay - u*predict_size``."""
        return weight * s.predict_decay - direction * s.predict_size

    def recover_weight(self, predicted: Tensor, direction: Tensor, s: Scalars) -> Tensor:
        """``w = (p + u*predict_size) / predict_decay``: the prediction solved for ``w``."""
        divisor: float | Tensor = s.predict_decay
        if not isinstance(divisor, Tensor):  # on CUDA division by a number would multiply
            divisor = torch.full_like(predicted, divisor)
        return (predicted + direction * s.predict_size) / divisor


class AMSGrad(AdamW):
    """AdamW with the running maximum of v in its place (Reddi et al. 2018, arXiv 1904.09237)."""

    name = "amsgrad"
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def update(self, state: State, grad: Tensor, s: Scalars) -> State:
        """The moments and the running maximum after gradient ``grad``."""
        exp_avg, exp_avg_sq = super().update(state[:2], grad, s)
        return exp_avg, exp_avg_sq, torch.maximum(state[2], exp_avg_sq)
