"""torch.compile: the optimizer is opaque to it, and attached models follow their mode inside."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from models import HYPER, backward, equal, network, optimizer, randn, snapshot, started
from torch import nn

import wpadamw

dynamo = pytest.importorskip("torch._dynamo")
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend  # noqa: E402

# Of torch's own, which it hides unless warnings are errors.
pytestmark = [
    pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script"),
]

FORMS = pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])
BACKENDS = pytest.mark.parametrize("backend", ["eager", "aot_eager"])


@pytest.fixture(autouse=True)
def fresh_dynamo():
    dynamo.reset()
    dynamo.utils.counters.clear()
    yield
    dynamo.reset()


def graph_breaks():
    return sum(dynamo.utils.counters["graph_break"].values())


class Net(nn.Module):
    """A model whose forward is not a function of torch's."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, inputs):
        return self.net(inputs)


MODELS = pytest.mark.parametrize("make", [Net, network], ids=["own-class", "torch-class"])


# The optimizer.


def train_step(net, opt, inputs):
    opt.zero_grad()
    loss = net(inputs).square().mean()
    loss.backward()
    opt.step()
    return loss


def compiled_training(kind, stance):
    """A compiled train step whose lr changes; ``stance`` holds from the third step on."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    net, counter = network(), CompileCounter()
    opt = kind(net.parameters(), lr=0.1)
    compiled = torch.compile(train_step, backend=counter)
    for k in range(6):
        with torch.compiler.set_stance(stance if k > 1 else "default"):
            compiled(net, opt, randn(4, 3, seed=k))
        opt.param_groups[0]["lr"] *= 0.5
    return graph_breaks(), counter, opt


def test_compiled_train_step_breaks_its_graph_no_more_often_than_with_adamw():
    theirs, _, _ = compiled_training(torch.optim.AdamW, "default")
    ours, counter, opt = compiled_training(wpadamw.WPAdamW, "fail_on_recompile")
    assert ours <= theirs
    assert counter.frame_count == 1
    net = network()
    plain = wpadamw.WPAdamW(net.parameters(), lr=0.1)
    for k in range(6):
        train_step(net, plain, randn(4, 3, seed=k))
        plain.param_groups[0]["lr"] *= 0.5
    assert equal(snapshot(opt), snapshot(plain))


def in_true_weights(opt):
    with opt.true_weights():
        pass


CALLS = {
    "step": lambda opt: opt.step(),
    "closure": lambda opt: opt.step(lambda: 1.0),
    "predict": lambda opt: opt.predict(),
    "restore": lambda opt: opt.restore(),
    "train": lambda opt: opt.train(),
    "eval": lambda opt: opt.eval(),
    "true_weights": in_true_weights,
    "state_dict": lambda opt: opt.state_dict(),
    "load_state_dict": lambda opt: opt.load_state_dict(opt.state_dict()),
    "clip_grad_norm_": lambda opt: opt.clip_grad_norm_(1e-3),
    "zero_grad": lambda opt: opt.zero_grad(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_no_operation_of_ours_gets_into_a_graph(call):
    def program(opt, inputs):
        doubled = inputs * 2
        call(opt)
        return doubled + 1

    net, opt = started(3)
    twin, twin_opt = started(3)
    counter = CompileCounter()
    compiled = torch.compile(program, backend=counter)
    for k in range(3):
        for module, own in [(net, opt), (twin, twin_opt)]:
            backward(module, k)
        assert equal(compiled(opt, randn(3)), program(twin_opt, randn(3)))
    assert equal(snapshot(opt), snapshot(twin_opt))
    assert counter.op_count <= 2


def test_weights_are_can_be_asked_in_a_graph():
    _, opt = started(3)
    program = torch.compile(
        lambda x: x + 1 if opt.weights_are == "true" else x - 1, backend="eager"
    )
    assert program(torch.ones(1)) == 0
    opt.eval()
    assert program(torch.ones(1)) == 2


def test_without_compilation_no_method_imports_dynamo():
    program = """
import sys, json, torch, wpadamw
param = torch.nn.Parameter(torch.ones(3))
opt = wpadamw.WPAdamW([param])  # torch's own constructor imports it
sys.modules["torch._dynamo"] = None  # from now on an import fails
param.grad = torch.ones(3)
opt.clip_grad_norm_(1.0)
opt.step(), opt.predict(), opt.restore(), opt.train(), opt.eval()
with opt.true_weights():
    opt.step()
print(json.dumps(opt.weights_are))
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == "true"


def test_step_is_the_plain_function():
    assert wpadamw.WPAdamW.step.__code__.co_name == "step"
    assert wpadamw.WPAdamW.step.hooked


# Attached models.


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


@FORMS
@BACKENDS
@MODELS
@pytest.mark.parametrize("how", [whole, in_place])
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
