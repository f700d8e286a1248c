"""Reads a study's results: a column is one task on one machine, with its trainings and failures.

Seeds below `FIRST_SEARCH_SEED` compare optimizers at their best rates; the others found these.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from .markup import MAX_REASON_LENGTH, Results, number, rounded

Runs = Sequence[dict[str, Any]]
Losses = dict[int, float]  # final ones by seed

FIRST_SEARCH_SEED = 1000


class Column(NamedTuple):
    """One task on one machine: a column of a table, a panel of a plot."""

    results: Results
    task: str
    label: str

    @property
    def title(self) -> str:
        """What the task is, and the machine where another has it too."""
        return self.label.replace(self.task, self.results["tasks"][self.task], 1)

    @property
    def reference(self) -> str:
        """The optimizer that others are compared with."""
        return str(self.results["reference"])

    def trials(self, optimizer: str) -> Runs:
        """All trainings, failed ones too."""
        return self._of("trials", optimizer)

    def runs(self, optimizer: str) -> Runs:
        """The trainings at the best rate that went to their end, with all that was recorded."""
        return self._of("runs", optimizer)

    def best_rate(self, optimizer: str) -> float | None:
        """The learning rate that the search found; None where every training failed."""
        found = self._of("best", optimizer)
        return rate(found[0]) if found else None

    def at_best(self, optimizer: str) -> Runs:
        """The trainings at the best rate, failed ones too."""
        best = self.best_rate(optimizer)
        return [trial for trial in self.trials(optimizer) if rate(trial) == best]

    def evaluations(self, optimizer: str) -> Runs:
        """The trainings that are compared, failed ones too."""
        return [trial for trial in self.at_best(optimizer) if trial["seed"] < FIRST_SEARCH_SEED]

    def losses(self, optimizer: str) -> Losses:
        """What is compared."""
        return losses_of(self.evaluations(optimizer))

    def why_not(self, *optimizers: str) -> str | None:
        """Say why these cannot be compared, if that is so: a single failure is enough."""
        left_out = self.results["left_out"]
        for name in (self.task, *optimizers):
            if name in left_out:
                return f"not run: {left_out[name]}"
        return next(filter(None, map(self.failure, optimizers)), None)

    def failure(self, optimizer: str) -> str | None:
        """Say which of the trainings that would be compared failed, and why."""
        trials = self.trials(optimizer)
        if self.best_rate(optimizer) is not None:
            trials = self.evaluations(optimizer)
        failed = [trial["why"] for trial in trials if trial["loss"] is None]
        if failed:
            reason = textwrap.shorten(failed[0], MAX_REASON_LENGTH).replace("|", "\\|")
            return f"{optimizer}: {len(failed)} of {len(trials)} failed: {reason}"
        return None if trials else "not run"

    def optimizers(self) -> list[str]:
        """Those that are trained on the task, or left out with a reason."""
        left_out = self.results["left_out"]
        return [n for n in optimizers([self.results]) if n in left_out or self.trials(n)]

    def _of(self, part: str, optimizer: str) -> Runs:
        entry = (self.task, optimizer)
        return [run for run in self.results[part] if (run["task"], run["optimizer"]) == entry]


def columns(all_results: Sequence[Results]) -> list[Column]:
    """All tasks of all machines."""
    times = Counter(task for results in all_results for task in results["tasks"])
    return [
        Column(results, task, task if times[task] == 1 else f"{task} ({device(results)})")
        for results in all_results
        for task in results["tasks"]
    ]


def device(results: Results) -> str:
    """The machine in a few words."""
    return str(results["setting"]["device"])


def optimizers(all_results: Sequence[Results]) -> list[str]:
    """All optimizers in the order of the results, those left out at the end."""
    present = dict.fromkeys(name for results in all_results for name in results["optimizers"])
    missing = {
        name for results in all_results for name in results["left_out"].keys() - results["tasks"]
    }
    return [*present, *sorted(missing - present.keys())]


# Learning rates.


def rate(trial: dict[str, Any]) -> float:
    """The learning rate of a training. Rounded: products of roots of 2 meet but for their ends."""
    return rounded(float(trial["lr"]))


def rate_text(lr: float) -> str:
    """A learning rate in two digits, without an exponent."""
    text = number(lr, "2g")
    return text.rstrip("0").rstrip(".") if "." in text else text


def by_rate(trials: Runs) -> dict[float, Runs]:
    """Trainings by their learning rates, the smallest first."""
    return {lr: [t for t in trials if rate(t) == lr] for lr in sorted(set(map(rate, trials)))}


def losses_of(trials: Runs) -> Losses:
    """Final losses by seed of those that have one."""
    return {trial["seed"]: trial["loss"] for trial in trials if trial["loss"] is not None}


# The course of a training.


def first_step_at(run: dict[str, Any], loss: float) -> int | None:
    """The first evaluated step with a loss as low as this, if there is one."""
    pairs = zip(run["evaluated_steps"], run["validation_losses"], strict=True)
    return next((step for step, reached in pairs if reached <= loss), None)


def loss_at(run: dict[str, Any], step: int) -> float:
    """The loss that was measured after a step."""
    return float(run["validation_losses"][run["evaluated_steps"].index(step)])


def quarters(runs: Runs, parts: Sequence[int] = (1, 2, 4)) -> list[int]:
    """The evaluated steps that end so many quarters of the training."""
    evaluated = runs[0]["evaluated_steps"] if runs else []
    wanted = [evaluated[-1] * part / 4 for part in parts] if runs else []
    return sorted({next(step for step in evaluated if step >= want) for want in wanted})
