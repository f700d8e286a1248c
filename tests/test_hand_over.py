"""Shards that are handed over: the weights that a forward gathers, in all of training's forms."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.distributed as dist
from handed import (
    alone,
    are_equal,
    assert_follows,
    assert_same,
    batch,
    handed,
    loss_of,
    params_of,
    predicted_weights,
    seen_by,
    sharded,
    train,
    true_weights,
    weights_of,
)
from processes import needs_gloo, network, run
from torch.func import functional_call

import wpadamw

pytestmark = needs_gloo
STEPS = range(50)
RULES = (
    wpadamw.WPAdam,
    wpadamw.WPAdamW,
    wpadamw.WPAdaBelief,
    wpadamw.WPAdaM3,
    wpadamw.WPAdaPlus,
    wpadamw.WPNAdamW,
    functools.partial(wpadamw.WPSGD, momentum=0.9),
)


# The same training as in one process.


def check_training(dtype=torch.bfloat16, **options):
    net, opt, _ = handed(dtype, **options)
    losses = train(net, opt, STEPS)
    expected, weights = alone(STEPS, dist.get_world_size(), dtype)
    assert are_equal(weights_of(opt), weights)
    if dist.get_rank() == 0:
        assert losses == expected


def evaluation(net, opt):
    """Looks at the output of the true weights."""

    def evaluate(step):
        net.eval()
        with torch.no_grad():
            found = net(batch(999, 0))
        weights = true_weights(net, opt)
        assert torch.equal(found, functional_call(network(), weights, batch(999, 0).bfloat16()))
        net.train()

    return evaluate


def check_evaluations(**options):
    net, opt, _ = handed(**options)
    losses = train(net, opt, STEPS, after=evaluation(net, opt))
    expected, weights = alone(STEPS, dist.get_world_size())
    assert are_equal(weights_of(opt), weights)
    assert losses == expected or dist.get_rank() != 0


def check_shards_change_in_steps_alone():
    net, opt, _ = handed()
    train(net, opt, range(3))
    versions = [param._local_tensor._version for param in params_of(opt)]
    before = weights_of(opt)
    loss_of(net(batch(7, dist.get_rank()))).backward()
    evaluation(net, opt)(0)
    opt.predict()
    assert are_equal(weights_of(opt), before)
    assert versions == [param._local_tensor._version for param in params_of(opt)]


def test_the_same_training_as_in_one_process():
    run(
        *(functools.partial(check_training, dtype) for dtype in (torch.float16, torch.float32)),
        *(functools.partial(check_training, reshard_after_forward=of) for of in (True, False)),
        *(functools.partial(check_evaluations, reshard_after_forward=of) for of in (True, False)),
        check_shards_change_in_steps_alone,
        check_no_prediction,
        *(functools.partial(check_rule, rule) for rule in RULES),
    )


def check_no_prediction(dtype=torch.bfloat16):
    """With s=0 the bits of FSDP2 without it."""
    optimizer = functools.partial(wpadamw.WPAdamW, prediction_steps=0)
    net, opt, _ = handed(dtype, optimizer)
    plain = sharded(network(), dtype)
    resident = optimizer(plain.parameters(), lr=1e-2)
    assert train(net, opt, STEPS) == train(plain, resident, STEPS)
    assert are_equal(weights_of(opt), weights_of(resident))


def check_rule(rule):
    net, opt, _ = handed(optimizer=functools.partial(rule, prediction_steps=2))
    train(net, opt, range(4))
    assert_follows(net, opt)


def test_four_processes():
    # In float32 the sums of four ranks have another order than those of one process.
    float32 = functools.partial(check_no_prediction, torch.float32)
    run(
        check_training,
        float32,
        functools.partial(check_evaluations, reshard_after_forward=2),
        world_size=4,
    )


# Writes from outside.


def by_clamp(net, opt, handle):
    with torch.no_grad():
        for param in params_of(opt):
            param.clamp_(-0.1, 0.1)


def by_foreach(net, opt, handle):
    with torch.no_grad():
        torch._foreach_mul_(params_of(opt), 0.5)


def by_loading(net, opt, handle):
    net.load_state_dict({name: value * 0.5 for name, value in net.state_dict().items()})


def by_data(net, opt, handle):
    for param in params_of(opt):
        param.data.mul_(0.5)


def by_local_data(net, opt, handle):
    for param in params_of(opt):
        param.to_local().detach().mul_(0.5)


def by_moments(net, opt, handle):
    for param in params_of(opt):
        opt.state[param]["exp_avg"].zero_()


def by_replaced_moments(net, opt, handle):
    for param in params_of(opt):
        opt.state[param]["exp_avg"] = torch.zeros_like(opt.state[param]["exp_avg"])


def by_no_state(net, opt, handle):
    for param in params_of(opt)[:2]:
        del opt.state[param]


def by_freezing(net, opt, handle):
    for param in params_of(opt)[:2]:
        param.requires_grad_(False)


def by_time(net, opt, handle):
    opt.reset_time()


WRITES = (
    by_clamp,
    by_loading,
    by_local_data,
    by_moments,
    by_replaced_moments,
    by_no_state,
    by_freezing,
    by_time,
)


def check_write(write, gathers_before=False):
    net, opt, handle = handed()
    train(net, opt, range(3))
    write(net, opt, handle)
    if gathers_before:
        net.unshard()
    found = seen_by(net, lambda: net(batch(0, 0)))
    assert_same(found, predicted_weights(net, opt))
    net.eval()
    with torch.no_grad():
        found = seen_by(net, lambda: net(batch(0, 0)))
    assert_same(found, true_weights(net, opt))


def check_write_without_trace(write):
    """Of the writes to DTensors these raise no version: predictions follow when they are asked."""
    net, opt, handle = handed()
    train(net, opt, range(3))
    with torch.no_grad():
        net(batch(0, 0))
    write(net, opt, handle)
    opt.predict()
    assert_follows(net, opt)
    write(net, opt, handle)
    train(net, opt, [3])
    assert_follows(net, opt)


def check_write_in_resident_form():
    """Where shards hold predictions a write to them is no less seen."""
    net = sharded(network())
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-3)
    train(net, opt, range(3))
    with pytest.warns(UserWarning, match="written to from outside"):
        by_clamp(net, opt, None)
        train(net, opt, [3])
    opt.restore()
    assert all(weight.abs().max() < 0.11 for weight in weights_of(opt))


def check_unfrozen():
    net, opt, _ = handed()
    train(net, opt, range(3))
    for is_trained in (False, True):
        for param in params_of(opt)[:2]:
            param.requires_grad_(is_trained)
        found = seen_by(net, lambda: net(batch(0, 0)))
        assert_same(found, predicted_weights(net, opt))
        train(net, opt, [3])
        assert_follows(net, opt)


def test_writes_from_outside_are_seen():
    run(
        *(functools.partial(check_write, write) for write in WRITES),
        *(functools.partial(check_write, write, gathers_before=True) for write in WRITES),
        *(functools.partial(check_write_without_trace, write) for write in (by_foreach, by_data)),
        check_write_in_resident_form,
        check_unfrozen,
    )
