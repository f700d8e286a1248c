"""Adam, AdaBelief, AdaM3 and AdaPlus beside what they take their arguments from, in float64."""

from __future__ import annotations

import copy
import importlib
import itertools
import math

import pytest
import torch
from helpers import BACKENDS, wide

from wpadamw import WPAdaBelief, WPAdam, WPAdaM3, WPAdamW, WPAdaPlus, WPNAdamW

STEPS = 60
BELIEF = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def start(generator):
    return torch.nn.Parameter(wide(50, torch.float64, generator))


def gradients(generator):
    return [wide(50, torch.float64, generator) for _ in range(STEPS)]


def assert_close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def trained(optimizer, param, grads):
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return param.detach()


def pair_after(ours, theirs, options, generator, *, backend, **more):
    """The weights that two optimizers come to, ours without prediction."""
    params = [start(generator)]
    params.append(copy.deepcopy(params[0]))
    grads = gradients(generator)
    optimizers = (
        ours([params[0]], **options, **more, prediction_steps=0.0, backend=backend),
        theirs([params[1]], **options),
    )
    return [trained(*both, grads) for both in zip(optimizers, params, strict=True)]


# First steps: where eps does not count they have one length.

FIRST_STEPS = {
    "WPAdamW": (WPAdamW, 1.0),
    "WPAdam": (WPAdam, 1.0),
    "WPAdaBelief": (WPAdaBelief, 1 / 0.8),
    "WPNAdamW": (WPNAdamW, 1.8),
    "WPAdaPlus": (WPAdaPlus, 1.8 / 0.8),
    "WPAdaM3": (WPAdaM3, 1 / 0.2),
}


@each_backend
@pytest.mark.parametrize("make, length", FIRST_STEPS.values(), ids=FIRST_STEPS)
def test_first_step_has_a_known_length(make, length, backend, generator):
    param = start(generator)
    before, grad = param.detach().clone(), wide(50, torch.float64, generator)
    options = {"betas": (0.8, 0.99), "eps": 1e-40, "weight_decay": 0.0}
    optimizer = make([param], lr=0.01, **options, prediction_steps=0.0, backend=backend)
    assert_close(before - trained(optimizer, param, [grad]), 0.01 * length * grad.sign())


# Adam.

ADAM_OPTIONS = [
    dict(
        zip(("amsgrad", "maximize", "decoupled_weight_decay", "weight_decay"), values, strict=True)
    )
    for values in itertools.product((False, True), (False, True), (False, True), (0.0, 0.1))
]
has_decoupled = "decoupled_weight_decay" in torch.optim.Adam([torch.zeros(1)]).defaults


@each_backend
@pytest.mark.parametrize("options", ADAM_OPTIONS, ids=str)
def test_without_prediction_it_is_adam(options, backend, generator):
    options = {**options, "lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6}
    theirs = torch.optim.Adam
    if not has_decoupled and options.pop("decoupled_weight_decay"):
        theirs = torch.optim.AdamW
    own = {} if has_decoupled else {"decoupled_weight_decay": theirs is torch.optim.AdamW}
    assert_close(*pair_after(WPAdam, theirs, options, generator, backend=backend, **own))


# The others beside their papers' lines.


def rectified(t, beta2):
    """RAdam's length of the average, and its factor (Liu et al. 2019, Algorithm 2)."""
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    if length < 5:
        return length, None
    top, bottom = (length - 4) * (length - 2) * longest, (longest - 4) * (longest - 2) * length
    return length, math.sqrt(top / bottom)


def algorithm(
    weight,
    grads,
    lr,
    betas,
    eps,
    weight_decay,
    *,
    of_momentum=False,
    is_mixed=False,
    outer_eps=True,
    amsgrad=False,
    weight_decouple=True,
    fixed_decay=False,
    rectify=False,
    degenerated_to_sgd=True,
    eps_mode="accumulating",
):
    """AdaBelief, AdaM3 (``of_momentum``) and AdaPlus (``is_mixed``), one line after the other."""
    beta1, beta2 = betas
    m = s = largest = torch.zeros_like(weight)
    for t, g in enumerate(grads, 1):
        if weight_decouple:
            weight = weight - (1 if fixed_decay else lr) * weight_decay * weight
        else:
            g = g + weight_decay * weight
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (m if of_momentum else g - m) ** 2
        s = s + eps * (eps_mode == "accumulating")
        largest = torch.maximum(largest, s)
        s_hat = (largest if amsgrad else s) / (1 - beta2**t)
        m_hat = (beta1 * m + (1 - beta1) * g if is_mixed else m) / (1 - beta1**t)
        root = (s_hat + eps * (eps_mode == "inside")).sqrt() + eps * (
            outer_eps and eps_mode != "inside"
        )
        if not rectify:
            weight = weight - lr * m_hat / root
            continue
        length, factor = rectified(t, beta2)
        if length >= 5:
            root = s.sqrt() + eps
            weight = weight - lr * factor * math.sqrt(1 - beta2**t) * m_hat / root
        elif degenerated_to_sgd:
            weight = weight - lr * m_hat
    return weight


_M3, _PLUS = {"of_momentum": True, "outer_eps": False}, {"is_mixed": True}
PAPERS = {
    "adabelief": (WPAdaBelief, {}, {}),
    "adabelief-coupled": (WPAdaBelief, {"weight_decouple": False}, {}),
    "adabelief-fixed-decay": (WPAdaBelief, {"fixed_decay": True, "weight_decay": 0.01}, {}),
    "adabelief-rectified": (WPAdaBelief, {"rectify": True}, {}),
    "adabelief-still-at-first": (WPAdaBelief, {"rectify": True, "degenerated_to_sgd": False}, {}),
    "adabelief-inside": (WPAdaBelief, {"eps_mode": "inside"}, {}),
    "adabelief-outside": (WPAdaBelief, {"eps_mode": "outside"}, {}),
    "adabelief-amsgrad": (WPAdaBelief, {"amsgrad": True}, {}),
    "adam3": (WPAdaM3, {}, _M3),
    "adam3-coupled": (WPAdaM3, {"weight_decouple": False}, _M3),
    "adam3-rectified": (WPAdaM3, {"rectify": True}, _M3),
    "adam3-amsgrad": (WPAdaM3, {"amsgrad": True}, _M3),
    "adaplus": (WPAdaPlus, {}, _PLUS),
    "adaplus-inner-eps": (WPAdaPlus, {"outer_eps": False}, _PLUS),
    "adaplus-amsgrad": (WPAdaPlus, {"amsgrad": True}, _PLUS),
}


@each_backend
@pytest.mark.parametrize("eps", [1e-16, 1e-3])
@pytest.mark.parametrize("make, options, kind", PAPERS.values(), ids=PAPERS)
def test_without_prediction_it_is_the_papers_algorithm(
    make, options, kind, eps, backend, generator
):
    param = start(generator)
    options = {**BELIEF, "eps": eps, **options}
    want = algorithm(param.detach().clone(), grads := gradients(generator), **{**kind, **options})
    optimizer = make([param], **options, prediction_steps=0.0, backend=backend)
    assert_close(trained(optimizer, param, grads), want)


# Beside other implementations.

PACKAGES = {
    "adabelief_pytorch": {"print_change_log": False},
    "pytorch_optimizer": {},
}
BELIEF_OPTIONS = [
    {},
    {"weight_decouple": False},
    {"fixed_decay": True, "weight_decay": 0.01},
    {"rectify": True},
    {"rectify": True, "degenerated_to_sgd": False},
]


def belief_of(package):
    """AdaBelief of a package, quiet where it can be told."""
    kind = importlib.import_module(package).AdaBelief
    return lambda params, **given: kind(params, **given, **PACKAGES[package])


@pytest.mark.parametrize("options", BELIEF_OPTIONS, ids=str)
@pytest.mark.parametrize("package", PACKAGES)
def test_without_prediction_it_is_the_packages_adabelief(package, options, generator):
    options = {**BELIEF, "rectify": False, **options}
    ours, theirs = pair_after(WPAdaBelief, belief_of(package), options, generator, backend="torch")
    assert_close(ours, theirs)
