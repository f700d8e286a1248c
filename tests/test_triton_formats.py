"""Small formats in Triton, below the optimizers: backend triton against backend torch."""

from __future__ import annotations

import dataclasses
import importlib
import itertools

import pytest
import torch
from buckets import (
    AVERAGED,
    FACTOR,
    NUMELS,
    RULES,
    SHARES,
    UPDATING,
    WITHOUT_GRAD,
    hyper_of,
    label,
    random_gradients,
    rows_of,
    run,
    small_bucket,
    tensors_of,
)
from helpers import Twins, assert_same_bits, random_parameters, wide
from test_triton import on_cpu  # noqa: F401
from test_triton_rules import pytestmark, quiet, random_ledger, used_rows  # noqa: F401
from test_weights_apart import backend  # noqa: F401

from wpadamw import WPAdamW, layout
from wpadamw._backends import torch as specification
from wpadamw._backends import torch_ledger, triton
from wpadamw._backends.interface import Gradients, Operation
from wpadamw.formats import FORMATS
from wpadamw.rules.stored import stored

BFLOAT16, FLOAT16, FLOAT32 = torch.bfloat16, torch.float16, torch.float32

# Parameters, where their true weights are, and gradients.
WEIGHTS = {
    "rest": (BFLOAT16, "rest", BFLOAT16),
    "rest-with-float32-grad": (BFLOAT16, "rest", FLOAT32),
    "bfloat16-backup": (BFLOAT16, "backup", BFLOAT16),
    "float16-backup": (FLOAT16, "backup", FLOAT16),
    "float16-backup-with-float32-grad": (FLOAT16, "backup", FLOAT32),
    "float32-backup": (FLOAT32, "backup", FLOAT32),
    "float32": (FLOAT32, "none", FLOAT32),
}
SMALL = ("bfloat16", "int8")
# Those that differ in how kernels reach weights.
SOURCES = [WEIGHTS[name] for name in ("rest", "bfloat16-backup", "float32")]
each_source = pytest.mark.parametrize("dtype, master, grad_dtype", SOURCES, ids=str)
each_moments = pytest.mark.parametrize("moments", SMALL)
STEPS = (Operation.step, Operation.step_and_predict)


def name_of(operation):
    return operation.name


def index_of(operation, master):
    """Rows of the operation, -1 where a prediction moves nothing, and of what is held."""
    moved = -1 if operation is Operation.predict else 1
    held = [-1] * 6 if master == "backup" else [1, 2, 0, -1, 2, -1]
    return [[0, 1, 2, 0, moved, 2], held]


def assert_same_buckets(buckets):
    for k, (got, want) in enumerate(zip(*map(tensors_of, buckets), strict=True)):
        assert_same_bits(f"array {k}", got, want)


def assert_equals_the_specification(rule, kind, moments, operation, num_looks=1):
    dtype, master, grad_dtype = kind
    buckets = [small_bucket(rule, dtype, master, moments, num_looks=num_looks) for _ in range(2)]
    before = [tensor.clone() for tensor in tensors_of(buckets[0])]
    rows = rows_of(buckets[0].rule, index_of(operation, master), num_looks)
    grads = random_gradients(grad_dtype)
    for kernels, bucket in zip((triton, specification), buckets, strict=True):
        run(kernels.Kernels(bucket), operation, grads, rows)
    assert_same_buckets(buckets)
    return buckets[0], before


def test_formats_have_the_order_of_the_specification():
    kernels = importlib.import_module("wpadamw.triton_kernels.formats")
    assert [getattr(kernels, form.name.upper()).value for form in FORMATS] == [*range(len(FORMATS))]


@pytest.mark.parametrize("operation", Operation, ids=name_of)
@pytest.mark.parametrize(
    "kind, moments",
    [*itertools.product(WEIGHTS.values(), SMALL), (WEIGHTS["rest"], "float32")],
    ids=str,
)
def test_operations_equal_the_specification(operation, kind, moments):
    bucket, before = assert_equals_the_specification(RULES["adamw"], kind, moments, operation)
    changed = [not torch.equal(*pair) for pair in zip(tensors_of(bucket), before, strict=True)]
    assert any(changed[: len(NUMELS)])
    assert all(changed[-len(bucket.state_flat) :]) == (operation in STEPS)


@each_moments
@pytest.mark.parametrize("rule", UPDATING, ids=label)
def test_rules_equal_the_specification(rule, moments):
    assert_equals_the_specification(rule, WEIGHTS["rest"], moments, Operation.step_and_predict)


@each_moments
@pytest.mark.parametrize("operation", Operation, ids=name_of)
def test_several_looks_equal_the_specification(operation, moments):
    num_looks = max(SHARES)
    assert_equals_the_specification(RULES["adamw"], WEIGHTS["rest"], moments, operation, num_looks)


@each_moments
@each_source
@pytest.mark.parametrize("void", [None, 1.0])
def test_tracked_steps_equal_the_specification(void, dtype, master, grad_dtype, moments):
    rule = AVERAGED["adamw"]
    buckets = [small_bucket(rule, dtype, master, moments) for _ in range(2)]
    rows = rows_of(buckets[0].rule, index_of(Operation.step_and_predict, master))
    found_inf = None if void is None else torch.tensor(void)
    sums = [torch.full((3, len(NUMELS)), 7.0, dtype=torch.float64) for _ in range(2)]
    grads = random_gradients(grad_dtype)
    for kernels, bucket, tracked in zip((triton, specification), buckets, sums, strict=True):
        kernels.Kernels(bucket).step(grads, rows, FACTOR, True, found_inf, tracked)
    assert_same_buckets(buckets)
    assert_same_bits("tracked", *sums)
    assert sums[0].any() == (void != 1.0) and not sums[0][:, WITHOUT_GRAD].any()


@each_moments
@each_source
@pytest.mark.parametrize("rule", [RULES["vradam"], RULES["blend"]], ids=label)
def test_sums_equal_the_specification(rule, dtype, master, grad_dtype, moments):
    bucket = small_bucket(rule, dtype, master, moments)
    before = [tensor.clone() for tensor in tensors_of(bucket)]
    rows = rows_of(bucket.rule, index_of(Operation.step, master))
    grads = random_gradients(grad_dtype)
    got, want = (
        kernels.Kernels(bucket).sums(grads, rows, FACTOR) for kernels in (triton, specification)
    )
    assert_same_bits("sums", got, want)
    assert got.any() and not got[:, WITHOUT_GRAD].any()
    for tensor, value in zip(tensors_of(bucket), before, strict=True):
        assert_same_bits("array", tensor, value)


# Numbers and addresses that are special.

SPECIAL = (0.0, -0.0, 1e-45, -1e-40, 3e-39, 1e-30, 1.0, -3e38, float("inf"), float("nan"))


@each_moments
@each_source
@pytest.mark.parametrize("numbers", [SPECIAL[:7], SPECIAL[:8], SPECIAL[:9], SPECIAL], ids=len)
def test_special_numbers_give_the_same_bits(numbers, dtype, master, grad_dtype, moments):
    special = torch.tensor(numbers)
    buckets = [small_bucket(RULES["adamw"], dtype, master, moments, [150, 64]) for _ in range(2)]
    grads = [special.repeat(150)[:150], torch.zeros(64)]
    grads = [grad.to(grad_dtype) for grad in grads]
    addresses = [grad.data_ptr() for grad in grads]
    rows = rows_of(buckets[0].rule, [[0, 2], [-1, -1]])
    for kernels, bucket in zip((triton, specification), buckets, strict=True):
        for tensor in (*bucket.params, *(bucket.weight or [])):
            tensor.copy_(special.repeat(30)[: tensor.numel()])
        for kind in range(2):  # a block of zeros, and others
            for stored_of, scale in zip(bucket.state[kind], bucket.scales[kind], strict=False):
                stored_of[:64], scale[:1] = 0, 0.0
        for _ in range(2):
            kernels.Kernels(bucket).step(
                Gradients(grad_dtype, grads, addresses, None), rows, 1.0, True
            )
    assert_same_buckets(buckets)
    for got, want in zip(*(bucket.scales_flat for bucket in buckets), strict=True):
        assert want is None or torch.equal(got.view(torch.int32), want.view(torch.int32))


GUARD = 7.0


def at_odd_addresses(bucket, places):
    """The same with parameters and true weights elsewhere, and the memory around them."""
    memories = []

    def moved(tensors, place):
        views = []
        for tensor in tensors:
            memories.append(torch.full((tensor.numel() + 64,), GUARD, dtype=tensor.dtype))
            views.append(memories[-1][place : place + tensor.numel()].copy_(tensor))
        return views

    params = moved(bucket.params, places[0])
    weight = None if bucket.weight is None else moved(bucket.weight, places[1])
    moved_bucket = dataclasses.replace(bucket, params=params, weight=weight, weight_flat=None)
    return moved_bucket, memories


@each_source
@pytest.mark.parametrize("places", [(1, 2), (8, 4), (8, 1)], ids=str)
def test_odd_addresses_give_the_same_bits(backend, places, dtype, master, grad_dtype):  # noqa: F811
    buckets = [small_bucket(RULES["adamw"], dtype, master, "int8") for _ in range(2)]
    rows = rows_of(buckets[0].rule, index_of(Operation.step, master))
    around = []
    for k, kernels in enumerate((backend, specification)):
        buckets[k], memories = at_odd_addresses(buckets[k], places)
        kernels.Kernels(buckets[k]).step(random_gradients(grad_dtype), rows, FACTOR, True)
        around.append(memories)
    assert_same_buckets(buckets)
    for got, want in zip(*around, strict=True):
        assert_same_bits("memory", got, want)


@each_moments
def test_what_belongs_to_neighbours_survives(moments):
    numels = (100, 3, 70, 64)  # the last one has no gradient
    buckets = [small_bucket(RULES["adamw"], BFLOAT16, "rest", moments, numels) for _ in range(2)]
    before = [tensor.clone() for tensor in tensors_of(buckets[0])[len(numels) :]]
    rows, grads = rows_of(buckets[0].rule, [[1] * 4, [0] * 4]), random_gradients(BFLOAT16, numels)
    for kernels, bucket in zip((triton, specification), buckets, strict=True):
        kernels.Kernels(bucket).step(grads, rows, FACTOR, True)
    assert_same_buckets(buckets)
    for flat, old in zip(tensors_of(buckets[0])[len(numels) :], before, strict=True):
        of_last = slice(-len(flat) // 6, None)  # it has one block of six
        assert torch.equal(flat[of_last], old[of_last])


# Counts on the device.


@pytest.mark.parametrize("operation", Operation, ids=name_of)
@pytest.mark.parametrize(
    "rule", [*(RULES[name] for name in ("adamw", "sgd", "vradam")), AVERAGED["adamw"]], ids=label
)
def test_advance_equals_the_specification(rule, operation):
    rule = stored(rule, "int8")
    got, want = (random_ledger(rule, hyper_of(rule), SHARES[1]) for _ in range(2))
    bucket = small_bucket(rule.rule, FLOAT32, "backup", "int8", [3])
    triton.Kernels(bucket).advance(got, operation, None)
    torch_ledger.advance(rule, want, operation, None, torch.zeros((), dtype=torch.int64))
    assert_same_bits("index", got.rows.index, want.rows.index)
    assert_same_bits("steps", got.steps, want.steps)
    if operation is not Operation.restore:
        num_step = len(rule.Step._fields)
        of_ledgers = [used_rows(ledger, num_step, operation in STEPS) for ledger in (got, want)]
        for rows, wanted in zip(*of_ledgers, strict=True):
            assert_same_bits("rows", rows, wanted)


@each_moments
@pytest.mark.parametrize(
    "dtype, options",
    [
        (FLOAT16, {}),
        (BFLOAT16, {"backup": False, "master": "split"}),
        (FLOAT32, {"backup": False, "ema": 0.3}),
    ],
    ids=str,
)
@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("waits", [True, False], ids=["counts-on-host", "counts-on-device"])
def test_optimizers_equal_the_specification(waits, dtype, options, moments, generator, monkeypatch):
    monkeypatch.setattr(layout, "host_must_not_wait", lambda device: not waits)
    pair = Twins(
        lambda: random_parameters([5, 2048, 300], dtype), amp=True, moments=moments, **options
    )
    for void, missing in [(0.0, 1), (1.0, 2), (0.0, None)]:
        grads = [wide(param.shape, dtype, generator) for param in pair.params]
        pair.set_grads([None if i == missing else grad for i, grad in enumerate(grads)])
        for optimizer in pair.by_backend.values():
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(void), torch.tensor(4.0)
        pair.run(WPAdamW.step)
    pair.run(WPAdamW.restore)
    pair.run(WPAdamW.predict)
    assert pair.by_backend["triton"].weights_are == "predicted"
