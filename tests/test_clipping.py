"""The factor of `clip_grad_norm_` belongs to the gradients that it was computed from."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from models import equal, set_grads, snapshot, started

OTHERS = "written to after clip_grad_norm_"


def skip_by_optimizer(net, opt):
    opt.zero_grad()


def skip_in_place(net, opt):
    opt.zero_grad(set_to_none=False)


def skip_by_model(net, opt):
    net.zero_grad()


def skip_by_hand(net, opt):
    for param in net.parameters():
        param.grad = None


SKIPS = [skip_by_optimizer, skip_in_place, skip_by_model, skip_by_hand]


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("amp", [False, True])
def test_factor_goes_with_its_gradients(skip, amp):
    net, opt = started(amp=amp)
    twin, twin_opt = started(amp=amp)
    set_grads(net.parameters(), seed=4)
    opt.clip_grad_norm_(1e-3)
    skip(net, opt)
    for module, own in [(net, opt), (twin, twin_opt)]:
        set_grads(module.parameters(), seed=5)
        own.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


@pytest.mark.parametrize("skip", [skip_by_optimizer, skip_in_place])
def test_factor_goes_with_gradients_that_are_written_in_place(skip):
    net, opt = started()
    twin, twin_opt = started()
    for param in net.parameters():
        param.grad = torch.ones_like(param)
    opt.clip_grad_norm_(1e-3)
    skip(net, opt)
    for module, own in [(net, opt), (twin, twin_opt)]:
        for param in module.parameters():
            if param.grad is None:
                param.grad = torch.zeros_like(param)
            param.grad.add_(2.0) if own is opt else param.grad.fill_(2.0)
        own.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_gradients_written_after_clipping_are_not_clipped_and_it_is_said():
    net, opt = started()
    twin, twin_opt = started()
    for module in (net, twin):
        set_grads(module.parameters(), seed=4)
    opt.clip_grad_norm_(1e-3)
    for module in (net, twin):
        for param in module.parameters():
            param.grad.mul_(0.5)
    with pytest.warns(UserWarning, match=OTHERS):
        opt.step()
    twin_opt.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_some_clipped_gradients_may_be_dropped():
    net, opt = started()
    twin, twin_opt = started()
    for module, own in [(net, opt), (twin, twin_opt)]:
        set_grads(module.parameters(), seed=4)
        clip = own.clip_grad_norm_ if own is opt else None
        if clip:
            clip(1e-3)
        else:
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1e-3)
        module[0].bias.grad = None
        own.step()
    for param, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(opt.state[param]["exp_avg"], twin_opt.state[other]["exp_avg"])


def test_clipping_keeps_no_gradient_alive():
    net, opt = started()
    set_grads(net.parameters(), seed=4)
    opt.clip_grad_norm_(1.0)
    references = [weakref.ref(param.grad) for param in net.parameters()]
    net.zero_grad()
    gc.collect()
    assert [reference() for reference in references] == [None] * 4


def test_an_error_in_the_step_takes_the_factor_along():
    net, opt = started()
    set_grads(net.parameters(), seed=4)
    opt.clip_grad_norm_(1e-3)
    net[0].bias.grad = net[0].bias.grad.to_sparse()
    with pytest.warns(UserWarning, match=OTHERS), pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    twin, twin_opt = started()
    for module, own in [(net, opt), (twin, twin_opt)]:
        set_grads(module.parameters(), seed=5)
        own.step()
    assert equal(snapshot(opt), snapshot(twin_opt))
