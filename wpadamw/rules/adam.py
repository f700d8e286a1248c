"""Adam (Kingma & Ba 2015, arXiv 1412.6980, Algorithm 1) with the decay in the gradient."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from wpadamw.rules.adamw import AdamW
from wpadamw.rules.rule import Group, Row, State


class Adam(AdamW):
    """Coupled decay: it reaches weights and predictions through the moments alone."""

    name = "adam"

    class Hyper(NamedTuple):
        """The hyper-parameters of a group."""

        lr: float
        beta1: float
        beta2: float
        eps: float
        weight_decay: float

    class Step(NamedTuple):
        """What an update needs."""

        one_minus_beta1: float
        beta2: float
        one_minus_beta2: float
        weight_decay: float
        step_size: float  # lr / (1 - beta1^k)

    class Look(NamedTuple):
        """What the direction and predictions along it need."""

        inv_sqrt_bc2: float  # 1 / sqrt(1 - beta2^k)
        eps: float
        predict_size: float  # share*lr*beta1^ahead / (1 - beta1^k)

    still: ClassVar[Row] = Look(0.0, 1.0, 0.0)

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The hyper-parameters of a group."""
        return Adam.Hyper(*super().hyper(group, lr)[:5])

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
        step, look = super().scalars((*hyper, 0.0), count, ahead, share, power, sqrt)
        one_minus_beta1, beta2, one_minus_beta2, _decay, step_size = step
        inv_sqrt_bc2, eps, _predict_decay, predict_size = look
        step = Adam.Step(one_minus_beta1, beta2, one_minus_beta2, hyper.weight_decay, step_size)
        return step, Adam.Look(inv_sqrt_bc2, eps, predict_size)

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, State]:
        """``g = g + w*weight_decay``, ``w = w - u*step_size``."""
        return super().step(weight, state, grad + weight * step.weight_decay, step, look)

    def predict(self, weight: Tensor, state: State, look: Row) -> Tensor:
        """``p = w - u*predict_size``."""
        return weight - self.direction(state, look) * look.predict_size

    def recover(self, predicted: Tensor, state: State, look: Row) -> Tensor:
        """``w = p + u*predict_size``."""
        return predicted + self.direction(state, look) * look.predict_size

    def move(self, weight: Tensor, direction: Tensor, step: Row) -> Tensor:
        """The weight moved along a direction."""
        return weight - direction * step.step_size

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """There is no decay in a prediction."""
        return None
