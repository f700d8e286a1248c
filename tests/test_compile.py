"""torch.compile of train steps: the optimizer is opaque to it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from compiling import MARKS, forget, graph_breaks, train_step
from models import backward, equal, network, randn, snapshot, started
from torch._dynamo.testing import CompileCounter

import wpadamw

pytestmark = MARKS


def compiled_training(kind, stance):
    """A compiled train step whose lr changes; ``stance`` holds from the third step on."""
    forget()
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
        for module in (net, twin):
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
