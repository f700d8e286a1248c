"""One look per optimizer in all plots, and labels at line ends that do not overlap."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple


class Style(NamedTuple):
    """How an optimizer looks; lines and markers tell it apart without colour."""

    color: str
    line: Any = "-"
    marker: str = "o"

    @property
    def options(self) -> dict[str, Any]:
        """Of a line without markers."""
        return {"color": self.color, "linestyle": self.line}


GREY = "#666666"
DASHED, DOTTED, DASH_DOTTED, SHORT = (0, (6, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1.5))
# Okabe and Ito's colours, for colour-blind readers too. Their yellow is too light for lines.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
STYLES = {
    "AdamW": Style(BLACK, "-", "o"),
    "WPAdamW, s = 0.5": Style(SKY, DASHED, "v"),
    "WPAdamW, s = 1": Style(BLUE, "-", "s"),
    "WPAdamW, s = 2": Style(VERMILION, DASHED, "D"),
    "WPAdamW, s = 3": Style(ORANGE, DASH_DOTTED, "^"),
    "NAdamW": Style(GREEN, DOTTED, "P"),
    "AdamWScheduleFree": Style(PURPLE, DASH_DOTTED, "X"),
    "AdamW, averaged": Style(GREY, SHORT, "<"),
    "WPAdamW, s = 1, averaged": Style(BLUE, SHORT, "<"),
    "WPAdamW, s = 2, averaged": Style(VERMILION, SHORT, ">"),
    # Ways to train a pipeline.
    "synchronous, 1 micro-batch": Style(BLACK, "-", "o"),
    "synchronous, D micro-batches": Style(GREY, SHORT, "<"),
    "PipeOptim": Style(BLUE, "-", "s"),
    "predicted for both": Style(SKY, DASHED, "v"),
    "PipeDream": Style(VERMILION, DASH_DOTTED, "D"),
    "stale gradients": Style(ORANGE, DOTTED, "^"),
    # Of the other commands.
    "AdamW(fused=True)": Style(BLACK, "-", "o"),
    "WPAdamW": Style(BLUE, "-", "s"),
}
# Paul Tol's muted colours, for names that nobody thought of.
OTHERS = ("#332288", "#117733", "#882255", "#AA4499", "#999933", "#CC6677", "#44AA99")
LINES = ("-", DASHED, DASH_DOTTED, DOTTED)
SHORT_NAMES = {
    "AdamWScheduleFree": "schedule-free",
    "synchronous, 1 micro-batch": "synchronous, 1",
    "synchronous, D micro-batches": "synchronous, D",
}


def style_of(name: str) -> Style:
    """The style of an optimizer: the same in every plot and with whatever others."""
    if name in STYLES:
        return STYLES[name]
    number = zlib.crc32(name.encode())
    marker = "ov^<>sDPX"[number // 100 % 9]
    return Style(OTHERS[number % len(OTHERS)], LINES[number // 10 % len(LINES)], marker)


def short(name: str) -> str:
    """A name as a label."""
    name = name.removeprefix("WPAdamW, ").replace(", averaged", " averaged")
    return SHORT_NAMES.get(name, name)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions apart, to a gap at least where they fit between low and high."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    placed = [0.0] * len(wanted)
    least = low
    for i in order:
        placed[i] = max(wanted[i], least)
        least = placed[i] + gap
    most = high
    for i in reversed(order):
        placed[i] = min(placed[i], most)
        most = placed[i] - gap
    return placed


def label_ends(axes: Any, ends: dict[str, tuple[float, float]], size: float = 8) -> None:
    """Write names beside the right edge, joined with the ends of their lines, in data coordinates.

    The limits of the axes must be final.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [to_axes.transform(end)[1] for end in ends.values()]
    inches = axes.get_position().height * axes.figure.get_figheight()
    gap = 1.25 * size / 72 / inches
    for (name, end), height in zip(ends.items(), spread(heights, gap, 0.0, 1.0), strict=True):
        axes.annotate(
            short(name),
            xy=end,
            xytext=(1.04, height),
            textcoords="axes fraction",
            color=style_of(name).color,
            fontsize=size,
            va="center",
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": style_of(name).color, "linewidth": 0.6},
                **{"alpha": 0.6, "shrinkA": 1, "shrinkB": 0},
            },
        )


def clean(axes: Any) -> None:
    """Leave the left and the lower spine and faint lines across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
