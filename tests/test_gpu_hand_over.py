"""Shards that are handed over on a GPU: one process, NCCL, and the same training without FSDP."""

from __future__ import annotations

import handed
import pytest
import torch
import torch.distributed as dist
from gpu_training import DEVICE, KERNELS, skip_unless_present
from processes import free_port, network
from torch.func import functional_call

import wpadamw

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not dist.is_available(), reason="torch has no torch.distributed"),
]
STEPS = range(30)


@pytest.fixture(scope="module", autouse=True)
def group():
    store = dist.TCPStore("127.0.0.1", free_port(), 1, is_master=True)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(params=KERNELS)
def backend(request):
    skip_unless_present(request.param)
    return request.param


def made(backend, dtype, **options):
    from wpadamw.integrations.fsdp import hand_over

    net = handed.sharded(network().to(DEVICE), dtype, **options)
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2, backend=backend)
    return net, opt, hand_over(net, opt)


def inputs(step, dtype):
    return handed.batch(step, 0, dtype).to(DEVICE)


def train_sharded(backend, dtype, evaluates=False, **options):
    net, opt, _ = made(backend, dtype, **options)
    losses = []
    for step in STEPS:
        loss = handed.loss_of(net(inputs(step, dtype)))
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
        if evaluates:
            evaluate(net, opt, dtype)
    return losses, handed.weights_of(opt)


def evaluate(net, opt, dtype):
    """The evaluation sees the true weights, cast."""
    net.eval()
    with torch.no_grad():
        found = net(inputs(999, dtype))
    weights = dict(zip(dict(network().named_parameters()), handed.weights_of(opt), strict=True))
    cast = {name: weight.to(dtype) for name, weight in weights.items()}
    assert torch.equal(found, functional_call(network().to(DEVICE), cast, inputs(999, dtype)))
    net.train()


def train_alone(dtype):
    """With copies that the program itself computes with."""
    net = network().to(DEVICE)
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2, backend="torch", compute_dtype=dtype)
    losses = []
    for step in STEPS:
        leaves = {n: opt.compute_copy(p).detach() for n, p in net.named_parameters()}
        loss = handed.loss_of(
            functional_call(
                net, {n: c.requires_grad_() for n, c in leaves.items()}, inputs(step, dtype)
            )
        )
        loss.backward()
        for name, param in net.named_parameters():
            param.grad = leaves[name].grad.float()
        opt.step()
        losses.append(loss.item())
    return losses, [param.detach().clone() for param in net.parameters()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_same_training_as_without_shards(backend, dtype):
    losses, weights = train_sharded(backend, dtype)
    expected, weights_alone = train_alone(dtype)
    assert losses == expected
    assert handed.are_equal(weights, weights_alone)


@pytest.mark.parametrize("reshards", [True, False])
def test_evaluations_change_nothing(backend, reshards):
    options = {"reshard_after_forward": reshards}
    losses, weights = train_sharded(backend, torch.bfloat16, evaluates=True, **options)
    expected, undisturbed = train_sharded(backend, torch.bfloat16)
    assert losses == expected
    assert handed.are_equal(weights, undisturbed)


# Some versions of torch say what a profiler keeps.
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
def test_a_training_step_has_no_cast(backend):
    net, opt, _ = made(backend, torch.bfloat16)
    batch = inputs(0, torch.bfloat16)
    for _ in range(3):
        handed.loss_of(net(batch)).backward()
        opt.step()
        opt.zero_grad()
    with torch.profiler.profile() as profile:
        net(batch)
    names = {event.key for event in profile.key_averages()}
    assert "aten::_to_copy" not in names
    assert "aten::_foreach_copy_" not in names
