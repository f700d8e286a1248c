"""Draws the sources of `study_plots`: panels of a title, and lines by the names of optimizers."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from .markup import NOT_MEASURED
from .plots import columns_of_grid, draw_lines, grid
from .study_results import rate_text
from .styles import GREY, clean, label_ends, short, style_of

Source = Sequence[dict[str, Any]]
Lines = dict[str, Any]

STEPS_COLUMNS, CURVES_COLUMNS = 6, 3
CURVE_INCHES = (4.6, 3.3)
TITLE_WIDTH = 38
# How far above the lines' least losses their curves are shown, in the differences between these.
CURVE_HEIGHT = 2.5


def draw_steps(source: Source) -> Any:
    """Steps saved, a row per optimizer, a panel per task."""
    rows = list(dict.fromkeys(row for panel in source for row in panel["rows"]))
    num_columns = columns_of_grid(len(source), STEPS_COLUMNS)
    figure, all_axes = grid(
        len(source), STEPS_COLUMNS, (8.4 / num_columns, 0.95 + 0.27 * len(rows))
    )
    for i, (panel, axes) in enumerate(zip(source, all_axes, strict=True)):
        _draw_saved(axes, panel, rows)
        axes.set_yticks(range(len(rows)), map(short, rows))
        axes.tick_params(axis="y", length=0, labelleft=i % num_columns == 0)
        axes.set_xlim(*_saved_limits(source))
    for panel in source[:1]:
        text = f"steps saved to {panel['reference']}'s final loss, % of all"
        figure.supxlabel(f"{text} (hollow: no verdict on the final losses)", fontsize=8.5)
    return figure


def _draw_saved(axes: Any, panel: dict[str, Any], rows: Sequence[str]) -> None:
    axes.axvline(0, color="black", linewidth=0.8)
    for y, name in enumerate(rows):
        row, style = panel["rows"][name], style_of(name)
        if "note" in row:
            axes.annotate(f" {row['note']}", (0, y), fontsize=6.5, color=GREY, va="center")
            continue
        look = {"color": style.color, "marker": style.marker, "markersize": 5.5, "linewidth": 1.5}
        look["markerfacecolor"] = style.color if row["is_decided"] else "white"
        axes.errorbar(row["mean"], y, xerr=row["error"], **look)
    clean(axes)
    axes.grid(axis="y", visible=False)
    axes.set(ylim=(max(len(rows), 1) - 0.5, -0.5))
    axes.set_title(panel["title"].replace(" (", "\n("), fontsize=8.5, fontweight="bold")


def _saved_limits(source: Source) -> tuple[float, float]:
    """One scale for all panels."""
    rows = [row for panel in source for row in panel["rows"].values() if "mean" in row]
    low = min([0.0, *(row["mean"] - row["error"] for row in rows)])
    high = max([0.0, *(row["mean"] + row["error"] for row in rows)])
    margin = 0.1 * (high - low) or 1.0
    return low - margin, high + margin


def draw_rates(source: Source) -> Any:
    """Final losses over learning rates, labelled at the ends of the lines."""
    figure, all_axes = grid(len(source), CURVES_COLUMNS, CURVE_INCHES)
    for panel, axes in zip(source, all_axes, strict=True):
        for name, line in panel["losses"].items():
            style = style_of(name)
            look = {**style.options, "marker": style.marker, "markersize": 4, "linewidth": 1.4}
            axes.errorbar(line["x"], line["mean"], yerr=line["error"], elinewidth=0.9, **look)
        _set_rates(axes, panel["losses"])
        _describe(axes, panel["title"], "learning rate", "final validation loss")
    _label(figure, all_axes, [panel["losses"] for panel in source])
    return figure


def _set_rates(axes: Any, lines: Lines) -> None:
    """Show what is not far from the best losses, and label some rates in plain numbers."""
    if not lines:
        return
    axes.set_xscale("log")
    low, high = best_losses(lines)
    margin = 0.1 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    shown = sorted({lr for line in lines.values() for lr, loss in _points(line) if loss <= high})
    axes.set_xlim(shown[0] / 1.1, shown[-1] * 1.1)
    axes.set_xticks(ticks(shown), map(rate_text, ticks(shown)))
    axes.set_xticks([], minor=True)


def best_losses(lines: Lines) -> tuple[float, float]:
    """From the least of all losses to somewhat above the least ones of the lines."""
    bests = [min(line["mean"]) for line in lines.values()]
    largest = max(max(line["mean"]) for line in lines.values())
    wanted = max(bests) + CURVE_HEIGHT * (max(bests) - min(bests))
    return min(bests), wanted if min(bests) < wanted < largest else largest


def _points(line: Lines) -> Iterable[tuple[float, float]]:
    return zip(line["x"], line["mean"], strict=True)


def ticks(rates: Sequence[float], most: int = 6) -> list[float]:
    """A few of the sorted rates, a power of 2 apart, which two digits tell best."""
    num_doublings = math.log2(rates[-1] / rates[0]) + 1e-6
    stride = max(math.ceil(num_doublings / most), 1)
    # Rates are roots of 2 apart: one of two rows of doublings is that of the round numbers.
    rows = [
        [rates[0] * 2 ** (shift + i) for i in range(0, int(num_doublings - shift) + 1, stride)]
        for shift in (0.0, 0.5)
        if shift <= num_doublings
    ]
    return min(rows, key=lambda row: max(abs(float(rate_text(lr)) / lr - 1) for lr in row))


def draw_differences(source: Source) -> Any:
    """Differences of losses over training, at the scale of the second half."""
    figure, all_axes = grid(len(source), CURVES_COLUMNS, CURVE_INCHES)
    for panel, axes in zip(source, all_axes, strict=True):
        draw_lines(axes, panel["differences"])
        axes.set_ylim(*end_limits(panel["differences"].values(), shown=[0.0]))
        _describe(axes, panel["title"], "step", f"validation loss minus {panel['reference']}'s")
    _label(figure, all_axes, [panel["differences"] for panel in source])
    return figure


def draw_losses(source: Source) -> Any:
    """Losses of pipelines over training, at the scale of the second half."""
    figure, all_axes = grid(len(source), CURVES_COLUMNS, CURVE_INCHES)
    if not source:
        figure.text(0.5, 0.5, NOT_MEASURED, ha="center")
    for panel, axes in zip(source, all_axes, strict=True):
        draw_lines(axes, panel["losses"])
        axes.set_ylim(*end_limits(panel["losses"].values()))
        _describe(axes, panel["title"], "micro-batch", "validation loss")
    _label(figure, all_axes, [panel["losses"] for panel in source])
    return figure


def end_limits(lines: Iterable[Lines], shown: Sequence[float] = ()) -> tuple[float, float]:
    """What shows the second half of training, and other values: its start is far away."""
    values = [value for line in lines for value in line["mean"][len(line["mean"]) // 2 :]]
    low, high = min([*shown, *values], default=0.0), max([*shown, *values], default=0.0)
    margin = 0.25 * (high - low) or 1.0
    return low - margin, high + margin


def draw_foresight(source: Source) -> Any:
    """Errors of predictions over training, beside the line of no prediction."""
    figure, all_axes = grid(len(source), CURVES_COLUMNS, CURVE_INCHES)
    for panel, axes in zip(source, all_axes, strict=True):
        draw_lines(axes, panel["errors"])
        axes.axhline(1.0, color="black", linewidth=0.8)
        note = {"xytext": (-2, 2), "textcoords": "offset points", "ha": "right", "fontsize": 7}
        axes.annotate("no prediction", (1, 1), xycoords=("axes fraction", "data"), **note)
        axes.set_ylim(bottom=0)
        _describe(axes, panel["title"], "step", "error, in lengths of the step")
    _label(figure, all_axes, [panel["errors"] for panel in source])
    return figure


def _describe(axes: Any, title: str, x: str, y: str) -> None:
    clean(axes)
    axes.set_title(textwrap.fill(title, TITLE_WIDTH), fontsize=9, fontweight="bold")
    axes.set_xlabel(x, fontsize=8.5)
    axes.set_ylabel(y, fontsize=8.5)


def _label(figure: Any, all_axes: Sequence[Any], lines: Sequence[Lines]) -> None:
    """Name the lines at their ends, when the panels have their places."""
    figure.draw_without_rendering()
    for axes, named in zip(all_axes, lines, strict=True):
        low, high = axes.get_ylim()
        label_ends(axes, {name: last_visible(line, low, high) for name, line in named.items()})


def last_visible(line: Lines, low: float, high: float) -> tuple[float, float]:
    """The last point of a line between two limits; its last one if there is none."""
    points = list(_points(line))
    return next((point for point in reversed(points) if low <= point[1] <= high), points[-1])
