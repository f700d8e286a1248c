"""Attached models under DDP, FSDP2, uneven inputs and ZeRO: two processes on the CPU."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.distributed as dist
from processes import WORLD_SIZE, needs_gloo, network, run, train
from torch.nn.parallel import DistributedDataParallel

import wpadamw

pytestmark = needs_gloo


def trained(model, opt):
    """Trains with evaluations and checkpoints in between, then goes to true weights."""
    for k in range(5):
        train(model, opt, [k])
        if k % 2:
            model.eval()
            assert opt.weights_are == "true"
            with torch.no_grad():
                model(torch.ones(8, 7))
            model.train()
        else:
            model.state_dict()
            assert opt.weights_are == "true"
    model(torch.ones(8, 7))
    assert opt.weights_are == "predicted"
    model.eval()
    return list(model.parameters())


def expected():
    model = network()
    opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2)
    for k in range(5):
        train(model, opt, [k])
    opt.eval()
    return list(model.parameters())


def check_ddp_around_an_attached_model():
    model = network()
    opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2)
    wpadamw.attach(model, opt)
    for ours, theirs in zip(trained(DistributedDataParallel(model), opt), expected(), strict=True):
        torch.testing.assert_close(ours, theirs)


def check_ddp_that_is_attached():
    model = DistributedDataParallel(network())
    opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2)
    wpadamw.attach(model, opt)
    for ours, theirs in zip(trained(model, opt), expected(), strict=True):
        torch.testing.assert_close(ours, theirs)


def check_norms_over_shards():
    """Of VRAdam over a group, and of MARS over each matrix; the norms are within their bounds."""
    from torch.distributed.fsdp import fully_shard

    makers = (
        lambda params: wpadamw.WPVRAdam(params, lr=1e-2, beta3=30.0, lr_cutoff=50.0),
        lambda params: wpadamw.WPMARS(params, lr=1e-2, gamma=0.3),
    )
    for make in makers:
        models = network(), network()
        fully_shard(models[0])
        opts = [make(model.parameters()) for model in models]
        for model, opt in zip(models, opts, strict=True):
            for k in range(5):
                train(model, opt, [k])
            opt.eval()
        for ours, theirs in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-5, atol=1e-6)


def check_sharded_before_and_after():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for attaches_early in (False, True):
        model, mesh = network(), init_device_mesh("cpu", (WORLD_SIZE,))
        if attaches_early:  # as where an optimizer is made anew for the sharded parameters
            wpadamw.attach(model, wpadamw.WPAdamW(model.parameters()))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2)
        handle = wpadamw.attach(model, opt)
        for ours, theirs in zip(trained(model, opt), expected(), strict=True):
            torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-5, atol=1e-6)
        handle.remove()
        assert isinstance(model, FSDPModule)
        model(torch.ones(8, 7))


def test_wrapped_models_follow_their_mode():
    run(
        check_ddp_around_an_attached_model,
        check_ddp_that_is_attached,
        check_sharded_before_and_after,
        check_norms_over_shards,
    )


# Uneven inputs.


def gathered(model, opt):
    """What this and the other processes hold: weights and all state, one row each."""
    tensors = [t for p in model.parameters() for t in (p.detach(), *opt.state[p].values())]
    own = torch.cat([tensor.double().flatten() for tensor in tensors])
    rows = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, own)
    return rows


def join(**options):
    model = DistributedDataParallel(network())
    opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2, **options)
    wpadamw.attach(model, opt)
    for epoch in range(3):
        with model.join():
            train(model, opt, range(2 + (dist.get_rank() + epoch) % 2))
        model.eval()
        first, second = gathered(model, opt)
        assert torch.equal(first, second)
        model.train()
    return model, opt


def check_join():
    model, opt = join()
    assert all(torch.equal(param, opt.state[param]["weight"]) for param in model.parameters())
    train(model, opt, range(2))  # as many on each process
    first, second = gathered(model, opt)
    assert opt.weights_are == "predicted"
    assert torch.equal(first, second)


def check_join_without_backup():
    """Which computes true weights back, to a few units in the last place."""
    trained = [join(**options)[0].eval() for options in ({}, {"backup": False})]
    torch.testing.assert_close(*(list(model.parameters()) for model in trained))


def check_join_without_attach_is_loud():
    model = DistributedDataParallel(network())
    opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2)
    steps = range(2 + dist.get_rank())
    with model.join():
        train(model, opt, steps)
    stopped_early = dist.get_rank() == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.eval()
    assert any("written to from outside" in str(each.message) for each in caught) == stopped_early


# Shards of another package's.


def check_zero_redundancy_is_refused():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network()
    own = {"optimizer_class": wpadamw.WPAdamW, "lr": 1e-2}
    zero = ZeroRedundancyOptimizer(model.parameters(), **own)
    with pytest.raises(TypeError, match="ZeroRedundancyOptimizer keeps weights of its own"):
        wpadamw.attach(model, zero)
    before = [param.clone() for param in model.parameters()]
    with pytest.raises(RuntimeError, match=r"Use .*fully_shard, or prediction_steps=0"):
        train(model, zero, [0])
    assert all(map(torch.equal, before, model.parameters()))
    assert not zero.optim.state


def check_the_first_fsdp_is_refused():
    from torch.distributed.fsdp import FullyShardedDataParallel

    for use_orig_params in (False, True):
        own = {"device_id": torch.device("cpu"), "use_orig_params": use_orig_params}
        model = FullyShardedDataParallel(network(), **own)
        with pytest.raises(TypeError, match=r"FullyShardedDataParallel.*fully_shard"):
            wpadamw.WPAdamW(model.parameters())


def check_zero_redundancy_without_prediction():
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model, plain = network(), network()
    own = {"lr": 1e-2, "prediction_steps": 0}
    zero = ZeroRedundancyOptimizer(plain.parameters(), optimizer_class=wpadamw.WPAdamW, **own)
    train(plain, zero, range(3))
    train(model, wpadamw.WPAdamW(model.parameters(), **own), range(3))
    assert all(map(torch.equal, model.parameters(), plain.parameters()))


def test_replicated_models_keep_their_ranks_equal():
    run(
        check_join,
        check_join_without_backup,
        check_join_without_attach_is_loud,
        check_zero_redundancy_is_refused,
        check_the_first_fsdp_is_refused,
        check_zero_redundancy_without_prediction,
    )
