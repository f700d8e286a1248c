"""What `wpadamw.bench.study.curvature` saw, in tables, beside what theory says."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .markup import Results, markdown, standard_error
from .quadratic import (
    best_prediction_steps,
    decay,
    largest_stable,
    noise_loss,
    q_of_noise_ratio,
)

Run = dict[str, Any]
Runs = Sequence[Run]

REFERENCE = "AdamW"
PREDICTION_STEPS = {REFERENCE: 0.0, "WPAdamW, s = 1": 1.0, "WPAdamW, s = 2": 2.0}
# Of lr*lambda, in the tables of theory.
SHOWN_Q = (0.1, 1.0, 3.0, 5.0)
SHOWN_S = (0.0, 0.5, 1.0, 2.0, 3.0)

# Theory.


def theory(all_results: Sequence[Results]) -> str:
    """The largest stable ``lr*lambda``, decays and losses by noise, an s a row."""
    head = ["s", "stable below", *(f"decay at {q:g}" for q in SHOWN_Q)]
    head += [f"noise's loss at {q:g}" for q in SHOWN_Q]
    rows = [
        [
            f"{s:g}",
            f"{largest_stable(s):.1f}",
            *(f"{decay(q, s):.2f}" for q in SHOWN_Q),
            *(f"{noise_loss(q, s):.2f}" for q in SHOWN_Q),
        ]
        for s in SHOWN_S
    ]
    best = ["best s", "", *("" for _ in SHOWN_Q)]
    best += [f"s = {best_prediction_steps(q):.1f}" for q in SHOWN_Q]
    return markdown(head, [*rows, best])


# Measurements: a column is a statistic of one run, shown as mean and standard error over seeds.


class Column(NamedTuple):
    """A statistic of a run, or of a run and the reference's with the same seed."""

    title: str
    of: Callable[[Run], float]
    spec: str
    is_difference: bool = False


def _mean(key: str, half: int | None = None) -> Callable[[Run], float]:
    """The mean of a list, or of a half of it."""
    return lambda run: statistics.fmean(_part(run[key], half))


def _part(values: Sequence[Any], half: int | None) -> Sequence[Any]:
    middle = len(values) // 2
    return values if half is None else values[:middle] if half == 0 else values[middle:]


def lr_products(run: Run, key: str) -> list[float]:
    """A list times the learning rates of its points."""
    return [lr * value for lr, value in zip(run["lr_then"], run[key], strict=True)]


def _typical(key: str, half: int) -> Callable[[Run], float]:
    """The geometric mean of such products over a half: some are a thousand times others."""
    return lambda run: statistics.geometric_mean(_part(lr_products(run, key), half))


def _window_loss(run: Run) -> float:
    return _mean("middle_loss", 0)(run) + _mean("swing", 0)(run)


def _ratio(upper: str, lower: str, half: int = 0) -> Callable[[Run], float]:
    """The ratio of two means."""
    return lambda run: _mean(upper, half)(run) / _mean(lower, half)(run)


def sharpness(all_results: Sequence[Results]) -> str:
    """The sharpness times the learning rate, beside the threshold."""
    columns = (
        Column("first half", _typical("sharpness", 0), ".1f"),
        Column("second half", _typical("sharpness", 1), ".1f"),
        Column("along the step, first half", _mean_along_step, ".2f"),
    )
    return _tables(all_results, columns, {"stable below": _threshold})


def _mean_along_step(run: Run) -> float:
    return statistics.fmean(_part(lr_products(run, "step_curvature"), 0))


def _threshold(optimizer: str) -> str:
    return f"{largest_stable(PREDICTION_STEPS[optimizer]):.1f}"


def swings(all_results: Sequence[Results]) -> str:
    """How far weights swing, and what of the difference in loss that is."""
    columns = (
        Column("swing", _mean("swing", 0), ".4f"),
        Column("mean loss minus AdamW's", _window_loss, "+.4f", is_difference=True),
        Column("of it swing", _mean("swing", 0), "+.4f", is_difference=True),
        Column("of it the middle", _mean("middle_loss", 0), "+.4f", is_difference=True),
        Column("final swing", lambda run: float(run["swing"][-1]), ".4f"),
        Column(
            "final validation loss minus AdamW's",
            lambda run: float(run["validation_loss"]),
            "+.4f",
            is_difference=True,
        ),
    )
    return _tables(all_results, columns)


def fit(all_results: Sequence[Results]) -> str:
    """Whether one ``lr*lambda`` explains the swings with both s."""
    return "\n\n".join(_fit(results["runs"]) for results in all_results)


def _fit(runs: Runs) -> str:
    head = ["swing / AdamW's", "lr", "s = 1, measured", "lr*lambda by theory"]
    head += ["s = 2, by theory", "s = 2, measured"]
    rows = []
    for task, lr in settings(runs):
        one, two = (_swing_ratios(runs, task, lr, name) for name in [*PREDICTION_STEPS][1:])
        if one and two:
            q = q_of_noise_ratio(statistics.fmean(one), 1.0)
            rows.append([task, f"{lr:g}", shown(one, ".2f"), *_expected(q), shown(two, ".2f")])
    return f"{markdown(head, rows)}\n\n{_seeds(runs)}"


def _expected(q: float | None) -> list[str]:
    if q is None:
        return ["-", "-"]
    return [f"{q:.1f}", f"{noise_loss(q, 2.0) / noise_loss(q, 0.0):.2f}"]


def _swing_ratios(runs: Runs, task: str, lr: float, optimizer: str) -> list[float]:
    """Swings of the first half of training by AdamW's with the same seed."""
    swing = _mean("swing", 0)
    theirs = {run["seed"]: swing(run) for run in runs_of(runs, task, lr, REFERENCE)}
    ours = runs_of(runs, task, lr, optimizer)
    return [swing(run) / theirs[run["seed"]] for run in ours if run["seed"] in theirs]


def steps(all_results: Sequence[Results]) -> str:
    """What steps look like: turning back, going too far; gradients where they are taken."""
    columns = (
        Column("cosine of successive steps", _mean("cosine", 0), ".3f"),
        Column("gone too far by", _ratio("slope", "bend"), ".2f"),
        Column("loss, predicted minus true", _predicted_loss, "+.4f"),
        Column(
            "gradient's norm, predicted / true",
            _ratio("predicted_gradient_norm", "gradient_norm"),
            ".3f",
        ),
    )
    return _tables(all_results, columns)


def _predicted_loss(run: Run) -> float:
    return _mean("predicted_loss", 0)(run) - _mean("loss", 0)(run)


def switches(all_results: Sequence[Results]) -> str:
    """What differs from going on without prediction, window by window after the switch."""
    return "\n\n".join(_switches(results["switches"]) for results in all_results)


def _switches(runs: Runs) -> str:
    window, parts = runs[0]["window"], ((0, 1), (1, 4), (4, 10))
    head = ["task", "switched to", "minus no prediction"]
    head += [f"steps {first * window + 1} to {last * window}" for first, last in parts]
    rows = [
        [task, f"s = {s}", title]
        + [shown(_gained(runs, task, s, key, part), "+.4f") for part in parts]
        for task in dict.fromkeys(run["task"] for run in runs)
        for s in list(runs[0]["followed"])[1:]
        for key, title in (("swing", "swing"), ("middle_loss", "the middle"))
    ]
    return f"{markdown(head, rows)}\n\n{_seeds(runs)}"


def _gained(runs: Runs, task: str, s: str, key: str, part: tuple[int, int]) -> list[float]:
    """What a copy with ``s`` has above the one without, for each seed, on average over windows."""
    windows = slice(*part)
    return [
        statistics.fmean(run["followed"][s][key][windows])
        - statistics.fmean(run["followed"]["0"][key][windows])
        for run in runs
        if run["task"] == task
    ]


# Tables.


def _tables(
    all_results: Sequence[Results],
    columns: Sequence[Column],
    facts: dict[str, Callable[[str], str]] | None = None,
) -> str:
    return "\n\n".join(_table(results["runs"], columns, facts or {}) for results in all_results)


def _table(runs: Runs, columns: Sequence[Column], facts: dict[str, Callable[[str], str]]) -> str:
    head = ["task", "lr", "optimizer", *facts, *(column.title for column in columns)]
    rows = [
        [
            *(task, f"{lr:g}", optimizer),
            *(fact(optimizer) for fact in facts.values()),
            *(_cell(column, found, runs_of(runs, task, lr, REFERENCE)) for column in columns),
        ]
        for task, lr in settings(runs)
        for optimizer in PREDICTION_STEPS
        if (found := runs_of(runs, task, lr, optimizer))
    ]
    return f"{markdown(head, rows)}\n\n{_seeds(runs)}"


def settings(runs: Runs) -> list[tuple[str, float]]:
    """The tasks in their order, with their learning rates ascending."""
    found = {(run["task"], run["lr"]) for run in runs}
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    return sorted(found, key=lambda setting: (tasks.index(setting[0]), setting[1]))


def runs_of(runs: Runs, task: str, lr: float, optimizer: str) -> list[Run]:
    """The trainings of an optimizer that came to their end, by seed."""
    wanted = {"task": task, "lr": lr, "optimizer": optimizer}.items()
    found = [run for run in runs if wanted <= run.items() and run["validation_loss"] is not None]
    return sorted(found, key=lambda run: int(run["seed"]))


def _cell(column: Column, runs: Runs, references: Runs) -> str:
    values = [column.of(run) for run in runs]
    if column.is_difference:
        theirs = {run["seed"]: column.of(run) for run in references}
        ours = zip(runs, values, strict=True)
        values = [value - theirs[run["seed"]] for run, value in ours if run["seed"] in theirs]
        if runs[0]["optimizer"] == REFERENCE or not values:
            return ""
    return shown(values, column.spec)


def shown(values: Sequence[float], spec: str) -> str:
    """The mean, and its standard error where there are several values."""
    mean = format(statistics.fmean(values), spec)
    spread = format(standard_error(values), spec.removeprefix("+"))
    return mean if len(values) == 1 else f"{mean} ± {spread}"


def _seeds(runs: Runs) -> str:
    counts = Counter((run["task"], run["lr"], run["optimizer"]) for run in runs).values()
    fewest, most = min(counts), max(counts)
    return f"Mean ± standard error of {f'{fewest} to ' * (fewest < most)}{most} seeds."
