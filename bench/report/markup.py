"""Results as Markdown: tables, numbers, and the line that says where they were measured."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, overload

NOT_MEASURED = "not measured"
MAX_REASON_LENGTH = 120

Results = dict[str, Any]
Cells = Sequence[object]


def titled(table: Results, columns: dict[str, tuple[str, str]]) -> str:
    """A table of results under its title."""
    rows = [
        [_named(name, row), *(number(row.get(key), spec) for key, spec in columns.values())]
        for name, row in table["rows"].items()
    ]
    return f"**{table['title']}**\n\n{markdown(['', *columns], rows)}"


def _named(name: str, row: dict[str, Any]) -> str:
    """The name of a row, and why it was not measured."""
    if "why" not in row:
        return name
    return f"{name}: {textwrap.shorten(row['why'], MAX_REASON_LENGTH)}".replace("|", "\\|")


def markdown(head: Cells, rows: Iterable[Cells]) -> str:
    """A table, all columns but the first aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (head, rule, *rows))


def number(value: float | None, spec: str) -> str:
    """A number as text, a dash for none; "3g" is three digits, but never an exponent."""
    if value is None:
        return "-"
    if not spec.endswith("g"):
        return format(value, spec)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(int(spec[:-1]) - 1 - magnitude, 0)}f}"


@overload
def rounded(value: float, digits: int = 4) -> float: ...
@overload
def rounded(value: None, digits: int = 4) -> None: ...
def rounded(value: float | None, digits: int = 4) -> float | None:
    """So many significant digits; four are more than a time repeats to."""
    return None if value is None else float(f"{value:.{digits}g}")


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean; 0 for a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def format_losses(values: Sequence[float], spec: str = ".4f") -> str:
    """The mean, and where there are several values its standard error."""
    mean = format(statistics.fmean(values), spec)
    return mean if len(values) == 1 else f"{mean} ± {standard_error(values):.4f}"


def caption(results: Results) -> str:
    """The machine, the versions and the day."""
    facts = results["facts"]
    changes = " with uncommitted changes" if facts["dirty"] else ""
    commit = f" at {facts['commit'][:12]}{changes}" if facts["commit"] else ""
    left_out = "".join(
        f" Without {peer}: {why}." for peer, why in facts.get("left_out", {}).items()
    )
    return (
        f"{machine(facts)}, {_hardware(facts)}, {facts['system']}; "
        f"Python {facts['python']}, torch {facts['torch']}; wpadamw "
        f"{facts['wpadamw']}{commit}, backend {facts['backend']}; {facts['date']}.{left_out}"
    )


def _hardware(facts: dict[str, Any]) -> str:
    if "gpu" in facts:
        return (
            f"{facts['gpu_memory_gib']:.0f} GiB, driver and highest clock "
            f"{facts['driver_and_clock'] or 'unknown'}, CUDA {facts['cuda']}, "
            f"Triton {facts['triton'] or 'missing'}, {facts['cores']} CPU cores"
        )
    return f"{facts['memory_gib']:.0f} GiB, {facts['threads']} threads"


def machine(facts: dict[str, Any]) -> str:
    """The machine in a few words."""
    return facts.get("gpu") or f"{facts['cpu']}, {facts['cores']} cores"
