"""Rules for the number of steps to predict, which the study tries: what should it follow?

A rule sees how far a training is and gives the ``prediction_steps`` of both groups of
`wpadamw.bench.study.comparison.parameter_groups`: of the matrices, and of biases and norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch.optim import Optimizer

from .comparison import warmup_cosine
from .foresight import Foresight

WARMUP_SHARE = 0.3
BEST_WEIGHT = 0.2  # of the last measurement in the slow average
BEST_RANGE = (0.1, 10.0)

Steps = tuple[float, float]


class Moment(NamedTuple):
    """Where a training is.

    Args:
        step: of the next update, from 1.
        num_steps: of the whole training.
        best: per group a slow average of the number of steps that would have foreseen updates best,
            as far as it was measured, else 1.
    """

    step: int
    num_steps: int
    best: Steps


RULES: dict[str, Callable[[Moment], Steps]] = {
    "2, matrices only": lambda now: (2.0, 0.0),
    "2, warmed up": lambda now: _both(2 * min(now.step / (WARMUP_SHARE * now.num_steps), 1.0)),
    # As far as the learning rate is below its highest, so far less is predicted.
    "2 x schedule": lambda now: _both(2 * warmup_cosine(now.step - 1, now.num_steps)),
    "best": lambda now: now.best,
    "2 x best": lambda now: (2 * now.best[0], 2 * now.best[1]),
}


def _both(steps: float) -> Steps:
    return steps, steps


class Lookahead:
    """Sets the ``prediction_steps`` of an optimizer's groups before each step."""

    def __init__(self, rule: str | None, optimizer: Optimizer, num_steps: int) -> None:
        self.rule = None if rule is None else RULES[rule]
        self.groups, self.num_steps = optimizer.param_groups, num_steps
        self.best = [1.0, 1.0]

    def set(self, step: int) -> None:
        """The next prediction, made by this step, goes as far as the rule says."""
        if self.rule is not None:
            steps = self.rule(Moment(step, self.num_steps, (self.best[0], self.best[1])))
            for group, value in zip(self.groups, steps, strict=True):
                group["prediction_steps"] = value

    def learn(self, seen: Sequence[Foresight | None]) -> None:
        """Take a measurement into the average; None where a group was not predicted."""
        low, high = BEST_RANGE
        for i, found in enumerate(seen):
            if found is not None:
                nearest = min(max(found.best_steps, low), high)
                self.best[i] += BEST_WEIGHT * (nearest - self.best[i])
