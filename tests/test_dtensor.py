"""Sharded parameters: two processes with FSDP2 on the CPU."""

from __future__ import annotations

import functools
import importlib

import pytest
import torch
from handed import handed
from handed import train as handed_train
from processes import WORLD_SIZE, needs_gloo, network, run, train

import wpadamw

pytestmark = needs_gloo


def sharded(nested=False, kind=wpadamw.WPAdamW, **options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net, mesh = network(), init_device_mesh("cpu", (WORLD_SIZE,))
    if nested:
        fully_shard(net[0], mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net, kind(net.parameters(), lr=1e-2, **options)


def check_training():
    net, opt = sharded()
    plain = network()
    plain_opt = wpadamw.WPAdamW(plain.parameters(), lr=1e-2)
    train(net, opt, range(4))
    opt.eval()
    opt.train()
    train(net, opt, range(4, 6))
    train(plain, plain_opt, range(6))
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        # Gradients are summed in another order, so not the same bits.
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-5, atol=1e-6)
        state = opt.state[ours]
        assert state["exp_avg"].placements == state["weight"].placements == ours.placements


def check_muon():
    """Updates are of whole matrices: of one the second process has fewer rows, of one none."""
    net, opt = sharded(kind=wpadamw.WPMuon)
    plain = network()
    plain_opt = wpadamw.WPMuon(plain.parameters(), lr=1e-2)
    for each in ((net, opt), (plain, plain_opt)):
        train(*each, range(4))
    for ours, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        # Both processes have the same gradients, and their mean is the same as well.
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-5, atol=1e-6)
        for name in ("momentum_buffer", "direction"):
            if name in opt.state[ours]:
                found, want = opt.state[ours][name].full_tensor(), plain_opt.state[theirs][name]
                torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def check_checkpoint_of_muon():
    check_checkpoint(wpadamw.WPMuon)


def check_checkpoint(kind=wpadamw.WPAdamW):
    from torch.distributed.checkpoint import state_dict as dcp

    net, opt = sharded(kind=kind)
    train(net, opt, range(3))
    other, other_opt = sharded(kind=kind)
    dcp.set_model_state_dict(other, dcp.get_model_state_dict(net))
    dcp.set_optimizer_state_dict(other, other_opt, dcp.get_optimizer_state_dict(net, opt))
    assert other_opt.weights_are == "predicted"
    for each in ((net, opt), (other, other_opt)):
        train(*each, range(3, 6))
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours.to_local(), theirs.to_local())


def check_evaluations_leave_no_trace():
    """The root stays gathered after a forward without a backward pass."""
    trained = []
    for evaluates in (False, True):
        net, opt = sharded(nested=True)
        for k in range(4):
            train(net, opt, [k])
            if evaluates:
                opt.eval()
                with torch.no_grad():
                    true = net(torch.ones(8, 7))
                opt.train()
                with torch.no_grad():
                    assert not torch.equal(net(torch.ones(8, 7)), true)
        trained.append([param.full_tensor() for param in opt.param_groups[0]["params"]])
    assert all(map(torch.equal, *trained))


def check_loading_leaves_nothing_gathered():
    net, opt = sharded(nested=True)
    train(net, opt, range(3))
    opt.eval()
    other, other_opt = sharded(nested=True)
    with torch.no_grad():
        other(torch.ones(8, 7))
        other_opt.load_state_dict(opt.state_dict())  # which brings the true weights
        assert torch.equal(net(torch.ones(8, 7)), other(torch.ones(8, 7)))


def check_averages():
    net, opt = sharded(nested=True, ema=0.2)
    plain = network()
    plain_opt = wpadamw.WPAdamW(plain.parameters(), lr=1e-2, ema=0.2)
    for each in ((net, opt), (plain, plain_opt)):
        train(*each, range(3))
    inputs = torch.ones(8, 7)
    with torch.no_grad():
        before = net(inputs)
        with opt.averaged_weights(), plain_opt.averaged_weights():
            inside = net(inputs)
            torch.testing.assert_close(inside, plain(inputs), rtol=1e-5, atol=1e-6)
            for param, state in opt.state.items():
                assert state["average"].placements == param.placements
                assert torch.equal(state["average"].to_local(), param.to_local())
        assert torch.equal(net(inputs), before) and not torch.equal(inside, before)
    opt.switch_to_average()
    plain_opt.switch_to_average()
    for each in ((net, opt), (plain, plain_opt)):
        train(*each, range(3, 5))
    for ours, theirs in zip(opt.state, plain.parameters(), strict=True):
        torch.testing.assert_close(ours.full_tensor(), theirs, rtol=1e-5, atol=1e-6)


def check_averages_of_handed_over_shards():
    net, opt, _ = handed(optimizer=functools.partial(wpadamw.WPAdamW, ema=0.2))
    handed_train(net, opt, range(3))
    inputs = torch.ones(8, 7)
    shards = [param.to_local().clone() for param in opt.state]
    with torch.no_grad():
        predicted = net(inputs)
        with opt.averaged_weights():
            for training in (True, False):
                net.train(training)
                inside = net(inputs)
                averages = [state["average"].full_tensor() for state in opt.state.values()]
                plain = network().bfloat16()
                for param, average in zip(plain.parameters(), averages, strict=True):
                    param.copy_(average)
                torch.testing.assert_close(inside.float(), plain(inputs.bfloat16()).float())
        net.train()
        assert torch.equal(net(inputs), predicted)
    assert all(map(torch.equal, shards, [param.to_local() for param in opt.state]))


def test_sharded_parameters_train_and_resume_like_whole_ones():
    if not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("before torch 2.6 FSDP2 is no public part of torch, and needs CUDA")
    run(
        check_training,
        check_muon,
        check_checkpoint,
        check_checkpoint_of_muon,
        check_evaluations_leave_no_trace,
        check_loading_leaves_nothing_gathered,
        check_averages,
        check_averages_of_handed_over_shards,
    )
