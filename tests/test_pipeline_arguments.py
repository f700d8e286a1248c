"""Arguments of stages and schedules that do not fit."""

from __future__ import annotations

import pipelines
import pytest
import torch
from pipelines import CPU, group_of_one, loss_fn, part, stage_of
from processes import needs_gloo
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

import wpadamw
from wpadamw.pipeline import Async1F1B, delays

pytestmark = needs_gloo


@pytest.fixture(autouse=True, scope="module")
def alone():
    yield from group_of_one()


class Sharded(FSDPModule, nn.Linear):
    """What `fully_shard` makes of a layer."""

    def __new__(cls, *args):
        return object.__new__(cls)


def other_scheduler():
    opt = pipelines.optimizer(part(0), 1)
    return torch.optim.lr_scheduler.ConstantLR(opt)


def with_a_parameter_of_others():
    module = part(0)
    return module, wpadamw.WPAdamW([*module.parameters(), *part(1).parameters()])


def with_a_parameter_left_out():
    module = part(0)
    return module, wpadamw.WPAdamW(module[0].parameters())


def frozen():
    return part(0).requires_grad_(False)


BAD_STAGES = {
    "num_stages must be at least the number of ranks, 1, got 0": lambda: {"num_stages": 0},
    "stage_index must be from 0 to 1, got 2": lambda: {"index": 2, "num_stages": 2},
    'backward must be "current" or "forward", got \'both\'': lambda: {"backward": "both"},
    "max_norm must be a positive number or None, got -1": lambda: {"max_norm": -1},
    "max_norm must be a positive number or None, got nan": lambda: {"max_norm": float("nan")},
    "submodule of stage 0 must have parameters to train": lambda: {"module": nn.Tanh(), "opt": 0},
    "must have parameters to train, got none": lambda: {"module": frozen()},
    "must not be attached to an optimizer": lambda: attached(),
    "must not be sharded by fully_shard": lambda: {"module": Sharded(2, 2)},
    "optimizer must be one of wpadamw's, got AdamW": lambda: {
        "opt": torch.optim.AdamW(part(0).parameters())
    },
    "optimizer must not have amp=True": lambda: dict(
        zip(("module", "opt"), with_options(amp=True), strict=True)
    ),
    "optimizer must not have a compute_dtype": lambda: dict(
        zip(("module", "opt"), with_options(compute_dtype=torch.bfloat16), strict=True)
    ),
    "optimizer must hold parameters of its stage only, got 6": lambda: dict(
        zip(("module", "opt"), with_a_parameter_of_others(), strict=True)
    ),
    "optimizer must hold all parameters that are trained, got none for '2.weight'": lambda: dict(
        zip(("module", "opt"), with_a_parameter_left_out(), strict=True)
    ),
    "lr_scheduler must make steps without a metric, got ReduceLROnPlateau": lambda: with_plateau(),
    "lr_scheduler must be one of the stage's optimizer": lambda: {
        "lr_scheduler": other_scheduler()
    },
}


def attached():
    module, opt = with_options()
    wpadamw.attach(module, opt)
    return {"module": module, "opt": opt}


def with_plateau():
    module, opt = with_options()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(opt)
    return {"module": module, "opt": opt, "lr_scheduler": scheduler}


def with_options(**options):
    module = part(0)
    return module, wpadamw.WPAdamW(module.parameters(), **options)


@pytest.mark.parametrize("text", BAD_STAGES)
def test_stages(text):
    with pytest.raises(ValueError) as raised:
        stage_of(**BAD_STAGES[text]())
    assert text in str(raised.value)


def test_weights_tied_across_stages():
    first, last = part(0), part(1)
    last[3].weight = first[3].weight
    kept = stage_of(first, 0, 2)
    with pytest.raises(ValueError, match=r"'3\.weight' of stage 1, which stage 0 updates, too"):
        stage_of(last, 1, 2)
    assert stage_of(first, 0, 2) is not kept  # the same stage, built anew


BAD_SCHEDULES = {
    "n_microbatches must be at least the stages, 1, got 0": lambda: (stage_of(), 0, loss_fn),
    "n_microbatches must be at least the stages, 1, got 1.5": lambda: (stage_of(), 1.5, loss_fn),
    "loss_fn must be given on all ranks, got None": lambda: (stage_of(), 4),
    "stage must be one per rank, got 2 stages on 1 ranks": lambda: (
        stage_of(index=0, num_stages=2),
        4,
        loss_fn,
    ),
    "stage must be an AsyncStage, got PipelineStage": lambda: (
        PipelineStage(part(0), 0, 1, CPU),
        4,
        loss_fn,
    ),
}


@pytest.mark.parametrize("text", BAD_SCHEDULES)
def test_schedules(text):
    with pytest.raises(ValueError) as raised:
        Async1F1B(*BAD_SCHEDULES[text]())
    assert text in str(raised.value)


def test_delays_need_an_order_that_knows_the_stage():
    schedule = ScheduleGPipe(stage := stage_of(), 4, loss_fn)
    assert delays(schedule, stage) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="an order with stage 7"):
        delays(schedule, 7)
    with pytest.raises(ValueError, match="an order with stage 0"):
        delays(object(), 0)
