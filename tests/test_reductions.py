"""Rules that sum before they move: against their equations, whatever the tensors lie in."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers import BACKENDS, assert_same_bits, wide

from wpadamw import WPMARS, WPAdamW, WPVRAdam
from wpadamw.rules.summing import in_order, total

SHAPES = [(4, 5), (7,), (3, 2, 2), (40, 60), ()]
SCOPES = ("group", "global", "tensor")


def parameters(dtype=torch.float64, shapes=SHAPES):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, dtype=dtype, generator=generator)) for s in shapes]


def give_gradients(params, seed, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = size * torch.randn(param.shape, dtype=param.dtype, generator=generator)


# In float64, against the equations.


class PlainVRAdam:
    """Algorithm 1 of arXiv 2505.13196; the norm is of whatever parameters are given together."""

    def __init__(self, params, lr, betas, eps, weight_decay, beta3, lr_cutoff):
        self.params, self.lr, self.betas, self.eps = params, lr, betas, eps
        self.weight_decay, self.beta3, self.lr_cutoff = weight_decay, beta3, lr_cutoff
        self.m = [torch.zeros_like(p) for p in params]
        self.v = [torch.zeros_like(p) for p in params]
        self.t = 0

    @torch.no_grad()
    def step(self):
        self.t += 1
        (b1, b2), t = self.betas, self.t
        for p, m, v in zip(self.params, self.m, self.v, strict=True):
            m.copy_(b1 * m + (1 - b1) * p.grad)
            v.copy_(b2 * v + (1 - b2) * p.grad**2)
        squares = sum(float((m**2).sum()) for m in self.m)
        eta = self.lr / (1 + min(self.beta3 * squares, self.lr_cutoff))
        for p, m, v in zip(self.params, self.m, self.v, strict=True):
            update = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + self.eps)
            p.mul_(1 - eta * self.weight_decay).sub_(eta * update)


class PlainMARS:
    """MARS-AdamW of arXiv 2411.10438 with the last gradient, for one matrix."""

    def __init__(self, param, lr, betas, eps, weight_decay, gamma):
        self.param, self.lr, self.betas, self.eps = param, lr, betas, eps
        self.weight_decay, self.gamma, self.t = weight_decay, gamma, 0
        self.m, self.v, self.last = (torch.zeros_like(param) for _ in range(3))

    @torch.no_grad()
    def step(self):
        self.t += 1
        (b1, b2), g, t = self.betas, self.param.grad, self.t
        c = g + self.gamma * b1 / (1 - b1) * (g - self.last)
        c = c / max(1.0, float(c.norm()))
        self.last = g.clone()
        self.m, self.v = b1 * self.m + (1 - b1) * c, b2 * self.v + (1 - b2) * c**2
        update = (self.m / (1 - b1**t)) / ((self.v / (1 - b2**t)).sqrt() + self.eps)
        self.param.sub_(self.lr * (update + self.weight_decay * self.param))


VRADAM = {
    "lr": 0.01,
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "beta3": 0.02,
    "lr_cutoff": 3.0,
}
# The whole group has a norm beyond the cutoff at first, and small ones later.
SIZES = [10.0 if step < 20 else 1.0 for step in range(60)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_vradam_without_prediction_is_that_of_its_equations(scope, backend):
    ours, theirs = parameters(), parameters()
    groups = [{"params": ours[:2]}, {"params": ours[2:]}]
    opt = WPVRAdam(groups, norm_scope=scope, prediction_steps=0.0, backend=backend, **VRADAM)
    together = {
        "group": [theirs[:2], theirs[2:]],
        "global": [theirs],
        "tensor": [[p] for p in theirs],
    }
    plain = [PlainVRAdam(params, **VRADAM) for params in together[scope]]
    for step, size in enumerate(SIZES):
        give_gradients(ours, step, size)
        give_gradients(theirs, step, size)
        for one in (opt, *plain):
            one.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_mars_without_prediction_is_that_of_its_equations(backend):
    ours, theirs = parameters(), parameters()
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "gamma": 0.05}
    rest = {"betas_1d": (0.8, 0.9), "weight_decay_1d": 0.3, "lr_1d_factor": 0.5}
    opt = WPMARS(ours, prediction_steps=0.0, backend=backend, **options, **rest)
    others = [p for p in theirs if p.ndim != 2]
    plain = [PlainMARS(p, **options) for p in theirs if p.ndim == 2]
    plain += [torch.optim.AdamW(others, lr=0.005, betas=(0.8, 0.9), weight_decay=0.3)]
    for step, size in enumerate(SIZES):
        give_gradients(ours, step, size / 10)  # clipped at first, then only the larger matrix
        give_gradients(theirs, step, size / 10)
        for one in (opt, *plain):
            one.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=1e-12)


def test_without_reduction_vradam_is_adamw():
    ours, theirs = parameters(torch.float32), parameters(torch.float32)
    options = {"lr": 0.01, "weight_decay": 0.1}
    opts = WPVRAdam(ours, beta3=0.0, **options), WPAdamW(theirs, **options)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for opt in opts:
            opt.step()
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=0.0, atol=1e-7)


def test_every_parameter_of_mars_may_be_trained_like_a_matrix():
    (param,) = parameters(shapes=[(50,)])
    opt = WPMARS([param], optimize_1d=True)
    give_gradients([param], 0)
    opt.step()
    assert opt.state[param].keys() >= {"last_grad"}
    assert_same_bits("last_grad", opt.state[param]["last_grad"], param.grad)


def test_mars_keeps_the_last_gradient_itself():
    params = parameters(torch.float32)
    opt = WPMARS(params)
    give_gradients(params, 0)
    want = params[0].grad.clone()
    opt.step()
    opt.zero_grad(set_to_none=False)
    assert_same_bits("last_grad", opt.state[params[0]]["last_grad"], want)


# Sums have one order.


def trained(params, groups, backend, **options):
    opt = WPVRAdam(groups, beta3=1e-3, backend=backend, **options)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = wide(param.shape, param.dtype, generator)
        opt.step()
    return [param.detach().clone() for param in params]


@pytest.mark.parametrize("scope", SCOPES)
def test_weights_have_the_same_bits_on_every_backend(scope, num_threads):
    found = []
    for backend in BACKENDS:
        params = parameters(torch.float32, [(5000,), (33,), (70, 70), (0,)])
        params += parameters(torch.bfloat16, [(3000,), (5, 7)])
        groups = [{"params": params[::2]}, {"params": params[1::2]}]
        found.append(trained(params, groups, backend, norm_scope=scope))
    for own, other in zip(*found, strict=True):
        assert_same_bits("weights", own, other)


def test_the_sum_goes_by_the_order_of_parameters_not_of_buckets():
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.bfloat16]
    params = [torch.nn.Parameter(torch.zeros(3000, dtype=dtype)) for dtype in dtypes]
    opt, generator = WPVRAdam(params, predict_in_step=False), torch.Generator().manual_seed(0)
    for param, size in zip(params, (1.0, 1.0, 1.3e8, 1.0), strict=True):
        param.grad = size * wide(param.shape, param.dtype, generator)
    opt.step()
    each = torch.stack([total(opt.state[param]["exp_avg"] ** 2) for param in params])
    assert {opt.state[p]["prediction"][1].item() for p in params} == {float(in_order(each))}
    assert in_order(each) != in_order(each[[0, 2, 1, 3]])


# Predictions.


def test_predictions_go_by_the_learning_rate_of_the_last_update():
    """The factor of the last update's norm, of the lr of the moment."""
    (param,) = parameters(shapes=[(3, 3)])
    opt = WPVRAdam([param], predict_in_step=False, prediction_steps=2.0, **VRADAM)
    give_gradients([param], 0, 3.0)
    opt.step()
    weight, state = param.detach().clone(), opt.state[param]
    factor = 1 / (1 + min(0.02 * float((state["exp_avg"] ** 2).sum()), 3.0))
    assert 0.25 < factor < 1.0
    opt.param_groups[0]["lr"] = 0.1
    opt.predict()
    m_hat, v_hat = state["exp_avg"] / (1 - 0.9), state["exp_avg_sq"] / (1 - 0.99)
    want = weight - 2 * 0.1 * factor * (m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * weight)
    torch.testing.assert_close(param.detach(), want, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"prediction": "rollout", "prediction_steps": 2.5}])
@pytest.mark.parametrize("optimizer", [WPVRAdam, WPMARS])
def test_the_literal_form_has_the_bits_of_the_other(optimizer, options):
    found = []
    for predict_in_step in (True, False):
        params = parameters(torch.float32)
        opt = optimizer(params, predict_in_step=predict_in_step, **options)
        for step in range(3):
            opt.predict()
            give_gradients(params, step)
            opt.step()
        # A file from between an update and its prediction carries what this needs.
        other = optimizer(params, predict_in_step=predict_in_step, **options)
        with opt.true_weights():
            other.load_state_dict(copy.deepcopy(opt.state_dict()))
        other.predict()
        found.append([param.detach().clone() for param in params])
    for own, want in zip(*found, strict=True):
        assert_same_bits("predicted", own, want)


# Gradients that are missing, or are none.


def test_parameters_without_a_gradient_do_not_count():
    params = parameters()
    opt = WPVRAdam(params, predict_in_step=False)
    give_gradients(params, 0)
    opt.step()
    give_gradients(params[:1], 1)
    for param in params[1:]:
        param.grad = None
    before = [param.detach().clone() for param in params[1:]]
    opt.step()
    squares = float((opt.state[params[0]]["exp_avg"] ** 2).sum())
    assert opt.state[params[0]]["prediction"][1].item() == pytest.approx(squares, rel=1e-12)
    for param, want in zip(params[1:], before, strict=True):
        assert_same_bits("weight", param, want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_of_nan_reaches_whatever_it_is_summed_with(backend):
    params = parameters(torch.float32)
    opt = WPVRAdam(params, norm_scope="group", backend=backend)
    give_gradients(params, 0)
    params[0].grad[0, 0] = math.nan
    opt.step()
    assert all(param.isnan().all() for param in params)


def test_an_overflow_leaves_everything_as_it_was():
    params = parameters(torch.float32)
    opt = WPVRAdam(params, amp=True)
    give_gradients(params, 0)
    opt.step()
    before = [param.detach().clone() for param in params]
    give_gradients(params, 1)
    params[0].grad.fill_(math.inf)
    opt.grad_scale, opt.found_inf = torch.tensor(8.0), torch.tensor(1.0)
    opt.step()
    for param, want in zip(params, before, strict=True):
        assert_same_bits("weight", param, want)


# Bad input.


@pytest.mark.parametrize(
    "optimizer, options, message",
    [
        (WPVRAdam, {"norm_scope": "layer"}, "norm_scope must be one of"),
        (WPVRAdam, {"beta3": -1.0}, "beta3 must be a number >= 0, got -1.0"),
        (WPVRAdam, {"lr_cutoff": math.nan}, "lr_cutoff must be a number >= 0, got nan"),
        (WPVRAdam, {"weight_decay": -0.1}, "Invalid weight_decay value"),
        (WPMARS, {"gamma": math.inf}, "gamma must be a finite number, got inf"),
        (WPMARS, {"betas_1d": (0.9, 1.0)}, "betas_1d must be two numbers in"),
        (WPMARS, {"weight_decay_1d": -1.0}, "weight_decay_1d must be a number >= 0"),
        (WPMARS, {"lr_1d_factor": "x"}, "lr_1d_factor must be a number >= 0"),
        (WPMARS, {"optimize_1d": "yes"}, "optimize_1d must be one of"),
    ],
)
def test_bad_options_are_refused_by_name(optimizer, options, message):
    with pytest.raises(ValueError, match=message):
        optimizer(parameters(), **options)


def test_a_file_of_another_rule_is_refused():
    params = parameters()
    saved = WPVRAdam(params).state_dict()
    with pytest.raises(ValueError, match="is of rule 'vradam', not of 'mars'"):
        WPMARS(params).load_state_dict(saved)
