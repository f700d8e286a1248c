"""What is stored in small formats has the same bits under every backend that runs here."""

from __future__ import annotations

import pytest
import torch
from helpers import TRACKED, Twins, load_mid_training, random_parameters, wide
from rule_table import RULES

import wpadamw
from wpadamw import WPAdamW
from wpadamw.rules.summing import CHUNK_NUMEL

BACKENDS = ("cuda", "cpp", "torch")
# Around a block of codes, a piece and a chunk, and several of these with a rest.
NUMELS = [3, 64, 65, 0, 511, CHUNK_NUMEL, CHUNK_NUMEL + 1, 3 * CHUNK_NUMEL + 77]

SPLIT = {"master": "split", "backup": False}
PLACES = {
    "float32": (torch.float32, {}),
    "float32-no-backup": (torch.float32, {"backup": False}),
    "bfloat16": (torch.bfloat16, {}),
    "float16": (torch.float16, {}),
    "split": (torch.bfloat16, SPLIT),
    "none": (torch.bfloat16, {"master": "none", "backup": False}),
}
STORED = [
    pytest.param(dtype, {**place, "moments": moments}, id=f"{name}-{moments}")
    for name, (dtype, place) in PLACES.items()
    for moments in ("float32", "bfloat16", "int8")
    if moments != "float32" or name in ("split", "none")
]
FORMATS = ("bfloat16", "int8")


@pytest.fixture(autouse=True)
def _on_host(cuda_on_host):
    """Backend cuda runs on the host."""


def twins(dtype, numels=NUMELS, **options):
    return Twins(lambda: random_parameters(numels, dtype), backends=BACKENDS, lr=0.01, **options)


@pytest.mark.parametrize("grad_dtype", [torch.float32, None], ids=["float32-grads", "own-grads"])
@pytest.mark.parametrize("dtype, options", STORED)
def test_training_from_a_checkpoint(dtype, options, grad_dtype, generator):
    pair = twins(dtype, **options)
    pair.run(lambda optimizer: load_mid_training(optimizer, 1000))
    pair.run_everything(generator, grad_dtype or dtype)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("moments", FORMATS)
def test_training_from_the_first_step(moments, num_threads, generator):
    pair = twins(torch.bfloat16, **SPLIT, moments=moments)
    for _ in range(5):
        pair.set_random_grads(generator, torch.bfloat16)
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        pair.run(WPAdamW.step)
        torch.set_num_threads(before)


@pytest.mark.parametrize("moments", FORMATS)
@pytest.mark.parametrize("name", RULES)
def test_every_rule(name, moments, generator):
    case = RULES[name]
    for dtype, place in (PLACES["float32"], PLACES["split"], PLACES["none"]):
        if not place.get("backup", True) and not case.rule().can_recover():
            continue
        pair = Twins(
            lambda dtype=dtype: random_parameters([700, 64, 5], dtype),
            make=case.make,
            backends=BACKENDS,
            moments=moments,
            **place,
        )
        for _ in range(3):
            pair.set_random_grads(generator, dtype)
            pair.run(type(pair.by_backend["torch"]).step)
        pair.run(type(pair.by_backend["torch"]).restore)


@pytest.mark.parametrize("options", TRACKED.values(), ids=TRACKED)
@pytest.mark.parametrize("moments", FORMATS)
def test_tracked_steps(moments, options, generator):
    pair = twins(torch.float32, moments=moments, **options)
    pair.run_everything(generator, torch.float32)


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("moments", FORMATS)
def test_rules_that_sum(moments, scope, generator):
    pair = Twins(
        lambda: random_parameters(NUMELS, torch.bfloat16),
        make=wpadamw.WPVRAdam,
        backends=BACKENDS,
        norm_scope=scope,
        moments=moments,
        **SPLIT,
    )
    for _ in range(3):
        pair.set_random_grads(generator, torch.bfloat16)
        pair.run(wpadamw.WPVRAdam.step)


@pytest.mark.parametrize("moments", FORMATS)
@pytest.mark.parametrize(
    "options", [{"prediction": "rollout", "prediction_steps": 2.5}, {"ema": 0.3}]
)
def test_rows_of_other_widths(moments, options, generator):
    for dtype, place in (PLACES["float32-no-backup"], PLACES["split"], PLACES["bfloat16"]):
        pair = twins(dtype, moments=moments, **place, **options)
        pair.run_everything(generator, dtype)


@pytest.mark.parametrize("moments", FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_predictions_in_copies(dtype, moments, generator):
    pair = twins(torch.float32, compute_dtype=dtype, moments=moments)
    pair.run_everything(generator, torch.float32)


@pytest.mark.parametrize("moments", FORMATS)
def test_parameters_of_different_counts_and_without_gradients(moments, generator):
    pair = twins(torch.bfloat16, **SPLIT, moments=moments)
    for missing in (0, 5, 7, None):
        grads = [wide(param.shape, torch.bfloat16, generator) for param in pair.params]
        if missing is not None:
            grads[missing] = None
        pair.set_grads(grads)
        pair.run(WPAdamW.step)
    pair.run(WPAdamW.restore)
    pair.run(WPAdamW.predict)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, 1e-42, 3e38])
@pytest.mark.parametrize("moments", FORMATS)
def test_special_gradients(moments, value, generator):
    for dtype, place in (PLACES["float32"], PLACES["split"]):
        pair = twins(dtype, [200, 64], moments=moments, **place)
        grads = [wide(param.shape, torch.float32, generator) for param in pair.params]
        grads[0][70], grads[1][:] = value, value
        for _ in range(3):
            pair.set_grads([grad.to(dtype) for grad in grads])
            pair.run(WPAdamW.step)
        pair.run(WPAdamW.restore)


def test_the_host_does_not_know_the_counts(generator, monkeypatch):
    monkeypatch.setattr("wpadamw.layout.host_must_not_wait", lambda device: True)
    backends = ("cuda", "torch")
    for moments in FORMATS:
        pair = Twins(
            lambda: random_parameters(NUMELS, torch.bfloat16),
            backends=backends,
            capturable=True,
            ema=0.2,
            moments=moments,
            **SPLIT,
        )
        pair.run_everything(generator, torch.bfloat16)
        plans = [
            optimizer._plans.of(optimizer.param_groups[0]) for optimizer in pair.by_backend.values()
        ]
        assert all(bucket.counts_on_device for plan in plans for bucket in plan.buckets)
