"""Options and fixtures of the benchmarks: sizes, device, and the race that fills a table."""

from __future__ import annotations

import gc
import math
import os
import time
from typing import NamedTuple

import pytest
import torch

from wpadamw.bench.machine import cache_bytes
from wpadamw.bench.registry import COPY
from wpadamw.bench.speed import entry, measure
from wpadamw.bench.speed.shapes import Sizes, gpt2_sizes, llama_sizes, vit_sizes
from wpadamw.bench.usage import usable_device


def pytest_benchmark_generate_machine_info() -> dict[str, str]:
    """Nothing: the results have facts of their own, and what is asked for these takes seconds."""
    return {}


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
    peers: int
    peers_rounds: int
    models: dict[str, Sizes]
    model_rounds: int
    huge: int | None = None
    # What rotation must leave behind; that of the device if None.
    cache_bytes: int | None = None
    # After which no peer is built any more: their compilers take as long as they like.
    peers_s: float = math.inf


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
    peers=2**24,
    peers_rounds=24,
    models={
        "GPT-2": gpt2_sizes(width=768, num_layers=12, vocabulary=50257, context=1024),
        "ViT-B/16": vit_sizes(width=768, num_layers=12, image=224, patch=16, num_classes=1000),
        "Llama 3.2 1B": llama_sizes(
            width=2048, num_layers=16, hidden=8192, keys=512, vocabulary=128256
        ),
    },
    model_rounds=16,
)
# A GPU is done with a step in less than a hundredth of the time: more rounds, and more memory.
FULL_GPU = FULL._replace(
    large_rounds=100,
    small_rounds=1000,
    peers_rounds=50,
    model_rounds=50,
    huge=2**28,
    peers_s=15.0,
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
    peers=2**16,
    peers_rounds=3,
    models={
        "GPT-2": gpt2_sizes(width=8, num_layers=2, vocabulary=50, context=16),
        "ViT-B/16": vit_sizes(width=8, num_layers=2, image=32, patch=16, num_classes=10),
        "Llama 3.2 1B": llama_sizes(width=8, num_layers=2, hidden=16, keys=4, vocabulary=50),
    },
    model_rounds=3,
    huge=2**17,
    cache_bytes=2**18,
)


def pytest_addoption(parser):
    group = parser.getgroup("wpadamw benchmarks")
    group.addoption("--quick", action="store_true", help="tiny sizes: does it run at all?")
    group.addoption("--device", type=usable_device, default="cpu", help="torch device (cpu)")
    group.addoption("--progress-fd", type=int, help="where to write how far it is, in thousandths")


@pytest.fixture
def is_quick(request):
    return request.config.getoption("--quick")


@pytest.fixture
def scale(is_quick, device):
    if is_quick:
        return QUICK
    return FULL_GPU if device.type == "cuda" else FULL


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


class Progress:
    """Tells which part of all benchmarks of this process is done."""

    def __init__(self, descriptor: int | None, total: int) -> None:
        self.descriptor, self.total, self.num_done = descriptor, total, 0

    def tell(self, part: float) -> None:
        """Part of the benchmark under way."""
        if self.descriptor is not None:
            thousandths = int(1000 * (self.num_done + part) / self.total)
            os.write(self.descriptor, f"{thousandths}\n".encode())


@pytest.fixture(scope="session")
def progress(request):
    return Progress(request.config.getoption("--progress-fd"), len(request.session.items))


@pytest.fixture(autouse=True)
def _counted(progress):
    yield
    progress.num_done += 1
    progress.tell(0.0)


@pytest.fixture
def hold(benchmark, progress):
    """Hold a race of some rounds, and tell how far it is."""

    def run(race, rounds):
        def one_round():
            race()
            progress.tell(race.num_rounds / rounds)

        benchmark.pedantic(one_round, rounds=rounds)

    return run


@pytest.fixture
def race(benchmark, hold, scale):
    """Time optimizers over a shape and record the table; the first is the reference."""

    def run(name, title, those, shape, rounds, *, is_rotated=True, max_s=math.inf, **options):
        cache = cache_bytes(shape.device) if scale.cache_bytes is None else scale.cache_bytes
        footprint = entry.footprint_bytes(len(those), shape)
        copies = entry.num_copies(footprint, cache) if is_rotated else 1
        race = measure.Race(measure.device_timer(shape.device))
        deadline = time.monotonic() + max_s
        entry.enter(race, those, shape, copies=copies, deadline=deadline, **options)
        benchmark.group = name
        hold(race, rounds)
        rows = measure.table_rows(race, reference=those[0].name, roof=COPY)
        table = {"table": name, "title": title, "copies": copies, "rows": rows}
        benchmark.extra_info |= table

    return run


@pytest.fixture(autouse=True)
def _released_memory():
    yield
    gc.collect()  # optimizers are reference cycles, and gigabytes here
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for the process that probes memory
