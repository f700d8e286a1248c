"""The study's results in tables: what helped, what did not, by how much."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from .markup import Results, format_losses, markdown, standard_error

Runs = Sequence[dict[str, Any]]

# A difference counts from here on: with eight seeds chance alone goes as far once in 50 times.
STANDARD_ERRORS = 3.0
MIN_SEEDS = 5

LEGEND = (
    "Validation loss (cross-entropy, nats per target) at the true weights; mean ± standard error "
    "over seeds. Every optimizer runs at the learning rate that was best for it in a search with "
    "two other seeds and half the steps; gradients are clipped to a norm of 1. *Minus AdamW* is "
    "the difference of final losses seed by seed: the same initialisation, the same batches. It is "
    f"called better or worse where it exceeds {STANDARD_ERRORS:g} standard errors of {MIN_SEEDS} "
    "seeds or more. *Steps to AdamW's loss*: the first evaluation at which the loss was as low as "
    "AdamW's last one with the same seed; mean over the seeds that got there."
)
FORESIGHT_LEGEND = (
    "*Error*: distance of the predicted weights from those that the next step produced, in lengths "
    "of that step; without prediction it is 1. *Best s*: the `prediction_steps` with which it "
    "would have been smallest. Medians over seeds and the evaluations of the named part of "
    "training. *Matrices* decay, *vectors* (biases, norms) do not."
)
NORM_RATIO_LEGEND = (
    "`||g||_1 / (sqrt(d) ||g||_2)` of the whole gradient: medians over seeds. 1 where all elements "
    "are equally large; the convergence analysis of AdamW in the l1 norm "
    "([arXiv 2505.11840](https://arxiv.org/abs/2505.11840)) rests on it staying of order one."
)


def report(results: Results) -> str:
    """All tables of one study."""
    tables = (summary, details, searches, foresight, norm_ratios)
    return "\n\n".join(table([results]) for table in tables)


# What came out.


def summary(all_results: Sequence[Results]) -> str:
    """Differences from the reference, a task a column."""
    return "\n\n".join(map(_summary, all_results))


def _summary(results: Results) -> str:
    head = [f"final loss minus {results['reference']}'s", *results["tasks"].values()]
    rows = [
        [name, *(_verdict(results, task, name) for task in results["tasks"])]
        for name in optimizers(results)
        if name != results["reference"]
    ]
    return f"{markdown(head, rows)}\n\n{caption(results)}"


def _verdict(results: Results, task: str, optimizer: str) -> str:
    if (why := _why_not(results, task, optimizer)) is not None:
        return why
    differences = paired_differences(results, task, optimizer)
    return f"{format_losses(differences, '+.4f')}{verdict(differences)}"


def verdict(differences: Sequence[float]) -> str:
    """Say whether a loss is better or worse, or nothing where the seeds do not tell."""
    mean = statistics.fmean(differences)
    if len(differences) < MIN_SEEDS or abs(mean) <= STANDARD_ERRORS * standard_error(differences):
        return ""
    return ", better" if mean < 0 else ", **worse**"


def paired_differences(results: Results, task: str, optimizer: str) -> list[float]:
    """Return final losses minus the reference's, seed by seed."""
    runs, goals = runs_of(results, task, optimizer), _reference_losses(results, task)
    return [
        run["validation_losses"][-1] - goals[run["seed"]] for run in runs if run["seed"] in goals
    ]


def _reference_losses(results: Results, task: str) -> dict[int, float]:
    """The reference's final losses by seed."""
    runs = runs_of(results, task, results["reference"])
    return {run["seed"]: run["validation_losses"][-1] for run in runs}


def caption(results: Results) -> str:
    """Say how much work this was and where it was done."""
    minutes = sum(run["seconds"] for run in results["runs"]) / 60
    minutes += sum(search["seconds"] for search in results["searches"]) / 60
    return (
        f"{results['seeds']} seeds; on {results['device']}, one thread per training, "
        f"{minutes:.0f} minutes of training in all; "
        f"Python {results['python']}, torch {results['torch']}, wpadamw {results['wpadamw']}."
    )


# Task by task.


def details(all_results: Sequence[Results]) -> str:
    """Losses during training and at its end, learning rates, steps to the reference's loss."""
    tables = [_detail(results, task) for results in all_results for task in results["tasks"]]
    return "\n\n".join([LEGEND, *tables])


def _detail(results: Results, task: str) -> str:
    steps = quarters(runs_of(results, task, results["reference"]))
    head = ["", "lr", *(f"step {step:,}" for step in steps), "minus AdamW", "steps to AdamW's loss"]
    rows = [_detail_row(results, task, name, steps) for name in optimizers(results)]
    return f"**{results['tasks'][task]}**\n\n{markdown(head, rows)}"


def _detail_row(results: Results, task: str, optimizer: str, steps: Sequence[int]) -> list[str]:
    if (why := _why_not(results, task, optimizer)) is not None:
        return [optimizer, why, *[""] * (len(steps) + 2)]
    runs = runs_of(results, task, optimizer)
    losses = [format_losses([loss_at(run, step) for run in runs]) for step in steps]
    return [
        *(optimizer, f"{runs[0]['lr']:g}", *losses),
        "" if optimizer == results["reference"] else _verdict(results, task, optimizer),
        _steps_to_reference(results, task, runs),
    ]


def _steps_to_reference(results: Results, task: str, runs: Runs) -> str:
    goals = _reference_losses(results, task)
    steps = [first_step_at(run, goals[run["seed"]]) for run in runs if run["seed"] in goals]
    reached = [step for step in steps if step is not None]
    mean = f"{statistics.fmean(reached):,.0f}, " if reached else ""
    return f"{mean}{len(reached)} of {len(steps)}"


def first_step_at(run: dict[str, Any], loss: float) -> int | None:
    """Return the first evaluated step with a loss as low as this, if there is one."""
    pairs = zip(run["evaluated_steps"], run["validation_losses"], strict=True)
    return next((step for step, reached in pairs if reached <= loss), None)


def loss_at(run: dict[str, Any], step: int) -> float:
    """Return the loss that was measured after a step."""
    return float(run["validation_losses"][run["evaluated_steps"].index(step)])


def quarters(runs: Runs, parts: Sequence[int] = (1, 2, 4)) -> list[int]:
    """Return the evaluated steps that end so many quarters of the training."""
    evaluated = runs[0]["evaluated_steps"] if runs else []
    wanted = [evaluated[-1] * part / 4 for part in parts] if runs else []
    return sorted({next(step for step in evaluated if step >= want) for want in wanted})


def searches(all_results: Sequence[Results]) -> str:
    """Losses at the learning rates that were tried."""
    tables = [_search(results, task) for results in all_results for task in results["tasks"]]
    return "\n\n".join(tables)


def _search(results: Results, task: str) -> str:
    found = {
        search["optimizer"]: dict(zip(search["lr"], search["losses"], strict=True))
        for search in results["searches"]
        if search["task"] == task
    }
    rates = sorted(set(chain.from_iterable(found.values())))
    rows = [
        [optimizer, *(_searched(losses, lr) for lr in rates)] for optimizer, losses in found.items()
    ]
    head = ["mean loss after half the steps, by lr", *(f"{lr:g}" for lr in rates)]
    return f"**{results['tasks'][task]}**\n\n{markdown(head, rows)}"


def _searched(losses: dict[float, float | None], lr: float) -> str:
    if lr not in losses:
        return ""
    loss = losses[lr]
    return "failed" if loss is None else f"{loss:.4f}"


# Beside the losses.


def foresight(all_results: Sequence[Results]) -> str:
    """How near the predicted weights came to the next ones."""
    head = ["", "group", "error, first quarter", "error, last quarter"]
    head += ["best s, first quarter", "best s, last quarter"]
    tables = [
        f"**{title}**\n\n{markdown(head, _foresight_rows(results, task))}"
        for results in all_results
        for task, title in results["tasks"].items()
    ]
    return "\n\n".join([FORESIGHT_LEGEND, *tables])


def _foresight_rows(results: Results, task: str) -> Iterator[list[str]]:
    for optimizer in optimizers(results):
        runs = runs_of(results, task, optimizer)
        for group in runs[0]["foresight"] if runs else ():
            found = [run["foresight"][group] for run in runs]
            cells = [
                _median([part(lists[key]) for lists in found])
                for key in ("error", "best_steps")
                for part in (first_quarter, last_quarter)
            ]
            yield [optimizer, group, *cells]


def norm_ratios(all_results: Sequence[Results]) -> str:
    """The ratio of the gradient's l1 and l2 norm over training."""
    head = ["", "task", "first evaluation", "first quarter", "last quarter", "smallest"]
    rows = [
        [optimizer, results["tasks"][task], *_norm_ratio_cells(runs)]
        for results in all_results
        for task in results["tasks"]
        for optimizer in (results["reference"], "WPAdamW, s = 1")
        if (runs := runs_of(results, task, optimizer))
    ]
    return f"{NORM_RATIO_LEGEND}\n\n{markdown(head, rows)}"


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
    """Return the first quarter of a list, one entry at least."""
    return values[: max(len(values) // 4, 1)]


def last_quarter(values: Sequence[Any]) -> Sequence[Any]:
    """Return the last quarter of a list, one entry at least."""
    return values[-max(len(values) // 4, 1) :]


def _median(lists: Iterable[Sequence[float | None]]) -> str:
    values = [value for value in chain.from_iterable(lists) if value is not None]
    return f"{statistics.median(values):.2f}" if values else "-"


# Reading results.


def optimizers(results: Results) -> list[str]:
    """Return all optimizers in their order, those left out at the end."""
    present = dict.fromkeys(run["optimizer"] for run in results["runs"])
    missing = results["left_out"].keys() - results["tasks"].keys()
    return [*present, *sorted(missing)]


def runs_of(results: Results, task: str, optimizer: str) -> Runs:
    """Return the trainings that went to their end."""
    return [run for run in _all_runs(results, task, optimizer) if run["why"] is None]


def _all_runs(results: Results, task: str, optimizer: str) -> Runs:
    return [run for run in results["runs"] if (run["task"], run["optimizer"]) == (task, optimizer)]


def _why_not(results: Results, task: str, optimizer: str) -> str | None:
    """Say why there is nothing to compare, if that is so: a single failure is enough."""
    for name in (task, optimizer):
        if name in results["left_out"]:
            return f"not run: {results['left_out'][name]}"
    for name in (optimizer, results["reference"]):
        runs = _all_runs(results, task, name)
        failed = [run["why"] for run in runs if run["why"]]
        if failed:
            return f"{name}: {len(failed)} of {len(runs)} failed: {failed[0]}"
    return None
