"""Sharded parameters: two processes with FSDP2 on the CPU."""

from __future__ import annotations

import importlib
import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

import wpadamw

WORLD_SIZE = 2

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo"
)


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def network():
    torch.manual_seed(0)
    # Five rows over two processes: uneven shards; one bias element leaves a shard empty.
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))


def train(net, opt, steps):
    for k in steps:
        inputs = torch.randn(8, 7, generator=torch.Generator().manual_seed(k))
        net(inputs).square().mean().backward()
        opt.step()
        opt.zero_grad()


def in_process(rank, port, checks):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD_SIZE)
    try:
        for check in checks:
            check()
            dist.barrier()
    finally:
        dist.destroy_process_group()
    # Now and then the interpreter's shutdown meets a thread of torch's that runs still, and aborts.
    os._exit(0)


def run(*checks):
    """Runs checks one after the other in the same processes, whose start takes longest."""
    multiprocessing.spawn(in_process, args=(free_port(), checks), nprocs=WORLD_SIZE)


def sharded():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = network()
    fully_shard(net, mesh=init_device_mesh("cpu", (WORLD_SIZE,)))
    return net, wpadamw.WPAdamW(net.parameters(), lr=1e-2)


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


def check_checkpoint():
    from torch.distributed.checkpoint import state_dict as dcp

    net, opt = sharded()
    train(net, opt, range(3))
    other, other_opt = sharded()
    dcp.set_model_state_dict(other, dcp.get_model_state_dict(net))
    dcp.set_optimizer_state_dict(other, other_opt, dcp.get_optimizer_state_dict(net, opt))
    assert other_opt.weights_are == "predicted"
    for each in ((net, opt), (other, other_opt)):
        train(*each, range(3, 6))
    for ours, theirs in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(ours.to_local(), theirs.to_local())


def test_sharded_parameters_train_and_resume_like_whole_ones():
    if not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("before torch 2.6 FSDP2 is no public part of torch, and needs CUDA")
    run(check_training, check_checkpoint)
