"""Time against bytes moved, beside the line of the device copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markup import Results, machine
from names import COPY, IN_PLACE

MARKERS = "osD^vP*X<>hp"


def source(all_results: Sequence[Results]) -> list[dict[str, Any]]:
    """Per machine the points ``[bytes, ms]`` of every contestant whose bytes are known."""
    return [
        {"machine": machine(results["facts"]), "points": _points(results)}
        for results in all_results
    ]


def _points(results: Results) -> dict[str, list[tuple[int, float]]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for table in results["tables"].values():
        for name, row in table["rows"].items():
            if row.get("bytes_moved") and name != IN_PLACE:
                points.setdefault(name, []).append((row["bytes_moved"], row["median_ms"]))
    return {name: sorted(found) for name, found in points.items()}


def draw(source: Sequence[dict[str, Any]]) -> Any:
    """One panel per machine."""
    from matplotlib.figure import Figure  # not pyplot: the caller's settings stay as they are

    figure = Figure(figsize=(8 * len(source), 5.5))
    for axes, panel in zip(figure.subplots(1, len(source), squeeze=False)[0], source, strict=True):
        _draw_panel(axes, panel)
    figure.tight_layout()
    return figure


def _draw_panel(axes: Any, panel: dict[str, Any]) -> None:
    points = dict(panel["points"])
    if COPY in points:
        axes.plot(*zip(*points.pop(COPY), strict=True), color="black", label=COPY)
    for i, (name, found) in enumerate(points.items()):
        style = {"marker": MARKERS[i % len(MARKERS)], "color": f"C{i % 10}", "alpha": 0.8}
        axes.plot(*zip(*found, strict=True), linestyle="none", label=name, **style)
    axes.set(xscale="log", yscale="log", title=panel["machine"])
    axes.set(xlabel="bytes moved in a step", ylabel="median time of a step, ms")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
