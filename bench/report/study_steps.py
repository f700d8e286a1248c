"""How many steps an optimizer needs to the loss with which the reference ends."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from .markup import standard_error
from .study_results import Column, first_step_at


class Reach(NamedTuple):
    """How far the seeds got.

    Args:
        steps: of each seed that got there.
        saved: of all steps how many percent earlier than the reference it got there, a seed each.
        num_seeds: that were trained.
    """

    steps: Sequence[int]
    saved: Sequence[float]
    num_seeds: int

    @property
    def is_complete(self) -> bool:
        """Whether all seeds got there: a mean over those that did would flatter the others."""
        return len(self.steps) == self.num_seeds > 0

    @property
    def text(self) -> str:
        """The steps, and how many seeds got there where not all did."""
        mean = _mean_text(self.steps, ",.0f") if self.steps else ""
        count = "" if self.is_complete else f"{len(self.steps)} of {self.num_seeds}"
        return ", ".join(filter(None, (mean, count)))

    @property
    def saved_text(self) -> str:
        """The steps saved, where all seeds got there."""
        return f"{_mean_text(self.saved, '.1f')} %" if self.is_complete else ""


def reach(column: Column, optimizer: str) -> Reach:
    """Find the first evaluation of each seed at which the loss was the reference's last or less."""
    goals = {run["seed"]: run for run in column.runs(column.reference)}
    steps, saved, num_seeds = [], [], 0
    for run in column.runs(optimizer):
        if (goal := goals.get(run["seed"])) is None:
            continue
        num_seeds += 1
        loss = goal["validation_losses"][-1]
        if (step := first_step_at(run, loss)) is not None:
            steps.append(step)
            # The reference may have been there before its end. It is there at its end at least.
            earlier = (first_step_at(goal, loss) or step) - step
            saved.append(100 * earlier / goal["evaluated_steps"][-1])
    return Reach(steps, saved, num_seeds)


def _mean_text(values: Sequence[float], spec: str) -> str:
    error = f" ± {standard_error(values):{spec}}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{spec}}{error}"
