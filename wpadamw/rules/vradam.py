"""VRAdam (arXiv 2505.13196): the learning rate falls where the momentum is large."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from wpadamw.rules.adamw import AdamW
from wpadamw.rules.rule import Group, Row, Scope, State, minimum


class VRAdam(AdamW):
    """AdamW with the learning rate ``lr / (1 + min(beta3*|m|^2, lr_cutoff))``; m is uncorrected."""

    name = "vradam"
    num_terms: ClassVar[int] = 1

    class Hyper(NamedTuple):
        """The hyper-parameters of a group."""

        lr: float
        beta1: float
        beta2: float
        eps: float
        weight_decay: float
        predicted_decay: float  # weight_decay, or 0 where predictions leave the decay out
        beta3: float
        lr_cutoff: float

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The hyper-parameters of a group."""
        own = float(group["beta3"]), float(group["lr_cutoff"])
        return VRAdam.Hyper._make((*super().hyper(group, lr), *own))

    def scalars(
        self,
        hyper: Row,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Row, Row]:
        """Those of AdamW with the highest learning rate."""
        return super().scalars(hyper[:6], count, ahead, share, power, sqrt)

    def scope(self, group: Group) -> Scope:
        """What the norm is of."""
        scope: Scope = group["norm_scope"]
        return scope

    def terms(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, ...]:
        """``m*m``, of the new m."""
        exp_avg = self.mean(state[0], grad, step)
        return (exp_avg * exp_avg,)

    def with_sums(self, hyper: Row, step: Row, look: Row, sums: Sequence[Any]) -> tuple[Row, Row]:
        """Every lr times ``1 / (1 + min(beta3*sum, lr_cutoff))``."""
        factor = 1.0 / (1.0 + minimum(hyper.beta3 * sums[0], hyper.lr_cutoff))
        step = step._replace(
            decay=1.0 - (1.0 - step.decay) * factor, step_size=step.step_size * factor
        )
        look = look._replace(
            predict_decay=1.0 - (1.0 - look.predict_decay) * factor,
            predict_size=look.predict_size * factor,
        )
        return step, look
