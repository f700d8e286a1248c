"""Models whose shards are handed over: how they are sharded, gathered, switched and computed."""

from __future__ import annotations

import functools

import torch
import torch.distributed as dist
from handed import (
    are_equal,
    assert_follows,
    assert_same,
    batch,
    evaluation,
    gradients,
    handed,
    inputs,
    loss_of,
    made,
    params_of,
    plain_gradients,
    predicted_weights,
    seen_by,
    sharded,
    train,
    true_weights,
)
from processes import needs_gloo, network, run
from torch import nn

import wpadamw
from wpadamw.integrations.fsdp import hand_over

pytestmark = needs_gloo


# How models are sharded.


def check_each_layer():
    net = network()
    assert_follows(*made(net, parts=[net[0], net[2]]))


def check_grouped():
    net = network()
    assert_follows(*made(net, grouped=[net[0], net[2]]))


def check_parts_alone():
    """The model itself is not sharded: each of its parts is a root."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    net, policy = network(), MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    for part in (net[0], net[2]):
        fully_shard(part, mp_policy=policy)
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2)
    hand_over(net, opt)
    train(net, opt, range(3))
    assert_follows(net, opt)


def check_tied():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 7), nn.Tanh(), nn.Linear(7, 7))
    net[2].weight = net[0].weight
    assert_follows(*made(net, grouped=[net[0], net[2]]))


def check_columns():
    from torch.distributed.tensor import Shard

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 8, bias=False), nn.Tanh(), nn.Linear(8, 4, bias=False))
    columns = lambda param: Shard(1 if param.shape[1] % 2 == 0 else 0)  # noqa: E731
    assert_follows(*made(net, parts=[net[0], net[2]], shard_placement_fn=columns))


def check_frozen_from_the_start():
    net = network()
    net[0].requires_grad_(False)
    net, opt = made(net, optimizer=lambda params, lr: wpadamw.WPAdamW(list(params), lr))
    assert_follows(net, opt)
    assert not any(opt.state.get(param) for param in net[0].parameters())


def check_groups():
    def optimizer(params, lr):
        first, *others = params
        slow = {"params": others, "lr": 1e-3, "prediction_steps": 3}
        return wpadamw.WPAdamW([{"params": [first]}, slow], lr=lr)

    assert_follows(*made(network(), optimizer=optimizer))


def check_parameters_of_nobody():
    net, opt = made(network(), optimizer=lambda params, lr: wpadamw.WPAdamW(list(params)[:2], lr))
    assert_follows(net, opt)
    opt.add_param_group({"params": list(net[2].parameters()), "lr": 0.1})
    for step in range(3):
        train(net, opt, [step])
        assert_follows(net, opt)
    del opt.param_groups[1]
    assert_follows(net, opt)


def check_state_that_was_asked_for():
    """Asking torch's defaultdict for a parameter's state makes an empty one."""
    net, opt, _ = handed()
    assert not opt.state[params_of(opt)[0]]
    found = seen_by(net, lambda: net(inputs()))
    assert_same(found, true_weights(net, opt))


def test_ways_to_shard():
    run(
        check_each_layer,
        check_grouped,
        check_parts_alone,
        check_tied,
        check_columns,
        check_frozen_from_the_start,
        check_groups,
        check_parameters_of_nobody,
        check_state_that_was_asked_for,
    )


def check_replicated_shards():
    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    net, opt, _ = handed(mesh=mesh)
    train(net, opt, range(3))
    assert_follows(net, opt)


def check_tensor_parallel():
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = dist.init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(7, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    parallelize_module(net, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    sharded(net, mesh=mesh["data"])
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2)
    hand_over(net, opt)
    train(net, opt, range(3))
    assert_follows(net, opt, batch(0, 0))


# What a backward pass gathers.


def gradients_around(between, mode=True, outer=lambda net: net, **options):
    """Of a forward, after what comes between it and its backward pass; and those to expect."""
    net = network()
    net, opt = made(net, parts=[net[0], net[2]], **options)
    weights = predicted_weights if mode else true_weights
    expected = plain_gradients(weights(net, opt))
    net.train(mode)
    loss = loss_of(outer(net)(inputs()))
    between(net, opt)
    loss.backward()
    assert are_equal(gradients(opt), expected)
    net.train()
    assert_follows(net, opt)


def evaluation_that_stays(net, opt):
    net.eval()
    with torch.no_grad():
        net(inputs())


def evaluation_with_gradients(net, opt):
    net.eval()
    net(inputs())
    net.train()


def evaluation_in_inference_mode(net, opt):
    net.eval()
    with torch.inference_mode():
        net(inputs())
    net.train()


def evaluation_by_attribute(net, opt):
    net.training = False
    with torch.no_grad():
        net(inputs())


def evaluation_in_a_context(net, opt):
    with opt.true_weights(), torch.no_grad():
        found = seen_by(net, lambda: net(inputs()))
    assert_same(found, true_weights(net, opt))


def gathering(net, opt):
    net.eval()
    net.unshard()
    for module in (net[0], net[2]):
        module.unshard(async_op=True)


def training_forward(net, opt):
    net.train()
    with torch.no_grad():
        net(inputs())


def nothing(net, opt):
    pass


BETWEEN = (
    nothing,
    evaluation,
    evaluation_that_stays,
    evaluation_with_gradients,
    evaluation_in_inference_mode,
    evaluation_by_attribute,
    evaluation_in_a_context,
    gathering,
    training_forward,
)
RESHARDS = (True, False, None)


def checks_between(mode, all_reshards=RESHARDS):
    for reshards in all_reshards:
        for between in BETWEEN:
            options = {"mode": mode, "reshard_after_forward": reshards}
            yield functools.partial(gradients_around, between, **options)


def test_a_backward_pass_has_the_weights_of_its_forward():
    run(*checks_between(mode=True), *checks_between(mode=False))


def test_four_processes():
    run(
        check_replicated_shards,
        check_tensor_parallel,
        functools.partial(gradients_around, training_forward, mode=False, reshard_after_forward=2),
        *checks_between(mode=True, all_reshards=[2]),
        world_size=4,
    )
