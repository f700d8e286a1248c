"""True weights at an address of their own for each tensor, below the optimizers.

Against backend torch, whose weights lie in one flat buffer: where they lie changes no bit. Here for
backend triton; tests/test_kernels.py has the same for the others.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from buckets import (
    AVERAGED,
    FACTOR,
    RULES,
    SUMMED,
    label,
    random_bucket,
    random_gradients,
    rows_of,
    run,
    tensors_of,
)
from helpers import assert_same_bits
from test_triton_rules import pytestmark, quiet  # noqa: F401

from wpadamw._backends import torch as specification
from wpadamw._backends import triton
from wpadamw._backends.interface import Operation

GUARD = 7.0

# Of parameters, which are narrower than their weights, or not; gradients are float32.
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Elements from an aligned address to parameter i, and to its true weight: which of them suit
# accesses of 16 bytes is for kernels to find out, for each tensor.
PLACES = {
    "aligned": lambda i: (0, 0),
    "aligned-for-16-bytes-alone": lambda i: (8, 4),
    "odd-weights": lambda i: (0, 1 + i % 3),
    "odd-params": lambda i: (1 + i % 3, 0),
    "odd": lambda i: (3 - i % 3, 1 + i % 3),
    "some-odd-weights": lambda i: (0, i % 4),
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_place = pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)


@pytest.fixture
def backend(monkeypatch):
    """Whose kernels are compared with the specification.

    Triton's interpreter believes whatever is said of addresses: here it has to be true.
    """
    told = []

    def check(handle, name, values):
        assert name != "tt.divisibility" or (handle.data % values[0] == 0).all(), values
        told.append(name)

    monkeypatch.setattr("triton.runtime.interpreter.TensorHandle.set_attr", check)
    yield triton
    assert "tt.divisibility" in told


class Placed:
    """A bucket whose parameters and true weights are each in memory of their own."""

    def __init__(self, bucket, places):
        self.guarded = []
        param_places, weight_places = zip(*map(places, range(len(bucket.params))), strict=True)
        self.bucket = dataclasses.replace(
            bucket,
            params=list(map(self.moved, bucket.params, param_places)),
            weight_flat=None,
            weight=list(map(self.moved, bucket.weight, weight_places)),
        )

    def moved(self, values, place):
        buffer = torch.full((values.numel() + 64,), GUARD, dtype=values.dtype)
        assert buffer.data_ptr() % 64 == 0
        before, tensor, after = buffer.split([place, values.numel(), 64 - place])
        tensor.copy_(values)
        self.guarded += [before, after]
        return tensor

    def assert_guards_survive(self):
        assert all((guard == GUARD).all() for guard in self.guarded)


def truncated(values):
    """To bfloat16, as the interpreter goes where it should round."""
    return (values.view(torch.int32) >> 16).to(torch.int16).view(torch.bfloat16)


def specified(bucket, operation, grads, rows, truncates):
    """The bucket after an operation of the specification."""
    params = [param.float() for param in bucket.params] if truncates else bucket.params
    done = dataclasses.replace(bucket, params=params, weight_flat=None)
    run(specification.Kernels(done), operation, grads, rows)
    if truncates:
        done.params = list(map(truncated, done.params))
    return done


@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
@pytest.mark.parametrize("rule", [RULES["adamw"], AVERAGED["blend"]], ids=label)
@each_dtype
@each_place
def test_operations_equal_the_specification_wherever_weights_lie(
    backend, places, dtype, rule, operation
):
    moved = -1 if operation is Operation.predict else 1
    rows = rows_of(rule, [[0, 1, 2, 0, moved, 2], [-1] * 6])
    grads = random_gradients(torch.float32)
    truncates = backend is triton and dtype is torch.bfloat16
    want = specified(random_bucket(rule, dtype, True), operation, grads, rows, truncates)
    placed = Placed(random_bucket(rule, dtype, True), places)
    run(backend.Kernels(placed.bucket), operation, grads, rows)
    for got, wanted in zip(*map(tensors_of, (placed.bucket, want)), strict=True):
        assert_same_bits("array", got, wanted)
    placed.assert_guards_survive()


@each_dtype
@each_place
def test_sums_equal_the_specification_wherever_weights_lie(backend, places, dtype):
    rule = AVERAGED["blend"]
    placed = Placed(random_bucket(rule, dtype, True, SUMMED), places)
    grads = random_gradients(torch.float32, SUMMED)
    rows = rows_of(rule, [[0, 1, 2, 0, 1, 2, 1], [-1] * 7])
    before = [tensor.clone() for tensor in tensors_of(placed.bucket)]
    got = backend.Kernels(placed.bucket).sums(grads, rows, FACTOR)
    want = specification.Kernels(random_bucket(rule, dtype, True, SUMMED))
    assert_same_bits("sums", got, want.sums(grads, rows, FACTOR))
    for tensor, value in zip(tensors_of(placed.bucket), before, strict=True):
        assert_same_bits("array", tensor, value)
