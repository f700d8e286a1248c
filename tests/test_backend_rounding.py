"""Rounding to and from narrow dtypes, and numbers at the edges of what a dtype can hold."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    BACKENDS,
    BACKUPS,
    NARROW,
    Twins,
    assert_same_bits,
    bucket_of,
    kinds_and,
    load_mid_training,
    needs_cpp,
    random_parameters,
    wide,
)
from hypothesis import given
from hypothesis import strategies as st

from wpadamw import WPAdamW
from wpadamw._backends import cpp
from wpadamw.records import no_rows
from wpadamw.rules.adamw import AdamW

pytestmark = needs_cpp

NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}
INFINITY = float("inf")


def all_patterns(dtype):
    """Every value of a 16-bit dtype, NaNs included."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


def neighbours(values):
    """The float32 values and those just below and above them."""
    below = torch.nextafter(values, torch.tensor(-INFINITY))
    above = torch.nextafter(values, torch.tensor(INFINITY))
    return torch.cat([below, values, above])


def ties(dtype):
    """What lies half-way between two neighbours of a 16-bit dtype, overflow included."""
    finite = all_patterns(dtype)
    finite = finite[finite.isfinite()]
    ordered = finite.double().unique()
    largest = torch.finfo(dtype).max
    step = largest - ordered[-2]
    ordered = torch.cat([ordered, (largest + step).reshape(1), -(largest + step).reshape(1)])
    ordered = ordered.sort().values
    middle = (ordered[:-1] + ordered[1:]) / 2
    assert (middle.float().double() == middle).all()
    return middle.float()


def random_bit_patterns(numel):
    generator = torch.Generator().manual_seed(2)
    patterns = torch.randint(-(2**31), 2**31, (numel,), generator=generator)
    return patterns.to(torch.int32).view(torch.float32)


@pytest.mark.parametrize("dtype", NARROW, ids=NAMES.get)
def test_narrow_parameters_are_rounded_as_torch_rounds(dtype, instruction_set):
    values = torch.cat(
        [
            neighbours(all_patterns(dtype).float()),
            neighbours(ties(dtype)),
            neighbours(torch.tensor([0.0, -0.0, 1e20, -1e20, INFINITY, -INFINITY])),
            random_bit_patterns(200_003),
        ]
    )
    param = torch.full_like(values, float("nan"), dtype=dtype)

    # Restoring a backup is a rounding and nothing else.
    cpp.Kernels(bucket_of(param, weight=values)).restore(no_rows(AdamW()))

    assert_same_bits("rounded", param, values.to(dtype))


@pytest.mark.parametrize("dtype", NARROW, ids=NAMES.get)
def test_every_narrow_gradient_is_read_as_torch_reads_it(dtype, instruction_set):
    param = torch.nn.Parameter(torch.zeros(2**16, dtype=dtype))
    param.grad = all_patterns(dtype)
    optimizer = WPAdamW([param], betas=(0.0, 0.999), backend="cpp")

    optimizer.step()

    # With beta1 = 0 the first moment is the gradient: 0 + (grad - 0) * 1, which loses only the
    # sign of a zero.
    assert_same_bits("exp_avg", optimizer.state[param]["exp_avg"], param.grad.float() + 0.0)


# Numbers at the edges.

SPECIAL = {
    "nan": float("nan"),
    "infinity": INFINITY,
    "minus-infinity": -INFINITY,
    "minus-zero": -0.0,
    "subnormal": 1e-42,
    "minus-subnormal": -1e-45,
    "overflowing-square": 1e20,
    "minus-overflowing-square": -1e20,
    "underflowing-square": 1e-30,
}
# In whole vectors, in the tail of a block, and at both ends.
AT = (0, 13, 64, 131, 132)
NUMEL = 133


def train_with(special, dtype, grad_dtype, where, **options):
    """Both backends after three steps, with a special number in gradients or parameters."""
    generator = torch.Generator().manual_seed(4)
    values = wide(NUMEL, dtype, generator)
    grads = [wide(NUMEL, grad_dtype, generator) for _ in range(3)]
    for tensor in [values] if where == "params" else grads[:1]:
        for i in AT if special is not None else ():
            # Converted first: before torch 2.6 an assignment refuses what overflows.
            tensor[i] = torch.tensor(special, dtype=torch.float64).to(tensor.dtype)
    pair = Twins(lambda: [torch.nn.Parameter(values.clone())], lr=0.01, **options)
    for grad in grads:
        pair.set_grads([grad])
        pair.run(WPAdamW.step)
    pair.run(WPAdamW.restore)
    return pair


@pytest.mark.parametrize("where", ["grads", "params"])
@pytest.mark.parametrize("amsgrad", [False, True], ids=["adamw", "amsgrad"])
@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(BACKUPS))
def test_special_numbers_touch_their_own_element_only(dtype, grad_dtype, options, amsgrad, where):
    options = {"amsgrad": amsgrad, **options}
    ordinary = train_with(None, dtype, grad_dtype, where, **options)
    others = torch.ones(NUMEL, dtype=torch.bool)
    others[list(AT)] = False
    for name, special in SPECIAL.items():
        pair = train_with(special, dtype, grad_dtype, where, **options)
        for got, want in zip(pair.params, ordinary.params, strict=True):
            assert_same_bits(name, got[others], want[others])


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_gradients_have_the_effect_that_the_formula_gives_them(backend):
    param = torch.nn.Parameter(torch.ones(6))
    param.grad = torch.tensor([float("nan"), INFINITY, -INFINITY, -0.0, 1e20, -1e20])

    WPAdamW([param], lr=0.25, weight_decay=0.5, prediction_steps=0.0, backend=backend).step()

    # Infinity over infinity is a NaN; a square that overflows leaves a direction of 0.
    assert param[:3].isnan().all()
    assert param[3:].tolist() == [1 - 0.25 * 0.5] * 3


@pytest.mark.parametrize("special", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_special_numbers_in_the_state_have_equal_effects(dtype, name, special, generator):
    amsgrad = name == "max_exp_avg_sq"
    pair = Twins(lambda: random_parameters([NUMEL], dtype), amsgrad=amsgrad)
    pair.run(lambda optimizer: load_mid_training(optimizer, 10))
    for optimizer in pair.by_backend.values():
        for i in AT:
            optimizer.state[optimizer.param_groups[0]["params"][0]][name][i] = special
    pair.run_everything(generator, dtype)


@given(
    weights=st.lists(st.floats(width=32), min_size=40, max_size=40),
    grads=st.lists(st.floats(width=32), min_size=40, max_size=40),
    amsgrad=st.booleans(),
    backup=st.booleans(),
)
def test_any_weights_and_gradients_give_equal_bits(weights, grads, amsgrad, backup):
    pair = Twins(
        lambda: [torch.nn.Parameter(torch.tensor(weights))], amsgrad=amsgrad, backup=backup
    )
    pair.set_grads([torch.tensor(grads)])
    for action in (WPAdamW.step, WPAdamW.restore, WPAdamW.step):
        pair.run(action)
