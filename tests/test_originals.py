"""The optimizers beside those whose arguments they take, in float64."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from helpers import BACKENDS, wide
from models import equal
from rules.blend import Blend

from wpadamw import WPSGD, WPAdamW, WPNAdamW

SGD_OPTIONS = [
    {"momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
    for momentum, dampening, weight_decay in itertools.product((0.0, 0.9), (0.0, 0.3), (0.0, 0.1))
]
SGD_OPTIONS += [{"momentum": 0.9, "nesterov": True, "weight_decay": w} for w in (0.0, 0.1)]


def start(generator):
    return torch.nn.Parameter(wide(50, torch.float64, generator))


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("options", SGD_OPTIONS, ids=str)
def test_without_prediction_it_is_sgd(options, maximize, backend, generator):
    options = {**options, "lr": 0.01, "maximize": maximize}
    ours = start(generator)
    theirs = torch.nn.Parameter(ours.detach().clone())
    opt = WPSGD([ours], **options, prediction_steps=0.0, backend=backend)
    original = torch.optim.SGD([theirs], **options)
    for k in range(20):
        ours.grad = wide(50, torch.float64, generator)
        theirs.grad = ours.grad.clone()
        opt.step()
        original.step()
        if k == 10:  # a checkpoint of the original
            opt.load_state_dict(original.state_dict())
    assert_close(ours.detach(), theirs.detach())


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_many_steps_as_the_momentum_are_nesterovs(backend, generator):
    """``torch.optim.SGD(nesterov=True)`` stores the point that is predicted here."""
    momentum, lr = 0.9, 0.05
    ours = start(generator)
    theirs = torch.nn.Parameter(ours.detach().clone())
    curvature = torch.linspace(0.1, 1.0, 50, dtype=torch.float64)
    opt = WPSGD([ours], lr=lr, momentum=momentum, prediction_steps=momentum, backend=backend)
    original = torch.optim.SGD([theirs], lr=lr, momentum=momentum, nesterov=True)
    for _ in range(60):
        for param, optimizer in ((ours, opt), (theirs, original)):
            param.grad = curvature * param.detach() + param.detach().sin()
            optimizer.step()
        assert_close(ours.detach(), theirs.detach())
    opt.restore()
    buffer = original.state[theirs]["momentum_buffer"]
    assert_close(ours.detach(), theirs.detach() + lr * momentum * buffer)


# NAdamW.


def test_the_first_step_of_nadamw_is_1_plus_beta1_times_lr(generator):
    param = start(generator)
    before = param.detach().clone()
    param.grad = wide(50, torch.float64, generator)
    opt = WPNAdamW([param], lr=0.01, betas=(0.8, 0.99), eps=1e-30, weight_decay=0.0)
    opt.step()
    opt.restore()
    assert_close(before - param.detach(), 0.01 * 1.8 * param.grad.sign())


def nadamw(weight, grads, lr, betas, eps, weight_decay):
    """As its papers write it (Choi et al. 2019, Table 1), one line after the other."""
    m = v = torch.zeros_like(weight)
    for t, g in enumerate(grads, 1):
        weight = weight - lr * weight_decay * weight
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        n_hat = (betas[0] * m + (1 - betas[0]) * g) / (1 - betas[0] ** t)
        weight = weight - lr * n_hat / ((v / (1 - betas[1] ** t)).sqrt() + eps)
    return weight


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_prediction_it_is_nadamw(backend, generator):
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1}
    param = start(generator)
    before = param.detach().clone()
    grads = [wide(50, torch.float64, generator) for _ in range(50)]
    opt = WPNAdamW([param], **options, prediction_steps=0.0, backend=backend)
    for grad in grads:
        param.grad = grad
        opt.step()
    assert_close(param.detach(), nadamw(before, grads, **options))


# What belongs to another rule.


def trained(make, **options):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = make([param], lr=0.1, **options)
    optimizer.step()
    return optimizer


FOREIGN = {
    "adamw-into-nadamw": (WPNAdamW, lambda: trained(WPAdamW), "'adamw', not of 'nadamw'"),
    "nadamw-into-adamw": (WPAdamW, lambda: trained(WPNAdamW), "'nadamw', not of 'adamw'"),
    "sgd-into-adamw": (WPAdamW, lambda: trained(WPSGD), "'sgd', not of 'adamw'"),
    "torchs-sgd": (WPAdamW, lambda: trained(torch.optim.SGD), "'momentum'.* than 'adamw'"),
    "torchs-adamw": (WPSGD, lambda: trained(torch.optim.AdamW), "'betas'.* than 'sgd'"),
    "amsgrad": (WPNAdamW, lambda: trained(torch.optim.AdamW, amsgrad=True), "'amsgrad'.*'nadamw'"),
}


@pytest.mark.parametrize("make, other, message", FOREIGN.values(), ids=FOREIGN)
def test_a_checkpoint_of_another_rule_is_refused_by_both_names(make, other, message):
    optimizer = trained(make)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other().state_dict())
    assert equal(optimizer.state_dict(), before)


def test_adamws_checkpoint_serves_nadamw_too():
    optimizer = trained(WPNAdamW)
    optimizer.load_state_dict(trained(torch.optim.AdamW).state_dict())
    assert "amsgrad" not in optimizer.param_groups[0]


def test_an_option_of_another_optimizer_is_refused_by_both_names():
    with pytest.raises(ValueError, match="WPSGD has no argument 'betas'"):
        WPSGD([{"params": [torch.nn.Parameter(torch.ones(1))], "betas": (0.9, 0.9)}])


def test_a_rule_that_cannot_be_solved_needs_a_backup():
    class WPBlend(WPAdamW):
        def _rule(self, group):
            return Blend()

    params = [torch.nn.Parameter(torch.ones(1))]
    assert WPBlend(params).param_groups[0]["backup"]
    with pytest.raises(ValueError, match=r"backup=False needs a rule .* got rule 'blend'"):
        WPBlend(params, backup=False)
