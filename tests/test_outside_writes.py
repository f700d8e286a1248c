"""What others do to weights and state between two calls: adopted once, never lost, never silent."""

from __future__ import annotations

import copy

import pytest
import torch
from models import (
    HYPER,
    Reference,
    equal,
    held,
    network,
    parameter,
    randn,
    set_grads,
    snapshot,
    started,
    train,
)
from torch import nn

import wpadamw

OUTSIDE = "written to from outside"
WRITES = {
    "load": lambda net: net.load_state_dict(network(seed=4).state_dict()),
    "clamp": lambda net: net[0].weight.clamp_(-0.2, 0.2),
    "init": lambda net: nn.init.constant_(net[2].weight, 0.3),
    "in-place": lambda net: net[0].bias.mul_(2.0),
    "new-data": lambda net: setattr(net[0].weight, "data", torch.ones(5, 3)),
}
MODES = pytest.mark.parametrize("mode", ["true", "predicted"])


def go(opt, mode):
    opt.predict() if mode == "predicted" else opt.restore()


@torch.no_grad()
def written(net, opt, name):
    """Writes to the network; returns the true weights that it should have from now on."""
    before = held(net)
    WRITES[name](net)
    return [
        opt.state[param]["weight"].clone() if equal(param.detach(), old) else param.detach().clone()
        for param, old in zip(net.parameters(), before, strict=True)
    ]


@MODES
@pytest.mark.parametrize("name", WRITES)
def test_write_is_adopted_as_true_weights_with_one_warning(name, mode):
    net, opt = started()
    go(opt, mode)
    true = written(net, opt, name)
    after = held(net)
    with pytest.warns(UserWarning, match=OUTSIDE) as caught:
        opt.state_dict()
    assert [str(each.message).startswith("Parameters were") for each in caught].count(True) == 1
    assert equal(held(net), after)
    opt.restore()
    assert equal(held(net), true)
    opt.predict()
    opt.restore()
    assert equal(held(net), true)
    again = written(net, opt, "in-place")  # no second warning
    opt.predict()
    opt.restore()
    assert equal(held(net), again)


@MODES
@pytest.mark.parametrize("name", WRITES)
def test_step_after_a_write_updates_what_was_written(name, mode):
    net, opt = started()
    twin, twin_opt = started()
    twin_opt.restore()
    go(opt, mode)
    true = written(net, opt, name)
    for param, weight in zip(twin.parameters(), true, strict=True):
        param.data.copy_(weight)
        twin_opt.state[param]["weight"].copy_(weight)
    for module, own in [(net, opt), (twin, twin_opt)]:
        set_grads(module.parameters(), seed=6)
        if own is opt:
            with pytest.warns(UserWarning, match=OUTSIDE):
                own.step()
        else:
            own.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


@pytest.mark.parametrize("name", ["clamp", "in-place"])
def test_warning_raised_as_an_error_leaves_weights_that_agree_with_the_mode(name):
    net, opt = started()
    true = written(net, opt, name)
    with pytest.raises(UserWarning, match=OUTSIDE):
        opt.restore()
    opt.restore()
    assert opt.weights_are == "true"
    assert equal(held(net), true)


@MODES
def test_write_to_a_view_with_gaps_is_adopted(mode):
    param = nn.Parameter(randn(4, 6)[:, ::2])
    opt = wpadamw.WPAdamW([param], **HYPER)
    set_grads([param], seed=1)
    opt.step()
    go(opt, mode)
    with torch.no_grad():
        param.fill_(2.0)
    with pytest.warns(UserWarning, match=OUTSIDE):
        opt.state_dict()
    opt.restore()
    assert equal(param.detach(), torch.full((4, 3), 2.0))
    assert param.stride() == (6, 2)


@MODES
def test_write_to_a_copy_before_its_first_call_is_adopted(mode):
    net, opt = started()
    go(opt, mode)
    net, opt = copy.deepcopy((net, opt))
    true = written(net, opt, "init")
    with pytest.warns(UserWarning, match=OUTSIDE):
        opt.state_dict()
    opt.restore()
    assert equal(held(net), true)


def test_write_without_backup_is_adopted():
    net, opt = started(backup=False)
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    with pytest.warns(UserWarning, match=OUTSIDE):
        opt.state_dict()
    for _ in range(2):
        opt.restore()
        assert equal(net[0].weight.detach(), torch.full((5, 3), 2.0))
        opt.predict()


@MODES
def test_loading_the_models_own_true_weights_is_no_write_from_outside(mode):
    net, opt = started()
    twin, twin_opt = started()
    with opt.true_weights():
        own = copy.deepcopy(net.state_dict())
    go(opt, mode)
    net.load_state_dict(own)
    for module, each in [(net, opt), (twin, twin_opt)]:
        set_grads(module.parameters(), seed=3)
        each.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


@MODES
def test_state_tensors_replaced_one_by_one_continue_with_the_same_bits(mode):
    net, opt = started(amsgrad=True)
    twin, twin_opt = started(amsgrad=True)
    go(opt, mode)
    go(twin_opt, mode)
    for param, state in list(opt.state.items()):
        opt.state[param] = {key: value.clone() for key, value in state.items()}
    opt.state[net[2].bias]["exp_avg"].add_(1.0)
    twin_opt.state[twin[2].bias]["exp_avg"].add_(1.0)
    for module, each in [(net, opt), (twin, twin_opt)]:
        train(module, each, range(3, 5))
        for state in each.state.values():
            state["exp_avg_sq"] = state["exp_avg_sq"] * 0.5
        train(module, each, range(5, 7))
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_state_of_the_last_group_alone_can_be_replaced():
    net, opt = started()
    twin, twin_opt = started()
    for module, each in [(net, opt), (twin, twin_opt)]:
        state = each.state[module[2].bias]
        if each is opt:
            each.state[module[2].bias] = {k: torch.zeros_like(v) for k, v in state.items()}
            each.state[module[2].bias]["weight"] = state["weight"].clone()
        else:
            for name in ("exp_avg", "exp_avg_sq", "step", "prediction"):
                state[name].zero_()
        train(module, each, [3])
    assert equal(snapshot(opt), snapshot(twin_opt))


@MODES
def test_step_count_written_from_outside_counts(mode):
    params = [parameter(3), parameter(3, seed=1)]
    opt = wpadamw.WPAdamW(params, **HYPER)
    references = list(map(Reference, params))
    for k in range(3):
        set_grads(params, seed=k)
        opt.step()
        go(opt, mode)
        for param, reference in zip(params, references, strict=True):
            reference.update(param.grad, opt.param_groups[0])
        opt.state[params[0]]["step"].fill_(10.0)
        references[0].count = 10
    opt.restore()
    assert equal(held(params), [reference.true() for reference in references])


def test_state_taken_away_starts_from_zero():
    net, opt = started()
    opt.restore()
    opt.state.clear()
    references = {p: Reference(p) for p in net.parameters()}
    opt.step()
    for group in opt.param_groups:
        for param in group["params"]:
            references[param].update(param.grad, group)
            assert equal(param.detach(), references[param].predicted(group))


@MODES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_model_cast_after_construction_keeps_its_true_weights(dtype, mode):
    net, opt = started()
    params = list(net.parameters())
    true = [opt.state[p]["weight"].clone() for p in params]
    go(opt, mode)
    net.zero_grad()
    net.to(dtype)
    opt.restore()
    assert equal(held(net), [weight.to(dtype) for weight in true])
    assert equal([opt.state[p]["weight"].float() for p in params], true)
    train(net, opt, [3])
    assert {p.dtype for p in params} == {dtype}


def test_model_cast_without_backup_is_refused_or_kept():
    net, opt = started(backup=False)
    opt.restore()
    true = held(net)
    opt.predict()
    net.zero_grad()
    net.double()
    try:
        opt.restore()
    except RuntimeError:
        return
    torch.testing.assert_close(held(net), [w.double() for w in true], rtol=1e-5, atol=1e-6)


def test_warning_shows_the_line_of_the_caller():
    net, opt = started()
    written(net, opt, "init")
    with pytest.warns(UserWarning, match=OUTSIDE) as caught:
        opt.restore()
    assert [warning.filename for warning in caught] == [__file__]
