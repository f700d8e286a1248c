"""torch.compile of attached models: they follow their mode, in one graph."""

from __future__ import annotations

import copy

import pytest
import torch
from compiling import MARKS, dynamo, graph_breaks, train_step
from models import HYPER, backward, equal, network, optimizer, randn, snapshot
from torch import nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import wpadamw

pytestmark = MARKS

FORMS = pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])


class Net(nn.Module):
    """A model whose forward is not a function of torch's."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, inputs):
        return self.net(inputs)


MODELS = pytest.mark.parametrize("make", [Net, network], ids=["own-class", "torch-class"])


def whole(model, backend):
    return torch.compile(model, backend=backend, fullgraph=True)


def in_place(model, backend):
    model.compile(backend=backend, fullgraph=True)
    return model


def attached(make, in_step):
    model = make()
    opt = optimizer(model, predict_in_step=in_step)
    wpadamw.attach(model, opt)
    return model, opt


class Both:
    """A model for `backward`, called through what was compiled from it."""

    def __init__(self, model, call):
        self.parameters, self.zero_grad, self.call = model.parameters, model.zero_grad, call

    def __call__(self, inputs):
        return self.call(inputs)


def evaluate(model, call):
    model.eval()
    with torch.no_grad():
        outputs = call(randn(4, 3, seed=77))
    model.train()
    return outputs


def disturb(k, model, opt):
    """What leaves true weights behind, one after the other."""
    if k == 1:
        model.state_dict()
    elif k == 2:
        opt.eval()
    elif k == 3:
        with opt.true_weights():
            pass
    elif k == 4:
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))


# Every three of the four meet: it is half of all.
@pytest.mark.parametrize(
    ("how", "make", "backend", "in_step"),
    [
        (how, make, backend, in_step)
        for how in (whole, in_place)
        for make in (Net, network)
        for backend in ("eager", "aot_eager")
        for in_step in (True, False)
        if (how is whole) ^ (make is Net) ^ (backend == "eager") ^ in_step
    ],
)
def test_one_graph_follows_the_mode(how, make, backend, in_step):
    counter = CompileCounterWithBackend(backend)
    model, opt = attached(make, in_step)
    twin, twin_opt = attached(make, in_step)
    call = how(model, counter)
    for k in range(7):
        assert equal(backward(Both(model, call), k).detach(), backward(twin, k).detach())
        for own in (opt, twin_opt):
            own.step()
            for group in own.param_groups:
                group["lr"] *= 0.9
        if k % 3 == 0:
            assert equal(evaluate(model, call), evaluate(twin, twin))
            assert opt.weights_are == "true"
        disturb(k, model, opt)
        disturb(k, twin, twin_opt)
    assert equal(snapshot(opt), snapshot(twin_opt))
    # Training and evaluation, and one for another set of gradients: as without an optimizer.
    assert counter.frame_count <= 4
    assert graph_breaks() == 0


def compiled_before(make, wrap):
    """A model that was compiled before it was attached."""
    counter, model = CompileCounter(), make()
    call = wrap(model, counter)
    return counter, model, call


@FORMS
@pytest.mark.parametrize(
    ("make", "wrap", "who"),
    [
        (Net, whole, "model"),
        (Net, whole, "compiled"),
        (network, whole, "compiled"),
        (Net, in_place, "model"),
    ],
)
def test_model_that_was_compiled_before_it_is_attached(make, wrap, who, in_step):
    counter, model, call = compiled_before(make, wrap)
    opt = optimizer(model, predict_in_step=in_step)
    handle = wpadamw.attach(call if who == "compiled" else model, opt)
    twin, twin_opt = attached(make, in_step)
    for k in range(7):
        assert equal(backward(Both(model, call), k).detach(), backward(twin, k).detach())
        for own in (opt, twin_opt):
            own.step()
        if k % 3 == 0:
            assert equal(evaluate(model, call), evaluate(twin, twin))
        disturb(k, model, opt)
        disturb(k, twin, twin_opt)
    assert equal(snapshot(opt), snapshot(twin_opt))
    assert counter.frame_count <= 4
    handle.remove()
    before = opt.weights_are
    evaluate(model, call)
    assert opt.weights_are == before


def test_class_of_torchs_that_was_compiled_before_is_right_or_says_what_to_do():
    _, model, call = compiled_before(network, whole)
    opt = optimizer(model)
    wpadamw.attach(model, opt)
    call(randn(4, 3)).sum().backward()
    opt.step()
    model.eval()
    call(randn(4, 3))
    assert opt.weights_are == "true"
    model.train()
    with pytest.raises(dynamo.exc.Unsupported, match=r"call opt\.train\(\) or opt\.eval\(\)"):
        call(randn(4, 3))


def test_parameters_of_a_model_itself_that_was_compiled_before():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            return inputs * self.weight

    model = Bare()
    call = torch.compile(model, backend="eager", fullgraph=True)
    opt = wpadamw.WPAdamW(model.parameters(), lr=0.1)
    wpadamw.attach(model, opt)
    call(torch.ones(3)).sum().backward()
    opt.step()
    predicted = call(torch.ones(3))
    opt.eval()
    assert equal(call(torch.ones(3)).detach(), predicted.detach())
    model.eval()
    assert equal(call(torch.ones(3)).detach(), opt.state[model.weight]["weight"])


def test_inductor_follows_the_mode():
    model, opt = attached(Net, True)
    compiled = torch.compile(model, fullgraph=True)
    try:
        backward(Both(model, compiled), 0)
    except Exception as error:  # no compiler here
        pytest.skip(f"inductor: {type(error).__name__}")
    opt.step()
    opt.eval()
    predicted = compiled(randn(4, 3)).detach()
    assert opt.weights_are == "predicted"
    torch.testing.assert_close(predicted, model(randn(4, 3)))
    assert not torch.allclose(evaluate(model, compiled), predicted)


@FORMS
@MODELS
def test_model_inside_a_compiled_function(make, in_step):
    model, opt = attached(make, in_step)
    twin, twin_opt = attached(make, in_step)
    program = torch.compile(lambda inputs: model(inputs) * 1.0, backend="eager")
    for k in range(5):
        targets = randn(4, 2, seed=k)
        for call, module, own in [(program, model, opt), (twin, twin, twin_opt)]:
            module.zero_grad()
            (call(randn(4, 3, seed=k)) - targets).square().mean().backward()
            own.step()
        assert equal(evaluate(model, program), evaluate(twin, twin))
        disturb(k, model, opt)
        disturb(k, twin, twin_opt)
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_model_inside_one_graph_of_a_compiled_function():
    model, opt = attached(Net, True)
    counter = CompileCounter()
    program = torch.compile(lambda inputs: model(inputs) * 1.0, backend=counter, fullgraph=True)
    for k in range(4):
        program(randn(4, 3, seed=k)).sum().backward()
        opt.step()
    assert counter.frame_count == 1
    model.state_dict()
    with pytest.raises(dynamo.exc.Unsupported, match=r"call opt\.train\(\) or opt\.eval\(\)"):
        program(randn(4, 3))
    opt.train()
    program(randn(4, 3))
    model.eval()
    assert equal(program(randn(4, 3)), model(randn(4, 3)))
    assert opt.weights_are == "true"


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, inputs):
        return self.net(inputs)


@pytest.mark.parametrize("early", [True, False], ids=["before-attach", "after-attach"])
def test_compiled_part_of_an_attached_model(early):
    model = Nested()
    opt = optimizer(model)
    twin, twin_opt = attached(Nested, True)
    if early:
        model.net = torch.compile(model.net, backend="eager", fullgraph=True)
    wpadamw.attach(model, opt)
    if not early:
        model.net.compile(backend="eager", fullgraph=True)
    for k in range(4):
        for module, own in [(model, opt), (twin, twin_opt)]:
            module.zero_grad()
            module(randn(4, 3, seed=k)).square().mean().backward()
            own.step()
            own.eval()
            module.net(randn(4, 3, seed=k))
            assert own.weights_are == "predicted"
        assert equal(evaluate(model, model), evaluate(twin, twin))
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_step_in_a_compiled_function_with_the_attached_model():
    model, opt = attached(Net, True)
    twin, twin_opt = attached(Net, True)
    compiled = torch.compile(train_step, backend="eager")
    for k in range(4):
        ours = compiled(model, opt, randn(4, 3, seed=k))
        assert equal(ours.detach(), train_step(twin, twin_opt, randn(4, 3, seed=k)).detach())
    assert equal(snapshot(opt), snapshot(twin_opt))
    assert opt.param_groups[0]["betas"] == HYPER["betas"]


@MODELS
def test_true_weights_hold_in_one_graph(make):
    model, opt = attached(make, in_step=True)
    compiled = whole(model, "eager")
    for k in range(2):
        backward(Both(model, compiled), k)
        opt.step()
    for _ in range(2):
        with opt.true_weights():
            compiled(randn(4, 3))
            assert opt.weights_are == "true"
        compiled(randn(4, 3))
        assert opt.weights_are == "predicted"
