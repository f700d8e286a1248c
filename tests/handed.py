"""Models of `fully_shard` whose shards are handed over, and the same training in one process."""

from __future__ import annotations

import copy
import functools

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


# What forwards see.


def seen_by(net: nn.Module, forward):
    """The weights that the modules of a network compute with in a forward, by name."""
    seen, handles = {}, []

    def note(module, _, prefix):
        for name, param in module.named_parameters(prefix, recurse=False):
            value = whole(param)
            assert torch.equal(seen.setdefault(name, value), value), name

    for prefix, module in net.named_modules():
        handles.append(module.register_forward_pre_hook(functools.partial(note, prefix=prefix)))
    forward()
    for handle in handles:
        handle.remove()
    return seen


def true_weights(net, opt, dtype=torch.bfloat16):
    """What an evaluation is to see, by name."""
    opt.weights_are  # noqa: B018 - which brings in what was loaded
    net.apply(lambda module: module.reshard() if hasattr(module, "reshard") else None)
    return {name: whole(param).to(dtype) for name, param in _named(net).items()}


def _named(net):
    return dict(net.named_parameters(remove_duplicate=False))


def predicted_weights(net, opt, dtype=torch.bfloat16):
    """What training is to see, by name: the prediction of the same optimizer in resident form."""
    expected = true_weights(net, opt, dtype)
    twin = copy.deepcopy(opt)
    twin.predict()
    pairs = zip(params_of(opt), params_of(twin), strict=True)
    predicted = {id(own): whole(other).to(dtype) for own, other in pairs}
    named = _named(net)
    return {name: predicted.get(id(named[name]), expected[name]) for name in expected}


def assert_same(seen, expected):
    assert seen.keys() == expected.keys()
    for name, weight in expected.items():
        assert seen[name].dtype == weight.dtype, name
        assert torch.equal(seen[name], weight), name


def assert_follows(net, opt, inputs=None, dtype=torch.bfloat16):
    """Training sees the prediction, evaluation the true weights, and the two differ."""
    inputs = batch(0, dist.get_rank()) if inputs is None else inputs
    net.train()
    trained = seen_by(net, lambda: loss_of(net(inputs)).backward())
    net.zero_grad()
    opt.zero_grad()  # of shards, where modules hold what was gathered
    assert_same(trained, predicted_weights(net, opt, dtype))
    net.eval()
    with torch.no_grad():
        evaluated = seen_by(net, lambda: net(inputs))
    assert_same(evaluated, true_weights(net, opt, dtype))
    net.train()
    assert any(not torch.equal(trained[name], evaluated[name]) for name in trained)


def assert_sees(net, call, weights):
    found = seen_by(net, call)
    assert found
    assert_same(found, {name: weights[name] for name in found})


# Trained networks.


def made(
    net,
    parts=(),
    optimizer=wpadamw.WPAdamW,
    grouped=(),
    dtype=torch.bfloat16,
    **options,
):
    """A network after some steps, with its optimizer."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from wpadamw.integrations.fsdp import hand_over

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for part in [*parts, *([list(grouped)] if grouped else []), net]:
        fully_shard(part, mp_policy=policy, **options)
    opt = optimizer(net.parameters(), lr=1e-2)
    hand_over(net, opt)
    train(net, opt, range(3))
    return net, opt


def made_in_parts(**options):
    net = network()
    return made(net, parts=[net[0], net[2]], **options)


def inputs():
    return batch(0, dist.get_rank())


def evaluation(net, opt):
    net.eval()
    with torch.no_grad():
        net(inputs())
    net.train()


def gradients(opt):
    """Those of the parameters, which have none then."""
    grads = [param.grad.full_tensor().clone() for param in params_of(opt) if param.grad is not None]
    opt.zero_grad()
    return grads


def plain_gradients(at):
    """Those of all ranks together at given weights, in one process."""
    grads = []
    for rank in range(dist.get_world_size()):
        leaves = {name: weight.clone().requires_grad_() for name, weight in at.items()}
        outputs = functional_call(network(), leaves, batch(0, rank).bfloat16())
        loss_of(outputs).backward()
        grads.append([leaf.grad.float() for leaf in leaves.values()])
    return [sum(of) / dist.get_world_size() for of in zip(*grads, strict=True)]
