"""Asynchronous pipelines are, bit for bit, what a simulation without hooks computes."""

from __future__ import annotations

import copy
import functools
import itertools

import pipelines
import torch
import torch.distributed as dist
from pipelines import (
    BATCH_SIZE,
    CPU,
    NUM_CHUNKS,
    WIDTH,
    Grouped,
    assert_equal,
    assert_same,
    batches,
    divided,
    expected,
    joined,
    loss_fn,
    part,
    per_step,
    place,
    recomputed,
    schedule_of,
    simulated,
    step,
)
from processes import needs_gloo, run
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import wpadamw
from wpadamw.bench.study.simulated_pipeline import SimulatedStage, simulate
from wpadamw.pipeline import Async1F1B, AsyncStage

pytestmark = needs_gloo


def trained(schedule, stage, chunks):
    losses = [step(schedule, stage, joined(each)) for each in per_step(chunks)]
    if isinstance(schedule, Async1F1B):
        schedule.flush()
    stage.optimizer.restore()
    return [*itertools.chain(*losses)]


def check_methods(dtype=torch.float32, drain=(True, False)):
    index, num_stages = place()
    chunks = batches(dtype=dtype)
    options = {"max_norm": 1.0, "dtype": dtype}

    def expect(is_predicted, backward, drains):
        stages = simulated(num_stages, is_predicted=is_predicted, **options)
        losses = expected(stages, chunks, drains, backward)
        return [[p.detach() for p in stage.module.parameters()] for stage in stages], losses

    cases = list(itertools.product((True, False), ("current", "forward"), drain))
    wanted = divided(expect, cases)
    for (is_predicted, backward, drains), theirs in zip(cases, wanted, strict=True):
        given = {"is_predicted": is_predicted, "drains": drains, "backward": backward}
        schedule, stage = schedule_of(index, num_stages, **given, **options)
        assert_equal(stage, trained(schedule, stage, chunks), *theirs)


def check_backends():
    index, num_stages = place()
    for backend in ("torch", "cpp"):
        given = {"of_optimizer": {"backend": backend}}
        schedule, stage = schedule_of(index, num_stages, **given)
        losses = trained(schedule, stage, batches())
        stages = simulated(num_stages)
        assert_same(stage, losses, stages, expected(stages, batches(), drains=False))


OPTIMIZERS = [
    functools.partial(wpadamw.WPSGD, momentum=0.9),
    functools.partial(wpadamw.WPAdam, amsgrad=True),
    wpadamw.WPAdaBelief,
    wpadamw.WPAdaM3,
    wpadamw.WPAdaPlus,
    wpadamw.WPNAdamW,
    functools.partial(wpadamw.WPAdamW, backup=False),
    functools.partial(wpadamw.WPAdamW, predict_in_step=False),
    functools.partial(wpadamw.WPAdamW, prediction="rollout"),
]


def check_optimizers():
    for make, backward in zip(OPTIMIZERS, itertools.cycle(("current", "forward")), strict=False):
        check_modules(part, (backward,), make)


def check_bfloat16_with_masters():
    check_methods(torch.bfloat16, drain=(False,))


# Schedulers, evaluations, checkpoints.


def with_scheduler(stage):
    stage.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        stage.optimizer, lambda update: 1 / (1 + update)
    )
    return stage


def evaluated(schedule, stage):
    """The output of an evaluation between steps, on the last rank."""
    inputs, targets = joined(batches(NUM_CHUNKS))
    args = (inputs,) if stage.is_first else ()
    with torch.no_grad():
        return schedule.eval(*args, **({"target": targets} if stage.is_last else {}))


def check_evaluations_and_a_schedule_of_learning_rates():
    index, num_stages = place()
    schedule, stage = schedule_of(index, num_stages, max_norm=0.1)
    with_scheduler(stage)
    stages = [with_scheduler(each) for each in simulated(num_stages, max_norm=0.1)]
    inputs, _ = joined(batches(NUM_CHUNKS))
    for chunks in per_step(batches()):
        # The first step after an evaluation drains, the second does not.
        for _ in range(2):
            step(schedule, stage, joined(chunks))
            simulate(stages, chunks, loss_fn)
            schedule.flush()
        output = evaluated(schedule, stage)
        for each in stages:
            each.optimizer.restore()
        assert stage.optimizer.weights_are == "true"
        if stage.is_last:
            with torch.no_grad():
                wanted = [nn.Sequential(*(s.module for s in stages))(x) for x in inputs.split(4)]
            assert torch.equal(output, torch.cat(wanted))
    assert_same(stage, [], stages, []) if not stage.is_last else None
    assert stage.optimizer.param_groups[0]["lr"] == stages[index].optimizer.param_groups[0]["lr"]


def check_resumed():
    index, num_stages = place()
    whole, stage = schedule_of(index, num_stages)
    for chunks in per_step(batches()):
        step(whole, stage, joined(chunks))
        whole.flush()
    first, begun = schedule_of(index, num_stages)
    step(first, begun, joined(per_step(batches())[0]))
    first.flush()
    begun.optimizer.eval()
    saved = copy.deepcopy((begun.submod.state_dict(), begun.optimizer.state_dict()))
    second, resumed = schedule_of(index, num_stages)
    resumed.submod.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    for chunks in per_step(batches())[1:]:
        step(second, resumed, joined(chunks))
        second.flush()
    for each in (stage, resumed):
        each.optimizer.restore()
    pairs = zip(stage.submod.parameters(), resumed.submod.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


# Modules.


def check_modules(build, backwards, make=wpadamw.WPAdamW):
    index, num_stages = place()

    def optimizer(module, index):
        return make(module.parameters(), lr=1e-2, prediction_steps=num_stages - 1 - index)

    for backward in backwards:
        module = build(index)
        opt = optimizer(module, index)
        # Torch finds out shapes by a forward of its own, which batch norms would take note of.
        like = torch.empty(BATCH_SIZE, WIDTH)
        shapes = {"input_args": like.clone().requires_grad_(index > 0)}
        shapes["output_args"] = like.requires_grad_()
        stage = AsyncStage(
            module, index, num_stages, CPU, optimizer=opt, backward=backward, **shapes
        )
        losses = trained(Async1F1B(stage, NUM_CHUNKS, loss_fn), stage, batches())
        modules = [build(i) for i in range(num_stages)]
        stages = [SimulatedStage(each, optimizer(each, i)) for i, each in enumerate(modules)]
        wanted = expected(stages, batches(), drains=False, backward=backward)
        assert_same(stage, losses, stages, wanted)
        names = dict(stages[index].module.named_buffers())
        assert all(torch.equal(b, names[n]) for n, b in module.named_buffers() if "mean" in n)


check_grouped = functools.partial(check_modules, Grouped, ("current", "forward"))
check_recomputed = functools.partial(
    check_modules, functools.partial(recomputed, use_reentrant=False), ("current",)
)
check_reentrant = functools.partial(
    check_modules, functools.partial(recomputed, use_reentrant=True), ("current",)
)


def check_autocast_sees_every_update():
    index, num_stages = place()
    found = []
    for is_around in (True, False):  # around a whole step, whose weights autocast would keep
        schedule, stage = schedule_of(index, num_stages)
        if not is_around:
            forward = stage.submod.forward
            stage.submod.forward = torch.autocast("cpu", dtype=torch.bfloat16)(forward)
        for chunks in per_step(batches()):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_around):
                step(schedule, stage, joined(chunks))
        schedule.flush()
        stage.optimizer.restore()
        found.append([param.detach().clone() for param in stage.submod.parameters()])
    for around, inside in zip(*found, strict=True):
        torch.testing.assert_close(around, inside, rtol=0.02, atol=2e-3)


# Memory, other schedules, replicas.


def check_copies_are_as_many_as_delays():
    index, num_stages = place()
    schedule, stage = schedule_of(index, num_stages, is_predicted=False, backward="forward")
    for chunks in per_step(batches()):
        step(schedule, stage, joined(chunks))
    saved = [*stage.submod[2].parameters(), stage.submod[3].weight]
    saved += [stage.submod[0].weight] * (not stage.is_first)  # whose input needs a gradient
    storages = {each.tensor.untyped_storage() for each in stage.weights.alive if each.has_copy}
    bytes_of_one = sum(weight.nbytes for weight in saved)
    held = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert sum(held.values()) == (num_stages - 1 - index) * bytes_of_one
    schedule.flush()
    assert not stage.weights.alive


def check_replicas():
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "stage"))
    replica, index = mesh.get_coordinate()
    module = part(index)
    opt = pipelines.optimizer(module, 1 - index)
    wrapped = DistributedDataParallel(module, process_group=mesh.get_group("replica"))
    stage = AsyncStage(wrapped, index, 2, CPU, optimizer=opt, group=mesh.get_group("stage"))
    schedule = Async1F1B(stage, NUM_CHUNKS, loss_fn)
    ours, both = [], []
    for chunks in zip(*[iter(batches(2 * NUM_CHUNKS * 2))] * 2, strict=True):
        ours.append(chunks[replica])
        both.append(joined(chunks))
    trained(schedule, stage, ours)
    stages = simulated(2)
    expected(stages, both, drains=False)
    for param, wanted in zip(module.parameters(), stages[index].module.parameters(), strict=True):
        others = [torch.empty_like(param) for _ in range(2)]
        dist.all_gather(others, param.detach(), group=mesh.get_group("replica"))
        assert torch.equal(*others)
        torch.testing.assert_close(param, wanted)


@needs_gloo
def test_two_stages():
    run(
        check_methods,
        check_bfloat16_with_masters,
        check_backends,
        check_optimizers,
        check_evaluations_and_a_schedule_of_learning_rates,
        check_resumed,
        check_grouped,
        check_recomputed,
        check_reentrant,
        check_autocast_sees_every_update,
    )


def test_four_stages():
    run(check_methods, check_copies_are_as_many_as_delays, check_replicas, world_size=4)
