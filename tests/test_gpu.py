"""Every backend for CUDA tensors gives the bits of the specification and of the CPU's loop."""

from __future__ import annotations

import copy
import gc
import itertools

import gpu_training
import pytest
import torch
from gpu_training import KERNELS, kernels_of, skip_unless_present, trio
from helpers import (
    BACKUPS,
    COPIES,
    KINDS,
    PLACES,
    Twins,
    assert_same_bits,
    assert_same_training,
    kinds_and,
    parameters_of,
    random_parameters,
    set_grad,
    wide,
)

import wpadamw
from wpadamw import WPAdamW
from wpadamw._backends import cuda

pytestmark = pytest.mark.gpu

# Around 16-byte accesses and the 2,048 elements of a block.
NUMELS = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 127, 128, 129, 2047, 2048, 2049, 3 * 2048 + 13]
# A prime of many blocks, the last of them ragged.
LARGE = 300_007

OPTIONS = {
    "defaults": {},
    "no-backup": {"backup": False},
    "amsgrad": {"amsgrad": True},
    "amsgrad-no-backup": {"amsgrad": True, "backup": False},
    "maximize": {"maximize": True},
    "far-lookahead": {"prediction_steps": 2.5, "weight_decay": 0.3},
    "far-lookahead-no-backup": {"prediction_steps": 2.5, "weight_decay": 0.3, "backup": False},
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5, "weight_decay": 0.3},
    "rollout-no-backup": {"prediction": "rollout", "prediction_steps": 2.5, "backup": False},
    "undecayed-prediction": {"predict_decay": False, "weight_decay": 0.3},
    "predict-apart": {"predict_in_step": False},
    **COPIES,
    "rollout-copies": {"prediction": "rollout", "compute_dtype": torch.bfloat16},
}
GUARD = 7.0


@pytest.fixture(params=KERNELS)
def backend(request):
    skip_unless_present(request.param)
    return request.param


# The same table as on the CPU.


@pytest.mark.parametrize("step", [0, 1000], ids=["from-zero", "from-step-1000"])
@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(OPTIONS))
def test_kernels_equal_the_specification_and_the_cpu(
    backend, dtype, grad_dtype, options, step, generator
):
    trio(backend, NUMELS, dtype, step, **options).run_everything(generator, grad_dtype)


@pytest.mark.parametrize("numel", [1, 17, 2049, LARGE])
@pytest.mark.parametrize("dtype, grad_dtype", KINDS.values(), ids=KINDS)
def test_a_single_tensor_gets_the_same_bits(backend, dtype, grad_dtype, numel, generator):
    trio(backend, [numel], dtype, 1000).run_everything(generator, grad_dtype)


@pytest.mark.parametrize("options", BACKUPS.values(), ids=BACKUPS)
def test_a_thousand_tensors_get_the_same_bits(backend, options, generator):
    numels = [17 * i % 1001 for i in range(1000)]
    result = trio(backend, numels, torch.float32, **options)
    result.set_random_grads(generator, torch.float32)
    result.run(WPAdamW.step)


def test_gradients_of_several_dtypes_get_the_same_bits(backend, generator):
    result = trio(backend, [5, 33, 64, 3000], torch.float32, 10)
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    for _ in range(3):
        params = zip(result.params, dtypes, strict=True)
        result.set_grads([wide(param.shape, dtype, generator) for param, dtype in params])
        result.run(WPAdamW.step)


# Which parameters take part.


@pytest.mark.parametrize("options", BACKUPS.values(), ids=BACKUPS)
def test_missing_gradients_and_counts_per_parameter_get_the_same_bits(backend, options, generator):
    result = trio(backend, [3000, 17, 64, 5], torch.float32, **options)
    for chosen in ([1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1]):
        grads = [wide(param.shape, torch.float32, generator) for param in result.params]
        result.set_grads([g if keep else None for g, keep in zip(grads, chosen, strict=True)])
        for optimizer in result.by_backend.values():
            optimizer.param_groups[0]["lr"] /= 1.5
        result.run(WPAdamW.step)
    result.run(WPAdamW.restore)
    result.run(WPAdamW.predict)


def test_one_group_may_hold_parameters_of_the_gpu_and_of_the_cpu(backend, generator):
    values = random_parameters([100, 3000], torch.float32)
    mixed = [torch.nn.Parameter(values[0].detach().to(gpu_training.DEVICE)), values[1]]
    alone = random_parameters([100, 3000], torch.float32)
    optimizers = [WPAdamW(mixed), WPAdamW(alone, backend="torch")]
    for _ in range(3):
        grads = [wide(param.shape, torch.float32, generator) for param in alone]
        for param, grad in zip([*mixed, *alone], grads * 2, strict=True):
            param.grad = grad.to(param.device)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_training(*optimizers)


# Addresses.


class Guarded:
    """Parameters, and gradients, inside larger buffers and at odd addresses."""

    def __init__(self, offset):
        self.offset, self.buffers = offset, []

    def inside(self, values):
        numel = values.numel()
        buffer = torch.full((numel + 64,), GUARD, dtype=values.dtype, device=gpu_training.DEVICE)
        assert buffer.data_ptr() % 64 == 0
        buffer[self.offset : self.offset + numel] = values.detach().to(buffer.device)
        self.buffers.append((buffer, numel))
        return buffer[self.offset : self.offset + numel]

    def assert_guards_survive(self):
        for buffer, numel in self.buffers:
            before, after = buffer[: self.offset], buffer[self.offset + numel :]
            assert (before == GUARD).all() and (after == GUARD).all()


@pytest.mark.parametrize("offsets", [(0, 1), (1, 0), (1, 1), (2, 3), (3, 2), (4, 8)], ids=str)
@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(PLACES))
def test_odd_addresses_change_no_bit_and_no_neighbour(
    backend, dtype, grad_dtype, options, offsets, generator
):
    numels = [1, 15, 32, 33, 129, 2049]
    of_params, of_grads = map(Guarded, offsets)

    def make_params():
        return [torch.nn.Parameter(of_params.inside(v)) for v in random_parameters(numels, dtype)]

    result = Twins(
        make_params, backends=(backend, "torch"), device=gpu_training.DEVICE, lr=0.01, **options
    )
    for action in (WPAdamW.predict, WPAdamW.restore):
        result.set_grads([of_grads.inside(wide(n, grad_dtype, generator)) for n in numels])
        result.run(WPAdamW.step)
        result.run(action)
    of_params.assert_guards_survive()
    of_grads.assert_guards_survive()


def test_gradients_at_places_that_change_get_the_same_bits(backend, generator):
    result = trio(backend, [5, 3000], torch.float32)
    kept = []  # so that every gradient has a place of its own
    for _ in range(5):
        result.set_random_grads(generator, torch.float32)
        kept += [p.grad for opt in result.by_backend.values() for p in parameters_of(opt)]
        result.run(WPAdamW.step)


# Size. A parameter of 2^31 elements and more: what is beyond the reach of 32-bit indices.

HUGE = 2**31 + 64
SLICES = [slice(0, 1000), slice(2**30 - 300, 2**30 + 300), slice(2**31 - 500, HUGE)]
# bfloat16 parameter and gradient, three float32 flat buffers, and a temporary one.
HUGE_BYTES = HUGE * (2 + 2 + 4 * 4) + 2**30


def train_huge(backend):
    """Two steps and the way back, and the same for parameters that are slices of the first."""
    made = torch.Generator(gpu_training.DEVICE).manual_seed(3)
    options = {"generator": made, "dtype": torch.bfloat16, "device": gpu_training.DEVICE}
    param = torch.nn.Parameter(torch.randn(HUGE, **options))
    param.grad = torch.randn(HUGE, **options)
    parts = [torch.nn.Parameter(param.detach()[part].clone()) for part in SLICES]
    for part, where in zip(parts, SLICES, strict=True):
        part.grad = param.grad[where].clone()
    whole, cut = WPAdamW([param], backend=backend), WPAdamW(parts, backend="torch")
    for action in (WPAdamW.step, WPAdamW.step, WPAdamW.restore, WPAdamW.predict):
        action(whole)
        action(cut)
        for part, where in zip(parts, SLICES, strict=True):
            assert_same_bits(f"params[{where}]", param.detach()[where], part)
            for name in ("weight", "exp_avg", "exp_avg_sq"):
                got, want = whole.state[param][name][where], cut.state[part][name]
                assert_same_bits(f"{name}[{where}]", got, want)


def test_more_than_two_to_the_31_elements_in_one_bucket():
    # One test for all backends: in parallel they would not fit.
    free, _ = torch.cuda.mem_get_info()
    if free < HUGE_BYTES:
        pytest.skip(f"needs {HUGE_BYTES >> 30} GiB of free GPU memory, got {free >> 30} GiB")
    present = [name for name in KERNELS if wpadamw.backends()["cuda"][name] is None]
    for name in present:
        train_huge(name)
        gc.collect()  # optimizers are reference cycles
        torch.cuda.empty_cache()
    assert present


def test_models_larger_than_what_is_compared_at_once_get_the_same_bits(backend, generator):
    numels = [2**20] * 12 + [17] * 9
    result = trio(backend, numels, torch.float32)
    for _ in range(2):
        result.run_everything(generator, torch.float32)


# Time.


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float32-with-bfloat16-grad"])
@pytest.mark.parametrize("options", BACKUPS.values(), ids=BACKUPS)
def test_a_thousand_steps_stay_equal(backend, kind, options, generator):
    dtype, grad_dtype = KINDS[kind]
    if dtype is torch.bfloat16 and options:
        pytest.skip("bfloat16 parameters need a backup")
    result = trio(backend, [5, 64, 2049], dtype, lr=1e-3, **options)
    for step in range(1, 1001):
        result.set_random_grads(generator, grad_dtype)
        for optimizer in result.by_backend.values():
            optimizer.step()
        if step % 100 == 0:
            result.compare()
    assert all(param.isfinite().all() for param in result.params)


def placed_like(params, backend, **options):
    """An optimizer over copies of parameters, on the device that a backend serves."""
    device = "cpu" if backend == "cpp" else gpu_training.DEVICE
    copies = [torch.nn.Parameter(param.detach().to(device, copy=True)) for param in params]
    return WPAdamW(copies, backend=backend, lr=0.1, **options)


def train_side_by_side(optimizers, num_steps, generator):
    for _ in range(num_steps):
        params = zip(*map(parameters_of, optimizers), strict=True)
        for same in params:
            grad = wide(same[0].shape, torch.float32, generator)
            for param in same:
                set_grad(param, grad.to(param.device))
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_a_run_may_move_between_gpu_and_cpu(backend, mode, generator):
    options = {"predict_in_step": mode == "predicted"}
    values = random_parameters([33, 3000], torch.float32)
    started = [placed_like(values, name, **options) for name in (backend, "cpp")]
    train_side_by_side(started, 3, generator)
    changed = [
        placed_like(parameters_of(optimizer), name, **options)
        for optimizer, name in zip(started, ("cpp", backend), strict=True)
    ]
    for new, old in zip(changed, started, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    everything = [*started, *changed]
    train_side_by_side(everything, 3, generator)
    for one, other in itertools.pairwise(everything):
        assert_same_training(one, other)


# Which backend runs, and what it says.


def test_auto_takes_the_cuda_kernels_and_all_backends_serve():
    report = wpadamw.backends()["cuda"]
    assert next(iter(report)) == "cuda"
    assert set(report.values()) == {None}, report
    optimizer = WPAdamW([gpu_training.parameter(torch.ones(3))])
    optimizer.step()
    assert all(isinstance(kernels, cuda.Kernels) for kernels in kernels_of(optimizer))


def test_training_prints_nothing(backend, capfd, generator):
    result = Twins(
        lambda: random_parameters([5, 3000], torch.float32),
        backends=(backend, "torch"),
        device=gpu_training.DEVICE,
    )
    result.run_everything(generator, torch.float32)
    assert capfd.readouterr() == ("", "")
