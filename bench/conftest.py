"""Options and fixtures of the benchmarks: sizes, device, and the race that fills a table."""

from __future__ import annotations

import gc
from typing import NamedTuple

import measure
import pytest
import torch
from contestants import bytes_needed, contestants, gpt2_sizes
from names import COPY


class Scale(NamedTuple):
    """Sizes and numbers of rounds."""

    large: int
    large_rounds: int
    small: int
    small_rounds: int
    num_tensors: int
    tensor: int
    many_rounds: int
    memory: int
    huge: int | None = None
    model: tuple[tuple[int, ...], ...] | None = None


# 64M parameters leave every cache far behind, and all contestants together hold 10 GB of them.
# Rounds: as many as make quartiles that repeat, in minutes.
FULL = Scale(
    large=2**26,
    large_rounds=32,
    small=2**16,
    small_rounds=500,
    num_tensors=1000,
    tensor=1000,
    many_rounds=100,
    memory=2**24,
)
# A GPU is done with a step in less than a hundredth of the time: more rounds, and more memory.
FULL_GPU = FULL._replace(
    large_rounds=100,
    small_rounds=1000,
    huge=2**28,
    model=gpt2_sizes(width=768, num_layers=12, vocabulary=50257, context=1024),
)
QUICK = Scale(
    large=2**16,
    large_rounds=3,
    small=2**10,
    small_rounds=3,
    num_tensors=10,
    tensor=100,
    many_rounds=3,
    memory=2**20,
    huge=2**17,
    model=gpt2_sizes(width=8, num_layers=2, vocabulary=50, context=16),
)


def pytest_addoption(parser):
    group = parser.getgroup("wpadamw benchmarks")
    group.addoption("--quick", action="store_true", help="tiny sizes: does it run at all?")
    group.addoption("--device", default="cpu", help="torch device to measure on (cpu)")


@pytest.fixture
def scale(request, device):
    if request.config.getoption("--quick"):
        return QUICK
    return FULL_GPU if device.type == "cuda" else FULL


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def race(benchmark):
    """Time all kinds over a shape and leave the table in the record; the first is the reference."""

    def run(name, title, kinds, shape, rounds, has_new_gradients=False):
        free = measure.free_bytes(shape.device)
        if free is not None and free < (needed := bytes_needed(kinds, shape)):
            pytest.skip(f"needs {needed / 2**30:.1f} GiB of memory, got {free / 2**30:.1f} GiB")
        race = measure.Race(
            contestants(kinds, shape, has_new_gradients), measure.device_timer(shape.device)
        )
        race.warm_up()
        benchmark.group = name
        benchmark.pedantic(race, rounds=rounds)
        rows = measure.table_rows(race, reference=kinds[0].name, roof=COPY)
        benchmark.extra_info |= {"table": name, "title": title, "rows": rows}

    return run


@pytest.fixture(autouse=True)
def _released_memory():
    yield
    gc.collect()  # optimizers are reference cycles, and gigabytes here
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for the process that probes memory
