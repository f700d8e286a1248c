"""Beside the losses: how near predictions came, and norms of gradients."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from .markup import Results, markdown
from .study_results import Column, Runs, columns, optimizers

GROUPS = ("matrices", "vectors")
QUANTITIES = {"error": "error", "best_steps": "best s"}
FORESIGHT_LEGEND = (
    "*Error*: distance of the predicted weights from those that the next step produced, in lengths "
    "of that step; without prediction it is 1. *Best s*: the `prediction_steps` with which it "
    "would have been smallest; *s*: those that were used. Medians over seeds and evaluations, of "
    "the first quarter of training → of the last. *Matrices* decay, *vectors* (biases, norms) do "
    "not."
)
NORM_RATIO_LEGEND = (
    "`||g||_1 / (sqrt(d) ||g||_2)` of the whole gradient with {reference}: medians over seeds. 1 "
    "where all elements are equally large; the convergence analysis of AdamW in the l1 norm "
    "([arXiv 2505.11840](https://arxiv.org/abs/2505.11840)) rests on it staying of order one."
)


def foresight(all_results: Sequence[Results]) -> str:
    """How near the predicted weights came to the next ones."""
    head = ["", "s", *(f"{name}, {group}" for name in QUANTITIES.values() for group in GROUPS)]
    tables = [
        f"**{column.title}**\n\n{markdown(head, rows)}"
        for column in columns(all_results)
        if (rows := list(_foresight_rows(column)))
    ]
    return "\n\n".join([FORESIGHT_LEGEND, *tables])


def _foresight_rows(column: Column) -> Iterator[list[str]]:
    for optimizer in optimizers([column.results]):
        seen = [run["foresight"] for run in column.runs(optimizer) if run["foresight"]]
        if seen:
            steps = _course(groups.get(GROUPS[0], {}).get("steps", ()) for groups in seen)
            cells = (
                _course(groups.get(group, {}).get(key, ()) for groups in seen)
                for key in QUANTITIES
                for group in GROUPS
            )
            yield [optimizer, steps, *cells]


def _course(lists: Iterable[Sequence[float | None]]) -> str:
    """The medians of the first and of the last quarter; one number where they are the same."""
    kept = list(lists)
    first, last = (_median(map(part, kept)) for part in (first_quarter, last_quarter))
    return first if first == last else f"{first} → {last}"


def norm_ratios(all_results: Sequence[Results]) -> str:
    """The ratio of the gradient's l1 and l2 norm over training."""
    head = ["", "first evaluation", "first quarter", "last quarter", "smallest"]
    rows = [
        [column.title, *_norm_ratio_cells(runs)]
        for column in columns(all_results)
        if (runs := column.runs(column.reference))
    ]
    legend = NORM_RATIO_LEGEND.format(reference=all_results[0]["reference"])
    return f"{legend}\n\n{markdown(head, rows)}"


def _norm_ratio_cells(runs: Runs) -> list[str]:
    ratios = [run["norm_ratios"] for run in runs]
    smallest = min(chain.from_iterable(ratios))
    parts: tuple[Callable[[Sequence[Any]], Sequence[Any]], ...] = (
        lambda values: values[:1],
        first_quarter,
        last_quarter,
    )
    return [*(_median(map(part, ratios)) for part in parts), f"{smallest:.2f}"]


def first_quarter(values: Sequence[Any]) -> Sequence[Any]:
    """The first quarter of a list, one entry at least."""
    return values[: max(len(values) // 4, 1)]


def last_quarter(values: Sequence[Any]) -> Sequence[Any]:
    """The last quarter of a list, one entry at least."""
    return values[-max(len(values) // 4, 1) :]


def _median(lists: Iterable[Sequence[float | None]]) -> str:
    values = [value for value in chain.from_iterable(lists) if value is not None]
    return f"{statistics.median(values):.2f}" if values else "-"
