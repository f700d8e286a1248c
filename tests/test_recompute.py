"""Forwards that are computed again in the backward pass, after a mode switch or a step."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models import HYPER, equal, held, network, randn, snapshot
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

import wpadamw

FORMS = pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])
AGAIN = "computed again for a backward pass.*call backward.* before step"


class Block(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.net = network(seed)
        self.back = nn.Linear(2, 3)
        with torch.no_grad():
            for i, param in enumerate(self.back.parameters()):
                param.copy_(randn(*param.shape, seed=50 + i))

    def forward(self, inputs):
        return self.back(self.net(inputs)).tanh()


class Net(nn.Module):
    """Two blocks; ``way`` runs the second one."""

    def __init__(self, way):
        super().__init__()
        self.blocks = nn.ModuleList([Block(0), Block(1)])
        self.way = way

    def forward(self, inputs):
        # With every layer's weights saved by the checkpoint autograd has no version to compare.
        return self.way(lambda x: self.blocks[1](self.blocks[0](x)), inputs)


def plain(function, inputs):
    return function(inputs)


def reentrant(function, inputs):
    return checkpoint(function, inputs, use_reentrant=True)


def non_reentrant(function, inputs):
    return checkpoint(function, inputs, use_reentrant=False)


def on_cpu(function, inputs):
    with save_on_cpu():
        return function(inputs)


WAYS = pytest.mark.parametrize("way", [reentrant, non_reentrant, on_cpu])


def attached(way, **options):
    model = Net(way)
    opt = wpadamw.WPAdamW(model.parameters(), **{**HYPER, "lr": 0.1, **options})
    wpadamw.attach(model, opt)
    for k in range(3):
        opt.zero_grad()
        model(inputs_of(k)).square().sum().backward()
        opt.step()
    opt.zero_grad()
    return model, opt


def inputs_of(k):
    return randn(4, 3, seed=k).requires_grad_()


def gradients(model):
    return [param.grad.clone() for param in model.parameters()]


def expected(**options):
    """The gradient at the predicted weights, without anything in between."""
    model, _ = attached(plain, **options)
    model(inputs_of(9)).square().sum().backward()
    return gradients(model)


def evaluated(model, opt):
    model.eval()
    with torch.no_grad():
        model(inputs_of(5))


def evaluated_and_back(model, opt):
    evaluated(model, opt)
    model.train()


SWITCHES = {
    "state_dict": lambda model, opt: model.state_dict(),
    "eval": lambda model, opt: opt.eval(),
    "evaluated": evaluated,
    "evaluated-and-back": evaluated_and_back,
    "flag": lambda model, opt: setattr(model, "training", False),
}


@FORMS
@WAYS
@pytest.mark.parametrize("switch", SWITCHES.values(), ids=SWITCHES)
def test_gradient_is_that_of_the_forward_after_a_switch(switch, way, in_step):
    model, opt = attached(way, predict_in_step=in_step)
    loss = model(inputs_of(9)).square().sum()
    switch(model, opt)
    modes, before = opt._modes(), held(model)
    loss.backward()
    assert equal(gradients(model), expected(predict_in_step=in_step))
    assert opt._modes() == modes
    assert equal(held(model), before)


@WAYS
def test_switch_between_two_passes_of_one_graph(way):
    model, opt = attached(way)
    loss = model(inputs_of(9)).square().sum()
    for _ in range(2):
        opt.eval()
        loss.backward(retain_graph=True)
    assert equal(gradients(model), [2 * grad for grad in expected()])


def packed(way):
    """A model under one of the ways, and its loss."""
    # What a part of a forward packs by itself nobody else can see, so save_on_cpu is around all.
    if way is not on_cpu:
        model, opt = attached(way)
        return model, opt, model(inputs_of(9)).square().sum()
    model, opt = attached(plain)
    return model, opt, on_cpu(model, inputs_of(9)).square().sum()


@WAYS
def test_update_before_the_backward_pass_raises(way):
    model, opt, first = packed(way)
    model(inputs_of(8)).square().sum().backward()
    opt.step()
    opt.zero_grad()
    before = snapshot(opt)
    with pytest.raises(RuntimeError, match=AGAIN):
        first.backward()
    assert equal(snapshot(opt), before)
    model(inputs_of(7)).square().sum().backward()
    opt.step()


@WAYS
def test_loading_before_the_backward_pass_raises(way):
    _, opt, loss = packed(way)
    opt.load_state_dict(opt.state_dict())
    with pytest.raises(RuntimeError, match=AGAIN):
        loss.backward()


def test_switch_of_a_model_without_recomputation_is_still_an_error_of_autograd():
    model, opt = attached(plain)
    loss = model(inputs_of(9)).square().sum()
    opt.eval()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    opt.zero_grad()
    model(inputs_of(9)).square().sum().backward()
    assert equal(gradients(model), expected())


def test_update_of_weights_that_no_backward_pass_needs_is_no_error():
    # An actor and a critic: two losses of one forward, two optimizers.
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.actor, self.critic = network(0), network(1)

        def forward(self, inputs):
            return self.actor(inputs), self.critic(inputs)

    model = Both()
    opts = [wpadamw.WPAdamW(part.parameters(), **HYPER) for part in (model.actor, model.critic)]
    for opt in opts:
        wpadamw.attach(model, opt)
    for k in range(3):
        for output, opt in zip(model(randn(4, 3, seed=k)), opts, strict=True):
            opt.zero_grad()
            output.square().sum().backward()
            opt.step()
    assert [opt.weights_are for opt in opts] == ["predicted"] * 2


@dataclasses.dataclass
class Output:
    loss: torch.Tensor
    name: str = "a field that is no tensor"


CONTAINERS = {
    "tuple": (lambda out: (None, [out]), lambda out: out[1][0]),
    "dict": (lambda out: {"loss": out, "n": 3}, lambda out: out["loss"]),
    "dataclass": (Output, lambda out: out.loss),
}


@pytest.mark.parametrize(("pack", "unpack"), CONTAINERS.values(), ids=CONTAINERS)
def test_outputs_in_containers_are_found(pack, unpack):
    model, opt = attached(non_reentrant)
    way = model.way
    model.way = lambda function, inputs: pack(way(function, inputs))
    loss = unpack(model(inputs_of(9))).square().sum()
    opt.eval()
    loss.backward()
    assert equal(gradients(model), expected())


@WAYS
def test_forward_of_a_part(way):
    model, opt = attached(plain)
    part = model.blocks[0]
    loss = way(lambda x: part.back(part.net(x)), inputs_of(9)).square().sum()
    assert opt.weights_are == "predicted"
    loss.backward()
    grads = [param.grad for param in part.parameters()]
    assert all(grad is not None for grad in grads)


@pytest.mark.parametrize("way", [reentrant, non_reentrant])
def test_whole_model_in_a_checkpoint(way):
    model, _ = attached(plain)
    loss = way(model, inputs_of(9)).square().sum()
    model.state_dict()
    loss.backward()
    assert equal(gradients(model), expected())


def second_derivatives(way, switch=lambda opt: None):
    model, opt = attached(way)
    inputs = inputs_of(9)
    (slope,) = torch.autograd.grad(model(inputs).square().sum(), inputs, create_graph=True)
    switch(opt)
    slope.square().sum().backward()
    return gradients(model)


def test_second_derivatives():
    assert equal(second_derivatives(non_reentrant), second_derivatives(plain))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second_derivatives(non_reentrant, lambda opt: opt.eval())


def test_update_in_a_hook_of_the_backward_pass_keeps_its_weights():
    model, opt = attached(non_reentrant)
    loss = model(inputs_of(9)).square().sum()
    opt.eval()
    last = next(iter(model.blocks[0].net.parameters()))
    handle = last.register_post_accumulate_grad_hook(lambda param: opt.step())
    loss.backward()
    handle.remove()
    assert opt.weights_are == "predicted"
    twin, twin_opt = attached(plain)
    loss = twin(inputs_of(9)).square().sum()
    last = next(iter(twin.blocks[0].net.parameters()))
    last.register_post_accumulate_grad_hook(lambda param: twin_opt.step())
    loss.backward()
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_mode_calls_without_attach_go_around_the_backward_pass():
    # As documented: here nobody knows which forward a backward pass belongs to.
    model = Net(plain)
    opt = wpadamw.WPAdamW(model.parameters(), **HYPER)
    loss = model(inputs_of(0)).square().sum()
    loss.backward()
    opt.step()
    loss = model(inputs_of(1)).square().sum()
    opt.eval()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Optimizers that step inside the backward pass.


class Layers(nn.Module):
    def __init__(self, use_reentrant=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.use_reentrant = use_reentrant

    def forward(self, inputs):
        for layer in self.layers:
            if self.use_reentrant is None:
                inputs = layer(inputs).tanh()
            else:
                inputs = checkpoint(layer, inputs, use_reentrant=self.use_reentrant).tanh()
        return inputs


def step_in_backward(model):
    """An optimizer per parameter, each of which steps as soon as its gradient is there."""

    def hook(param):
        optimizers[param].step()
        optimizers[param].zero_grad()

    optimizers = {p: wpadamw.WPAdamW([p], lr=0.05) for p in model.parameters()}
    for param, optimizer in optimizers.items():
        param.register_post_accumulate_grad_hook(hook)
        wpadamw.attach(model, optimizer)
    return lambda: None


def step_afterwards(model):
    optimizer = wpadamw.WPAdamW(model.parameters(), lr=0.05)
    wpadamw.attach(model, optimizer)
    return lambda: (optimizer.step(), optimizer.zero_grad())


@pytest.mark.parametrize("use_reentrant", [None, False, True], ids=["plain", "new", "reentrant"])
def test_steps_inside_the_backward_pass_lead_to_the_same_bits(use_reentrant):
    found = []
    for prepare in (step_afterwards, step_in_backward):
        model = Layers(use_reentrant)
        step = prepare(model)
        for k in range(4):
            inputs = randn(4, 6, seed=k).requires_grad_()
            model.train()(inputs).square().sum().backward()
            step()
            model.eval()(inputs)
        found.append(held(model))
    assert equal(*found)
