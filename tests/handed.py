"""Models of `fully_shard` whose shards are handed over, and the same training in one process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from processes import network
from torch import nn
from torch.func import functional_call

import wpadamw

NUM_ROWS = 8


def batch(step, rank, dtype=torch.float32):
    """What a rank sees in a step."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(NUM_ROWS, 7, generator=generator).to(dtype)


def sharded(net, compute_dtype=torch.bfloat16, parts=None, **options):
    """The network, and some of its parts before (None: the first), in the hands of FSDP2."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    param_dtype = None if compute_dtype == torch.float32 else compute_dtype
    policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    for module in [*([net[0]] if parts is None else parts), net]:
        fully_shard(module, mp_policy=policy, **options)
    return net


def handed(compute_dtype=torch.bfloat16, optimizer=wpadamw.WPAdamW, parts=None, **options):
    """A sharded network, its optimizer and the handle of its hand-over."""
    from wpadamw.integrations.fsdp import hand_over

    net = sharded(network(), compute_dtype, parts, **options)
    opt = optimizer(net.parameters(), lr=1e-2)
    return net, opt, hand_over(net, opt)


def loss_of(outputs):
    return outputs.float().square().mean()


def train(net, opt, steps, after=lambda step: None):
    """Losses of this rank."""
    losses = []
    for step in steps:
        loss = loss_of(net(batch(step, dist.get_rank())))
        loss.backward()
        opt.step()
        opt.zero_grad()
        losses.append(loss.item())
        after(step)
    return losses


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def weights_of(opt):
    """The parameters as they are, whole."""
    return list(map(whole, params_of(opt)))


def alone(steps, world_size, compute_dtype=torch.bfloat16, **options):
    """What rank 0 sees of the same training in one process that casts the same way.

    Returns its losses and the true weights.
    """
    net = network()
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2, backend="torch", **options)
    losses = []
    for step in steps:
        grads = []
        for rank in range(world_size):
            loss, of_rank = _gradients(net, batch(step, rank, compute_dtype), compute_dtype)
            grads.append(of_rank)
            losses += [loss] if rank == 0 else []
        for param, *of_ranks in zip(net.parameters(), *grads, strict=True):
            param.grad = sum(of_ranks[1:], start=of_ranks[0]) / world_size
        opt.step()
    opt.restore()
    return losses, [param.detach().clone() for param in net.parameters()]


def _gradients(net: nn.Module, inputs, dtype):
    leaves = {name: p.detach().to(dtype).requires_grad_() for name, p in net.named_parameters()}
    loss = loss_of(functional_call(net, leaves, inputs))
    loss.backward()
    return loss.item(), [leaf.grad.float() for leaf in leaves.values()]


def are_equal(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))
