"""The Triton kernels in the interpreter equal the specification bit for bit."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import types

import helpers
import numpy
import pytest
import torch
from helpers import COPIES, TRACKED, Twins, kinds_and, load_mid_training, random_parameters, wide
from rule_table import RULES
from test_backend_layouts import GuardedTwins

import wpadamw
from wpadamw import WPAdamW, layout
from wpadamw._backends import triton

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not IS_INTERPRETED, reason="TRITON_INTERPRET is not 1")

# The interpreter of some versions takes arrays of one element for numbers, which NumPy deprecates.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning:triton\."
)

# Around a chunk.
NUMELS = [0, 1, 17, 2047, 2048, 2049]

OPTIONS = {
    "backup": {},
    "no-backup": {"backup": False, "prediction_steps": 2.5, "weight_decay": 0.3},
    "amsgrad": {"amsgrad": True, "maximize": True},
    "amsgrad-no-backup": {"amsgrad": True, "backup": False},
    "averages": {"ema": 0.3},
    "averages-no-backup": {"ema": 0.3, "backup": False},
    "tracked": TRACKED["tracked"],
    "tracked-no-backup": TRACKED["tracked-no-backup"],
}
ROLLOUTS = {
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5},
    "rollout-no-backup": {"prediction": "rollout", "prediction_steps": 1.5, "backup": False},
    "tracked-rollout": TRACKED["tracked-rollout"],
    "rollout-averages": {"prediction": "rollout", "prediction_steps": 1.5, "ema": 0.3},
}
# The interpreter truncates where it should round to bfloat16.
EXACT_COPIES = {
    **{name: options for name, options in COPIES.items() if "bfloat16" not in name},
    "rollout-copies": {"prediction": "rollout", "compute_dtype": torch.float16},
}
# With counts on the device. Float64 has copies of float64 alone.
COUNTED = [
    *itertools.product([torch.float32, torch.float64], [*OPTIONS.values(), *ROLLOUTS.values()]),
    *[(torch.float32, options) for options in EXACT_COPIES.values()],
    (torch.float64, {"compute_dtype": torch.float64}),
]


def release(package):
    return tuple(map(int, importlib.metadata.version(package).split(".")[:2]))


@pytest.fixture
def on_cpu(monkeypatch):
    """Backend triton serves CPU tensors, and is the twin of backend torch."""
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip("the interpreter of Triton before 3.7 needs NumPy before 2.4")
    by_device = {**wpadamw._backends._BY_DEVICE, "cpu": (triton, wpadamw._backends.torch)}
    monkeypatch.setattr(wpadamw._backends, "_BY_DEVICE", by_device)
    monkeypatch.setattr(triton, "why_not", lambda device_type: None)
    monkeypatch.setattr(helpers, "BACKENDS", ("triton", "torch"))
    with numpy.errstate(all="ignore"):  # the interpreter divides by zero where kernels may
        yield


def exact_kinds_and_options():
    every = kinds_and({**OPTIONS, **EXACT_COPIES})
    return [each for each in every if each.values[0] != torch.bfloat16]


@interpreted
@pytest.mark.parametrize("dtype, grad_dtype, options", exact_kinds_and_options())
def test_triton_equals_the_specification(dtype, grad_dtype, options, on_cpu, generator):
    pair = Twins(lambda: random_parameters(NUMELS, dtype), lr=0.01, **options)
    pair.run(lambda optimizer: load_mid_training(optimizer, 10))
    pair.run_everything(generator, grad_dtype)


@interpreted
@pytest.mark.parametrize("options", ROLLOUTS.values(), ids=ROLLOUTS)
def test_rollouts_equal_the_specification(options, on_cpu, generator):
    pair = Twins(lambda: random_parameters(NUMELS, torch.float32), **options)
    pair.run_everything(generator, torch.float32)


@interpreted
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_triton_equals_the_specification_for_every_rule(case, on_cpu, generator):
    pair = Twins(
        lambda: random_parameters([5, 2049], torch.float32),
        make=case.make,
        **{**case.options, "backup": False},
    )
    pair.run_everything(generator, torch.float32)


@interpreted
@pytest.mark.parametrize("offset", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_neighbours_of_parameters_at_odd_addresses_survive(dtype, offset, on_cpu, generator):
    pair = GuardedTwins([1, 33, 2048, 2051], dtype, offset)
    pair.run_everything(generator, dtype)


@interpreted
@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("options", EXACT_COPIES.values(), ids=EXACT_COPIES)
def test_copies_of_parameters_at_odd_addresses_get_the_same_bits(
    options, offset, on_cpu, generator
):
    pair = GuardedTwins([1, 33, 2048, 2051], torch.float32, offset, **options)
    pair.run_everything(generator, torch.float32)


@interpreted
@pytest.mark.parametrize("offset", [1, 4])
def test_gradients_at_odd_addresses_give_the_same_bits(offset, on_cpu, generator):
    pair = Twins(lambda: random_parameters([2048, 4096], torch.float32))
    buffers = [wide(param.numel() + offset, torch.float32, generator) for param in pair.params]
    pair.set_grads([buffer[offset:] for buffer in buffers])
    pair.run(WPAdamW.step)


@interpreted
@pytest.mark.parametrize("options", [*OPTIONS.values(), *EXACT_COPIES.values()], ids=str)
def test_parameters_without_a_gradient_are_left_alone(options, on_cpu, generator):
    pair = Twins(lambda: random_parameters([5, 2048, 100, 3000], torch.float32), **options)
    for missing in [{1}, {0, 3}, set(), {0, 1, 2}]:  # counts, and so scalars, come to differ
        grads = [wide(param.shape, torch.float32, generator) for param in pair.params]
        pair.set_grads([None if i in missing else grad for i, grad in enumerate(grads)])
        pair.run(WPAdamW.step)
    pair.run(WPAdamW.restore)


@interpreted
def test_gradients_of_several_dtypes_give_the_same_bits(on_cpu, generator):
    pair = Twins(lambda: random_parameters([5, 33, 2048], torch.float64))
    dtypes = [torch.float32, torch.float64, torch.float32]
    for _ in range(2):
        params = zip(pair.params, dtypes, strict=True)
        pair.set_grads([wide(param.shape, dtype, generator) for param, dtype in params])
        pair.run(WPAdamW.step)


@interpreted
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_special_numbers_give_the_same_bits(options, on_cpu):
    nan, inf = float("nan"), float("inf")
    special = [0.0, -0.0, 1e-45, -1e-40, 1e-30, 1.0, 1e30, -inf, inf, nan]
    pair = Twins(lambda: random_parameters([len(special)], torch.float32), **options)
    for shift in range(3):
        pair.set_grads([torch.tensor(special).roll(shift)])
        pair.run(WPAdamW.step)
    pair.run(WPAdamW.restore)


@interpreted
@pytest.mark.parametrize("dtype, options", COUNTED, ids=str)
def test_counts_on_the_device_give_the_same_bits(options, dtype, on_cpu, generator, monkeypatch):
    monkeypatch.setattr(layout, "host_must_not_wait", lambda device: True)
    pair = Twins(lambda: random_parameters([5, 2048, 300], dtype), amp=True, **options)
    for void, missing in [(0.0, 1), (1.0, 2), (0.0, None), (0.0, 0)]:
        grads = [wide(param.shape, dtype, generator) for param in pair.params]
        pair.set_grads([None if i == missing else grad for i, grad in enumerate(grads)])
        for optimizer in pair.by_backend.values():
            optimizer.found_inf, optimizer.grad_scale = torch.tensor(void), torch.tensor(4.0)
        pair.run(WPAdamW.step)
    pair.run(WPAdamW.restore)
    pair.run(WPAdamW.predict)


# Where the backend is missing.


@pytest.fixture
def why_not_with(monkeypatch):
    """The reason on a machine with a CUDA device and this module in the place of triton."""

    def reason(module):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setitem(sys.modules, "triton", module)
        triton._kernels.cache_clear()
        return triton.why_not("cuda")

    yield reason
    triton._kernels.cache_clear()


def test_other_devices_are_not_served():
    assert triton.why_not("cpu") == "serves CUDA tensors only"


def test_a_missing_triton_is_the_reason(why_not_with):
    assert "triton cannot be imported" in why_not_with(None)


def test_an_old_triton_is_the_reason(why_not_with):
    old = types.SimpleNamespace(__version__="3.3.1")
    assert why_not_with(old) == "triton 3.3.1 is older than 3.4"


def test_a_broken_triton_is_the_reason(why_not_with):
    assert "triton cannot be imported" in why_not_with(types.SimpleNamespace())


def test_without_a_device_triton_is_not_imported():
    program = """
import json, sys, torch, wpadamw
torch.cuda.is_available = lambda: False
print(json.dumps([wpadamw.backends()["cuda"]["triton"], "triton" in sys.modules]))
"""
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == ["no CUDA device", False]
