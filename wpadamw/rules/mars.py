"""MARS-AdamW (Yuan et al. 2024, arXiv 2411.10438), approximate: with the last batch's gradient."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from wpadamw.rules.adamw import AdamW
from wpadamw.rules.rule import Group, Row, State, maximum, root


class MARS(AdamW):
    """AdamW on ``c = (g - last_g)*gamma*beta1/(1 - beta1) + g``, clipped to a norm of 1."""

    name = "mars"
    # The second moment last: directions take it from there.
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "last_grad", "exp_avg_sq")
    squares: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)
    whole_names: ClassVar[tuple[str, ...]] = ("last_grad",)
    num_terms: ClassVar[int] = 1

    class Hyper(NamedTuple):
        """The hyper-parameters of a group."""

        lr: float
        beta1: float
        beta2: float
        eps: float
        weight_decay: float
        predicted_decay: float  # weight_decay, or 0 where predictions leave the decay out
        gamma: float

    class Step(NamedTuple):
        """What an update needs."""

        one_minus_beta1: float
        beta2: float
        one_minus_beta2: float
        decay: float  # 1 - lr*weight_decay
        step_size: float  # lr / (1 - beta1^k)
        correction: float  # gamma*beta1 / (1 - beta1)
        clip_factor: float  # 1 / max(1, |c|)

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The hyper-parameters of a group."""
        return MARS.Hyper._make((*super().hyper(group, lr), float(group["gamma"])))

    def scalars(
        self,
        hyper: Row,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Row, Row]:
        """Those of AdamW, and of the correction; nothing is clipped."""
        step, look = super().scalars(hyper[:6], count, ahead, share, power, sqrt)
        correction = hyper.gamma * hyper.beta1 / (1.0 - hyper.beta1)
        return MARS.Step._make((*step, correction, 1.0)), look

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, State]:
        """That of AdamW with the corrected gradient; the gradient itself is kept."""
        exp_avg, last_grad, exp_avg_sq = state
        clipped = self.corrected(grad, last_grad, step) * step.clip_factor
        weight, state = super().step(weight, (exp_avg, exp_avg_sq), clipped, step, look)
        return weight, (state[0], grad, state[1])

    def corrected(self, grad: Tensor, last_grad: Tensor, step: Row) -> Tensor:
        """``c = (g - last_g)*correction + g``."""
        return (grad - last_grad) * step.correction + grad

    def terms(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, ...]:
        """``c*c``."""
        corrected = self.corrected(grad, state[1], step)
        return (corrected * corrected,)

    def with_sums(self, hyper: Row, step: Row, look: Row, sums: Sequence[Any]) -> tuple[Row, Row]:
        """``clip_factor = 1 / max(1, sqrt(sum))``."""
        return step._replace(clip_factor=1.0 / maximum(root(sums[0]), 1.0)), look
