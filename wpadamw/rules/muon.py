"""Muon (Jordan et al. 2024; Liu et al. 2025, arXiv 2502.16982)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from wpadamw.orthogonal import Updates
from wpadamw.rules.rule import Group, Rule, Settings, State, why_decay_is_too_strong


class Muon(Rule):
    """What stands in the place of the gradient is the finished update of the matrix.

    It is kept: predictions go along it, each update ahead by its whole size, as the orthogonal
    matrix of a momentum that shrinks remains the same. The momentum is written apart from this.
    """

    name = "muon"
    state_names = ("momentum_buffer", "direction")
    own_names = ("direction",)
    has_time = False
    is_of_matrices = True

    class Hyper(NamedTuple):
        """The hyper-parameters of a group."""

        lr: float
        weight_decay: float
        predicted_decay: float  # weight_decay, or 0 where predictions leave the decay out

    class Step(NamedTuple):
        """What an update needs."""

        decay: float  # 1 - lr*weight_decay
        step_size: float  # lr

    class Look(NamedTuple):
        """What predictions need."""

        predict_decay: float  # 1 - share*lr*predicted_decay
        predict_size: float  # share*lr

    still = Look(1.0, 0.0)

    def hyper(self, group: Group, lr: float | Tensor) -> Hyper:
        """The hyper-parameters of a group."""
        weight_decay = float(group["weight_decay"])
        predicted_decay = weight_decay if group["predict_decay"] else 0.0
        return self.Hyper(lr, weight_decay, predicted_decay)  # type: ignore[arg-type]

    def settings(self, group: Group, lr: float | Tensor) -> Settings:
        """The same, how far its predictions go, and how the updates are computed."""
        updates = Updates(
            float(group["momentum"]),
            bool(group["nesterov"]),
            tuple(map(float, group["ns_coefficients"])),
            float(group["eps"]),
            int(group["ns_steps"]),
            group["adjust_lr_fn"],
        )
        return super().settings(group, lr)._replace(updates=updates)

    def scalars(
        self,
        hyper: Hyper,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Step, Look]:
        """The scalars of an update and of a share of a later one, which is as large."""
        lr, weight_decay, predicted_decay = hyper
        step = self.Step(1.0 - lr * weight_decay, lr)
        return step, self.Look(1.0 - share * lr * predicted_decay, share * lr)

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Step, look: Look
    ) -> tuple[Tensor, State]:
        """``w = w*decay - u*step_size`` along the finished update u."""
        return weight * step.decay - grad * step.step_size, (state[0], grad)

    def predict(self, weight: Tensor, state: State, look: Look) -> Tensor:
        """``p = w*predict_decay - u*predict_size``."""
        return weight * look.predict_decay - state[1] * look.predict_size

    def recover(self, predicted: Tensor, state: State, look: Look) -> Tensor:
        """``w = (p + u*predict_size) / predict_decay``."""
        return (predicted + state[1] * look.predict_size) / look.predict_decay

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """The decay of a prediction must not reach the whole weight."""
        return why_decay_is_too_strong(group, lr)
