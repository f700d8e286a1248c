"""Times contestants side by side. Knows nothing of optimizers."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..report.markup import rounded

NUM_WARMUP_ROUNDS = 3  # the first step makes the state, the second meets it in place

Timer = Callable[[Callable[[], object]], float]
Row = dict[str, float | int | str | None]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    Args:
        run: what is timed.
        bytes_moved: read and written by ``run``; None if that is not ours to say.
        prepare: called before each ``run``, outside of the time taken.
    """

    run: Callable[[], object]
    bytes_moved: int | None = None
    prepare: Callable[[], object] = _nothing


class Race:
    """Calling it is one round: every contestant runs once.

    Contestants share each moment's clock rate and neighbours, so their ratios hold on a machine
    that does other things as well. Each starts in turn and in both directions: what the caches
    hold at a start is what the one before left there.
    """

    def __init__(self, timer: Timer) -> None:
        self.timer = timer
        self.names: list[str] = []
        self.contestants: dict[str, Contestant] = {}
        self.samples: dict[str, list[float]] = {}
        self.left_out: dict[str, str] = {}
        self.num_rounds = 0

    def enter(
        self,
        name: str,
        build: Callable[[], Contestant],
        num_copies: int = 1,
        why_not: str | None = None,
    ) -> None:
        """Build a contestant and warm it up, or note why it stays out.

        Args:
            name: in the table, also of who stays out; unique.
            build: makes it; if this or a run of it raises, that is why it stays out.
            num_copies: of its inputs; all of them are warmed up.
            why_not: keeps it out from the start.
        """
        self.names.append(name)
        try:
            if why_not is not None:
                raise LeftOut(why_not)
            contestant = build()
            for _ in range(NUM_WARMUP_ROUNDS * num_copies):
                self._time(contestant)
        except Exception as error:
            self.left_out[name] = first_line(error)
        else:
            self.contestants[name], self.samples[name] = contestant, []

    def __call__(self) -> None:
        """Run every contestant once."""
        order = list(self.contestants)
        shift = self.num_rounds // 2 % max(len(order), 1)
        order = order[shift:] + order[:shift]
        with _no_garbage_collection():
            for name in order[:: -1 if self.num_rounds % 2 else 1]:
                try:
                    self.samples[name].append(self._time(self.contestants[name]))
                except Exception as error:
                    self.left_out[name] = first_line(error)
                    del self.contestants[name]
        self.num_rounds += 1

    def _time(self, contestant: Contestant) -> float:
        contestant.prepare()
        return self.timer(contestant.run)


class LeftOut(Exception):
    """A contestant cannot take part."""


def first_line(error: Exception) -> str:
    """What an exception says, in a line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


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
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def cuda_time_ms(run: Callable[[], object]) -> float:
    """Time between two events around ``run``; short work counts the host's part of it too."""
    event: Any = torch.cuda.Event
    start, end = (event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


# From samples to a table.


def table_rows(race: Race, reference: str, roof: str) -> dict[str, Row]:
    """Per contestant what was measured, with ratios to the reference and the roof, or why not."""
    moved = {name: contestant.bytes_moved for name, contestant in race.contestants.items()}
    medians = {name: statistics.median(race.samples[name]) for name in moved}
    speeds = {name: gb_per_s(moved[name], medians[name]) for name in medians}
    rows: dict[str, Row] = {}
    for name in race.names:
        if name in race.left_out:
            rows[name] = {"why": race.left_out[name]}
            continue
        rows[name] = {
            **_summary(race.samples[name]),
            "ratio": rounded(_ratio(medians[name], medians.get(reference))),
            "bytes_moved": moved[name],
            "gb_per_s": rounded(speeds[name]),
            "share_of_copy": rounded(_ratio(speeds[name], speeds.get(roof))),
        }
    return rows


def _summary(times: Sequence[float]) -> Row:
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return {"median_ms": rounded(median), "iqr_ms": rounded(third - first), "n": len(times)}


def gb_per_s(bytes_moved: int | None, time_ms: float) -> float | None:
    """Bytes over time in 10^9 bytes a second."""
    return None if bytes_moved is None else bytes_moved / time_ms / 1e6


def _ratio(value: float | None, over: float | None) -> float | None:
    return None if value is None or over is None else value / over
