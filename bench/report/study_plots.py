"""The study's results in pictures: steps saved, losses over rates and steps, errors of predictions.

Each plot has a source, what it shows as a JSON value; `study_drawing` draws them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from . import study_drawing
from .markup import Results, rounded, standard_error
from .plots import mean_line
from .study_comparisons import with_reference
from .study_results import Column, Runs, by_rate, columns, losses_of, optimizers
from .study_statistics import UNDECIDED
from .study_steps import reach

Source = list[dict[str, Any]]  # panels: a title, and lines by their labels
Lines = dict[str, Any]
# Lines that can be told apart in one panel, and which these are.
MOST_LINES = 6
FAVOURITES = (
    *("AdamW", "WPAdamW, s = 1", "WPAdamW, s = 2", "NAdamW", "AdamWScheduleFree"),
    "AdamW, averaged",
)
PREDICTIONS = tuple(f"WPAdamW, s = {s}" for s in (0.5, 1, 2, 3))


class Plot(NamedTuple):
    """A picture of the results of one or more machines."""

    source: Callable[[Sequence[Results]], Source]
    draw: Callable[[Source], Any]


def chosen(names: Iterable[str], favourites: Sequence[str] = FAVOURITES) -> list[str]:
    """The favourites that are there, or where there are none the first of the names."""
    present = list(names)
    return [name for name in present if name in favourites] or present[:MOST_LINES]


# What is shown.


def steps(all_results: Sequence[Results]) -> Source:
    """Steps saved to the reference's loss, of the short list; how many got there where not all."""
    found = with_reference(all_results, only_short=True)
    return [
        {
            "title": column.label,
            "reference": column.reference,
            "rows": {row: _saved(column, row, found.verdicts) for row in found.pairs},
        }
        for column in found.columns
    ]


def _saved(column: Column, optimizer: str, verdicts: dict[tuple[str, str], str]) -> dict[str, Any]:
    if column.why_not(optimizer, column.reference) is not None:
        return {"note": "failed" if column.trials(optimizer) else "not run"}
    reached = reach(column, optimizer)
    if not reached.is_complete:
        return {"note": f"{len(reached.steps)} of {reached.num_seeds} get there"}
    return {
        "mean": rounded(statistics.fmean(reached.saved)),
        "error": rounded(standard_error(reached.saved)),
        "is_decided": verdicts.get((optimizer, column.label), UNDECIDED) != UNDECIDED,
    }


def rates(all_results: Sequence[Results]) -> Source:
    """Final losses over learning rates, of all seeds."""
    return [
        {"title": column.title, "losses": dict(_over_rates(column))}
        for column in columns(all_results)
    ]


def _over_rates(column: Column) -> Iterable[tuple[str, Lines]]:
    tried = {
        name: {
            lr: list(losses_of(trials).values())
            for lr, trials in by_rate(column.trials(name)).items()
            if len(losses_of(trials)) == len(trials)
        }
        for name in optimizers([column.results])
    }
    for name in chosen(name for name, found in tried.items() if found):
        yield (
            name,
            {
                "x": list(tried[name]),
                "mean": [rounded(statistics.fmean(losses), 5) for losses in tried[name].values()],
                "error": [rounded(standard_error(losses), 5) for losses in tried[name].values()],
            },
        )


def differences(all_results: Sequence[Results]) -> Source:
    """Differences of validation losses from the reference's over training."""
    return [
        {
            "title": column.title,
            "reference": column.reference,
            "differences": lines_of(column, _differences, FAVOURITES),
        }
        for column in columns(all_results)
    ]


def _differences(column: Column, runs: Runs) -> list[list[float]]:
    goals = {run["seed"]: run["validation_losses"] for run in column.runs(column.reference)}
    return [
        [a - b for a, b in zip(run["validation_losses"], goals[run["seed"]], strict=True)]
        for run in runs
        if run["seed"] in goals
    ]


def foresight(all_results: Sequence[Results]) -> Source:
    """Errors of the predictions of matrices over training."""
    return [
        {"title": column.title, "errors": lines}
        for column in columns(all_results)
        if (lines := lines_of(column, _errors, PREDICTIONS))
    ]


def _errors(column: Column, runs: Runs) -> list[list[float]]:
    groups = [run["foresight"].get("matrices") for run in runs]
    return [group["error"] for group in groups if group]


def lines_of(
    column: Column,
    values_of: Callable[[Column, Runs], list[list[float]]],
    favourites: Sequence[str],
) -> Lines:
    """Means of what is taken from the runs of each optimizer, by the name."""
    found = {name: column.runs(name) for name in optimizers([column.results])}
    values = {name: kept for name, runs in found.items() if (kept := values_of(column, runs))}
    return {
        name: mean_line(found[name][0]["evaluated_steps"], values[name])
        for name in chosen(values, favourites)
    }


PLOTS = {
    "study-steps.png": Plot(steps, study_drawing.draw_steps),
    "study-rates.png": Plot(rates, study_drawing.draw_rates),
    "study-differences.png": Plot(differences, study_drawing.draw_differences),
    "study-foresight.png": Plot(foresight, study_drawing.draw_foresight),
}
