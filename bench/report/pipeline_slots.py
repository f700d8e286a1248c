"""The slots of a 1F1B pipeline that drains after each step, and of one without a drain: a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .markup import Results
from .styles import BLUE, ORANGE

COLORS = {"F": BLUE, "B": ORANGE}


def source(all_results: Sequence[Results]) -> Any:
    """The slots of a pipeline that drains and of one that does not; computed, on any machine."""
    return all_results[0]["slots"] if all_results else {}


def draw(source: dict[str, list[Any]]) -> Any:
    """A row of slots per stage, a panel per schedule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = figure.subplots(max(len(source), 1), 1, squeeze=False)[:, 0]
    for axes, (title, shown) in zip(panels, source.items(), strict=False):
        for stage, start, kind, number in shown:
            axes.barh(stage, 0.94, left=start, height=0.86, color=COLORS[kind], alpha=0.8)
            axes.text(
                start + 0.47,
                stage,
                str(number),
                ha="center",
                va="center",
                fontsize=6.5,
                color="white",
            )
        num_stages, length = (1 + max(slot[i] for slot in shown) for i in (0, 1))
        axes.set_yticks(range(num_stages), [f"stage {i}" for i in range(num_stages)], fontsize=8)
        axes.set(ylim=(num_stages - 0.5, -0.5), xlim=(0, length))
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=9, loc="left")
    figure.supxlabel("slots; blue: forward, orange: backward of the micro-batch", fontsize=8.5)
    return figure
