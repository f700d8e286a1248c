"""Results as Markdown: tables, numbers, and the line that says where they were measured."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

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
