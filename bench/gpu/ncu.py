"""How Nsight Compute is asked why a kernel takes its time, and its answer."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path
from typing import Any

READ, WRITTEN = "dram__bytes_read.sum", "dram__bytes_write.sum"
DURATION = "gpu__time_duration.sum"
OCCUPANCY = "sm__warps_active.avg.pct_of_peak_sustained_active"
REGISTERS = "launch__registers_per_thread"
# Warps that wait for a reason, per instruction issued; part of the section WarpStateStats.
STALL = re.compile(r"smsp__average_warps?_\w*issue_stalled_(\w+?)(?:_per_issue_active)?\.ratio")
NUM_STALLS = 3


def command(log: Path) -> list[str]:
    """The profiler's part of a command; the program follows, and marks what to look at."""
    metrics = ",".join([READ, WRITTEN, DURATION, OCCUPANCY, REGISTERS])
    return [
        *("ncu", "--target-processes", "all", "--profile-from-start", "off"),
        *("--clock-control", "none"),  # the card stays as it was found
        *("--section", "WarpStateStats", "--metrics", metrics),
        *("--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log)),
    ]


def read(path: Path) -> list[dict[str, Any]]:
    """One entry per launch; empty without a file or a table in it."""
    if not path.exists():
        return []
    lines = [line for line in path.read_text(errors="replace").splitlines() if line[:1] == '"']
    # Below the head stand the units, which have no kernel.
    rows = [row for row in csv.DictReader(lines) if row.get("Kernel Name")]
    return list(map(_kernel, rows))


def _kernel(row: dict[str, str]) -> dict[str, Any]:
    read, written, duration_ns = (_number(row.get(key)) for key in (READ, WRITTEN, DURATION))
    return {
        "name": row["Kernel Name"],
        "duration_us": None if duration_ns is None else duration_ns / 1e3,
        "bytes_read": read,
        "bytes_written": written,
        "gb_per_s": _gb_per_s(read, written, duration_ns),
        "occupancy_percent": _number(row.get(OCCUPANCY)),
        "registers": _number(row.get(REGISTERS)),
        "stalls": _stalls(row),
    }


def _gb_per_s(read: float | None, written: float | None, duration_ns: float | None) -> float | None:
    if read is None or written is None or not duration_ns:
        return None
    return (read + written) / duration_ns


def _number(text: str | None) -> float | None:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:  # "n/a"
        return None


def _stalls(row: dict[str, str]) -> dict[str, float]:
    """The reasons for which warps wait most."""
    found = {}
    for key, text in row.items():
        match, value = STALL.fullmatch(key or ""), _number(text)
        if match and value is not None:
            found[match[1]] = value
    largest = sorted(found.items(), key=lambda item: -item[1])
    return dict(itertools.islice(largest, NUM_STALLS))
