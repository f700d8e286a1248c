"""AdaBelief (Zhuang et al. 2020, arXiv 2010.07468, Algorithm 2), also rectified as RAdam."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from wpadamw.rules.adamw import AdamW
from wpadamw.rules.rule import Group, Row, State, shares, sqrt

# What groups say that lack these options: those of rules that are derived from this one.
_DEFAULTS = {
    "weight_decouple": True,
    "fixed_decay": False,
    "rectify": False,
    "degenerated_to_sgd": True,
}


class AdaBelief(AdamW):
    """The second moment is that of the residuals: of what the momentum did not foretell."""

    name = "adabelief"
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_var")
    squares: ClassVar[tuple[str, ...]] = ("exp_avg_var",)

    class Hyper(NamedTuple):
        """The hyper-parameters of a group."""

        lr: float
        beta1: float
        beta2: float
        state_eps: float  # eps where it is added: to the state,
        root_eps: float  # under the root,
        outer_eps: float  # to the root,
        rectified_eps: float  # to the root of a rectified update
        coupled_decay: float  # weight_decay where it is added to gradients,
        lr_decay: float  # where it shrinks weights by its product with lr,
        fixed_decay: float  # or by itself; 0 where it does not
        predicts_decay: float  # 1 or 0
        rectify: float  # 1 or 0
        degenerate: float  # 1 where updates that cannot be rectified go along m, 0 for none

    class Step(NamedTuple):
        """What an update needs."""

        one_minus_beta1: float
        beta2: float
        one_minus_beta2: float
        state_eps: float
        weight_decay: float
        decay: float  # 1 - lr*weight_decay, or 1 - weight_decay
        step_size: float  # lr / (1 - beta1^k), rectified

    class Look(NamedTuple):
        """What the direction and predictions along it need."""

        root_eps: float  # eps*(1 - beta2^k), or 0
        root_size: float  # 1 / sqrt(1 - beta2^k); 1 rectified, 0 along m
        eps: float  # 1 along m
        predict_decay: float  # 1 - share*lr*weight_decay, or 1 - share*weight_decay, or 1
        predict_size: float  # share*lr*beta1^ahead / (1 - beta1^k), rectified

    still: ClassVar[Row] = Look(0.0, 0.0, 1.0, 1.0, 0.0)

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The hyper-parameters of a group."""
        group = {**_DEFAULTS, **group}
        beta1, beta2 = map(float, group["betas"])
        return AdaBelief.Hyper(
            lr,  # type: ignore[arg-type]
            beta1,
            beta2,
            *self.epsilons(group),
            *_decays(group),
            float(group["predict_decay"]),
            float(group["rectify"]),
            float(group["degenerated_to_sgd"]),
        )

    def epsilons(self, group: Group) -> tuple[float, float, float, float]:
        """What is added to the state, under the root, to it, and to that of a rectified update."""
        eps, mode = float(group["eps"]), group["eps_mode"]
        outer = 0.0 if mode == "inside" else eps
        return eps * (mode == "accumulating"), eps * (mode == "inside"), outer, outer

    def scalars(
        self,
        hyper: Row,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Row, Row]:
        """The scalars of update ``k = count + ahead`` and of a share of it, predicted."""
        h, k = hyper, count + ahead
        beta2_k = power(h.beta2, k)
        bias_correction2 = 1.0 - beta2_k
        is_plain, is_rectified, is_along_m, size = _rectification(h, k, beta2_k, sqrt)
        size = h.lr * size / (1.0 - power(h.beta1, k))
        decay = h.lr * h.lr_decay + h.fixed_decay
        step = AdaBelief.Step(
            1.0 - h.beta1,
            h.beta2,
            1.0 - h.beta2,
            h.state_eps,
            h.coupled_decay,
            1.0 - decay,
            size,
        )
        look = AdaBelief.Look(
            (1.0 - is_along_m) * h.root_eps * bias_correction2,
            is_plain / sqrt(bias_correction2) + is_rectified,
            is_plain * h.outer_eps + is_rectified * h.rectified_eps + is_along_m,
            1.0 - share * h.predicts_decay * decay,
            share * power(h.beta1, ahead) * size,
        )
        return step, look

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, State]:
        """``g = g + w*weight_decay``, ``w = w*decay - u*step_size``."""
        return super().step(weight, state, grad + weight * step.weight_decay, step, look)

    def moments(self, state: State, grad: Tensor, step: Row) -> State:
        """``m = m + (g - m)*(1-beta1)``, ``s = s*beta2 + (r*r)*(1-beta2) + eps``."""
        exp_avg, exp_avg_var = state
        exp_avg = self.mean(exp_avg, grad, step)
        residual = self.residual(exp_avg, grad)
        exp_avg_var = exp_avg_var * step.beta2 + (residual * residual) * step.one_minus_beta2
        return exp_avg, exp_avg_var + step.state_eps

    def residual(self, exp_avg: Tensor, grad: Tensor) -> Tensor:
        """``r = g - m``, of the new m."""
        return grad - exp_avg

    def direction(self, state: State, look: Row) -> Tensor:
        """``u = m / (sqrt(s + root_eps)*root_size + eps)``."""
        return state[0] / (sqrt(state[-1] + look.root_eps) * look.root_size + look.eps)

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """The decay of a prediction must not reach the whole weight."""
        group = {**_DEFAULTS, **group}
        if not group["weight_decouple"]:
            return None
        if not group["fixed_decay"]:
            return super().why_not_recoverable(group, lr)
        share, weight_decay = max(shares(group)), group["weight_decay"]
        if not group["predict_decay"] or share * weight_decay < 1.0:
            return None
        return f"needs prediction_steps * weight_decay < 1, got {share} * {weight_decay}"


def _decays(group: Group) -> tuple[float, float, float]:
    """The decay where it is: in the gradient, by its product with lr, or by itself."""
    weight_decay = float(group["weight_decay"])
    is_decoupled, is_fixed = bool(group["weight_decouple"]), bool(group["fixed_decay"])
    return (
        weight_decay * (not is_decoupled),
        weight_decay * (is_decoupled and not is_fixed),
        weight_decay * (is_decoupled and is_fixed),
    )


def _rectification(
    h: AdaBelief.Hyper, k: Any, beta2_k: Any, sqrt: Callable[[Any], Any]
) -> tuple[Any, Any, Any, Any]:
    """Whether update ``k`` is plain, rectified or along m, 1 or 0 each, and a factor of its size.

    By how many gradients are in the average (Liu et al. 2019, arXiv 1908.03265, Algorithm 2).
    """
    longest = 2.0 / (1.0 - h.beta2) - 1.0
    length = longest - 2.0 * beta2_k * k / (1.0 - beta2_k)
    # Factors, not cases: tensors of float64 stay so, and what does not hold stays out of the root.
    is_rectified = h.rectify * (length >= 5.0)
    is_along_m, is_plain = h.rectify - is_rectified, 1.0 - h.rectify
    n = length * is_rectified + 5.0 * (1.0 - is_rectified)
    n_max = longest * is_rectified + 5.0 * (1.0 - is_rectified)
    rectified_size = sqrt(
        (1.0 - beta2_k) * (n - 4.0) / (n_max - 4.0) * (n - 2.0) / n * n_max / (n_max - 2.0)
    )
    size = is_plain + is_rectified * rectified_size + is_along_m * h.degenerate
    return is_plain, is_rectified, is_along_m, size
