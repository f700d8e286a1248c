"""Times contestants side by side and says on what machine. Knows nothing of optimizers."""

from __future__ import annotations

import datetime
import gc
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import wpadamw

ROOT = Path(__file__).parent.parent
NUM_WARMUP_ROUNDS = 3  # the first step makes the state, the second meets it in place

Timer = Callable[[Callable[[], object]], float]
Row = dict[str, float | int | None]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Args:
        name: unique in its race.
        run: what is timed.
        bytes_moved: read and written by ``run``; None if that is not ours to say.
        prepare: called before each ``run``, outside of the time taken.
    """

    name: str
    run: Callable[[], object]
    bytes_moved: int | None = None
    prepare: Callable[[], object] = _nothing


class Race:
    """Calling it is one round: every contestant runs once.

    Contestants share each moment's clock rate and neighbours, so their ratios hold on a machine
    that does other things as well. Each starts in turn and in both directions: what the caches
    hold at a start is what the one before left there.
    """

    def __init__(self, contestants: Sequence[Contestant], timer: Timer) -> None:
        self.contestants = list(contestants)
        self.timer = timer
        self.num_rounds = 0
        self.clear()

    def clear(self) -> None:
        """Forget what was measured."""
        self.samples: dict[str, list[float]] = {c.name: [] for c in self.contestants}

    def warm_up(self) -> None:
        """Run rounds that do not count."""
        for _ in range(NUM_WARMUP_ROUNDS):
            self()
        self.clear()

    def __call__(self) -> None:
        shift = self.num_rounds // 2 % len(self.contestants)
        order = self.contestants[shift:] + self.contestants[:shift]
        with _no_garbage_collection():
            for contestant in order[:: -1 if self.num_rounds % 2 else 1]:
                contestant.prepare()
                self.samples[contestant.name].append(self.timer(contestant.run))
        self.num_rounds += 1


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    # A collection takes as long as a small step, and hits whoever happens to allocate.
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# Timers, all in milliseconds.


def device_timer(device: torch.device) -> Timer:
    """What times work on a device from its start to its end there."""
    return cuda_time_ms if device.type == "cuda" else host_time_ms


def host_time_ms(run: Callable[[], object]) -> float:
    """Time until ``run`` returns; on a GPU its kernels may be under way still."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def cuda_time_ms(run: Callable[[], object]) -> float:
    """Time between two events around ``run``; short work counts the host's part of it too."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


# From samples to a table.


def rounded(value: float | None) -> float | None:
    """Four significant digits: more than any of this repeats to."""
    return None if value is None else float(f"{value:.4g}")


def table_rows(race: Race, reference: str, roof: str) -> dict[str, Row]:
    """Per contestant what was measured, and its ratios to the reference and to the roof."""
    medians = {name: statistics.median(times) for name, times in race.samples.items()}
    moved = {c.name: c.bytes_moved for c in race.contestants}
    speeds = {name: gb_per_s(moved[name], medians[name]) for name in medians}
    return {
        name: {
            **_summary(times),
            "ratio": rounded(medians[name] / medians[reference]),
            "bytes_moved": moved[name],
            "gb_per_s": rounded(speeds[name]),
            "share_of_copy": rounded(_share(speeds[name], speeds[roof])),
        }
        for name, times in race.samples.items()
    }


def _summary(times: Sequence[float]) -> Row:
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_ms": rounded(median), "iqr_ms": rounded(third - first), "n": len(times)}


def gb_per_s(bytes_moved: int | None, time_ms: float) -> float | None:
    """Bytes over time in 10^9 bytes a second."""
    return None if bytes_moved is None else bytes_moved / time_ms / 1e6


def _share(speed: float | None, roof: float | None) -> float | None:
    return None if speed is None or roof is None else speed / roof


# The machine.


def facts(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": device.type,
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": rounded(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "wpadamw": wpadamw.__version__,
        "backend": next(n for n, why in wpadamw.backends()[device.type].items() if why is None),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": _is_dirty(),
        **(_gpu_facts(device) if device.type == "cuda" else {}),
    }


def free_bytes(device: torch.device) -> int | None:
    """Memory of a GPU that nobody uses; None for a CPU, which may swap."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def machine_slug(facts: dict[str, Any]) -> str:
    """The machine as the name of a directory."""
    name = facts["gpu"] if "gpu" in facts else f"{facts['cpu']} {facts['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", name.lower())).strip("-")


def cpu_model() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text() if path.exists() else "")
    return found[1] if found else platform.processor() or platform.machine()


def _gpu_facts(device: torch.device) -> dict[str, Any]:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
    return {
        "gpu": torch.cuda.get_device_name(device),
        "gpu_memory_gib": rounded(torch.cuda.mem_get_info(device)[1] / 2**30),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "driver_and_clock": _output(query),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_dirty() -> bool | None:
    status = _git("status", "--porcelain")
    return None if status is None else bool(status)


def _git(*arguments: str) -> str | None:
    return _output(["git", *arguments])


def _output(command: list[str]) -> str | None:
    """What a command prints, or None where it cannot be had."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
