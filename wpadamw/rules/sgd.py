"""SGD with momentum, as ``torch.optim.SGD`` has it (Sutskever et al. 2013 with lr outside)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from wpadamw.rules.rule import Group, Rule, State


class SGD(Rule):
    """Coupled decay; the prediction goes along the momentum, which carries the decay in itself."""

    name = "sgd"
    state_names = ("momentum_buffer",)
    has_time = False

    class Hyper(NamedTuple):
        """The hyper-parameters of a group."""

        lr: float
        momentum: float
        dampening: float
        weight_decay: float
        nesterov: float  # 1 or 0

    class Step(NamedTuple):
        """What an update needs."""

        weight_decay: float
        momentum: float  # 0 in the first update, which takes the gradient as it is
        grad_size: float  # 1 - dampening; 1 in the first update and without momentum
        grad_share: float  # of the gradient in the direction of the step: 1 for Nesterov, else 0
        momentum_share: float  # of the momentum: its factor for Nesterov, else 1
        lr: float

    class Look(NamedTuple):
        """What predictions need."""

        predict_size: float  # share*lr*momentum^ahead

    still = Look(0.0)

    def hyper(self, group: Group, lr: float | Tensor) -> Hyper:
        """The hyper-parameters of a group."""
        return self.Hyper(
            lr,  # type: ignore[arg-type]
            float(group["momentum"]),
            float(group["dampening"]),
            float(group["weight_decay"]),
            float(group["nesterov"]),
        )

    def scalars(
        self,
        hyper: Hyper,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Step, Look]:
        """The scalars of update number ``count`` and of a share of a later one, predicted."""
        lr, momentum, dampening, weight_decay, nesterov = hyper
        # 1 without momentum and in the first update, else 0: 0^0 = 1.
        is_plain = power((momentum == 0.0) * 1.0, count - 1)
        step = self.Step(
            weight_decay,
            momentum * (1.0 - is_plain),
            1.0 - dampening * (1.0 - is_plain),
            nesterov,
            1.0 - nesterov + nesterov * momentum,
            lr,
        )
        return step, self.Look(share * lr * power(momentum, ahead))

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Step, look: Look
    ) -> tuple[Tensor, State]:
        """``g = g + w*decay``, ``m = m*momentum + g*grad_size``, ``w`` moves along their mix."""
        (momentum_buffer,) = state
        grad = grad + weight * step.weight_decay
        momentum_buffer = momentum_buffer * step.momentum + grad * step.grad_size
        direction = grad * step.grad_share + momentum_buffer * step.momentum_share
        return weight - direction * step.lr, (momentum_buffer,)

    def predict(self, weight: Tensor, state: State, look: Look) -> Tensor:
        """``p = w - m*predict_size``."""
        return weight - state[0] * look.predict_size

    def recover(self, predicted: Tensor, state: State, look: Look) -> Tensor:
        """``w = p + m*predict_size``."""
        return predicted + state[0] * look.predict_size
