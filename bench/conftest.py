"""Options and fixtures of the benchmarks: sizes, device, and the race that fills a table."""

from __future__ import annotations

import gc
from typing import NamedTuple

import measure
import pytest
import torch
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
QUICK = Scale(
    large=2**16,
    large_rounds=3,
    small=2**10,
    small_rounds=3,
    num_tensors=10,
    tensor=100,
    many_rounds=3,
    memory=2**20,
)


def pytest_addoption(parser):
    group = parser.getgroup("wpadamw benchmarks")
    group.addoption("--quick", action="store_true", help="tiny sizes: does it run at all?")
    group.addoption("--device", default="cpu", help="torch device to measure on (cpu)")


@pytest.fixture
def scale(request):
    return QUICK if request.config.getoption("--quick") else FULL


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def race(benchmark, device):
    """Time contestants and leave the table in the record; the first is the reference."""

    def run(name, title, contestants, rounds):
        race = measure.Race(contestants, measure.device_timer(device))
        race.warm_up()
        benchmark.group = name
        benchmark.pedantic(race, rounds=rounds)
        rows = measure.table_rows(race, reference=contestants[0].name, roof=COPY)
        benchmark.extra_info |= {"table": name, "title": title, "rows": rows}

    return run


@pytest.fixture(autouse=True)
def _released_memory():
    yield
    gc.collect()  # optimizers are reference cycles, and gigabytes here
