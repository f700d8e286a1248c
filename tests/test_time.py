"""Bias corrections that begin anew (Adam-Rel)."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import BACKENDS, BACKUPS, assert_same_bits, random_parameters, wide

from wpadamw import WPSGD, WPAdamW

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def trained(backend, updates=3, **options):
    params = random_parameters([5, 66], torch.float32)
    groups = [{"params": [params[0]]}, {"params": [params[1]], "lr": 0.2}]
    optimizer = WPAdamW(groups, lr=0.1, backend=backend, **options)
    generator = torch.Generator().manual_seed(4)
    for _ in range(updates):
        step(optimizer, params, generator)
    return optimizer, params


def step(optimizer, params, generator):
    for param in params:
        param.grad = wide(param.shape, param.dtype, generator)
    optimizer.step()


def counts(optimizer, params):
    return [optimizer.state[param]["step"].item() for param in params]


def moments(optimizer, params):
    names = ("exp_avg", "exp_avg_sq")
    return [optimizer.state[param][name].clone() for param in params for name in names]


@pytest.mark.parametrize("options", BACKUPS.values(), ids=BACKUPS)
def test_counts_return_to_0_and_all_else_stays(options, backend):
    optimizer, params = trained(backend, **options)
    weights, kept = [p.detach().clone() for p in params], moments(optimizer, params)
    twin = copy.deepcopy(optimizer)
    optimizer.reset_time()
    assert counts(optimizer, params) == [0, 0]
    assert optimizer.weights_are == "predicted"
    for got, want in zip(moments(optimizer, params), kept, strict=True):
        assert_same_bits("moments", got, want)

    optimizer.restore()
    twin.restore()
    of_twin = [param for group in twin.param_groups for param in group["params"]]
    for param, value in zip(params, of_twin, strict=True):
        assert_same_bits("true", param, value)
    if options.get("backup", True):
        optimizer.predict()
        for param, value in zip(params, weights, strict=True):
            assert_same_bits("predicted", param, value)


def test_the_next_update_is_the_first_one_with_moments_of_before(backend):
    optimizer, params = trained(backend)
    with optimizer.true_weights():
        weights = [param.detach().double() for param in params]
    before = [moment.double() for moment in moments(optimizer, params)]
    optimizer.reset_time()
    generator = torch.Generator().manual_seed(9)
    step(optimizer, params, generator)
    optimizer.restore()
    for i, (param, lr) in enumerate(zip(params, (0.1, 0.2), strict=True)):
        grad = param.grad.double()
        m = 0.9 * before[2 * i] + 0.1 * grad
        v = 0.999 * before[2 * i + 1] + 0.001 * grad**2
        u = m / 0.1 / ((v / 0.001).sqrt() + 1e-8)
        want = weights[i] - lr * (u + 0.01 * weights[i])
        torch.testing.assert_close(param.detach().double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("index", [1, -1])
def test_one_group_alone_may_begin_anew(index, backend):
    optimizer, params = trained(backend)
    optimizer.reset_time(index)
    assert counts(optimizer, params) == [3, 0]
    optimizer.reset_time(optimizer.param_groups[0])
    assert counts(optimizer, params) == [0, 0]


def test_without_an_update_there_is_nothing_to_predict_from(backend):
    optimizer, params = trained(backend, predict_in_step=False)
    true = [param.detach().clone() for param in params]
    optimizer.reset_time()
    optimizer.predict()
    for param, value in zip(params, true, strict=True):
        assert_same_bits("weights", param, value)


@pytest.mark.parametrize("options", BACKUPS.values(), ids=BACKUPS)
def test_checkpoints_know_the_way_back(options, backend):
    optimizer, params = trained(backend, **options)
    optimizer.reset_time()
    others = [torch.nn.Parameter(param.detach().clone()) for param in params]
    other = WPAdamW([{"params": [p]} for p in others], backend=backend, **options)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in (5, 6):
        for chosen, of in ((optimizer, params), (other, others)):
            step(chosen, of, torch.Generator().manual_seed(seed))
        for got, want in zip(others, params, strict=True):
            assert_same_bits("predicted", got, want)
    assert counts(other, others) == [2, 2]
    optimizer.restore()
    other.restore()
    for got, want in zip(others, params, strict=True):
        assert_same_bits("true", got, want)


def test_groups_of_others_are_refused(backend):
    optimizer, params = trained(backend)
    for group in (2, -3, True, "0", {"params": params}):
        with pytest.raises(ValueError, match="group must be one of param_groups or its index"):
            optimizer.reset_time(group)
    assert counts(optimizer, params) == [3, 3]


def test_sgd_has_no_time_to_reset(backend):
    (param,) = random_parameters([3], torch.float32)
    optimizer = WPSGD([param], lr=0.1, momentum=0.9, backend=backend)
    param.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="reset_time needs bias corrections, got rule 'sgd'"):
        optimizer.reset_time()
    assert optimizer.state[param]["step"].item() == 1
