"""The study's results in pictures: losses, prediction errors, norms of gradients.

Each plot has a source, what it shows as a JSON value, and a function that draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from .markup import Results
from .plots import draw_lines, mean_line, panels
from .study_tables import Runs, optimizers, runs_of

Source = list[dict[str, Any]]  # panels: a title, and lines by their labels
PANEL_INCHES = (4.5, 3.2)


class Plot(NamedTuple):
    """A picture of the results of one or more machines."""

    source: Callable[[Sequence[Results]], Source]
    draw: Callable[[Source], Any]


# What is shown.


def curves(all_results: Sequence[Results]) -> Source:
    """Validation losses over training, and their differences from the reference's."""
    return [
        {
            "title": title,
            "losses": _lines(results, task, _losses),
            "differences": _lines(results, task, _differences),
        }
        for results in all_results
        for task, title in results["tasks"].items()
    ]


def _losses(results: Results, task: str, runs: Runs) -> list[list[float]]:
    return [run["validation_losses"] for run in runs]


def _differences(results: Results, task: str, runs: Runs) -> list[list[float]]:
    reference = {run["seed"]: run for run in runs_of(results, task, results["reference"])}
    return [
        [
            ours - theirs
            for ours, theirs in zip(
                run["validation_losses"], reference[run["seed"]]["validation_losses"], strict=True
            )
        ]
        for run in runs
        if run["seed"] in reference
    ]


def foresight(all_results: Sequence[Results]) -> Source:
    """Errors of predictions over training, matrices and vectors."""
    return [
        {"title": f"{title}: {group}", "errors": _lines(results, task, _errors_of(group))}
        for results in all_results
        for group in ("matrices", "vectors")
        for task, title in results["tasks"].items()
    ]


def _errors_of(group: str) -> Callable[[Results, str, Runs], list[list[float]]]:
    return lambda results, task, runs: [
        run["foresight"][group]["error"] for run in runs if group in run["foresight"]
    ]


def norm_ratios(all_results: Sequence[Results]) -> Source:
    """The reference's ratio of norms over training, a task a line."""
    lines = {
        title: line
        for results in all_results
        for task, title in results["tasks"].items()
        if (runs := runs_of(results, task, results["reference"]))
        and (line := _line(runs, [run["norm_ratios"] for run in runs], by_share=True))
    }
    return [{"title": "norms of AdamW's gradient", "ratios": lines}]


def _lines(
    results: Results, task: str, values_of: Callable[[Results, str, Runs], list[list[float]]]
) -> dict[str, Any]:
    lines = {}
    for optimizer in optimizers(results):
        runs = runs_of(results, task, optimizer)
        values = values_of(results, task, runs)
        if values:
            lines[optimizer] = _line(runs, values)
    return lines


def _line(runs: Runs, values: Sequence[Sequence[Any]], by_share: bool = False) -> dict[str, Any]:
    """The mean over seeds and its standard error at each evaluated step."""
    steps = runs[0]["evaluated_steps"]
    return mean_line([step / steps[-1] for step in steps] if by_share else steps, values)


# How it is drawn.


def draw_curves(source: Source) -> Any:
    """Losses above, differences below; the legend stands in the first panel."""
    figure, rows = panels(2, len(source), PANEL_INCHES)
    for panel, above, below in zip(source, *rows, strict=True):
        draw_lines(above, panel["losses"])
        draw_lines(below, panel["differences"])
        above.set(title=panel["title"], yscale="log", ylabel="validation loss")
        for set_formatter in (above.yaxis.set_major_formatter, above.yaxis.set_minor_formatter):
            set_formatter("{x:.3g}")  # not as powers of ten
        limit = _end_limit(panel["differences"].values())
        below.set(xlabel="step", ylabel="minus AdamW's", ylim=(-limit, limit))
    _explain(rows[0][0])
    return figure


def _end_limit(lines: Iterable[dict[str, Any]]) -> float:
    """Return what shows the second half of training: at its start differences are large."""
    halves = [line["mean"][len(line["mean"]) // 2 :] for line in lines]
    return 1.3 * max((abs(value) for half in halves for value in half), default=1.0) or 1.0


def draw_foresight(source: Source) -> Any:
    """Errors of matrices above, of vectors below."""
    figure, rows = panels(2, len(source) // 2, PANEL_INCHES)
    for panel, axes in zip(source, [axes for row in rows for axes in row], strict=True):
        draw_lines(axes, panel["errors"])
        axes.axhline(1.0, color="black", linewidth=0.8, label="no prediction")
        axes.set(title=panel["title"], xlabel="step", ylabel="error, steps' lengths")
    _explain(rows[0][0])
    return figure


def draw_norm_ratios(source: Source) -> Any:
    """One panel, from 0 to 1."""
    figure, rows = panels(1, len(source), PANEL_INCHES)
    for panel, axes in zip(source, rows[0], strict=True):
        draw_lines(axes, panel["ratios"])
        axes.set(title=panel["title"], xlabel="share of training", ylim=(0, 1))
        axes.set(ylabel="||g||_1 / (sqrt(d) ||g||_2)")
        _explain(axes)
    return figure


def _explain(axes: Any) -> None:
    if axes.lines:
        axes.legend(fontsize="x-small")


PLOTS = {
    "study-losses.png": Plot(curves, draw_curves),
    "study-foresight.png": Plot(foresight, draw_foresight),
    "study-norms.png": Plot(norm_ratios, draw_norm_ratios),
}
