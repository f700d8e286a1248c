"""Going between true and predicted weights: exact, idempotent, free, and equal to the papers."""

from __future__ import annotations

import copy
import timeit
import warnings

import pytest
import torch
from models import (
    HYPER,
    Reference,
    backward,
    equal,
    held,
    network,
    optimizer,
    parameter,
    set_grads,
    snapshot,
    started,
    train,
)

import wpadamw
from wpadamw._backends import cpp

FORMS = pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])
CHANGES = {
    "lr": 0.5,
    "betas": (0.5, 0.6),
    "eps": 1e-2,
    "weight_decay": 0.7,
    "prediction_steps": 9.0,
    "predict_decay": False,
    "maximize": True,
}


def paper_loop(net, opt, steps, schedule=lambda k, groups: None):
    """Predict, take the gradient there, restore, AdamW: without the optimizer's step."""
    groups = opt.param_groups
    references = {p: Reference(p, g["amsgrad"]) for g in groups for p in g["params"]}
    for k in steps:
        schedule(k, groups)
        for group in groups:
            for param in group["params"]:
                param.data.copy_(references[param].predicted(group))
        backward(net, k)
        for group in groups:
            for param in group["params"]:
                references[param].update(param.grad, group)
    return [references[param].true() for param in net.parameters()]


def halve_lr(k, groups):
    for group in groups:
        group["lr"] *= 0.5 if k % 2 else 1.7


# Switching.


def test_first_forward_is_not_predicted():
    net = network()
    before = held(net)
    opt = optimizer(net)
    opt.predict()
    assert opt.weights_are == "predicted"
    assert equal(held(net), before)


def test_step_ends_predicted_or_true_as_the_form_says():
    assert started()[1].weights_are == "predicted"
    assert started(predict_in_step=False)[1].weights_are == "true"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@FORMS
def test_switching_is_idempotent_and_exact(in_step, dtype):
    net, opt = started(dtype=dtype, predict_in_step=in_step)
    opt.predict()
    predicted = held(net)
    opt.predict()
    assert equal(held(net), predicted)
    opt.restore()
    true = held(net)
    opt.restore()
    assert equal(held(net), true)
    assert not any(map(torch.equal, true, predicted))
    for _ in range(3):
        opt.train()
        assert equal(held(net), predicted)
        opt.eval()
        assert equal(held(net), true)


@pytest.mark.parametrize("key", CHANGES)
@FORMS
def test_same_prediction_comes_back_after_a_change_of(key, in_step):
    net, opt = started(predict_in_step=in_step)
    opt.predict()
    predicted = held(net)
    opt.restore()
    true = held(net)
    for group in opt.param_groups:
        group[key] = CHANGES[key]
    opt.predict()
    assert equal(held(net), predicted)
    opt.restore()
    assert equal(held(net), true)


def test_without_backup_true_weights_are_those_with_a_backup_to_a_few_ulp():
    params = [parameter(1000), parameter(1000)]
    opts = [
        wpadamw.WPAdamW([p], backup=b, **HYPER) for p, b in zip(params, (True, False), strict=True)
    ]
    for k in range(5):
        for param, opt in zip(params, opts, strict=True):
            set_grads([param], seed=k)
            opt.step()
            opt.restore()
            opt.predict()
    opts[0].restore()
    opts[1].restore()
    truth, ours = held(params)
    ulp = torch.finfo(torch.float32).eps * truth.abs().clamp(min=HYPER["lr"])
    assert ((ours - truth).abs() <= 4 * 5 * ulp).all()
    assert "weight" not in opts[1].state[params[1]]


def test_true_weights_come_back_after_an_error_and_nested():
    net, opt = started()
    predicted = held(net)
    with pytest.raises(KeyError, match="inside"), opt.true_weights():
        true = held(net)
        assert opt.weights_are == "true"
        with opt.true_weights():
            assert equal(held(net), true)
        assert equal(held(net), true)
        raise KeyError("inside")
    assert opt.weights_are == "predicted"
    assert equal(held(net), predicted)
    opt.restore()
    with opt.true_weights():
        pass
    assert opt.weights_are == "true"
    assert equal(held(net), true)


def test_loading_inside_true_weights_leaves_mode_and_weights_in_agreement():
    net, opt = started()
    predicted = held(net)
    with opt.true_weights():
        true = held(net)
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert equal(held(net), predicted if opt.weights_are == "predicted" else true)


@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_switching_runs_no_kernel_and_takes_no_time_when_nothing_changes(mode, monkeypatch):
    _, opt = started()
    switch = opt.eval if mode == "true" else opt.train
    switch()
    ran = []
    for name in ("predict", "restore", "step"):
        monkeypatch.setattr(cpp.Kernels, name, lambda *args, name=name: ran.append(name))
    switch()
    assert not ran
    # Short stretches, many of them: the best is not disturbed by what else runs on the machine.
    assert min(timeit.repeat(switch, number=50, repeat=400)) / 50 < 2e-6
    opt.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is expected of them no kernel has written
        (opt.train if mode == "true" else opt.eval)()
    assert ran


@pytest.mark.parametrize("shares", [True, False], ids=["shared", "copied"])
def test_mode_is_seen_through_a_wrapper_with_the_same_attributes(shares):
    net, opt = started()
    twin, twin_opt = started()
    wrapper = object.__new__(type("Wrapper", (type(opt),), {}))
    wrapper.__dict__ = opt.__dict__ if shares else dict(opt.__dict__)
    true = [state["weight"].clone() for state in map(opt.state.get, net.parameters())]
    wrapper.eval()
    assert opt.weights_are == wrapper.weights_are == "true"
    assert equal(held(net), true)
    for one, two in [(wrapper, opt), (opt, wrapper)]:
        one.train()
        backward(net, 3)
        two.step()
        train(twin, twin_opt, [3])
        assert equal(held(net), held(twin))


# The algorithm.


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prediction_steps": 2.5},
        {"prediction_steps": 0.0},
        {"predict_decay": False},
        {"amsgrad": True},
        {"maximize": True},
        {"backend": "torch"},
    ],
    ids=str,
)
@FORMS
def test_training_equals_the_papers_loop_bit_for_bit(in_step, options):
    net, opt = started(steps=0, predict_in_step=in_step, **options)
    train(net, opt, range(6))
    opt.restore()
    twin = network()
    assert equal(held(net), paper_loop(twin, optimizer(twin, **options), range(6)))


def test_literal_form_predicts_with_the_lr_of_the_moment():
    net, opt = started(steps=0, predict_in_step=False)
    for k in range(6):
        halve_lr(k, opt.param_groups)
        train(net, opt, [k])
    twin = network()
    assert equal(held(net), paper_loop(twin, optimizer(twin), range(6), halve_lr))


def test_step_from_true_weights_equals_step_from_predicted_ones():
    net, opt = started()
    twin, twin_opt = started()
    twin_opt.restore()
    for module in (net, twin):
        set_grads(module.parameters(), seed=7)
    opt.step()
    twin_opt.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_groups_follow_their_own_hyper_parameters():
    params = [parameter(3, seed=i) for i in range(3)]
    groups = [
        {"params": [params[0]], "lr": 0.3, "betas": (0.5, 0.7)},
        {"params": [params[1]], "prediction_steps": 3.0, "predict_in_step": False, "eps": 0.1},
        {"params": [params[2]], "amsgrad": True, "maximize": True, "weight_decay": 0.5},
    ]
    opt = wpadamw.WPAdamW(groups, **HYPER)
    references = [Reference(p, g["amsgrad"]) for p, g in zip(params, opt.param_groups, strict=True)]
    for k in range(4):
        set_grads(params, seed=k)
        opt.step()
        for param, reference, group in zip(params, references, opt.param_groups, strict=True):
            reference.update(param.grad, group)
            mode = "predicted" if group["predict_in_step"] else "true"
            assert group["weights_are"] == mode
            expected = reference.predicted(group) if mode == "predicted" else reference.true()
            assert equal(param.detach(), expected)
    assert opt.weights_are == "predicted"
    opt.restore()
    assert equal(held(params), [reference.true() for reference in references])


@FORMS
def test_parameters_without_gradient_are_left_alone_and_follow_the_mode(in_step):
    idle, busy, frozen = (parameter(4, seed=i) for i in range(3))
    frozen.requires_grad_(False)
    start = frozen.clone()
    opt = wpadamw.WPAdamW([idle, busy, frozen], predict_in_step=in_step, **HYPER)
    set_grads([idle, busy], seed=0)
    opt.step()
    opt.predict()
    predicted, before = held([idle])[0], copy.deepcopy(dict(opt.state[idle]))
    opt.param_groups[0]["lr"] = 0.7
    for k in range(1, 4):
        idle.grad = None
        set_grads([busy], seed=k)
        opt.step()
    assert equal(dict(opt.state[idle]), before)
    assert float(opt.state[busy]["step"]) == 4
    assert equal(idle.detach(), predicted if in_step else before["weight"])
    opt.predict()
    assert equal(idle.detach(), predicted)
    assert equal(frozen, start)
    assert not opt.state.get(frozen)


@pytest.mark.parametrize("mode", ["true", "predicted"])
@FORMS
def test_step_without_any_gradient_changes_nothing(in_step, mode):
    net, opt = started(predict_in_step=in_step)
    opt.predict() if mode == "predicted" else opt.restore()
    net.zero_grad()
    before = snapshot(opt)
    assert opt.step() is None
    assert equal(snapshot(opt), before)


def test_empty_group_is_harmless():
    param = parameter(3)
    opt = wpadamw.WPAdamW([{"params": [param]}, {"params": []}], **HYPER)
    param.grad = torch.ones(3)
    opt.step()
    with opt.true_weights():
        assert equal(param.detach(), opt.state[param]["weight"])
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert [group["weights_are"] for group in opt.param_groups] == ["predicted"] * 2


@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_group_added_in_mid_run_starts_in_the_present_mode(mode):
    net, opt = started()
    opt.predict() if mode == "predicted" else opt.restore()
    added, before = parameter(3), held(net)
    reference = Reference(added)
    opt.add_param_group({"params": [added], "lr": 0.2})
    assert opt.param_groups[-1]["weights_are"] == mode
    assert equal(held(net), before)
    for k in range(2):
        set_grads([added], seed=k)
        opt.step()
        reference.update(added.grad, opt.param_groups[-1])
        assert equal(added.detach(), reference.predicted(opt.param_groups[-1]))
    opt.restore()
    assert equal(added.detach(), reference.true())


# Closures.


@FORMS
def test_closure_is_evaluated_at_predicted_weights_with_gradients(in_step):
    net, opt = started(predict_in_step=in_step)
    twin, twin_opt = started(predict_in_step=in_step)
    opt.restore()
    seen = []

    def closure():
        seen.append((held(net), torch.is_grad_enabled()))
        return backward(net, 3)

    loss = opt.step(closure)
    twin_opt.predict()
    expected = held(twin)
    assert equal(loss.detach(), backward(twin, 3).detach())
    twin_opt.step()
    assert len(seen) == 1
    assert seen[0][1]
    assert equal(seen[0][0], expected)
    assert equal(snapshot(opt), snapshot(twin_opt))


@pytest.mark.parametrize("mode", ["true", "predicted"])
@FORMS
def test_raising_closure_leaves_everything_as_it_was(in_step, mode):
    net, opt = started(predict_in_step=in_step)
    opt.predict()
    opt.predict() if mode == "predicted" else opt.restore()
    before = snapshot(opt)

    def closure():
        backward(net, 3)
        raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        opt.step(closure)
    assert equal(snapshot(opt), before)


@FORMS
def test_closure_that_skips_the_step_changes_nothing(in_step):
    net, opt = started(predict_in_step=in_step)
    net.zero_grad()
    mode, before = opt.weights_are, held(net)
    assert opt.step(lambda: None) is None
    assert opt.weights_are == mode
    assert equal(held(net), before)
    assert all(float(state["step"]) == 3 for state in opt.state.values())
