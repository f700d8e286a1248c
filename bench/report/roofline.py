"""Time against bytes moved, a point per optimizer, beside the line of the device copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..registry import COPY, IN_PLACE
from .markup import Results, machine

TABLES = ("peers_fp32", "large_fp32")  # the first that was measured
MARKERS = "os^Dvp*X<>hdP8H"


def source(all_results: Sequence[Results]) -> list[dict[str, Any]]:
    """Per machine the copy and the contestants of a table; None for bytes that are not known."""
    return [panel for results in all_results if (panel := _panel(results)) is not None]


def _panel(results: Results) -> dict[str, Any] | None:
    for table in (results["tables"].get(name, {"rows": {}}) for name in TABLES):
        points = {
            name: [row["bytes_moved"], row["median_ms"]]
            for name, row in table["rows"].items()
            if "why" not in row and name != IN_PLACE
        }
        if COPY in points and len(points) > 1:
            title = f"{table['title']}\n{machine(results['facts'])}"
            return {"title": title, "copy": points.pop(COPY), "points": points}
    return None


def draw(source: Sequence[dict[str, Any]]) -> Any:
    """One panel per machine."""
    from matplotlib.figure import Figure  # not pyplot: the caller's settings stay as they are

    figure = Figure(figsize=(10 * max(len(source), 1), 5.5), layout="constrained")
    if source:
        all_axes = figure.subplots(1, len(source), squeeze=False)[0]
        for axes, panel in zip(all_axes, source, strict=True):
            _draw_panel(axes, panel)
    return figure


def _draw_panel(axes: Any, panel: dict[str, Any]) -> None:
    copied, copy_ms = panel["copy"]
    most = max(moved or copied for moved, _ in panel["points"].values())
    ends = [copied / 2, 2 * most]
    axes.plot(ends, [copy_ms * end / copied for end in ends], color="black", label=COPY)
    for i, (name, (moved, time_ms)) in enumerate(panel["points"].items()):
        is_known = moved is not None
        style: dict[str, Any] = {
            "marker": MARKERS[i % len(MARKERS)],
            "color": f"C{i % 10}",
            "linestyle": "none",
        }
        style |= {"fillstyle": "full" if is_known else "none", "alpha": 0.8}
        axes.plot(moved or copied, time_ms, label=name if is_known else f"{name} *", **style)
    axes.set(xscale="log", yscale="log", title=panel["title"], ylabel="median of a step, ms")
    axes.set_xlabel("bytes moved in a step (*: not known, drawn at those of a fused AdamW)")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
