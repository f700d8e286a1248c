"""Under `torch.inference_mode` evaluation, loading and stepping work; training goes on after it."""

from __future__ import annotations

import copy

import pytest
import torch
from models import equal, network, optimizer, set_grads, snapshot, started, through_file, train

import wpadamw

ACTIONS = {
    "step": lambda net, opt: opt.step(),
    "restore": lambda net, opt: opt.restore(),
    "true-weights": lambda net, opt: within_true_weights(opt),
    "state-dict": lambda net, opt: opt.state_dict(),
    "load": lambda net, opt: opt.load_state_dict(through_file(opt.state_dict())),
    "copy": lambda net, opt: copy.deepcopy((net, opt)),
    "clip": lambda net, opt: (opt.clip_grad_norm_(0.5), opt.step()),
    "new-group": lambda net, opt: opt.add_param_group(
        {"params": [torch.nn.Parameter(torch.zeros(2))]}
    ),
}


def within_true_weights(opt):
    with opt.true_weights():
        assert opt.weights_are == "true"


@pytest.mark.parametrize("backend", ["cpp", "torch"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("name", ACTIONS)
def test_action_does_what_it_does_elsewhere(name, steps, backend):
    twins = [started(steps, backend=backend) for _ in range(2)]
    for (net, opt), is_inside in zip(twins, (True, False), strict=True):
        set_grads(net.parameters(), seed=9)
        with torch.inference_mode(is_inside):
            ACTIONS[name](net, opt)
            assert torch.is_inference_mode_enabled() == is_inside
        train(net, opt, [4, 5])
    assert equal(snapshot(twins[0][1]), snapshot(twins[1][1]))
    tensors = [value for state in twins[0][1].state.values() for value in state.values()]
    assert tensors
    assert not any(tensor.is_inference() for tensor in tensors)


@pytest.mark.parametrize("first", [True, False], ids=["first-call", "later"])
def test_evaluation_of_an_attached_model(first):
    net = network()
    opt = optimizer(net)
    wpadamw.attach(net, opt)
    twin, twin_opt = started(0)
    for module, own in [(net, opt), (twin, twin_opt)]:
        train(module, own, range(3))
    if first:  # no plan from before
        opt.load_state_dict(through_file(opt.state_dict()))
    twin_opt.restore()
    net.eval()
    with torch.inference_mode():
        got = net(torch.ones(2, 3))
        want = twin(torch.ones(2, 3))
    assert equal(got, want)
    for module, own in [(net, opt), (twin, twin_opt)]:
        module.train()
        train(module, own, [3])
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_gradients_made_in_inference_mode():
    net, opt = started(0)
    twin, twin_opt = started(0)
    with torch.inference_mode():
        set_grads(net.parameters(), seed=1)
    set_grads(twin.parameters(), seed=1)
    opt.step()
    twin_opt.step()
    assert equal(snapshot(opt), snapshot(twin_opt))
