"""torch.func: what works with torch's optimizers works, the rest raises before it writes."""

from __future__ import annotations

import pytest
import torch
from models import HYPER, backward, equal, held, network, optimizer, randn, snapshot, started
from torch.func import functional_call, grad, jacrev, jvp, stack_module_state, vjp, vmap

import wpadamw

# Of torch's own jvp.
pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script")

INPUTS = randn(4, 3)
BACKENDS = pytest.mark.parametrize("backend", ["torch", "auto"])


@BACKENDS
def test_step_with_gradients_of_a_transform(backend):
    net, opt = started(2, backend=backend)
    twin, twin_opt = started(2, backend=backend)
    weights = {name: param.detach() for name, param in net.named_parameters()}
    grads = grad(lambda weights: functional_call(net, weights, INPUTS).square().sum())(weights)
    twin.zero_grad()
    twin(INPUTS).square().sum().backward()
    for name, param in twin.named_parameters():
        net.get_parameter(name).grad = grads[name].clone()
        torch.testing.assert_close(grads[name], param.grad)
        param.grad = grads[name].clone()
    opt.step()
    twin_opt.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


@BACKENDS
def test_closure_that_transforms(backend):
    net, opt = started(2, backend=backend)
    opt.restore()
    seen = []

    def closure():
        weights = dict(net.named_parameters())
        grads = grad(lambda weights: functional_call(net, weights, INPUTS).square().sum())(weights)
        seen.append(held(net))
        for name, param in net.named_parameters():
            param.grad = grads[name]
        return 2.0

    assert opt.step(closure) == 2.0
    twin, _ = started(2, backend=backend)
    assert equal(seen[0], held(twin))


@BACKENDS
def test_stacked_ensemble_equals_its_members(backend):
    nets = [network(seed) for seed in range(3)]
    stacked, _ = stack_module_state(nets)
    opt = wpadamw.WPAdamW(list(stacked.values()), **HYPER, backend=backend)
    opts = [wpadamw.WPAdamW(net.parameters(), **HYPER, backend=backend) for net in nets]
    base = network()

    def loss(weights):
        return functional_call(base, weights, (INPUTS,)).square().sum()

    for _ in range(3):
        grads = vmap(grad(loss))({name: param.detach() for name, param in stacked.items()})
        for name, param in stacked.items():
            param.grad = grads[name]
            for i, net in enumerate(nets):
                net.get_parameter(name).grad = grads[name][i].clone()
        for own in (opt, *opts):
            own.step()
    for name, param in stacked.items():
        for i, net in enumerate(nets):
            assert equal(param[i].detach(), net.get_parameter(name).detach())


TRANSFORMS = {
    "grad": lambda function: grad(lambda x: function(x).sum())(INPUTS),
    "vmap": lambda function: vmap(function)(INPUTS),
    "jvp": lambda function: jvp(function, (INPUTS,), (INPUTS,)),
    "vjp": lambda function: vjp(function, INPUTS),
    "jacrev": lambda function: jacrev(function)(INPUTS),
}
CALLS = {
    "step": lambda opt: opt.step(),
    "closure": lambda opt: opt.step(lambda: 1.0),
    "restore": lambda opt: opt.restore(),
    "eval": lambda opt: opt.eval(),
}


@BACKENDS
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_writing_inside_a_transform_raises_before_it_writes(call, transform, backend):
    net, opt = started(2, backend=backend)
    backward(net, 3)
    before = snapshot(opt)

    def function(inputs):
        call(opt)
        return net(inputs)

    with pytest.raises(RuntimeError, match=r"inside a torch\.func transform"):
        transform(function)
    assert equal(snapshot(opt), before)
    opt.step()


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_what_writes_nothing_works_inside_a_transform(transform):
    net, opt = started(2)
    before = snapshot(opt)

    def function(inputs):
        opt.predict()
        opt.state_dict()
        opt.zero_grad()
        return net(inputs)

    transform(function)
    assert equal(snapshot(opt), before)


# Attached models.


def attached():
    model = network()
    opt = optimizer(model)
    wpadamw.attach(model, opt)
    for k in range(2):
        backward(model, k)
        opt.step()
    return model, opt


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_functional_call_with_other_weights_moves_nothing(mode, training):
    model, opt = attached()
    opt.predict() if mode == "predicted" else opt.restore()
    model.training = training
    before, other = held(model), {name: p.detach() for name, p in network(7).named_parameters()}
    expected = network(7)(INPUTS)
    assert equal(functional_call(model, other, (INPUTS,)).detach(), expected.detach())
    grad(lambda weights: functional_call(model, weights, (INPUTS,)).sum())(other)
    stacked = {name: value[None].expand(2, *value.shape) for name, value in other.items()}
    vmap(lambda weights: functional_call(model, weights, (INPUTS,)))(stacked)
    assert equal(held(model), before)
    assert opt.weights_are == mode


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transform_of_the_model_sees_the_weights_of_its_mode(transform):
    model, opt = attached()
    seen = []

    def function(inputs):
        outputs = model(inputs)
        seen.append(held(model))
        return outputs

    transform(function)
    model.eval()
    transform(function)
    weights = [opt.state[param]["weight"] for param in model.parameters()]
    assert equal(seen[1], weights)
    assert not equal(seen[0], weights)


def test_transform_of_a_model_that_would_have_to_move_its_weights_raises():
    model, opt = attached()
    model.state_dict()
    before = held(model)
    with pytest.raises(RuntimeError, match=r"going to predicted .*inside a torch\.func transform"):
        jacrev(model)(INPUTS)
    assert equal(held(model), before)
    opt.train()
    jacrev(model)(INPUTS)
