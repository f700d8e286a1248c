"""Attached models under DDP and FSDP2: two processes on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from test_dtensor import WORLD_SIZE, network, run, train
from torch.nn.parallel import DistributedDataParallel

import wpadamw

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo"
)


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
    )
