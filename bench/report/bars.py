"""Time of a step as bars, the fastest first, beside what the memory alone would take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..registry import COPY, IN_PLACE, OURS
from .markup import Results, machine, number
from .plots import grid
from .styles import GREY, clean, style_of

# Of each machine the first of each line that was measured: large tensors, many small ones.
TABLES = (("peers_fp32", "large_fp32"), ("peers_many", "many_new"))
# The share of bars that are shown in full where the last ones would make all others short.
SHARE_SHOWN, CUT_FROM = 0.85, 2.0
LIGHT = "#BBBBBB"


def source(all_results: Sequence[Results]) -> list[dict[str, Any]]:
    """Per machine and table the times, and those of a copy where the bytes are known."""
    found = (_panel(results, names) for results in all_results for names in TABLES)
    return [panel for panel in found if panel is not None]


def _panel(results: Results, names: Sequence[str]) -> dict[str, Any] | None:
    for table in (results["tables"].get(name, {"rows": {}}) for name in names):
        rows = {name: row for name, row in table["rows"].items() if "why" not in row}
        contestants = [name for name in rows if name not in (COPY, IN_PLACE)]
        if contestants:
            first = rows[contestants[0]]["median_ms"]
            bars = {name: _bar(rows[name], rows.get(COPY), first) for name in contestants}
            return {"title": f"{table['title']}\n{machine(results['facts'])}", "bars": bars}
    return None


def _bar(row: dict[str, Any], copy: dict[str, Any] | None, first_ms: float) -> dict[str, Any]:
    """The time, its ratio to that of the table's first line, and the time of a copy."""
    moved, bound = row["bytes_moved"], None
    if copy is not None and moved is not None:
        bound = copy["median_ms"] * moved / copy["bytes_moved"]
    return {"ms": row["median_ms"], "ratio": row["median_ms"] / first_ms, "bound_ms": bound}


def draw(source: Sequence[dict[str, Any]]) -> Any:
    """One panel per machine and table."""
    most = max((len(panel["bars"]) for panel in source), default=1)
    figure, all_axes = grid(len(source), 2, (6.4, 1.1 + 0.21 * most))
    for axes, panel in zip(all_axes, source, strict=True):
        _draw_panel(axes, panel)
    return figure


def _draw_panel(axes: Any, panel: dict[str, Any]) -> None:
    bars = sorted(panel["bars"].items(), key=lambda item: item[1]["ms"])
    limit = longest_shown([bar["ms"] for _, bar in bars])
    first = next(iter(panel["bars"]))
    for y, (name, bar) in enumerate(bars):
        axes.barh(y, min(bar["ms"], limit), height=0.72, color=_color(name, first))
        if bar["bound_ms"] is not None:
            axes.plot(2 * [bar["bound_ms"]], [y - 0.44, y + 0.44], color="#D55E00", linewidth=1.8)
        _label(axes, y, bar, limit)
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    _finish(axes, panel["title"], limit, len(bars))


def longest_shown(sorted_ms: Sequence[float]) -> float:
    """Where bars are cut off: nowhere, or where the last few are far longer than the others."""
    usual = sorted_ms[int(SHARE_SHOWN * (len(sorted_ms) - 1))]
    return usual if sorted_ms[-1] > CUT_FROM * usual else sorted_ms[-1]


def _color(name: str, first: str) -> str:
    """Black for what the others are compared with, and the colour of ours."""
    if name == first:
        return style_of(first).color
    return style_of(OURS).color if name.startswith("WP") else LIGHT


def _label(axes: Any, y: int, bar: dict[str, Any], limit: float) -> None:
    """Milliseconds and the ratio, behind the bar and its tick; a gap where the bar is cut off."""
    if bar["ms"] > limit:
        axes.plot(2 * [0.97 * limit], [y - 0.5, y + 0.5], color="white", linewidth=3)
    end = max(min(bar["ms"], limit), bar["bound_ms"] or 0.0)
    text = f" {number(bar['ms'], '3g')} ms  x {number(bar['ratio'], '3g')}"
    axes.annotate(
        text, (end, y), xytext=(2, 0), textcoords="offset points", fontsize=7.5, va="center"
    )


def _finish(axes: Any, title: str, limit: float, num_bars: int) -> None:
    clean(axes)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.3 * limit), ylim=(num_bars - 0.4, -0.6))
    axes.set_title(title, fontsize=9, fontweight="bold")
    note = "median of a step, ms (orange: a device copy of as many bytes)"
    axes.set_xlabel(note, fontsize=8, color=GREY)
