"""Pipelines on the CPU: their stages, and the simulation that they are compared with."""

from __future__ import annotations

import itertools

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import Schedule1F1B

import wpadamw
from wpadamw.bench.study.simulated_pipeline import SimulatedStage, simulate
from wpadamw.pipeline import Async1F1B, AsyncStage

# Sizes whose micro-batches are aligned as tensors of their own are: libraries of matrix products
# round by alignment.
WIDTH, BATCH_SIZE = 16, 4
NUM_CHUNKS, NUM_STEPS = 8, 3
CPU = torch.device("cpu")
loss_fn = nn.functional.mse_loss


def part(index, dtype=torch.float32):
    """The module of a stage, the same in each process."""
    torch.manual_seed(index + 1)
    layers = nn.Linear(WIDTH, 2 * WIDTH), nn.Tanh(), nn.LayerNorm(2 * WIDTH)
    return nn.Sequential(*layers, nn.Linear(2 * WIDTH, WIDTH)).to(dtype)


def batches(num_chunks=NUM_CHUNKS * NUM_STEPS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shape = 2, BATCH_SIZE, WIDTH
    return [
        tuple(torch.randn(shape, generator=generator).to(dtype).unbind()) for _ in range(num_chunks)
    ]


def joined(chunks):
    """A batch for a step of a schedule."""
    return tuple(map(torch.cat, zip(*chunks, strict=True)))


def per_step(chunks, num_chunks=NUM_CHUNKS):
    return [chunks[i : i + num_chunks] for i in range(0, len(chunks), num_chunks)]


def optimizer(module, steps, **options):
    return wpadamw.WPAdamW(module.parameters(), lr=1e-2, prediction_steps=steps, **options)


def schedule_of(index, num_stages, *, is_predicted=True, drains=False, dtype=None, **options):
    """A stage of a pipeline with its optimizer, and a schedule."""
    module = part(index, dtype or torch.float32)
    steps = (num_stages - 1 - index) * is_predicted
    opt = optimizer(module, steps, **options.pop("of_optimizer", {}))
    stage = AsyncStage(module, index, num_stages, CPU, optimizer=opt, **options)
    return (Schedule1F1B if drains else Async1F1B)(stage, NUM_CHUNKS, loss_fn), stage


def step(schedule, stage, batch):
    """A step of training; the losses, where they are known."""
    inputs, targets = batch
    losses: list[torch.Tensor] = []
    args = (inputs,) if stage.is_first else ()
    schedule.step(*args, **({"target": targets, "losses": losses} if stage.is_last else {}))
    return [loss.detach() for loss in losses]


def simulated(num_stages, *, is_predicted=True, dtype=None, of_optimizer=None, **options):
    """The same stages in the simulation."""
    dtype = dtype or torch.float32
    stages = []
    for index in range(num_stages):
        module = part(index, dtype)
        steps = (num_stages - 1 - index) * is_predicted
        opt = optimizer(module, steps, **(of_optimizer or {}))
        stages.append(SimulatedStage(module, opt, **options))
    return stages


def runs(chunks, drains):
    """Micro-batches that go through the pipeline without a drain in between."""
    first, *others = per_step(chunks)
    return [first, *others] if drains else [first, [*itertools.chain(*others)]]


def expected(stages, chunks, drains, backward="current"):
    losses = [simulate(stages, run, loss_fn, backward=backward) for run in runs(chunks, drains)]
    for stage in stages:
        stage.optimizer.restore()
    return [*itertools.chain(*losses)]


def assert_same(stage, losses, stages, wanted):
    """Weights and losses of a rank's stage are those of the simulation, bit for bit."""
    theirs = [list(each.module.parameters()) for each in stages]
    assert_equal(stage, losses, theirs, wanted)


def assert_equal(stage, losses, weights, wanted):
    """The same, with the weights of each stage."""
    pairs = zip(stage.submod.parameters(), weights[stage.stage_index], strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    if stage.is_last:
        assert torch.equal(torch.stack(losses), torch.stack(wanted))


def group_of_one():
    """A group of this process alone, for a fixture. (Others may have left one of theirs.)"""
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stage_of(module=None, index=0, num_stages=1, opt=None, **options):
    module = part(0) if module is None else module
    opt = wpadamw.WPAdamW(module.parameters(), lr=1e-2) if opt is None else opt
    return AsyncStage(module, index, num_stages, CPU, optimizer=opt, **options)


def divided(compute, cases):
    """What a function returns in each case; processes compute some of them each, and exchange."""
    rank, world_size = place()
    mine = [compute(*case) for case in cases[rank::world_size]]
    found = [None] * world_size
    dist.all_gather_object(found, mine)
    return [found[i % world_size][i // world_size] for i in range(len(cases))]


def place():
    """This process' stage, of as many as there are."""
    return dist.get_rank(), dist.get_world_size()


# Modules that do more.


class Recomputed(nn.Module):
    """Computes a part, which it uses twice, again in the backward pass."""

    def __init__(self, index, use_reentrant):
        super().__init__()
        self.first, self.part = nn.Linear(WIDTH, WIDTH), part(index)
        self.options = {"use_reentrant": use_reentrant}

    def forward(self, x):
        x = self.first(x)
        for _ in range(2):
            x = torch.utils.checkpoint.checkpoint(self.part, x, **self.options)
        return x


class Grouped(nn.Module):
    """Has views of one weight, a weight that is used twice, and buffers that count."""

    def __init__(self, index):
        super().__init__()
        torch.manual_seed(index)
        self.joint, self.norm = nn.Linear(WIDTH, 2 * WIDTH), nn.BatchNorm1d(WIDTH)

    def forward(self, x):
        left, right = self.joint.weight.chunk(2)
        x = self.norm(torch.tanh(x @ left.t() + x @ right))
        return x @ self.joint.weight.view(WIDTH, 2 * WIDTH).t().chunk(2)[1] @ left


def recomputed(index, use_reentrant):
    torch.manual_seed(index)
    return Recomputed(index, use_reentrant)
