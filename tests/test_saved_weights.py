"""What the backward pass gets for the weights that autograd has saved."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from wpadamw.pipeline.saved_weights import SavedWeights

BACKWARDS = ("current", "forward")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def inputs():
    return torch.linspace(-1, 1, 10).view(2, 5).requires_grad_()


def saved_weights(net, kind):
    weights = SavedWeights(net, kind)
    weights.module = net
    return weights


def forward(weights, x, function=None):
    with weights.recorded(0):
        return (function or weights.module)(x)


@torch.no_grad()
def write(weights):
    """What an update does."""
    weights.keep()
    for param in weights.module.parameters():
        param.mul_(2)


def backward(weights, output):
    with weights.used(0):
        output.sum().backward()


@pytest.mark.parametrize("kind", BACKWARDS)
def test_the_gradient_is_that_of_the_weights_that_are_meant(kind):
    x, net = inputs(), model()
    weights = saved_weights(net, kind)
    output = forward(weights, x)
    hidden = net[1](net[0](inputs())).detach()
    write(weights)
    backward(weights, output)
    first, last = (layer.weight.detach() / (2 if kind == "forward" else 1) for layer in net[::2])
    wanted = (torch.ones(2, 3) @ last * (1 - hidden**2)) @ first
    torch.testing.assert_close(x.grad, wanted)


@pytest.mark.parametrize("kind", BACKWARDS)
def test_without_a_write_all_is_as_without_hooks(kind):
    x, plain = inputs(), inputs()
    weights = saved_weights(model(), kind)
    backward(weights, forward(weights, x))
    model()(plain).sum().backward()
    assert torch.equal(x.grad, plain.grad)


@pytest.mark.parametrize("kind", BACKWARDS)
def test_activations_that_change_are_noticed(kind):
    weights = saved_weights(model(), kind)

    def careless(x):
        hidden = weights.module[0](x)
        product = hidden.exp()
        result = weights.module[2](product)
        product.add_(1)
        return result

    output = forward(weights, inputs(), careless)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*float32.*\(2, 4\)"):
        backward(weights, output)


def test_inputs_that_are_reused_are_noticed():
    weights = saved_weights(model(), "current")
    x = inputs().detach()
    output = forward(weights, x)
    x.zero_()
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*\(2, 5\)"):
        backward(weights, output)


def test_writes_of_others_are_noticed_before_weights_are_copied():
    weights = saved_weights(model(), "forward")
    output = forward(weights, inputs())
    with torch.no_grad():
        weights.module[2].weight.zero_()
    with pytest.raises(RuntimeError, match=r"'2\.weight' was written to"):
        weights.keep()
    with pytest.raises(RuntimeError, match=r"'2\.weight' was written to"):
        backward(weights, output)


def test_only_what_graphs_need_is_copied_and_only_once():
    weights = saved_weights(model(), "forward")
    first, second = (forward(weights, inputs()) for _ in range(2))
    write(weights)
    third = forward(weights, inputs().detach())
    write(weights)
    held = {w.tensor.untyped_storage().data_ptr(): w.tensor.nbytes for w in weights.alive}
    both, last = 4 * (4 * 5 + 3 * 4), 4 * 3 * 4  # where inputs need no gradient one is enough
    assert sum(held.values()) == both + last
    for output in (first, second, third):
        output.sum().backward()
    del output, first, second, third
    gc.collect()
    assert not weights.alive


def test_a_graph_that_is_dropped_is_not_copied_for():
    weights = saved_weights(model(), "forward")
    output = forward(weights, inputs())
    del output
    gc.collect()
    assert not weights.alive


class Views(nn.Module):
    """Uses a parameter as parts, turned round, as other numbers, and conjugated."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        whole = torch.randn(8, 6)
        self.whole = nn.Parameter(whole)
        self.part = nn.Parameter(whole[2:6, ::2])  # shares memory with it, in steps
        self.complex = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))

    def forward(self, x):
        left, right = self.whole.chunk(2)
        x = (x @ left.t()) * (x @ right.t()) @ self.part
        paired = torch.view_as_complex(self.whole.view(8, 3, 2))[:3, :3]
        z = x.to(torch.complex64) @ paired @ self.complex[:3].conj()
        return (z * self.complex[0].conj().imag).abs()


@pytest.mark.parametrize("kind", BACKWARDS)
def test_views_of_parameters(kind):
    x = torch.linspace(-1, 1, 12).view(2, 6).requires_grad_()
    weights = saved_weights(Views(), kind)
    output = forward(weights, x)
    weights.keep()
    with torch.no_grad():
        for param in (weights.module.whole, weights.module.complex):
            param.mul_(2)
    backward(weights, output)
    assert torch.equal(x.grad, by_hand(x, kind))


def by_hand(x, kind):
    """The same with writes that autograd does not see, or with none."""
    x, views = x.detach().clone().requires_grad_(), Views()
    output = views(x)
    if kind == "current":
        views.whole.data.mul_(2)
        views.complex.data.mul_(2)
    output.sum().backward()
    return x.grad


class Saves(torch.autograd.Function):
    """Saves its weight."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, grad):
        return grad @ ctx.saved_tensors[0], None


def readers(net):
    functional = nn.functional.linear
    yield lambda x: checkpoint(net, x, use_reentrant=True)
    yield lambda x: checkpoint(net, x, use_reentrant=False)
    yield lambda x: checkpoint(functional, x, net[0].weight, use_reentrant=False)
    yield lambda x: checkpoint(lambda x: functional(x, net[0].weight), x, use_reentrant=False)


@pytest.mark.parametrize("which", range(4))
def test_a_forward_that_runs_again_is_refused_for_weights_of_the_first(which):
    weights = saved_weights(model(), "forward")
    reader = list(readers(weights.module))[which]
    backward(weights, forward(weights, inputs(), reader))  # nothing has changed
    output = forward(weights, inputs(), reader)
    write(weights)
    with pytest.raises(RuntimeError, match="run again in the backward pass"):
        backward(weights, output)


@pytest.mark.parametrize("is_written", [False, True])
def test_functions_that_save_their_weight_are_right(is_written):
    weights, x = saved_weights(model(), "forward"), inputs()
    weight = weights.module[0].weight
    output = forward(weights, x, lambda x: Saves.apply(x, weight))
    wanted = torch.ones(2, 4) @ weight.detach()
    if is_written:
        write(weights)
    backward(weights, output)
    assert torch.equal(x.grad, wanted)


def test_hooks_may_look_at_gradients_of_parameters():
    weights = saved_weights(model(), "forward")
    sizes = []
    weights.module[0].weight.register_post_accumulate_grad_hook(
        lambda param: sizes.append((param.grad.norm(), param.numel(), param.shape))
    )
    output = forward(weights, inputs())
    write(weights)
    backward(weights, output)
    assert len(sizes) == 1


def test_sparse_and_empty_tensors_are_no_weights():
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.none = nn.Parameter(torch.empty(0))
            self.weight = nn.Parameter(torch.ones(2, 2))

        def forward(self, x):
            return (
                torch.sparse.mm(torch.eye(2).to_sparse(), x @ self.weight).sum()
                + (self.none * torch.empty(0)).sum()
            )

    weights = saved_weights(Empty(), "forward")
    x = torch.ones(2, 2, requires_grad=True)
    output = forward(weights, x)
    write(weights)
    backward(weights, output)
    assert torch.equal(x.grad, torch.full((2, 2), 2.0))
