"""Copies after writes of others, before the first update, and what is refused."""

from __future__ import annotations

import pytest
import torch
from helpers import BACKENDS, needs_cpp
from models import equal, held, network, randn, set_grads, snapshot
from test_compute_copy import RATE, Pair, params_of
from test_compute_copy_files import COPIES, STEPS, copies_of, expected_after, started, train
from torch import nn

import wpadamw
from wpadamw import WPAdamW

pytestmark = needs_cpp


# Who writes to weights and states.


def computed_anew(opt):
    """The predictions of a resident optimizer that has this one's weights and file."""
    twins = [nn.Parameter(param.detach().clone()) for param in params_of(opt)]
    resident = WPAdamW(twins)
    resident.load_state_dict(opt.state_dict())
    resident.predict()
    return [twin.detach().bfloat16() for twin in twins]


def clamp(opt):
    with torch.no_grad():
        params_of(opt)[0].clamp_(-0.5, 0.5)


def replace(opt):
    params_of(opt)[1].data = randn(70, seed=9)


def write_to_the_state(opt):
    opt.state[params_of(opt)[1]]["exp_avg"].mul_(3.0)


def replace_the_state(opt):
    entry = opt.state[params_of(opt)[2]]
    entry["exp_avg"] = entry["exp_avg"] * 2.0


def forget_the_state(opt):
    del opt.state[params_of(opt)[0]]


def write_a_record(opt):
    opt.state[params_of(opt)[0]]["prediction"][1:] *= 2.0


WRITES = [clamp, replace, write_to_the_state, replace_the_state, forget_the_state, write_a_record]


@pytest.mark.parametrize("asks", [True, False], ids=["asked", "predict"])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_follow_what_others_write(backend, write, asks):
    pair = Pair(backend=backend)
    pair.step(0)
    before = [copy.clone() for copy in pair.kept]
    write(pair.opt)
    pair.kept = list(map(pair.opt.compute_copy, pair.ours)) if asks else pair.kept
    pair.opt.predict()
    found = [copy.clone() for copy in pair.kept]
    assert equal(found, computed_anew(pair.opt))
    assert not equal(found, before)


def test_attaching_a_model_is_harmless():
    net = nn.Linear(3, 4)
    opt = WPAdamW(net.parameters(), compute_dtype=torch.bfloat16, **RATE)
    wpadamw.attach(net, opt)
    set_grads(net.parameters(), 0)
    opt.step()
    true = held(net)
    for go in (net.train, net.eval, opt.train, opt.eval, net.state_dict, opt.state_dict):
        go()
        net(torch.zeros(1, 3)).sum().backward()
        assert equal(held(net), true)
    copies = [opt.compute_copy(param).clone() for param in net.parameters()]
    assert equal(copies, computed_anew(opt))


# Before the first update.


def test_copies_that_are_first_asked_for_in_inference_mode():
    opt = started(0, **COPIES)[1]
    with torch.inference_mode():
        kept = [opt.compute_copy(param) for param in params_of(opt)]
    train(opt, STEPS)
    assert equal([each.clone() for each in kept], expected_after(3)[1])


def test_weights_of_before_the_first_update():
    net, opt = started(0, **COPIES)
    kept = [opt.compute_copy(param) for param in params_of(opt)]
    net.load_state_dict(network(seed=3).state_dict())
    opt.predict()
    assert equal([each.clone() for each in kept], [p.detach().bfloat16() for p in params_of(opt)])


# Bad input.


def test_bad_compute_dtypes():
    for dtype in (torch.int32, "bfloat16", torch.complex64, 16, torch.float8_e4m3fn):
        with pytest.raises(ValueError, match="compute_dtype must be None or one of"):
            WPAdamW([nn.Parameter(torch.ones(2))], compute_dtype=dtype)


WRONG = [torch.bfloat16, torch.float16, torch.complex64, torch.float64]


@pytest.mark.parametrize("dtype", WRONG, ids=str)
def test_parameters_that_can_have_no_such_copies(dtype):
    param = nn.Parameter(torch.ones(2, dtype=dtype))
    with pytest.raises(TypeError, match=f"params must be float32 for compute_dtype.*{dtype}"):
        WPAdamW([param], **COPIES)
    opt = started(**COPIES)[1]
    before = snapshot(opt), copies_of(opt)
    with pytest.raises(TypeError, match="params must be float32 for compute_dtype"):
        opt.add_param_group({"params": [param]})
    assert equal((snapshot(opt), copies_of(opt)), before)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_literal_form_is_refused_wherever_it_is_asked_for(steps):
    with pytest.raises(ValueError, match="predict_in_step must be True"):
        WPAdamW([nn.Parameter(torch.ones(2))], predict_in_step=False, **COPIES)
    opt = started(steps, **COPIES)[1]
    before = snapshot(opt)
    group = {"params": [nn.Parameter(torch.ones(2))], "predict_in_step": False}
    with pytest.raises(ValueError, match="predict_in_step must be True"):
        opt.add_param_group(group)
    assert equal(snapshot(opt), before)
    opt.param_groups[0]["predict_in_step"] = False
    before = snapshot(opt)
    with pytest.raises(ValueError, match="predict_in_step must be True"):
        train(opt, [3])
    assert equal(snapshot(opt), before)


def test_copies_of_whom_there_are_none():
    net, opt = started()
    with pytest.raises(RuntimeError, match="compute_copy needs compute_dtype"):
        opt.compute_copy(net[0].weight)
    opt = started(**COPIES)[1]
    for other in (net[0].weight, torch.ones(2), None):
        with pytest.raises(ValueError, match="param must be one of the optimizer's parameters"):
            opt.compute_copy(other)
