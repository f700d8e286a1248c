"""What asynchronous pipelines refuse, and that every rank hears of it."""

from __future__ import annotations

import copy
import os
import pickle

import pipelines
import pytest
import torch
from pipelines import (
    CPU,
    NUM_CHUNKS,
    batches,
    group_of_one,
    joined,
    loss_fn,
    part,
    per_step,
    place,
    stage_of,
    step,
)
from processes import needs_gloo, run
from torch import nn
from torch.distributed.pipelining import ScheduleGPipe
from torch.utils.checkpoint import checkpoint

import wpadamw
from wpadamw.pipeline import Async1F1B, AsyncStage
from wpadamw.pipeline.in_flight import InFlight

pytestmark = needs_gloo


@pytest.fixture(autouse=True, scope="module")
def alone():
    yield from group_of_one()


# Failures.


class Fails(nn.Module):
    """Fails in its forward of a number."""

    def __init__(self, left):
        super().__init__()
        self.part, self.left = part(0), left

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise ValueError("as it should")
        return self.part(x)


def test_a_stage_is_built_anew_after_a_failure():
    inputs, targets = joined(batches(4))
    stage = stage_of(module := Fails(3))
    with pytest.raises(RuntimeError, match="failed to run forward"):
        Async1F1B(stage, 4, loss_fn).step(inputs, target=targets)
    with pytest.raises(RuntimeError, match="has failed"):
        module.state_dict()
    again = stage_of(module, opt=stage.optimizer)
    Async1F1B(again, 4, loss_fn).step(inputs, target=targets)
    module.state_dict()


def test_an_evaluation_that_fails_is_no_failure_of_training():
    inputs, targets = joined(batches(4))
    schedule = Async1F1B(stage_of(module := Fails(-1)), 4, loss_fn)
    schedule.step(inputs, target=targets)
    module.left = 1
    with pytest.raises(ValueError, match="as it should"), torch.no_grad():
        schedule.eval(inputs, target=targets)
    module.state_dict()
    schedule.step(inputs, target=targets)


# In a step: GPipe has all backward passes of a step after all forwards.


def gpipe(function, backward, opt=None):
    module = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    module.forward = lambda x: function(module, x)
    stage = stage_of(module, backward=backward)
    schedule = ScheduleGPipe(stage, 4, loss_fn)
    for chunks in per_step(batches(8), 4):
        inputs, targets = joined(chunks)
        schedule.step(inputs, target=targets)
    return stage


def plain(module, x):
    return module[2](module[1](module[0](x)))


def careless(module, x):
    result = (hidden := module[0](x)).tanh()
    hidden.mul_(2)
    return module[2](result * hidden) * hidden.add_(1)


def stealthy(module, x):
    result = plain(module, x)
    with torch.no_grad():
        module[2].weight.mul_(0.5)
    return result


def recomputing(module, x):
    return checkpoint(lambda x: plain(module, x), x, use_reentrant=False)


@pytest.mark.parametrize("backward", ["current", "forward"])
def test_activations_that_change(backward):
    gpipe(plain, backward)
    with pytest.raises(RuntimeError, match="backward") as raised:
        gpipe(careless, backward)
    assert "modified by an inplace operation" in str(raised.value.__cause__)


def test_parameters_that_others_write_to():
    with pytest.raises(RuntimeError, match="backward") as raised:
        gpipe(stealthy, "forward")
    assert "'2.weight' was written to" in str(raised.value.__cause__)


def test_checkpoints_with_the_weights_of_the_forward():
    gpipe(recomputing, "current")
    with pytest.raises(RuntimeError, match="backward") as raised:
        gpipe(recomputing, "forward")
    assert "run again in the backward pass" in str(raised.value.__cause__)


# In flight.


def reads(module, opt):
    """What makes use of a stage's weights, all of them or a part."""
    yield from (opt.eval, opt.train, opt.predict, opt.restore, opt.state_dict)
    yield from (opt.true_weights().__enter__, lambda: opt.step(lambda: torch.zeros(())))
    yield from (module.state_dict, module[0].state_dict, nn.Sequential(module).state_dict)
    yield from (lambda: copy.deepcopy(module), lambda: pickle.dumps(module))


def loads(module, opt, saved):
    yield from (
        lambda: module.load_state_dict(saved[0]),
        lambda: opt.load_state_dict(saved[1]),
    )


def stepped():
    module = part(0)
    opt = wpadamw.WPAdamW(module.parameters(), lr=1e-2)
    module(batches()[0][0]).sum().backward()
    opt.step()
    return module, opt, copy.deepcopy((module.state_dict(), opt.state_dict()))


def test_nobody_uses_weights_in_flight():
    module, opt, saved = stepped()
    in_flight = InFlight(module, opt)
    before = copy.deepcopy(list(module.parameters()))
    in_flight.begin()
    for call in (*reads(module, opt), *loads(module, opt, saved)):
        with pytest.raises(RuntimeError, match=r"in flight.*flush\(\)"):
            call()
    assert opt.weights_are == "predicted"
    assert all(map(torch.equal, before, module.parameters()))
    with in_flight.working():
        opt.restore()
        opt.predict()
    in_flight.end()
    for call in (*reads(module, opt), *loads(module, opt, saved)):
        call()


def test_after_a_failure_there_is_only_loading():
    module, opt, saved = stepped()
    in_flight = InFlight(module, opt)
    in_flight.begin()
    in_flight.fail()
    for call in reads(module, opt):
        with pytest.raises(RuntimeError, match=r"has failed.*load the last checkpoint"):
            call()
    for call in loads(module, opt, saved):
        call()
    opt.eval()
    module.state_dict()


def check_in_flight_on_every_rank():
    index, num_stages = place()
    schedule, stage = pipelines.schedule_of(index, num_stages)
    both = [joined(chunks) for chunks in per_step(batches())]
    step(schedule, stage, both[0])  # torch's own, which drains
    stage.optimizer.eval()
    step(schedule, stage, both[1])
    calls = [stage.optimizer.eval, stage.submod.state_dict, schedule.eval]
    calls += [lambda: stage.forward_one_chunk(0, (both[1][0],)), lambda: stage.update()]
    for call in calls:
        with pytest.raises(RuntimeError, match=r"in flight.*flush\(\)"):
            call()
    with pytest.raises(ValueError, match=r"a new stage .* in flight.*flush\(\)"):
        stage_of(stage.submod, index, num_stages, stage.optimizer)
    step(schedule, stage, both[2])
    schedule.flush()
    assert stage.optimizer.weights_are == "true"
    schedule.flush()
    stage.submod.state_dict()


# Disagreements.


def told(build, text):
    with pytest.raises(ValueError) as raised:
        build()
    assert text in str(raised.value)


def check_disagreements():
    rank, _ = place()
    told(lambda: stage_of(part(rank), rank, 2 + rank), "num_stages must be the same on all ranks")
    told(lambda: stage_of(part(rank), 0, 2), "stage_index must be another on each rank")
    bare = nn.Tanh() if rank else part(0)
    opt = None if rank else pipelines.optimizer(bare, 1)
    told(
        lambda: AsyncStage(bare, rank, 2, CPU, optimizer=opt),
        "rank 1: the submodule of stage 1 must have parameters",
    )
    told(lambda: stage_of(part(rank), rank, 2, max_norm=-rank or None), "rank 1: max_norm")
    stage = stage_of(part(rank), rank, 2)
    told(
        lambda: stage_of(part(2), 2, 4) if rank else Async1F1B(stage, NUM_CHUNKS, loss_fn),
        "must build the same in turn, got a schedule, a stage",
    )
    told(lambda: Async1F1B(stage, 4 + rank, loss_fn), "n_microbatches must be the same")
    told(lambda: Async1F1B(stage, 1, loss_fn), "n_microbatches must be at least the stages, 2")
    told(lambda: Async1F1B(stage, 4, None if rank else loss_fn), "rank 1: loss_fn must be given")
    Async1F1B(stage, NUM_CHUNKS, loss_fn)


class Dies(nn.Module):
    """Goes with its process at some forward."""

    def __init__(self, module, left):
        super().__init__()
        self.module, self.left = module, left

    def forward(self, x):
        self.left -= 1
        return self.module(x) if self.left else os._exit(0)


def check_a_rank_that_dies():
    rank, num_stages = place()
    module = Dies(part(rank), 20 if rank == 1 else -1)
    opt = pipelines.optimizer(module, num_stages - 1 - rank)
    stage = AsyncStage(module, rank, num_stages, CPU, optimizer=opt)
    schedule = Async1F1B(stage, NUM_CHUNKS, loss_fn)
    with pytest.raises(RuntimeError):
        for chunks in per_step(batches()):
            step(schedule, stage, joined(chunks))
    for call in (schedule.flush, lambda: schedule.step(joined(chunks)[0]), opt.state_dict):
        with pytest.raises(RuntimeError, match=r"has failed.*load the last checkpoint"):
            call()
    os._exit(0)


def test_every_rank_hears_of_it():
    run(check_in_flight_on_every_rank, check_disagreements, check_a_rank_that_dies)
