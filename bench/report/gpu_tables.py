"""What a profiler saw of kernels on a GPU, in a table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .markup import Results, markdown, number

Kernel = dict[str, Any]
LEAST_US = 10.0  # what takes less is no pass over the parameters
NAME_LENGTH = 60
ADDED = ("duration_us", "bytes_read", "bytes_written")
HEAD = ["kernels of a step", "launches", "µs", "MB read", "MB written", "GB/s", "occupancy %"]
LEGEND = (
    "67,108,864 parameters in one tensor, Nsight Compute at the clocks as they were. Launches of "
    "one name that follow each other are added up; occupancy and stalls are those of the first."
)


def kernels(all_results: Sequence[Results]) -> str:
    """The profiles of all machines."""
    found = [(results["machine"], table(results["kernels"])) for results in all_results]
    return "\n\n".join(f"{LEGEND} {machine}.\n\n{text}" for machine, text in found)


def table(launches: Sequence[Kernel]) -> str:
    """Launches as text, those of the same kernel added up."""
    long = [kernel for kernel in launches if (kernel["duration_us"] or LEAST_US) >= LEAST_US]
    return markdown([*HEAD, "registers", "stalls per issue"], map(_row, _steps(long)))


def _steps(launches: Iterable[Kernel]) -> Iterator[Kernel]:
    for name, group in itertools.groupby(launches, lambda kernel: short(kernel["name"])):
        same = list(group)
        # A large profiled kernel of ours is a step by itself, torch's are parts of one.
        parts = [same] if name.startswith("torch's") else [[kernel] for kernel in same]
        for part in parts:
            sums = {key: _sum(kernel[key] for kernel in part) for key in ADDED}
            yield {**part[0], **sums, "name": name, "launches": len(part)}


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def short(name: str) -> str:
    """A kernel's name without what every name has."""
    if functor := re.search(r"(Fused(?:Adam|Sgd)|Copy)(?:MathFunctor|Functor|<)", name):
        return f"torch's {functor[1]}"
    name = "Triton's bucket_kernel" if name == "bucket_kernel" else name
    return re.sub(r"<unnamed>::|wpadamw::|::Rule|^void |\(.*", "", name)[:NAME_LENGTH]


def _row(kernel: Kernel) -> list[str]:
    moved = (kernel["bytes_read"], kernel["bytes_written"])
    known = None not in (*moved, kernel["duration_us"])
    speed = sum(moved) / kernel["duration_us"] / 1e3 if known else None
    stalls = ", ".join(f"{name} {value:.1f}" for name, value in kernel["stalls"].items())
    return [
        kernel["name"],
        str(kernel["launches"]),
        number(kernel["duration_us"], "3g"),
        *(number(None if value is None else value / 1e6, "4g") for value in moved),
        number(speed, "4g"),
        number(kernel["occupancy_percent"], ".1f"),
        number(kernel["registers"], ".0f"),
        stalls,
    ]
