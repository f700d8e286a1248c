"""Pipelines of processes that talk through gloo: how busy stages are, and what they hold."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.multiprocessing.spawn import spawn

import wpadamw
from wpadamw.pipeline import Async1F1B, AsyncStage

from ..registry import PIPELINED, entrants
from ..report.markup import rounded
from ..study.simulated_pipeline import Backward

CPU = torch.device("cpu")
NUM_STAGES = 4
WIDTH, BATCH_SIZE = 256, 2
FORWARD_S, BACKWARD_S = 0.01, 0.02
NUM_MICROBATCHES, ASYNCHRONOUS_STEP = 64, 8
SYNCHRONOUS_STEPS = (4, 8, 32)


class Method(NamedTuple):
    """A way to train without waiting: how far stages predict, which weights backwards get."""

    predicts: bool
    backward: Backward


METHODS = {
    name: Method(each.options.get("predicts", False), each.options["backward"])
    for name, each in entrants(*PIPELINED).items()
    if "backward" in each.options  # the others wait
}


def optimizer(params: Any, steps: float) -> wpadamw.WPAdamW:
    """Without a prediction there is nothing to keep a backup of."""
    return wpadamw.WPAdamW(params, prediction_steps=steps, backup=steps > 0)


# Processes.


class Rank(NamedTuple):
    """What the processes of a pipeline do, each for its stage; results are left in a folder."""

    run: Callable[..., Any]
    folder: str
    arguments: tuple[Any, ...]

    def __call__(self, rank: int) -> None:
        """In the process of a rank."""
        torch.set_num_threads(1)
        at = f"file://{self.folder}/store"
        dist.init_process_group("gloo", at, rank=rank, world_size=NUM_STAGES)
        found = self.run(rank, *self.arguments)
        Path(self.folder, f"{rank}.json").write_text(json.dumps(found))
        dist.barrier()
        dist.destroy_process_group()


def on_ranks(run: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in one process per stage; return what each returned."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(Rank(run, folder, arguments), nprocs=NUM_STAGES)  # type: ignore[no-untyped-call]
        paths = [Path(folder, f"{rank}.json") for rank in range(NUM_STAGES)]
        return [json.loads(path.read_text()) for path in paths]


def step(schedule: Schedule1F1B, rank: int, num_chunks: int) -> None:
    """A step on made-up data."""
    batch = torch.ones(num_chunks * BATCH_SIZE, WIDTH)
    if rank == 0:
        schedule.step(batch)
    elif rank == NUM_STAGES - 1:
        schedule.step(target=batch)
    else:
        schedule.step()


# How busy stages are.


class _SleepInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        time.sleep(BACKWARD_S)
        return grads[0]


class Sleeper(nn.Module):
    """A stage whose passes take a known time and no core."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, WIDTH]`` to the same shape."""
        time.sleep(FORWARD_S)
        slow: Tensor = _SleepInBackward.apply(self.layer(x))  # type: ignore[no-untyped-call]
        return slow


def busy_share(rank: int, num_chunks: int, is_asynchronous: bool) -> float:
    """The share of the time in which a stage computes, over so many micro-batches."""
    module, where = Sleeper(), (rank, NUM_STAGES, CPU)
    opt = optimizer(module.parameters(), (NUM_STAGES - 1 - rank) * is_asynchronous)
    loss_fn = nn.functional.mse_loss
    if is_asynchronous:
        stage = AsyncStage(module, *where, optimizer=opt)
        schedule: Schedule1F1B = Async1F1B(stage, num_chunks, loss_fn)
    else:
        schedule = Schedule1F1B(PipelineStage(module, *where), num_chunks, loss_fn)
    start = 0.0
    for i in range(1 + NUM_MICROBATCHES // num_chunks):
        if i == 1:  # the first one finds out shapes
            dist.barrier()
            start = time.perf_counter()
        step(schedule, rank, num_chunks)
        if not is_asynchronous:
            opt.step()
            opt.zero_grad()
    if isinstance(schedule, Async1F1B):
        schedule.flush()
    dist.barrier()
    return NUM_MICROBATCHES * (FORWARD_S + BACKWARD_S) / (time.perf_counter() - start)


def busy() -> dict[str, float]:
    """The mean share over stages, by schedule."""
    found = {
        f"1F1B, update every {number}": on_ranks(busy_share, number, False)
        for number in SYNCHRONOUS_STEPS
    }
    found["Async1F1B, update every 1"] = on_ranks(busy_share, ASYNCHRONOUS_STEP, True)
    return {name: rounded(statistics.fmean(shares)) for name, shares in found.items()}


# What stages hold.


def held_bytes(rank: int) -> dict[str, float]:
    """Weights, states and copies of each method, over the bytes of the weights."""
    return {name: rounded(_held(rank, method)) for name, method in METHODS.items()}


def _held(rank: int, method: Method) -> float:
    layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)]
    module = nn.Sequential(*layers)
    opt = optimizer(module.parameters(), (NUM_STAGES - 1 - rank) * method.predicts)
    stage = AsyncStage(module, rank, NUM_STAGES, CPU, optimizer=opt, backward=method.backward)
    schedule = Async1F1B(stage, NUM_STAGES, nn.functional.mse_loss)
    for _ in range(3):
        step(schedule, rank, NUM_STAGES)
    of_one = layers[0].weight.nbytes
    held = live_bytes(of_one) / (of_one * len(layers))
    schedule.flush()
    return held


def live_bytes(least: int) -> int:
    """The memory of all tensors of so many bytes: activations here are smaller."""
    tensors = [each for each in gc.get_objects() if issubclass(type(each), Tensor)]
    dense = [each for each in tensors if each.layout is torch.strided and each.nbytes >= least]
    storages = [each.untyped_storage() for each in dense]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
