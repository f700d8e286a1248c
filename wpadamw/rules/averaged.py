"""Averages of the true weights, beside any rule: one more state, moved by the rule's own updates.

Switch EMA (Li et al. 2024, arXiv 2402.09240). Kernels know them apart from rules: a rule with
averages is served by the files of the rule alone.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from wpadamw.rules.rule import Group, Row, Rule, Settings, State


class Averaged(Rule):
    """A rule that keeps the exponential average of the true weights ``w_1 ... w_k``, too.

    Corrected for its beginning: ``w_j`` counts ``ema*(1-ema)^(k-j) / (1 - (1-ema)^k)``.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        # What its class says of another rule.
        vars(self).update(
            name=rule.name,
            state_names=(*rule.state_names, "average"),
            from_weight=(*rule.from_weight, "average"),
            has_time=rule.has_time,
            unused_names=rule.unused_names,
            own_names=rule.own_names,
            is_of_matrices=rule.is_of_matrices,
            Hyper=namedtuple("Hyper", (*rule.Hyper._fields, "ema")),
            Step=namedtuple("Step", (*rule.Step._fields, "average_share")),
            Look=rule.Look,
            still=rule.still,
            num_terms=rule.num_terms,
            scope=rule.scope,
        )

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The rule's hyper-parameters, and the share of a new weight."""
        return self.Hyper(*self.rule.hyper(group, lr), float(group["ema"]))

    def settings(self, group: Group, lr: float | Tensor) -> Settings:
        """The rule's, with the share of a new weight."""
        return self.rule.settings(group, lr)._replace(hyper=self.hyper(group, lr))

    def scalars(
        self,
        hyper: Row,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Row, Row]:
        """The rule's, and ``average_share = ema / (1 - (1-ema)^k)``."""
        *own, ema = hyper
        step, look = self.rule.scalars(self.rule.Hyper(*own), count, ahead, share, power, sqrt)
        past = 1.0 - ema
        # Not ema itself: the first share is exactly 1.
        return self.Step(*step, (1.0 - past) / (1.0 - power(past, count + ahead))), look

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, State]:
        """``average = average + (w - average)*average_share`` after the rule's update."""
        *own, average = state
        weight, moved = self.rule.step(weight, tuple(own), grad, self._own(step), look)
        return weight, (*moved, average + (weight - average) * step.average_share)

    def predict(self, weight: Tensor, state: State, look: Row) -> Tensor:
        """That of the rule."""
        return self.rule.predict(weight, state[:-1], look)

    def recover(self, predicted: Tensor, state: State, look: Row) -> Tensor:
        """That of the rule."""
        return self.rule.recover(predicted, state[:-1], look)

    def terms(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, ...]:
        """Those of the rule."""
        return self.rule.terms(weight, state[:-1], grad, self._own(step), look)

    def with_sums(self, hyper: Row, step: Row, look: Row, sums: Sequence[Any]) -> tuple[Row, Row]:
        """Those of the rule."""
        own = self.rule.Hyper(*hyper[:-1])
        moved, look = self.rule.with_sums(own, self._own(step), look, sums)
        return self.Step(*moved, step.average_share), look

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """As the rule says."""
        return self.rule.why_not_recoverable(group, lr)

    def can_recover(self) -> bool:
        """As the rule says."""
        return self.rule.can_recover()

    def _own(self, step: Row) -> Row:
        return self.rule.Step(*step[:-1])


@functools.cache
def averaged(rule: Rule) -> Averaged:
    """A rule with averages: the same object for the same rule, as plans compare them."""
    return Averaged(rule)


def plain(rule: Rule) -> Rule:
    """A rule without averages."""
    return rule.rule if isinstance(rule, Averaged) else rule
