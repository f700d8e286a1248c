"""Backend cpp equals the specification bit for bit, through the public optimizer."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from helpers import (
    BACKENDS,
    BACKUPS,
    COPIES,
    KINDS,
    PLACES,
    PinnedTable,
    Twins,
    assert_same_bits,
    assert_same_training,
    bucket_of,
    kinds_and,
    load_mid_training,
    missing_backends,
    needs_cpp,
    parameters_of,
    random_parameters,
    set_grad,
    wide,
)
from rule_table import RULES

import wpadamw
from wpadamw import WPAdamW
from wpadamw._backends import cpp
from wpadamw.records import no_rows
from wpadamw.rules.adamw import AdamW

pytestmark = needs_cpp

# Around the widths of vectors, of the loop's blocks, and of what a parameter is padded to.
NUMELS = [0, 1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
# A prime, and enough for a second thread.
LARGE = 100_003

OPTIONS = {
    "defaults": {},
    "no-backup": {"backup": False},
    "amsgrad": {"amsgrad": True},
    "amsgrad-no-backup": {"amsgrad": True, "backup": False},
    "maximize": {"maximize": True},
    "maximize-no-backup": {"maximize": True, "backup": False},
    "undecayed-prediction": {"predict_decay": False, "weight_decay": 0.3},
    "no-decay": {"weight_decay": 0.0},
    "no-lookahead": {"prediction_steps": 0.0},
    "far-lookahead": {"prediction_steps": 2.5, "weight_decay": 0.3},
    "far-lookahead-no-backup": {"prediction_steps": 2.5, "weight_decay": 0.3, "backup": False},
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5, "weight_decay": 0.3},
    "rollout-no-backup": {"prediction": "rollout", "prediction_steps": 2.5, "backup": False},
    "predict-apart": {"predict_in_step": False},
    "averages": {"ema": 0.3},
    "averages-no-backup": {"ema": 0.3, "backup": False},
    "averages-rollout-no-backup": {"ema": 0.3, "prediction": "rollout", "backup": False},
    **COPIES,
    "rollout-copies": {"prediction": "rollout", "compute_dtype": torch.bfloat16},
}
INSTRUCTION_SET_OPTIONS = {
    **PLACES,
    "amsgrad": {"amsgrad": True, "prediction_steps": 2.5},
    "amsgrad-no-backup": {"amsgrad": True, "backup": False},
    "averages": {"ema": 0.3},
    "averages-no-backup": {"ema": 0.3, "backup": False},
}
STEPS = {"from-zero": 0, "from-step-1": 1, "from-step-1000": 1000}


def twins(numels, dtype, step, **options):
    result = Twins(lambda: random_parameters(numels, dtype), lr=0.01, **options)
    if step:
        result.run(lambda optimizer: load_mid_training(optimizer, step))
    return result


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(OPTIONS))
def test_kernels_equal_the_specification(dtype, grad_dtype, options, step, generator):
    twins(NUMELS, dtype, step, **options).run_everything(generator, grad_dtype)


@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(PLACES))
def test_kernels_equal_the_specification_for_every_rule(
    dtype, grad_dtype, options, case, generator
):
    pair = twins(NUMELS, dtype, 10, make=case.make, **case.options, **options)
    pair.run_everything(generator, grad_dtype)


@pytest.mark.parametrize("numel", NUMELS)
@pytest.mark.parametrize("dtype, grad_dtype", KINDS.values(), ids=KINDS)
def test_kernels_equal_the_specification_for_a_single_tensor(dtype, grad_dtype, numel, generator):
    twins([numel], dtype, 1000).run_everything(generator, grad_dtype)


@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(PLACES))
def test_kernels_equal_the_specification_with_threads(
    dtype, grad_dtype, options, num_threads, generator
):
    twins([17, LARGE, 0, 33], dtype, 1000, **options).run_everything(generator, grad_dtype)


@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(INSTRUCTION_SET_OPTIONS))
def test_every_instruction_set_equals_the_specification(
    dtype, grad_dtype, options, instruction_set, generator
):
    twins(NUMELS, dtype, 1000, **options).run_everything(generator, grad_dtype)


def test_an_unknown_instruction_set_is_refused():
    param = torch.zeros(3)
    kernels = cpp.Kernels(bucket_of(param, weight=torch.ones(3)))
    kernels.table = PinnedTable(kernels.table, "sse9")
    with pytest.raises(ValueError, match="sse9"):
        kernels.restore(no_rows(AdamW()))


def test_kernels_equal_the_specification_with_gradients_of_several_dtypes(generator):
    pair = twins([5, 33, 64, 100], torch.float32, 10)
    for _ in range(3):
        dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
        params = zip(pair.params, dtypes, strict=True)
        pair.set_grads([wide(param.shape, dtype, generator) for param, dtype in params])
        pair.run(WPAdamW.step)


@pytest.mark.parametrize("backend", BACKENDS)
def test_step_leaves_gradients_alone(backend, generator):
    params = random_parameters([5, 100], torch.float32)
    grads = [wide(param.shape, torch.float32, generator) for param in params]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    WPAdamW(params, maximize=True, backend=backend).step()
    for param, grad in zip(params, grads, strict=True):
        assert_same_bits("grad", param.grad, grad)


# Long random use.


class RandomUse:
    """Two groups of parameters, and one random thing after the other done to them."""

    def __init__(self, seed, dtype, grad_dtype, **options):
        self.dice = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.grad_dtype = grad_dtype
        self.twins = Twins(lambda: self.groups(dtype), lr=0.01, **options)

    @staticmethod
    def groups(dtype):
        params = random_parameters([1, 0, 33, 64, 130, 17], dtype)
        return [{"params": params[:4]}, {"params": params[4:], "lr": 0.1, "weight_decay": 0.2}]

    def once(self):
        prepare = self.dice.choice([self.step] * 4 + [self.change_mode, self.change_options])
        self.twins.run(prepare())

    def step(self):
        grads = [wide(param.shape, self.grad_dtype, self.generator) for param in self.twins.params]
        some = [grad if self.dice.random() < 0.8 else None for grad in grads]
        self.twins.set_grads(self.dice.choice([grads, some]))
        return WPAdamW.step

    def change_mode(self):
        return self.dice.choice([WPAdamW.predict, WPAdamW.restore, WPAdamW.train, WPAdamW.eval])

    def change_options(self):
        index = self.dice.randrange(2)
        options = {
            "lr": self.dice.choice([0.0, 1e-3, 0.1]),
            "betas": self.dice.choice([(0.9, 0.999), (0.0, 0.9), (0.5, 0.0)]),
            "prediction_steps": self.dice.choice([0.0, 1.0, 2.5]),
            "prediction": self.dice.choice(["linear", "rollout"]),
            "predict_decay": self.dice.random() < 0.5,
            "predict_in_step": self.dice.random() < 0.7,
        }
        known = self.twins._last.defaults
        key, value = self.dice.choice([item for item in options.items() if item[0] in known])
        return lambda optimizer: optimizer.param_groups[index].update({key: value})


@pytest.mark.parametrize(
    "kind, options",
    [
        pytest.param("float32", {}, id="float32"),
        pytest.param("float32", {"backup": False}, id="float32-no-backup"),
        pytest.param("float32", {"amsgrad": True, "maximize": True}, id="float32-amsgrad"),
        pytest.param("bfloat16-with-float32-grad", {}, id="bfloat16"),
        pytest.param("complex64", {"backup": False}, id="complex64-no-backup"),
    ],
)
def test_backends_stay_equal_through_200_random_operations(kind, options):
    use = RandomUse(1, *KINDS[kind], **options)
    for _ in range(200):
        use.once()
    assert all(param.isfinite().all() for param in use.twins.params)


@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_backends_stay_equal_through_random_operations_for_every_rule(case, backup):
    use = RandomUse(2, *KINDS["float32"], make=case.make, backup=backup, **case.options)
    for _ in range(60):
        use.once()
    assert all(param.isfinite().all() for param in use.twins.params)


# Changing the backend in mid-training.


def continue_with(optimizer, backend):
    """Another optimizer over copies of the parameters, with this one's state."""
    params = [torch.nn.Parameter(param.detach().clone()) for param in parameters_of(optimizer)]
    other = WPAdamW(params, backend=backend)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


def train(optimizer, seeds, grad_dtype):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for param in parameters_of(optimizer):
            set_grad(param, wide(param.shape, grad_dtype, generator))
        optimizer.step()


@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize("order", [BACKENDS, BACKENDS[::-1]], ids=["to-torch", "to-cpp"])
@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(BACKUPS))
def test_backend_may_change_in_mid_training(dtype, grad_dtype, options, order, mode):
    options = {"predict_in_step": mode == "predicted", **options}
    start = WPAdamW(random_parameters([3, 129, 64], dtype), lr=0.1, backend=order[0], **options)
    train(start, range(3), grad_dtype)
    assert start.weights_are == mode

    stayed, changed = continue_with(start, order[0]), continue_with(start, order[1])
    for optimizer in (start, stayed, changed):
        train(optimizer, range(3, 6), grad_dtype)

    assert_same_training(stayed, start)
    assert_same_training(changed, start)


# Which backend runs.


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backend_that_is_named_is_the_one_that_runs(backend, monkeypatch):
    calls = []
    for name in BACKENDS:
        kernels = getattr(wpadamw._backends, name).Kernels
        monkeypatch.setattr(kernels, "step", lambda *_, name=name: calls.append(name))
    (param,) = random_parameters([3], torch.float32)
    param.grad = torch.ones(3)
    WPAdamW([param], backend=backend).step()
    assert calls == [backend]


def test_a_backend_that_is_expected_and_missing_is_named_with_its_reason():
    report = {"cpu": {"cpp": "no compiler", "torch": None}, "cuda": {"torch": "no driver"}}
    assert missing_backends("", report) == []
    assert missing_backends("torch", report) == []
    assert missing_backends("cpp, torch", report) == ["backend cpp is missing: no compiler"]
    assert missing_backends("sycl", report) == [
        "backend sycl is missing: known are ['cpp', 'torch']"
    ]
