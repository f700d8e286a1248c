"""Predictions along updates with gradients of zero (`prediction="rollout"`)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import BACKENDS, assert_same_bits, random_parameters, wide
from rule_table import RULES

from wpadamw import WPSGD, WPAdamW

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

STEPS = [0.0, 0.5, 1.0, 2.5, 5.0]


def trained(make, backend, updates=3, shapes=(7,), dtype=torch.float64, **options):
    """An optimizer after some updates, with its parameters."""
    params = random_parameters(shapes, dtype)
    optimizer = make(params, backend=backend, prediction="rollout", **options)
    generator = torch.Generator().manual_seed(4)
    for _ in range(updates):
        for param in params:
            param.grad = wide(param.shape, dtype, generator)
        optimizer.step()
    return optimizer, params


def displacement(optimizer, param):
    predicted = param.detach().clone()
    with optimizer.true_weights():
        return predicted - param.detach()


@pytest.mark.parametrize("updates, ratio", [(1, 0.670), (2, 0.773), (5, 0.861), (100, 0.904)])
def test_one_update_ahead_goes_less_far_than_the_last_one_went(updates, ratio, backend):
    moved = {}
    for form in ("rollout", "linear"):
        param = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        options = {"eps": 1e-30, "weight_decay": 0.0, "prediction": form}
        optimizer = WPAdamW([param], backend=backend, **options)
        for _ in range(updates):
            param.grad = torch.ones(3, dtype=torch.float64)
            optimizer.step()
        moved[form] = displacement(optimizer, param)
    torch.testing.assert_close(
        moved["rollout"] / moved["linear"], torch.full_like(param, ratio), rtol=0, atol=5e-4
    )


def rolled_out(w, m, v, k, s, lr, betas, eps, weight_decay):
    """FTPipe's predictor for AdamW: update after update, of the last one what is left of s."""
    for j in range(1, math.ceil(s) + 1):
        share = min(1.0, s - j + 1)
        m_hat = betas[0] ** j * m / (1 - betas[0] ** (k + j))
        v_hat = v / (1 - betas[1] ** (k + j))
        w = w - share * lr * (m_hat / (v_hat.sqrt() + eps) + weight_decay * w)
    return w


@pytest.mark.parametrize("predict_decay", [True, False])
@pytest.mark.parametrize("s", STEPS)
def test_adamw_goes_where_updates_without_gradients_lead(s, predict_decay, backend):
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.3}
    optimizer, (param,) = trained(
        WPAdamW, backend, prediction_steps=s, predict_decay=predict_decay, **options
    )
    predicted, state = param.detach().clone(), optimizer.state[param]
    optimizer.restore()
    options["weight_decay"] *= predict_decay
    want = rolled_out(param.detach(), state["exp_avg"], state["exp_avg_sq"], 3, s, **options)
    torch.testing.assert_close(predicted, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_sgd_goes_where_its_own_updates_with_zeros_for_gradients_lead(steps, backend):
    options = {"lr": 0.1, "momentum": 0.8}
    optimizer, (param,) = trained(WPSGD, backend, prediction_steps=steps, **options)
    predicted = param.detach().clone()
    optimizer.param_groups[0]["prediction_steps"] = 0.0
    for _ in range(steps):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    torch.testing.assert_close(predicted, param.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("s", STEPS)
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_without_a_backup_the_way_back_is_computed(case, s, backend):
    found = []
    for backup in (True, False):
        optimizer, (param,) = trained(
            case.make, backend, lr=0.01, prediction_steps=s, backup=backup, **case.options
        )
        optimizer.restore()
        found.append(param.detach())
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


# Other forms before and after.


@pytest.mark.parametrize("then", [{"prediction": "linear"}, {"prediction_steps": 4.0}], ids=str)
def test_a_prediction_is_made_once_and_keeps_its_form(then, backend):
    optimizer, params = trained(WPAdamW, backend, shapes=(7, 3), lr=0.1, prediction_steps=2.0)
    before = [param.detach().clone() for param in params]
    optimizer.param_groups[0].update(then)
    optimizer.restore()
    true = [param.detach().clone() for param in params]
    optimizer.predict()
    for param, value in zip(params, before, strict=True):
        assert_same_bits("predicted", param, value)

    params[0].grad, params[1].grad = torch.ones_like(params[0]), None
    optimizer.step()
    assert_same_bits("not updated", params[1], before[1])
    optimizer.restore()
    assert_same_bits("not updated", params[1], true[1])
    assert not torch.equal(params[0], true[0])


@pytest.mark.parametrize("forms", [(1.0, "linear"), (1.0, "rollout"), (4.0, "rollout")], ids=str)
def test_training_goes_on_from_a_checkpoint_of_another_form(forms, backend):
    optimizer, params = trained(WPAdamW, backend, lr=0.1, prediction_steps=2.5)
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    steps, form = forms
    other = WPAdamW(others, backend=backend, prediction_steps=steps, prediction=form)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["prediction"] == "rollout"
    for chosen, of in ((optimizer, params), (other, others)):
        chosen.param_groups[0].update(prediction=form, prediction_steps=steps)
        chosen.restore()
        chosen.predict()
        of[0].grad = torch.ones_like(of[0])
        chosen.step()
    assert_same_bits("predicted", others[0], params[0])


def test_more_updates_than_anybody_computes_are_refused(backend):
    (param,) = random_parameters([3], torch.float32)
    message = "prediction_steps must be <= 1000 with prediction='rollout', got 1001"
    with pytest.raises(ValueError, match=message):
        WPAdamW([param], prediction="rollout", prediction_steps=1001, backend=backend)
    optimizer = WPAdamW([param], prediction="rollout", backend=backend)
    optimizer.param_groups[0]["prediction_steps"] = 1001
    param.grad = torch.ones(3)
    with pytest.raises(ValueError, match=message):
        optimizer.step()
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("steps", [None, "1", math.nan, math.inf, 1e9], ids=str)
def test_the_way_back_needs_no_good_options(steps, backend):
    optimizer, (param,) = trained(WPAdamW, backend, lr=0.1, prediction_steps=2.0)
    twin, (own,) = trained(WPAdamW, backend, lr=0.1, prediction_steps=2.0)
    optimizer.param_groups[0]["prediction_steps"] = steps
    with pytest.raises(ValueError, match="prediction_steps must be"):
        optimizer.step()
    optimizer.param_groups[0]["prediction_steps"] = 1.0
    optimizer.restore()
    twin.restore()
    assert_same_bits("true", param, own)


def test_an_unknown_form_is_refused(backend):
    with pytest.raises(ValueError, match=r"prediction must be one of .* got 'nesterov'"):
        WPAdamW(random_parameters([3], torch.float32), prediction="nesterov", backend=backend)
