"""Rules in Triton, below the optimizers: backend triton against backend torch."""

from __future__ import annotations

import itertools
import os

import numpy
import pytest
import torch
from buckets import (
    FACTOR,
    HYPER,
    NUMELS,
    RULES,
    SHARES,
    SUMMED,
    SUMMING,
    UPDATING,
    WITHOUT_GRAD,
    hyper_of,
    label,
    random_bucket,
    random_gradients,
    rows_of,
    run,
    tensors_of,
)
from helpers import assert_same_bits, wide

from wpadamw._backends import torch as specification
from wpadamw._backends import torch_ledger, triton
from wpadamw._backends.interface import Gradients, Kind, LedgerTensors, Operation, Rows
from wpadamw.rules.squares import Squares
from wpadamw.rules.summing import in_order

pytestmark = [
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET not 1"),
    # The interpreter of some versions takes arrays of one element for numbers.
    pytest.mark.filterwarnings(
        r"ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning:triton\."
    ),
]

# Parameters and gradients; the interpreter truncates where it should round to bfloat16.
KINDS = {
    "float32": (torch.float32, torch.float32),
    "float16": (torch.float16, torch.float16),
    "float64-with-float32-grad": (torch.float64, torch.float32),
}
each_kind = pytest.mark.parametrize("dtype, grad_dtype", KINDS.values(), ids=KINDS)


@pytest.fixture(autouse=True)
def quiet():
    """The interpreter divides by zero where kernels may."""
    with numpy.errstate(all="ignore"):
        yield


@pytest.fixture
def backend():
    """Whose kernels are compared with the specification."""
    return triton


def rules_and_kinds():
    """With and without a backup, where there may be none."""
    return [
        pytest.param(rule, *kind, backup == "backup", id=f"{label(rule)}-{name}-{backup}")
        for rule, (name, kind), backup in itertools.product(
            UPDATING, KINDS.items(), ("backup", "no-backup")
        )
        if backup == "backup" or (kind[0].itemsize >= 4 and rule.can_recover())
    ]


@pytest.mark.parametrize("rule, dtype, grad_dtype, has_backup", rules_and_kinds())
@pytest.mark.parametrize("num_looks", SHARES)
@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
def test_operations_equal_the_specification(
    backend, operation, num_looks, rule, dtype, grad_dtype, has_backup
):
    moved = -1 if operation is Operation.predict else 1
    index = [[0, 1, 2, 0, moved, 2], [-1] * 6 if has_backup else [1, 2, 0, -1, 2, -1]]
    buckets = [random_bucket(rule, dtype, has_backup, NUMELS, num_looks) for _ in range(2)]
    grads, rows = random_gradients(grad_dtype), rows_of(rule, index, num_looks)
    for kernels, bucket in zip((backend, specification), buckets, strict=True):
        run(kernels.Kernels(bucket), operation, grads, rows)
    for got, want in zip(*map(tensors_of, buckets), strict=True):
        assert_same_bits("array", got, want)


@pytest.mark.parametrize("rule", UPDATING, ids=label)
def test_infinite_weights_have_equal_effects(backend, rule):
    buckets = [random_bucket(rule, torch.float32, True, [3, 64]) for _ in range(2)]
    rows = rows_of(rule, [[0, 2], [-1, -1]])
    grads = [wide((numel,), torch.float32, torch.Generator().manual_seed(2)) for numel in (3, 64)]
    addresses = [grad.data_ptr() for grad in grads]
    for kernels, bucket in zip((backend, specification), buckets, strict=True):
        for flat in (bucket.weight_flat, *bucket.state_flat):
            flat[::5] = float("inf")
        kernels.Kernels(bucket).step(
            Gradients(torch.float32, grads, addresses, None), rows, 1.0, True
        )
    for got, want in zip(*map(tensors_of, buckets), strict=True):
        assert_same_bits("array", got, want)


@each_kind
@pytest.mark.parametrize("rule", SUMMING, ids=label)
def test_sums_equal_the_specification(backend, rule, dtype, grad_dtype):
    bucket = random_bucket(rule, dtype, bool(rule.state_names), SUMMED)
    grads = random_gradients(grad_dtype, SUMMED)
    before = [tensor.clone() for tensor in tensors_of(bucket)]
    rows = rows_of(rule, [[0, 1, 2, 0, 1, 2, 1], [-1] * 7])
    got, want = (
        kernels.Kernels(bucket).sums(grads, rows, FACTOR) for kernels in (backend, specification)
    )
    assert_same_bits("sums", got, want)
    assert got.shape == (rule.num_terms, len(SUMMED)) and got[:, WITHOUT_GRAD].eq(0).all()
    for tensor, value in zip(tensors_of(bucket), before, strict=True):
        assert_same_bits("array", tensor, value)


def test_sums_of_nothing_are_zero(backend):
    bucket = random_bucket(Squares(), torch.float32, False, [0])
    empty = torch.empty(0)
    grads = Gradients(torch.float32, [empty], [empty.data_ptr()], None)
    sums = backend.Kernels(bucket).sums(grads, rows_of(Squares(), [[0], [-1]]), 1.0)
    assert sums.tolist() == [[0.0]]


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 1000])
def test_totals_equal_the_specification(backend, count):
    numbers = wide((count,), torch.float64, torch.Generator().manual_seed(1))
    kernels = backend.Kernels(random_bucket(Squares(), torch.float32, False, [3]))
    assert_same_bits("total", kernels.total(numbers).reshape(()), in_order(numbers))


# Counts and records.


def random_ledger(rule, hyper, shares):
    """Of 300 parameters: more than two blocks. Some have no count, some no or a null prediction."""
    num_params, num_look = 300, len(shares) * len(rule.Look._fields)
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 100, (num_params,), generator=generator)
    counts[::7], counts[1::50] = 0, 1_000_003
    predictions = torch.rand(num_params, 1 + num_look, dtype=torch.float64, generator=generator)
    predictions[:, 0] = Kind.made
    predictions[::3], predictions[1::3] = Kind.none, 0.0
    predictions[1::3, 0] = Kind.null
    width = len(rule.Step._fields) + num_look
    scalars = torch.full((2 * num_params, width), 7.0, dtype=torch.float64)
    index = torch.full((2, num_params), 7, dtype=torch.int32)
    has_grad = torch.rand(num_params, generator=generator) < 0.7
    hyper, shares = (torch.tensor(numbers, dtype=torch.float64) for numbers in (hyper, shares))
    rows = Rows(scalars, index)
    sums = torch.rand(rule.num_terms, num_params, dtype=torch.float64, generator=generator)
    return LedgerTensors(counts.float(), predictions, hyper, shares, has_grad, sums, rows)


def used_rows(ledger, num_step, is_step):
    """What a kernel may read: numbers of rows that the index names."""
    (own, held), scalars = ledger.rows.index, ledger.rows.scalars
    rows = scalars[own[own >= 0]] if is_step else scalars[own[own >= 0], num_step:]
    return rows, scalars[held[held >= 0], num_step:]


def rules_and_hypers():
    """Every rule as it is asked for; one also as its scalars are special."""
    for rule in UPDATING:
        yield pytest.param(rule, hyper_of(rule), id=label(rule))
    hyper = HYPER["sgd"]._replace(momentum=0.0)
    yield pytest.param(RULES["sgd"], hyper, id="sgd-without-momentum")


@pytest.mark.parametrize("found_inf, num_looks", [(None, 1), (None, 3), (0.0, 3), (1.0, 1)])
@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.name)
@pytest.mark.parametrize("rule, hyper", list(rules_and_hypers()))
def test_advance_equals_the_specification(rule, hyper, operation, found_inf, num_looks):
    got, want = (random_ledger(rule, hyper, SHARES[num_looks]) for _ in range(2))
    flag = None if found_inf is None else torch.tensor(found_inf)
    bucket = random_bucket(rule, torch.float32, True, [3], num_looks)
    triton.Kernels(bucket).advance(got, operation, flag)
    torch_ledger.advance(rule, want, operation, flag, torch.zeros((), dtype=torch.int64))
    for name in ("steps", "predictions", "hyper", "shares", "has_grad", "sums"):
        assert_same_bits(name, getattr(got, name), getattr(want, name))
    assert_same_bits("index", got.rows.index, want.rows.index)
    if operation is not Operation.restore:
        is_step, num_step = "step" in operation.name, len(rule.Step._fields)
        pairs = zip(*(used_rows(ledger, num_step, is_step) for ledger in (got, want)), strict=True)
        for rows, wanted in pairs:
            assert_same_bits("rows", rows, wanted)
