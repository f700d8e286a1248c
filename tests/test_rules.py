"""The specification: its formulas against plain Python, its accuracy against torch."""

from __future__ import annotations

import importlib
import math
import struct
from pathlib import Path

import pytest
import torch
from helpers import assert_same_bits, load_mid_training, mid_training_state, needs_cpp, wide
from hypothesis import given
from hypothesis import strategies as st
from oracles import step_all
from rule_table import RULES

from wpadamw import WPAdamW
from wpadamw.rules.rule import all_rules, sqrt


def float32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


ROOT = Path(__file__).resolve().parents[1]
STEPS = 7  # from the sixth on updates can be rectified
FORMS = {
    "minimize": {},
    "maximize": {"maximize": True},
    "rollout": {"prediction": "rollout"},
    "averages": {"ema": 0.3},
}
ROUNDINGS = {torch.float32: float32, torch.float64: float}


def slow_twin(case, dtype, generator, **options):
    """A parameter under the specification, and its elements under the slow oracle."""
    param = torch.nn.Parameter(wide(300, dtype, generator))
    optimizer = case.make(
        [param], lr=0.013, prediction_steps=1.7, backend="torch", **{**case.options, **options}
    )
    group = optimizer.param_groups[0]
    return param, optimizer, [case.slow(ROUNDINGS[dtype], w, group) for w in param.tolist()]


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_steps_and_predictions_follow_the_formulas_to_the_bit(case, options, dtype, generator):
    check_formulas(case, dtype, generator, **options)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("name", ["adamw", "adabelief", "adabelief-fixed-decay", "vradam"])
def test_predictions_may_leave_the_decay_out(name, dtype, generator):
    check_formulas(RULES[name], dtype, generator, predict_decay=False)


def check_formulas(case, dtype, generator, **options):
    param, optimizer, slow = slow_twin(case, dtype, generator, **options)
    for _ in range(STEPS):
        param.grad = wide(300, dtype, generator)
        optimizer.step()
        step_all(slow, param.grad.tolist(), dtype)
        want = torch.tensor([element.predicted() for element in slow], dtype=dtype)
        assert_same_bits("predicted", param, want)
        optimizer.restore()
        assert_same_bits("true", param, torch.tensor([element.w for element in slow], dtype=dtype))
    averages = ["average"] if "ema" in options else []
    for name in (*case.rule.state_names, *averages):
        want = torch.tensor([element.state[name] for element in slow], dtype=dtype)
        assert_same_bits(name, optimizer.state[param][name], want)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_restoring_without_backup_follows_the_formula_to_the_bit(case, dtype, generator):
    param, optimizer, slow = slow_twin(case, dtype, generator, backup=False)
    for _ in range(STEPS):
        param.grad = wide(300, dtype, generator)
        optimizer.step()
        step_all(slow, param.grad.tolist(), dtype)
        for element in slow:
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
    assert_same_bits("sqrt", sqrt(values), want)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_square_roots_of_infinity_and_nan_are_themselves(dtype):
    values = torch.tensor([float("inf"), float("nan")], dtype=dtype)
    assert_same_bits("sqrt", sqrt(values), values)


@pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)
def test_square_roots_of_negative_numbers_are_nan_and_of_minus_zero_minus_zero(dtype):
    values = torch.tensor([-1.0, -torch.finfo(dtype).tiny, -float("inf"), -0.0], dtype=dtype)
    nan = float("nan")
    assert_same_bits("sqrt", sqrt(values), torch.tensor([nan, nan, nan, -0.0], dtype=dtype))


# Names shared with the kernels.


@needs_cpp
def test_rules_have_the_names_of_the_kernels():
    found = importlib.import_module("wpadamw._C").rules()
    known = {rule.name: rule for rule in all_rules() if rule.__module__.startswith("wpadamw")}
    assert found.keys() == known.keys()
    for name, rule in known.items():
        assert found[name] == {
            "state": list(rule.state_names),
            "hyper": list(rule.Hyper._fields),
            "step": list(rule.Step._fields),
            "look": list(rule.Look._fields),
            "num_terms": rule.num_terms,
            "can_recover": rule().can_recover(),
        }


@pytest.mark.parametrize("folder, suffix", [("csrc", "h"), ("triton_kernels", "py")])
def test_rules_have_files_of_the_same_names(folder, suffix):
    def stems(path, suffix):
        found = {file.stem for file in (ROOT / path).glob(f"*.{suffix}")}
        return found - {"__init__", "around", "averaged", "rule", "stored", "summing"}

    assert stems(f"{folder}/rules", suffix) == stems("wpadamw/rules", "py")


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
    names = RULES["amsgrad" if "amsgrad" in options else "adamw"].rule.state_names
    state = {
        "options": options,
        "tensors": mid_training_state(values, 10, generator, names),
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
