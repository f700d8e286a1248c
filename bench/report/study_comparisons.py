"""Which optimizer is better than which: tables of differences, and their verdicts."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from .markup import Results, markdown
from .study_results import Column, columns, device, optimizers
from .study_statistics import (
    BETTER,
    MIN_SEEDS,
    SIGNIFICANCE,
    UNDECIDED,
    WORSE,
    Comparison,
    compare,
    corrected,
    verdicts,
)
from .styles import short

PEERS, AVERAGED = ("NAdamW", "AdamWScheduleFree"), ", averaged"
PREDICTING = "WPAdamW, s = "
USUAL = "WPAdamW, s = 1"
MOMENTS = " moments"
# How many tasks make a rule for s the winner.
MIN_TASKS = 3
# X, s = A: prediction by A steps with the optimizer X.
WITH_STEPS = re.compile(r"(?P<family>.+), s = (?P<steps>[0-9.]+)")

METHOD = (
    "Differences of final validation losses (nats per target), seed by seed, each optimizer at the "
    "learning rate that a search with other seeds found best for it: mean ± standard error, below "
    "0 where it is better. *Better* and *worse* are said where a paired t-test of "
    f"{MIN_SEEDS} seeds or more has p < {SIGNIFICANCE:g}, corrected by Holm's method (Holm 1979) "
    "for the number of all comparisons in the table."
)
AS_ABOVE = "Differences and verdicts as above, corrected for the comparisons of this table."


class Comparisons:
    """Pairs of optimizers on all columns, corrected for their number.

    Args:
        shown: the tasks and machines.
        pairs: by the name of the row, the optimizer and what it is compared with.
    """

    def __init__(self, shown: Sequence[Column], pairs: Mapping[str, tuple[str, str]]) -> None:
        self.columns = shown
        self.pairs = pairs
        self.found: dict[tuple[str, str], Comparison] = {}
        for row, (ours, theirs) in pairs.items():
            for column in shown:
                found = compare(column.losses(ours), column.losses(theirs))
                if found is not None and column.why_not(ours, theirs) is None:
                    self.found[row, column.label] = found
        self.verdicts = verdicts(self.found)
        self.p_values = corrected(self.found)

    def rows(self, column: Column, verdict: str) -> list[str]:
        """The rows that have this verdict on a column."""
        return [row for row in self.pairs if self.verdicts.get((row, column.label)) == verdict]

    def tasks(self, row: str, verdict: str) -> set[str]:
        """The tasks on which a row has this verdict, on whatever machine."""
        return {column.task for column in self.columns if row in self.rows(column, verdict)}

    def table(self, corner: str) -> str:
        """The differences with their verdicts, a column a task."""
        head = [corner, *(column.label for column in self.columns)]
        rows = [[row, *(self.cell(row, column) for column in self.columns)] for row in self.pairs]
        return markdown(head, rows)

    def cell(self, row: str, column: Column) -> str:
        """The difference with its verdict, or why there is none."""
        found = self.found.get((row, column.label))
        if found is None:
            return column.why_not(*self.pairs[row]) or "no seed in common"
        verdict = {BETTER: ", better", WORSE: ", **worse**", UNDECIDED: ""}
        return f"{difference_text(found)}{verdict[self.verdicts[row, column.label]]}"


def difference_text(found: Comparison) -> str:
    """The mean, and where there are several seeds its standard error."""
    error = f" ± {found.standard_error:.4f}" if found.num_seeds > 1 else ""
    return f"{found.mean:+.4f}{error}"


# Against the reference.


def with_reference(all_results: Sequence[Results], only_short: bool = False) -> Comparisons:
    """All optimizers but the reference against it, or those of the short list."""
    reference = all_results[0]["reference"]
    names = [name for name in optimizers(all_results) if name != reference]
    if only_short:
        names = [name for name in names if is_short_listed(name)]
    return Comparisons(columns(all_results), {name: (name, reference) for name in names})


def is_short_listed(name: str) -> bool:
    """Whether it is prediction by a constant number of steps, a peer, or an average of AdamW's."""
    plain = name.removesuffix(AVERAGED)
    is_constant = re.fullmatch(f"{PREDICTING}[0-9.]+", plain) is not None
    return is_constant or plain in (*PEERS, "AdamW")


def summary(all_results: Sequence[Results]) -> str:
    """Differences from the reference, of prediction, averages and two peers."""
    return _against_reference(all_results, only_short=True)


def complete(all_results: Sequence[Results]) -> str:
    """Differences from the reference, of all optimizers."""
    return _against_reference(all_results, only_short=False)


def _against_reference(all_results: Sequence[Results], only_short: bool) -> str:
    found = with_reference(all_results, only_short)
    table = found.table(f"final loss minus {all_results[0]['reference']}'s")
    return "\n\n".join([table, METHOD, *map(caption, all_results)])


def caption(results: Results) -> str:
    """Say what the tasks are, how much work this was and where it was done."""
    tasks = "; ".join(f"*{task}*: {title}" for task, title in results["tasks"].items())
    seeds = {run["seed"] for run in results["runs"]}
    setting = results["setting"]
    return (
        f"{tasks}. {device(results)}, {len(seeds)} seeds, {results['minutes']:,.0f} minutes of "
        f"training in all; Python {setting['python']}, torch {setting['torch']}, wpadamw "
        f"{setting['wpadamw']}."
    )


def prediction(all_results: Sequence[Results]) -> str:
    """The same sentences for prediction by one and two steps alone."""
    return sentences(all_results, only={USUAL, f"{PREDICTING}2"})


def sentences(all_results: Sequence[Results], only: Collection[str] | None = None) -> str:
    """Where prediction wins, loses and does nothing, of the short list."""
    found = with_reference(all_results, only_short=True)
    reference = all_results[0]["reference"]
    heads = {
        BETTER: f"**Better than {reference}**",
        WORSE: f"**Worse than {reference}**",
        UNDECIDED: "**No difference** that the seeds can tell",
    }
    return "\n".join(f"- {head}: {_who(found, verdict, only)}." for verdict, head in heads.items())


def _who(found: Comparisons, verdict: str, only: Collection[str] | None) -> str:
    """The rows with a verdict, task by task."""
    where = {
        column.label: [
            short(row) for row in found.rows(column, verdict) if only is None or row in only
        ]
        for column in found.columns
    }
    named = [f"on {label} {', '.join(rows)}" for label, rows in where.items() if rows]
    return "; ".join(named) or "none"


# Against others.


def families(all_results: Sequence[Results]) -> str:
    """Optimizers with prediction against the same ones without."""
    names, pairs = optimizers(all_results), {}
    for name in names:
        match = WITH_STEPS.fullmatch(name)
        plain = f"{match['family']}, s = 0" if match else name
        if plain != name and plain in names:
            pairs[f"{name}, minus s = 0"] = (name, plain)
    if not pairs:
        return "No optimizer was trained with and without prediction."
    return f"{Comparisons(columns(all_results), pairs).table('final loss')}\n\n{AS_ABOVE}"


def formats(all_results: Sequence[Results]) -> str:
    """Small formats of the moments against float32, at its learning rate."""
    names = [name for name in optimizers(all_results) if name.endswith(MOMENTS)]
    if not names:
        return "No small format was trained."
    shown = [c for c in columns(all_results) if any(map(c.trials, names))]
    found = Comparisons(shown, {name: (name, USUAL) for name in names})
    return f"{found.table(f'final loss minus that of {USUAL}')}\n\n{AS_ABOVE}"


def rules(all_results: Sequence[Results]) -> str:
    """Rules for s, and other constants, against s = 1; which of them wins."""
    names = [name for name in optimizers(all_results) if is_rule(name)]
    if not names:
        return "No rule for s was trained."
    found = Comparisons(columns(all_results), {name: (name, USUAL) for name in names})
    table = found.table(f"final loss minus that of {USUAL}")
    return "\n\n".join([table, AS_ABOVE, winner(found)])


def is_rule(name: str) -> bool:
    """Whether it is one of the ways to set s, other than to 1."""
    is_constant = re.fullmatch(f"{PREDICTING}[0-9.]+", name) is not None
    is_rule = name.startswith("s = ") and not name.endswith(MOMENTS)
    return is_rule or (is_constant and name != USUAL)


def winner(found: Comparisons) -> str:
    """Count the tasks on which each rule is better, and name the one that is so on most."""
    better, worse = (
        {row: len(found.tasks(row, v)) for row in found.pairs} for v in (BETTER, WORSE)
    )
    counts = "; ".join(
        f"{row} is better on {better[row]}, worse on {worse[row]}"
        for row in found.pairs
        if better[row] + worse[row] > 0
    )
    num_tasks = len({column.task for column in found.columns})
    best = max(found.pairs, key=lambda row: (better[row], -worse[row]))
    result = f"the winner, better than s = 1 on at least {MIN_TASKS} tasks, is {best}"
    if better[best] < MIN_TASKS:
        result = f"no rule wins: none is better than s = 1 on at least {MIN_TASKS} tasks"
    return f"Of {num_tasks} tasks: {counts or 'no difference anywhere'}. So {result}."
