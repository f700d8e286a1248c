"""Averages of the true weights, beside any rule: one more state, moved by the rule's own updates.

Switch EMA (Li et al. 2024, arXiv 2402.09240). Kernels know them apart from rules: a rule with
averages is served by the files of the rule alone.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable
from typing import Any

from torch import Tensor

from wpadamw.rules.around import Around
from wpadamw.rules.rule import Group, Row, Rule, State

NAME = "average"


class Averaged(Around):
    """A rule that keeps the exponential average of the true weights ``w_1 ... w_k``, too.

    Corrected for its beginning: ``w_j`` counts ``ema*(1-ema)^(k-j) / (1 - (1-ema)^k)``.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__(
            rule,
            ("average_share",),
            state_names=(*rule.state_names, NAME),
            from_weight=(*rule.from_weight, NAME),
            whole_names=(*rule.whole_names, NAME),
            Hyper=namedtuple("Hyper", (*rule.Hyper._fields, "ema")),
        )

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The rule's hyper-parameters, and the share of a new weight."""
        return self.Hyper(*self.rule.hyper(group, lr), float(group["ema"]))

    def further(self, hyper: Row, count: Any, power: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
        """``average_share = ema / (1 - (1-ema)^k)``."""
        past = 1.0 - hyper[-1]
        # Not ema itself: the first share is exactly 1.
        return ((1.0 - past) / (1.0 - power(past, count)),)

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, State]:
        """``average = average + (w - average)*average_share`` after the rule's update."""
        *own, average = state
        weight, moved = self.rule.step(weight, tuple(own), grad, self._step(step), look)
        return weight, (*moved, average + (weight - average) * step.average_share)


@functools.cache
def averaged(rule: Rule) -> Averaged:
    """A rule with averages: the same object for the same rule, as plans compare them."""
    return Averaged(rule)
