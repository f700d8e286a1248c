"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, Algorithm 2)."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from wpadamw.rules.rule import Group, Row, Rule, State, sqrt, why_decay_is_too_strong


class AdamW(Rule):
    """Decoupled weight decay; the prediction goes along the direction of the last update."""

    name = "adamw"
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    squares: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)

    class Hyper(NamedTuple):
        """The hyper-parameters of a group."""

        lr: float
        beta1: float
        beta2: float
        eps: float
        weight_decay: float
        predicted_decay: float  # weight_decay, or 0 where predictions leave the decay out

    class Step(NamedTuple):
        """What an update needs."""

        one_minus_beta1: float
        beta2: float
        one_minus_beta2: float
        decay: float  # 1 - lr*weight_decay
        step_size: float  # lr / (1 - beta1^k)

    class Look(NamedTuple):
        """What the direction and predictions along it need."""

        inv_sqrt_bc2: float  # 1 / sqrt(1 - beta2^k)
        eps: float
        predict_decay: float  # 1 - share*lr*predicted_decay
        predict_size: float  # share*lr*beta1^ahead / (1 - beta1^k)

    still: ClassVar[Row] = Look(0.0, 1.0, 1.0, 0.0)

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The hyper-parameters of a group."""
        beta1, beta2 = group["betas"]
        weight_decay = float(group["weight_decay"])
        return AdamW.Hyper(
            lr,  # type: ignore[arg-type]
            float(beta1),
            float(beta2),
            float(group["eps"]),
            weight_decay,
            weight_decay if group["predict_decay"] else 0.0,
        )

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
        lr, beta1, beta2, eps, weight_decay, predicted_decay = hyper
        bias_correction1 = 1.0 - power(beta1, count + ahead)
        # By position: twice as fast as by name.
        step = AdamW.Step(
            1.0 - beta1, beta2, 1.0 - beta2, 1.0 - lr * weight_decay, lr / bias_correction1
        )
        look = AdamW.Look(
            1.0 / sqrt(1.0 - power(beta2, count + ahead)),
            eps,
            1.0 - share * lr * predicted_decay,
            share * lr * power(beta1, ahead) / bias_correction1,
        )
        return step, look

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, State]:
        """``w = w*decay - u*step_size``."""
        exp_avg, *others = self.moments(state, grad, step)
        mean = self.mean_of_step(exp_avg, grad, step)
        weight = self.move(weight, self.direction((mean, *others), look), step)
        return weight, (exp_avg, *others)

    def predict(self, weight: Tensor, state: State, look: Row) -> Tensor:
        """``p = w*predict_decay - u*predict_size``."""
        return weight * look.predict_decay - self.direction(state, look) * look.predict_size

    def recover(self, predicted: Tensor, state: State, look: Row) -> Tensor:
        """``w = (p + u*predict_size) / predict_decay``."""
        return (predicted + self.direction(state, look) * look.predict_size) / look.predict_decay

    def moments(self, state: State, grad: Tensor, step: Row) -> State:
        """``m = m + (g - m)*(1-beta1)``, ``v = v*beta2 + (g*g)*(1-beta2)``."""
        exp_avg, exp_avg_sq = state
        exp_avg = self.mean(exp_avg, grad, step)
        exp_avg_sq = exp_avg_sq * step.beta2 + (grad * grad) * step.one_minus_beta2
        return exp_avg, exp_avg_sq

    def mean(self, exp_avg: Tensor, grad: Tensor, step: Row) -> Tensor:
        """``m + (g - m)*(1-beta1)``."""
        return exp_avg + (grad - exp_avg) * step.one_minus_beta1

    def mean_of_step(self, exp_avg: Tensor, grad: Tensor, step: Row) -> Tensor:
        """What an update moves along: m, as predictions do."""
        return exp_avg

    def direction(self, state: State, look: Row) -> Tensor:
        """``u = m / (sqrt(v)*inv_sqrt_bc2 + eps)``."""
        return state[0] / (sqrt(state[-1]) * look.inv_sqrt_bc2 + look.eps)

    def move(self, weight: Tensor, direction: Tensor, step: Row) -> Tensor:
        """The weight moved along a direction."""
        return weight * step.decay - direction * step.step_size

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """The decay of a prediction must not reach the whole weight."""
        return why_decay_is_too_strong(group, lr)


class AdamWOfRest(AdamW):
    """AdamW by those options of a group that are for parameters that are no matrices.

    Attributes:
        lr_factor: the name of the option that is their lr over the group's.
        options: by AdamW's names those of their other options; None there is the group's own value.
    """

    lr_factor: ClassVar[str]
    options: ClassVar[dict[str, str]]

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The hyper-parameters of these parameters of a group."""
        return super().hyper(self._of_rest(group), lr * group[self.lr_factor])

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """The decay of a prediction must not reach the whole weight."""
        return super().why_not_recoverable(self._of_rest(group), lr * group[self.lr_factor])

    def _of_rest(self, group: Group) -> Group:
        theirs = {name: group[option] for name, option in self.options.items()}
        return {**group, **{name: value for name, value in theirs.items() if value is not None}}
