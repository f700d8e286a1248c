"""What `wpadamw.bench.study.curvature` saw, in tables and a picture, beside what theory says."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

from .markup import Results, markdown, standard_error
from .plots import mean_line, panels
from .quadratic import best_prediction_steps, decay, largest_stable, noise_loss

Run = dict[str, Any]
Runs = Sequence[Run]

REFERENCE = "AdamW"
PREDICTION_STEPS = {REFERENCE: 0.0, "WPAdamW, s = 1": 1.0, "WPAdamW, s = 2": 2.0}
# Of lr*lambda, in the tables of theory.
SHOWN_Q = (0.1, 1.0, 3.0, 5.0)
SHOWN_S = (0.0, 0.5, 1.0, 2.0, 3.0)
# Okabe and Ito's blue, vermilion and green: told apart by colour-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73")
PANEL_INCHES = (4.4, 3.0)
NUM_ROWS = 2  # of the plot: AdamW's best learning rate, and twice that


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


def _products(key: str) -> Callable[[Run], list[float]]:
    """A list times the learning rates of its points."""
    return lambda run: [lr * value for lr, value in zip(run["lr_then"], run[key], strict=True)]


def _most(key: str) -> Callable[[Run], float]:
    return lambda run: max(_products(key)(run))


def _mean_product(key: str, half: int) -> Callable[[Run], float]:
    return lambda run: statistics.fmean(_part(_products(key)(run), half))


def _window_loss(run: Run) -> float:
    return _mean("middle_loss", 0)(run) + _mean("swing", 0)(run)


def _ratio(upper: str, lower: str, half: int = 0) -> Callable[[Run], float]:
    """The ratio of two means."""
    return lambda run: _mean(upper, half)(run) / _mean(lower, half)(run)


def sharpness(all_results: Sequence[Results]) -> str:
    """The sharpness times the learning rate, beside the threshold."""
    columns = (
        Column("largest", _most("sharpness"), ".1f"),
        Column("first half", _mean_product("sharpness", 0), ".1f"),
        Column("second half", _mean_product("sharpness", 1), ".1f"),
        Column("along the step, first half", _mean_product("step_curvature", 0), ".2f"),
    )
    return _tables(all_results, columns, {"stable below": _threshold})


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
    num_seeds = len({run["seed"] for run in runs})
    return f"Mean ± standard error of {num_seeds} seeds."


# The plot.


def source(all_results: Sequence[Results]) -> list[list[dict[str, Any]]]:
    """Rows of panels: a title, and lines of ``lr*lambda`` by optimizer."""
    runs = [run for results in all_results for run in results["runs"]]
    tasks = list(dict.fromkeys(run["task"] for run in runs))
    rates = {task: sorted({run["lr"] for run in runs if run["task"] == task}) for task in tasks}
    return [
        [_panel(runs, task, rates[task][row]) for task in tasks if len(rates[task]) > row]
        for row in range(NUM_ROWS)
    ]


def _panel(runs: Runs, task: str, lr: float) -> dict[str, Any]:
    lines = {}
    for optimizer in PREDICTION_STEPS:
        found = runs_of(runs, task, lr, optimizer)
        if found:
            shares = [step / found[0]["num_steps"] for step in found[0]["steps"]]
            lines[optimizer] = mean_line(shares, [*map(_products("sharpness"), found)])
    return {"title": f"{task}, lr {lr:g}", "lines": lines}


def draw(rows: Sequence[Sequence[dict[str, Any]]]) -> Any:
    """Lines with their thresholds dashed in the same colour; names stand where lines end."""
    figure, grid = panels(len(rows), max(map(len, rows)), PANEL_INCHES)
    for i, j in product(range(len(rows)), range(len(grid[0]))):
        if j < len(rows[i]):
            _draw_panel(grid[i][j], rows[i][j])
        else:
            grid[i][j].set_axis_off()
    for row in grid:
        row[0].set_ylabel("sharpness times learning rate")
    for axes in grid[-1]:
        axes.set_xlabel("share of training")
    return figure


def _draw_panel(axes: Any, panel: dict[str, Any]) -> None:
    for (optimizer, s), color in zip(PREDICTION_STEPS.items(), COLORS, strict=True):
        most = largest_stable(s)
        axes.axhline(most, color=color, linestyle="--", linewidth=1)
        axes.text(0.02, most * 1.05, f"s = {s:g}: stable below {most:.1f}", color=color, fontsize=7)
        line = panel["lines"].get(optimizer)
        if line is not None:
            axes.errorbar(line["x"], line["mean"], line["error"], color=color, linewidth=1.4)
            axes.text(1.02, line["mean"][-1], f"s = {s:g}", color=color, fontsize=8, va="center")
    axes.set(title=panel["title"], yscale="log", xlim=(0, 1.15))
    axes.yaxis.set_major_formatter("{x:g}")  # not as powers of ten
    axes.grid(alpha=0.3)
