"""What `wpadamw.bench.versions` ran, as tables."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from ..steps import NOT_AVAILABLE, PASSED
from .markup import Results, machine, markdown

NAMES = {"python": "Python", "torch": "torch", "triton": "Triton", "numpy": "NumPy"}
# A column, and the steps that it sums up.
COLUMNS = {
    "build": ("environment", "build", "extension"),
    "packages": ("packages", "triton"),
    "package's tests": ("package",),
    "Triton's interpreter": ("interpreter",),
    "Triton's compiled code": ("code",),
}
Row = dict[str, Any]


def passed(row: Row) -> bool:
    """Whether every step was run and passed."""
    steps = row["steps"]
    wanted = {name for names in COLUMNS.values() for name in names}
    return wanted <= steps.keys() and all(step["verdict"] == PASSED for step in steps.values())


def promised(all_results: Sequence[Results]) -> str:
    """The oldest and the newest of what passed all tests."""
    rows = [row for results in all_results for row in results["rows"] if passed(row)]
    ends = [[name, *_ends({row[key] for row in rows})] for key, name in NAMES.items()]
    return markdown(["tested", "oldest", "newest"], ends)


def _ends(versions: set[str]) -> tuple[str, str]:
    ordered = sorted(versions, key=number)
    return ordered[0], ordered[-1]


def number(version: str) -> tuple[int, ...]:
    """A version to compare with."""
    return tuple(map(int, re.findall(r"\d+", version)))


def versions(all_results: Sequence[Results]) -> str:
    """All combinations, machine by machine."""
    return "\n\n".join(map(_machine_table, all_results))


def _machine_table(results: Results) -> str:
    cells = [[*(row[key] for key in NAMES), *_cells(row)] for row in results["rows"]]
    table = markdown([*NAMES.values(), *COLUMNS], cells)
    reasons = "".join(f"\n- {reason}" for row in results["rows"] for reason in _reasons(row))
    return "\n\n".join(filter(None, [table, reasons.strip(), _caption(results)]))


def _cells(row: Row) -> Iterator[str]:
    for names in COLUMNS.values():
        steps = [row["steps"][name] for name in names if name in row["steps"]]
        bad = [step for step in steps if step["verdict"] != PASSED]
        if bad:
            yield _unsuccessful(bad[0])
        elif len(steps) < len(names):
            yield "not run"
        else:
            yield steps[-1].get("tests", PASSED)


def _unsuccessful(step: dict[str, Any]) -> str:
    if step["verdict"] == NOT_AVAILABLE:
        return NOT_AVAILABLE
    return f"**{step.get('tests', 'failed')}**"


def _reasons(row: Row) -> Iterator[str]:
    """Why a row is not all passed."""
    name = ", ".join(f"{NAMES[key]} {row[key]}" for key in NAMES)
    if "why" in row:
        yield f"{name}: {row['why']}."
    for step, found in row["steps"].items():
        if found["verdict"] != PASSED:
            yield f"{name}, {step}: {found['verdict']}: `{found['why']}`"


def _caption(results: Results) -> str:
    facts, rows = results["facts"], results["rows"]
    sources = sorted({(row["date"], row["commit"], row["dirty"]) for row in rows}, key=str)
    where = f"{machine(facts)}, {facts['system']}; wpadamw {facts['wpadamw']}"
    return f"{where}; {', '.join(_source(*source) for source in sources)}."


def _source(date: str, commit: str | None, dirty: bool | None) -> str:
    """The day and the commit of a row."""
    changes = " with uncommitted changes" if dirty else ""
    return date + (f" at {commit[:12]}{changes}" if commit else "")
