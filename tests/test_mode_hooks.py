"""Functions that are called before an optimizer goes to a mode."""

from __future__ import annotations

import copy

import pytest
import torch
from models import backward, equal, held, started

import wpadamw
from wpadamw import serving


def test_hooks_hear_of_every_name_of_a_mode():
    _, opt = started()
    heard = []
    handle = opt.register_mode_pre_hook(lambda who, mode: heard.append((who is opt, mode)))
    for call in (opt.predict, opt.train, opt.restore, opt.eval):
        call()
    assert heard == [(True, "predicted")] * 2 + [(True, "true")] * 2
    with opt.true_weights():
        assert heard[4:] == [(True, "true")]
    handle.remove()
    opt.predict()
    assert len(heard) == 5


def test_steps_are_no_changes_of_modes():
    net, opt = started()
    opt.register_mode_pre_hook(lambda *_: pytest.fail("called"))
    backward(net, 3)
    opt.step()
    assert all(float(state["step"]) == 4 for state in opt.state.values())


def test_an_error_of_a_hook_leaves_all_as_it_is():
    net, opt = started()
    before, mode = held(net), opt.weights_are

    def refuse(optimizer, mode):
        raise RuntimeError(f"no {mode} weights now")

    handle = opt.register_mode_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="no true weights now"):
        opt.eval()
    with pytest.raises(RuntimeError, match="no true weights now"), opt.true_weights():
        pytest.fail("entered")
    assert opt.weights_are == mode
    assert equal(held(net), before)
    handle.remove()
    opt.eval()
    assert opt.weights_are == "true"


def test_copies_have_no_hooks():
    _, opt = started()
    opt.register_mode_pre_hook(lambda *_: pytest.fail("called"))
    copy.deepcopy(opt).eval()


def test_arguments_that_are_no_options_can_be_read():
    params = [torch.nn.Parameter(torch.ones(2))]
    opt = wpadamw.WPAdamW(params)
    assert (opt.amp, opt.compute_dtype) == (False, None)
    opt = wpadamw.WPAdamW(params, amp=True, compute_dtype=torch.bfloat16)
    assert (opt.amp, opt.compute_dtype) == (True, torch.bfloat16)


def test_without_a_look_parameters_are_not_read(monkeypatch):
    net, opt = started()
    opt.restore()
    true = held(net)
    opt.predict()
    monkeypatch.setattr(serving, "unexpected", lambda _: pytest.fail("looked"))
    net[0].weight.data.add_(1)  # without a trace, and lost
    opt.restore(look=False)
    assert equal(held(net), true)
    opt.predict(look=False)
    assert opt.weights_are == "predicted"
    with pytest.raises(pytest.fail.Exception, match="looked"):
        opt.restore()
