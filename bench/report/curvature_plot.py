"""What `wpadamw.bench.study.curvature` saw of sharpness, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from .curvature_report import PREDICTION_STEPS, Runs, lr_products, runs_of
from .markup import Results
from .plots import mean_line, panels
from .quadratic import largest_stable
from .styles import short, spread, style_of

PANEL_INCHES = (4.4, 3.0)
# Of the axis: what is flatter than a tenth or beyond a hundred is not shown.
LIMITS = (0.1, 100.0)
SPACING = 0.14  # of labels, in decades
SMALL = {"fontsize": 7, "ha": "right"}
NUM_ROWS = 2  # of the plot: the lowest learning rate, and twice that


def source(all_results: Sequence[Results]) -> list[list[dict[str, Any]]]:
    """Rows of panels: a title, and lines of the logarithm of ``lr*lambda`` by optimizer."""
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
            products = [lr_products(run, "sharpness") for run in found]
            lines[optimizer] = mean_line(shares, [[*map(math.log10, row)] for row in products])
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
    for optimizer, s in PREDICTION_STEPS.items():
        most, color = largest_stable(s), style_of(optimizer).color
        axes.axhline(most, color=color, linestyle="--", linewidth=1)
        text = f"{short(optimizer)}: stable below {most:.1f}"
        axes.text(0.99, most * 1.05, text, color=color, **SMALL)
        line = panel["lines"].get(optimizer)
        if line is not None:
            _draw_line(axes, line, color)
    low, high = map(math.log10, LIMITS)
    ends = [line["mean"][-1] for line in panel["lines"].values()]
    places = spread(ends, SPACING, low + SPACING / 2, high - SPACING / 2)
    for optimizer, end in zip(panel["lines"], places, strict=True):
        style = {"color": style_of(optimizer).color, "fontsize": 8, "va": "center"}
        axes.text(1.02, 10**end, short(optimizer), **style)
    axes.set(title=panel["title"], yscale="log", xlim=(0, 1.15), ylim=LIMITS)
    axes.yaxis.set_major_formatter("{x:g}")  # not as powers of ten
    axes.grid(alpha=0.3)


def _draw_line(axes: Any, line: dict[str, Any], color: str) -> None:
    middle, lower, upper = (
        [
            10 ** (mean + sign * error)
            for mean, error in zip(line["mean"], line["error"], strict=True)
        ]
        for sign in (0, -1, 1)
    )
    axes.plot(line["x"], middle, color=color, linewidth=1.4)
    axes.fill_between(line["x"], lower, upper, color=color, alpha=0.2, linewidth=0)
