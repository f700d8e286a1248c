"""Torch's schedules of several stages per process, asynchronous without a change."""

from __future__ import annotations

import itertools

import pipelines
from pipelines import CPU, NUM_CHUNKS, assert_same, batches, joined, loss_fn, part, per_step, place
from processes import needs_gloo, run
from torch.distributed import pipelining

from wpadamw.bench.study.simulated_pipeline import simulate
from wpadamw.pipeline import AsyncStage, delays

NUM_STAGES = 4
SCHEDULES = {
    pipelining.ScheduleInterleaved1F1B: lambda rank: (rank, rank + 2),
    pipelining.ScheduleInterleavedZeroBubble: lambda rank: (rank, rank + 2),
    pipelining.ScheduleZBVZeroBubble: lambda rank: (rank, 3 - rank),
}
KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}


def order_of(schedule, index):
    """What torch's schedule does for a stage. The first one's halves of a backward are one."""
    actions = [a for those in schedule.pipeline_order.values() for a in those if a is not None]
    order = [
        (KINDS[action.computation_type.name], action.microbatch_index)
        for action in actions
        if action.stage_index == index
    ]
    if index > 0:
        return order
    return [("B" if kind == "W" else kind, number) for kind, number in order if kind != "I"]


def check_schedules():
    rank, _ = place()
    for (kind, stages_of), backward in itertools.product(SCHEDULES.items(), ("current", "forward")):
        stages = []
        for index in stages_of(rank):
            opt = pipelines.optimizer(module := part(index), NUM_STAGES - 1 - index)
            stages.append(
                AsyncStage(module, index, NUM_STAGES, CPU, optimizer=opt, backward=backward)
            )
        schedule = kind(stages, NUM_CHUNKS, loss_fn)
        check_run(schedule, stages, backward)


def check_run(schedule, stages, backward):
    theirs = pipelines.simulated(NUM_STAGES)
    orders = [order_of(schedule, index) for index in range(NUM_STAGES)]
    wanted, losses = [], []
    for chunks in per_step(batches()):
        inputs, targets = joined(chunks)
        schedule.step(inputs, target=targets, losses=(found := []))
        losses += found
        wanted += simulate(theirs, chunks, loss_fn, backward=backward, orders=orders)
    for stage in (*theirs, *stages):
        stage.optimizer.restore()
    for stage in stages:
        assert_same(stage, [loss.detach() for loss in losses], theirs, wanted)
        told = delays(schedule, stage)
        assert told == delays(schedule, stage.stage_index)
        assert told * len(per_step(batches())) == theirs[stage.stage_index].delays


@needs_gloo
def test_schedules_of_two_stages_per_process():
    run(check_schedules)
