"""The specification: its formulas against plain Python, its accuracy against torch."""

from __future__ import annotations

import importlib
import math
import struct

import pytest
import torch
from helpers import assert_same_bits, load_mid_training, mid_training_state, needs_cpp, wide
from hypothesis import given
from hypothesis import strategies as st

from wpadamw import WPAdamW, rules
from wpadamw.scalars import Scalars

HYPER = {"lr": 0.013, "betas": (0.87, 0.993), "eps": 1e-6, "weight_decay": 0.07}

# The same in plain Python. Numbers of Python are float64; two float32 operands give a float64
# result that, rounded to float32, is the correctly rounded one, for + - * / and the root.


def float32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


ROUNDINGS = {torch.float32: float32, torch.float64: float}


class SlowAdamW:
    """One element, in the order of the numerical contract."""

    def __init__(self, fl, w, m, v, v_max, options):
        self.fl, self.options, self.k = fl, options, 0
        self.w, self.m, self.v, self.v_max = w, m, v, v_max

    def scalars(self):
        o, k = self.options, self.k
        (beta1, beta2), s, lr, weight_decay = o["betas"], o["s"], o["lr"], o["weight_decay"]
        predicted = weight_decay if o.get("predict_decay", True) else 0.0
        names = {
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "inv_sqrt_bc2": 1 / math.sqrt(1 - beta2**k),
            "eps": o["eps"],
            "decay": 1 - lr * weight_decay,
            "step_size": lr / (1 - beta1**k),
            "predict_decay": 1 - s * lr * predicted,
            "predict_size": s * lr / (1 - beta1**k),
        }
        return {name: self.fl(value) for name, value in names.items()}

    def step(self, g):
        self.k += 1
        fl, c = self.fl, self.scalars()
        g = -g if self.options.get("maximize") else g
        self.m = fl(self.m + fl(fl(g - self.m) * c["one_minus_beta1"]))
        self.v = fl(fl(self.v * c["beta2"]) + fl(fl(g * g) * c["one_minus_beta2"]))
        self.v_max = max(self.v_max, self.v)
        self.w = fl(fl(self.w * c["decay"]) - fl(self.direction() * c["step_size"]))

    def direction(self):
        fl, c = self.fl, self.scalars()
        v = self.v_max if self.options.get("amsgrad") else self.v
        return fl(self.m / fl(fl(fl(math.sqrt(v)) * c["inv_sqrt_bc2"]) + c["eps"]))

    def predicted(self):
        fl, c = self.fl, self.scalars()
        return fl(fl(self.w * c["predict_decay"]) - fl(self.direction() * c["predict_size"]))

    def recovered(self, p):
        fl, c = self.fl, self.scalars()
        return fl(fl(p + fl(self.direction() * c["predict_size"])) / c["predict_decay"])


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="adamw"),
        pytest.param({"amsgrad": True}, id="amsgrad"),
        pytest.param({"maximize": True}, id="maximize"),
        pytest.param({"predict_decay": False}, id="undecayed-prediction"),
    ],
)
def test_steps_and_predictions_follow_the_formulas_to_the_bit(options, dtype, generator):
    param = torch.nn.Parameter(wide(300, dtype, generator))
    optimizer = WPAdamW([param], **HYPER, **options, prediction_steps=1.7, backend="torch")
    slow = [
        SlowAdamW(ROUNDINGS[dtype], w, 0.0, 0.0, 0.0, {**HYPER, **options, "s": 1.7})
        for w in param.tolist()
    ]
    for _ in range(5):
        param.grad = wide(300, dtype, generator)
        optimizer.step()
        for element, g in zip(slow, param.grad.tolist(), strict=True):
            element.step(g)
        want = torch.tensor([element.predicted() for element in slow], dtype=dtype)
        assert_same_bits("predicted", param, want)
        optimizer.restore()
        assert_same_bits("true", param, torch.tensor([element.w for element in slow], dtype=dtype))
    for name, attribute in (("exp_avg", "m"), ("exp_avg_sq", "v")):
        want = torch.tensor([getattr(element, attribute) for element in slow], dtype=dtype)
        assert_same_bits(name, optimizer.state[param][name], want)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_restoring_without_backup_follows_the_formula_to_the_bit(dtype, generator):
    param = torch.nn.Parameter(wide(300, dtype, generator))
    optimizer = WPAdamW([param], **HYPER, prediction_steps=1.7, backup=False, backend="torch")
    slow = [
        SlowAdamW(ROUNDINGS[dtype], w, 0.0, 0.0, 0.0, {**HYPER, "s": 1.7}) for w in param.tolist()
    ]
    for _ in range(3):
        param.grad = wide(300, dtype, generator)
        optimizer.step()
        for element, g in zip(slow, param.grad.tolist(), strict=True):
            element.step(g)
            element.w = element.recovered(element.predicted())
    optimizer.restore()
    want = torch.tensor([element.w for element in slow], dtype=dtype)
    assert_same_bits("recovered", param, want)


# Square roots.


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_square_roots_are_correctly_rounded(dtype, generator):
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    exponent = torch.empty(100_000, dtype=torch.float64).uniform_(
        math.log2(tiny) - 20, math.log2(huge) - 1, generator=generator
    )
    values = torch.cat([(2**exponent).to(dtype), torch.tensor([0.0, tiny, huge], dtype=dtype)])
    fl = ROUNDINGS[dtype]
    want = torch.tensor([fl(math.sqrt(value)) for value in values.tolist()], dtype=dtype)
    assert_same_bits("sqrt", rules.sqrt(values), want)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_square_roots_of_infinity_and_nan_are_themselves(dtype):
    values = torch.tensor([float("inf"), float("nan")], dtype=dtype)
    assert_same_bits("sqrt", rules.sqrt(values), values)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_square_roots_of_negative_numbers_are_nan_and_of_minus_zero_minus_zero(dtype):
    values = torch.tensor([-1.0, -torch.finfo(dtype).tiny, -float("inf"), -0.0], dtype=dtype)
    nan = float("nan")
    assert_same_bits("sqrt", rules.sqrt(values), torch.tensor([nan, nan, nan, -0.0], dtype=dtype))


# Names shared with the kernels.


@needs_cpp
def test_scalars_have_the_field_order_of_the_kernels():
    assert list(Scalars._fields) == importlib.import_module("wpadamw._C").scalar_names()


@needs_cpp
def test_rules_have_the_names_of_the_kernels():
    classes = [value for value in vars(rules).values() if hasattr(value, "state_names")]
    names = [rule.name for rule in classes]
    assert names == importlib.import_module("wpadamw._C").rule_names()


# What follows from the formulas.


def stepped(values, grads, backend="torch", **options):
    """A parameter after steps with these gradients, None for a step without one."""
    param = torch.nn.Parameter(values.clone())
    optimizer = WPAdamW([param], backend=backend, **options)
    for grad in grads:
        param.grad = grad
        optimizer.step()
    return param, optimizer


def test_the_first_step_moves_by_lr(generator):
    values, grad = (wide(1000, torch.float64, generator) for _ in range(2))
    options = {"lr": 0.01, "weight_decay": 0.0, "eps": 1e-30, "prediction_steps": 0.0}
    param, _ = stepped(values, [grad], **options)
    # Two rounded bias corrections, a root and a quotient: a few ulp of 1.
    torch.testing.assert_close(values - param, 0.01 * grad.sign(), rtol=1e-12, atol=1e-13)


def test_the_first_iteration_is_not_predicted(generator):
    values = wide(50, torch.float32, generator)
    param = torch.nn.Parameter(values.clone())
    optimizer = WPAdamW([param], lr=0.1, prediction_steps=3.0, backend="torch")
    seen = []

    def closure():
        seen.append(param.detach().clone())
        param.grad = torch.ones(50)
        return 0.0

    optimizer.predict()
    assert_same_bits("predicted", param, values)
    optimizer.step(closure)
    optimizer.step(closure)
    assert_same_bits("seen first", seen[0], values)
    assert (seen[1] != values).all()


def test_a_state_without_updates_is_not_predicted(generator):
    values = wide(50, torch.float32, generator)
    param = torch.nn.Parameter(values.clone())
    optimizer = WPAdamW([param], lr=0.1, backend="torch")
    load_mid_training(optimizer, step=0)
    optimizer.predict()
    assert_same_bits("predicted", param, values)


@given(prediction_steps=st.floats(0.0, 50.0))
def test_prediction_is_affine_in_the_number_of_steps(prediction_steps):
    generator = torch.Generator().manual_seed(3)
    values, grad = (wide(50, torch.float64, generator) for _ in range(2))

    def moved(s):
        param, optimizer = stepped(values, [grad], lr=0.01, weight_decay=0.1, prediction_steps=s)
        predicted = param.detach().clone()
        optimizer.restore()
        return predicted - param.detach()

    one_ulp = torch.finfo(torch.float64).eps * max(values.abs().max().item(), 1.0)
    error = moved(prediction_steps) - prediction_steps * moved(1.0)
    # Each of the two differences is off by an ulp, one of them multiplied by the number of steps.
    assert error.abs().max() <= 4 * (1 + prediction_steps) * one_ulp


def test_prediction_looks_where_a_step_with_the_same_direction_would_lead(generator):
    values, grad = (wide(50, torch.float64, generator) for _ in range(2))
    # With beta1 = beta2 = 0 the direction is the sign of the gradient in every step.
    options = {"lr": 0.01, "betas": (0.0, 0.0), "weight_decay": 0.1}
    predicted, _ = stepped(values, [grad], **options)
    following, _ = stepped(values, [grad, grad], **options, prediction_steps=0.0)
    assert_same_bits("weights", predicted, following)


@pytest.mark.parametrize("backend", [pytest.param("cpp", marks=needs_cpp), "torch"])
def test_each_parameter_counts_its_own_steps(backend, generator):
    values = [wide(20, torch.float32, generator) for _ in range(2)]
    grads = [[wide(20, torch.float32, generator) for _ in range(6)] for _ in range(2)]
    grads[1][1:4] = [None, grads[1][2], None]
    together = [torch.nn.Parameter(value.clone()) for value in values]
    optimizer = WPAdamW(together, lr=0.01, backend=backend)
    for at_once in zip(*grads, strict=True):
        for param, grad in zip(together, at_once, strict=True):
            param.grad = grad
        optimizer.step()
    optimizer.restore()
    for i, param in enumerate(together):
        given_grads = [grad for grad in grads[i] if grad is not None]
        alone, own = stepped(values[i], given_grads, lr=0.01, backend=backend)
        own.restore()
        assert_same_bits(f"params[{i}]", param, alone)
        assert optimizer.state[param]["step"].item() == len(given_grads)


# Against torch, without prediction.

ADAMW_OPTIONS = {
    "defaults": {},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True},
    "strong-decay": {"weight_decay": 0.3},
    "no-decay": {"weight_decay": 0.0},
}


def trained(optimizer_class, values, state, grads, dtype, **options):
    """The weights after steps from a state in mid-training, in float64."""
    param = torch.nn.Parameter(values.to(dtype, copy=True))
    optimizer = optimizer_class([param], lr=0.01, **options)
    groups = torch.optim.AdamW([param], lr=0.01, **state["options"]).state_dict()["param_groups"]
    tensors = {name: value.to(dtype, copy=True) for name, value in state["tensors"].items()}
    optimizer.load_state_dict({"state": {0: tensors}, "param_groups": groups})
    for grad in grads:
        param.grad = grad.to(dtype)
        optimizer.step()
    return param.detach().double()


@pytest.mark.parametrize("num_steps", [1, 50])
@pytest.mark.parametrize("options", ADAMW_OPTIONS.values(), ids=ADAMW_OPTIONS)
def test_without_prediction_it_is_adamw_as_accurate_as_torch(options, num_steps, generator):
    values = torch.randn(20_000, generator=generator)
    grads = [wide(20_000, torch.float32, generator) for _ in range(num_steps)]
    state = {
        "options": options,
        "tensors": mid_training_state(values, 10, generator, options.get("amsgrad", False)),
    }
    theirs = torch.optim.AdamW
    truth = trained(theirs, values, state, grads, torch.float64, foreach=False)
    torchs = trained(theirs, values, state, grads, torch.float32, foreach=False)
    without = {"prediction_steps": 0.0, "backend": "torch"}
    ours = trained(WPAdamW, values, state, grads, torch.float32, **without)

    one_ulp = torch.finfo(torch.float32).eps * truth.abs().max()
    assert (truth - values).abs().max() > 1000 * one_ulp
    assert (ours - torchs).abs().max() <= 4 * one_ulp
    assert (ours - truth).abs().max() <= (torchs - truth).abs().max() + one_ulp
