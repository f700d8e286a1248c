"""Two processes on the CPU, for the tests of sharded and replicated models."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

WORLD_SIZE = 2

needs_gloo = pytest.mark.skipif(
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
        inputs = inputs.to(next(net.parameters()).dtype)
        net(inputs).square().mean().backward()
        opt.step()
        opt.zero_grad()


def in_process(rank, port, world_size, checks):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        for check in checks:
            check()
            dist.barrier()
    finally:
        dist.destroy_process_group()
    # Now and then the interpreter's shutdown meets a thread of torch's that runs still, and aborts.
    os._exit(0)


# Processes are forked from one that has imported what takes them longest, and has done nothing.
multiprocessing.set_forkserver_preload(
    ["torch.distributed.fsdp", "torch.distributed.pipelining", "torch.testing", "wpadamw", "pytest"]
)


def run(*checks, world_size=WORLD_SIZE):
    """Runs checks one after the other in the same processes."""
    args = (free_port(), world_size, checks)
    multiprocessing.start_processes(
        in_process, args=args, nprocs=world_size, start_method="forkserver"
    )
