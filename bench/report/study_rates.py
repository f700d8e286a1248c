"""Losses over learning rates: how much an optimizer minds which one it gets."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .markup import Results, markdown
from .study_results import Column, Runs, by_rate, columns, losses_of, rate_text
from .study_statistics import paired

LEGEND = (
    "Mean of the final validation losses at each learning rate, in parentheses the number of "
    "seeds, those of the search and those of the evaluation; bold: the best of the search. *Good "
    "range*: the largest over the smallest of the neighbouring rates, around the best one, at "
    "which the optimizer is on average at least as good as {reference} at {reference}'s best rate, "
    "seed by seed; empty where the best one is not. Last: how many rates and trainings there were."
)


def rates(all_results: Sequence[Results], legend: str = LEGEND) -> str:
    """Losses at all rates, a table a task."""
    legend = legend.format(reference=all_results[0]["reference"])
    return "\n\n".join([legend, *map(_table, columns(all_results))])


def _table(column: Column) -> str:
    names = column.optimizers()
    tried = by_rate([trial for name in names for trial in column.trials(name)])
    head = ["", *map(rate_text, tried), "good range", "rates, trainings"]
    rows = [_row(column, name, list(tried)) for name in names]
    return f"**{column.title}**\n\n{markdown(head, rows)}"


def _row(column: Column, optimizer: str, tried: Sequence[float]) -> list[str]:
    found, best = by_rate(column.trials(optimizer)), column.best_rate(optimizer)
    if best is None:
        why = column.why_not(optimizer) or ""
        name = why if why.startswith(optimizer) else f"{optimizer}: {why}"
        return [name, *(_cell(found.get(lr, ()), False) for lr in tried), "", _trained(found)]
    cells = [_cell(found.get(lr, ()), lr == best) for lr in tried]
    factor = good_range(column, optimizer)
    return [optimizer, *cells, f"x {factor:.2g}" if factor else "", _trained(found)]


def _cell(trials: Runs, is_best: bool) -> str:
    losses = losses_of(trials)
    if len(losses) < len(trials):
        return f"{len(trials) - len(losses)} of {len(trials)} failed"
    if not losses:
        return ""
    mean = f"{statistics.fmean(losses.values()):.4f}"
    return f"{f'**{mean}**' if is_best else mean} ({len(losses)})"


def _trained(found: dict[float, Runs]) -> str:
    return f"{len(found)}, {sum(map(len, found.values()))}"


def good_range(column: Column, optimizer: str) -> float | None:
    """The largest over the smallest good rate around the best one; None if that is not good."""
    found = list(by_rate(column.trials(optimizer)).items())
    goals = losses_of(column.at_best(column.reference))
    best = column.best_rate(optimizer)
    good = [lr for lr, trials in found if is_good(trials, goals)]
    if best not in good:
        return None
    tried = [lr for lr, _ in found]
    low = high = tried.index(best)
    while low > 0 and tried[low - 1] in good:
        low -= 1
    while high + 1 < len(tried) and tried[high + 1] in good:
        high += 1
    return tried[high] / tried[low]


def is_good(trials: Runs, goals: dict[int, float]) -> bool:
    """Whether no training failed and the mean difference to the goals of the same seeds is <= 0."""
    losses = losses_of(trials)
    differences = paired(losses, goals)
    return len(losses) == len(trials) and bool(differences) and statistics.fmean(differences) <= 0
