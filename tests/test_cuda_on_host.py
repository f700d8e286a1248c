"""The CUDA kernels' own source, run on the host, equals the specification bit for bit.

Launches are loops over blocks and threads (tests/cuda_on_host), so that chunks, tails, addresses
and tables are executed on machines without a GPU.
"""

from __future__ import annotations

import dataclasses

import helpers
import pytest
import torch
from helpers import (
    PLACES,
    TRACKED,
    Twins,
    kinds_and,
    load_mid_training,
    random_parameters,
    wide,
)

# The tables of the CPU backend, collected here once more for this one.
from test_backend_layouts import (  # noqa: F401
    test_neighbours_of_parameters_at_odd_addresses_survive,
)
from test_backend_rounding import (  # noqa: F401
    test_special_numbers_in_the_state_have_equal_effects,
    test_special_numbers_touch_their_own_element_only,
)
from test_backends import (  # noqa: F401
    test_backends_stay_equal_through_200_random_operations,
    test_kernels_equal_the_specification,
    test_kernels_equal_the_specification_for_a_single_tensor,
    test_kernels_equal_the_specification_for_every_rule,
    test_kernels_equal_the_specification_with_gradients_of_several_dtypes,
)

from wpadamw import WPAdamW, compare
from wpadamw._backends import device_table
from wpadamw._backends.device_table import chunk_table
from wpadamw.rules.summing import CHUNK_NUMEL

# Around the elements of one block, and several blocks.
NUMELS = [CHUNK_NUMEL - 1, CHUNK_NUMEL, 0, CHUNK_NUMEL + 1, 2 * CHUNK_NUMEL, 3 * CHUNK_NUMEL + 13]


@pytest.fixture(autouse=True)
def _on_host(cuda_on_host, monkeypatch):
    monkeypatch.setattr(helpers, "BACKENDS", ("cuda", "torch"))


def twins(numels, dtype, **options):
    return Twins(lambda: random_parameters(numels, dtype), lr=0.01, **options)


# Chunks.


@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(PLACES))
def test_tensors_of_several_chunks(dtype, grad_dtype, options, generator):
    pair = twins(NUMELS, dtype, **options)
    pair.run(lambda optimizer: load_mid_training(optimizer, 1000))
    pair.run_everything(generator, grad_dtype)


@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(TRACKED))
def test_tracked_steps(dtype, grad_dtype, options, generator):
    pair = twins(NUMELS, dtype, **options)
    pair.run(lambda optimizer: load_mid_training(optimizer, 1000))
    pair.run_everything(generator, grad_dtype)


def test_the_chunk_size_is_the_kernels_own(cuda_on_host):
    assert cuda_on_host.cuda.chunk_numel == CHUNK_NUMEL


def tensors_of_a_bucket(numels, dtype, **options):
    optimizer = WPAdamW(random_parameters(numels, dtype), backend="torch", **options)
    for param in helpers.parameters_of(optimizer):
        param.grad = torch.zeros_like(param)
    optimizer.step()
    (plan,) = optimizer._plans.by_group.values()
    return plan.buckets[0].tensors


def address_in(tensor, begin):
    return tensor.data_ptr() + begin * tensor.element_size()


CHUNKED = {
    "backup": (torch.bfloat16, {}),
    "no-backup": (torch.float32, {"backup": False}),
    "copies": (torch.float32, {"compute_dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("dtype, options", CHUNKED.values(), ids=CHUNKED)
@pytest.mark.parametrize("numels", [[0], [1], NUMELS, [5] * 1000], ids=len)
def test_chunks_cover_every_element_once(numels, dtype, options):
    tensors = tensors_of_a_bucket(numels, dtype, **options)
    covered = [0] * len(numels)
    for param, weight, offset, begin, packed in chunk_table(tensors).tolist():
        tensor, numel = packed & 0xFFFFFFFF, packed >> 32
        assert 0 < numel <= CHUNK_NUMEL
        assert begin == covered[tensor]
        assert param == address_in(tensors.params[tensor], begin)
        assert weight == (address_in(tensors.weight[tensor], begin) if tensors.weight else 0)
        assert offset == tensors.offsets[tensor] + begin
        covered[tensor] += numel
    assert covered == numels


@dataclasses.dataclass
class Large:
    """Stands for a tensor of more than 2^31 elements."""

    address: int
    size: int

    def numel(self):
        return 2**31 + CHUNK_NUMEL + 1

    def data_ptr(self):
        return self.address

    def element_size(self):
        return self.size


@pytest.mark.parametrize("weight", [Large(1 << 50, 4), None], ids=["weights", "no-weights"])
def test_chunks_beyond_two_to_the_31_elements(weight):
    class Bucket:
        params, offsets = [Large(1 << 40, 2)], [0]

    Bucket.weight = weight and [weight]
    last = Bucket.params[0].numel() - 1
    *_, (param, address, offset, begin, packed) = chunk_table(Bucket).tolist()
    assert (begin, offset, packed >> 32) == (last, last, 1)
    assert param == (1 << 40) + 2 * last
    assert address == ((1 << 50) + 4 * last if weight else 0)


# Rows.


@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
def test_parameters_with_counts_and_predictions_of_their_own(backup, generator):
    pair = twins([3000, 17, 64, 5], torch.float32, backup=backup)
    for chosen in ([1, 1, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]):
        grads = [wide(param.shape, torch.float32, generator) for param in pair.params]
        pair.set_grads([g if keep else None for g, keep in zip(grads, chosen, strict=True)])
        pair.run(
            lambda optimizer: optimizer.param_groups[0].update(lr=0.5 * optimizer.defaults["lr"])
        )
        pair.run(WPAdamW.step)
    pair.run(WPAdamW.restore)
    pair.run(WPAdamW.predict)


@pytest.mark.parametrize("options", [{}, {"prediction": "rollout"}], ids=["linear", "rollout"])
def test_parameters_are_compared_in_windows(options, monkeypatch, generator):
    """A window of a large model holds few of its parameters, and has room for their rows alone."""
    fits = []
    place = device_table.DeviceTable.rows

    def watched(table, rows):
        fits.append(rows.scalars.numel() <= table.scalars.tensor.numel())
        return place(table, rows)

    monkeypatch.setattr(compare, "_capacity", lambda bucket: 128)
    monkeypatch.setattr(device_table.DeviceTable, "rows", watched)
    pair = twins([100, 60, 64, 300, 5, 17, 64], torch.float32, **options)
    for _ in range(3):
        pair.set_random_grads(generator, torch.float32)
        pair.run(WPAdamW.step)
        pair.run(WPAdamW.restore)
        pair.run(WPAdamW.predict)
    assert all(fits) and len(fits) > 6


def test_only_addresses_that_changed_are_uploaded(monkeypatch, generator):
    uploads = []
    copy = device_table.Upload._copy
    monkeypatch.setattr(
        device_table.Upload, "_copy", lambda self, *args: (uploads.append(self), copy(self, *args))
    )
    (param,) = random_parameters([100], torch.float32)
    optimizer = WPAdamW([param], backend="cuda")
    param.grad = wide(100, torch.float32, generator)
    optimizer.step()
    assert len(uploads) == 1  # the address; the scalars travel with the launch
    optimizer.step()
    param.grad = param.grad.detach()  # another object at the same address
    optimizer.step()
    assert len(uploads) == 1
    param.grad = param.grad.clone()
    optimizer.step()
    assert len(uploads) == 2


# One launch.


@pytest.mark.parametrize("action", [WPAdamW.step, WPAdamW.restore, WPAdamW.predict])
def test_one_launch_serves_a_bucket(action, cuda_on_host, monkeypatch, generator):
    params = random_parameters([7] * 50, torch.float32)
    optimizer = WPAdamW(params, backend="cuda")
    for param in params:
        param.grad = wide(7, torch.float32, generator)
    optimizer.step()
    if action is WPAdamW.predict:
        optimizer.restore()
    (plan,) = optimizer._plans.by_group.values()
    kernels, calls = plan.buckets[0].kernels, []

    class Counted:
        def __init__(self, bucket):
            self.bucket = bucket

        @property
        def completed(self):
            return self.bucket.completed

        @property
        def advanced(self):
            return self.bucket.advanced

        def run_row(self, *arguments):
            calls.append(arguments)
            self.bucket.run_row(*arguments)

    kernels.device_bucket = Counted(kernels.device_bucket)
    action(optimizer)
    assert len(calls) == 1


def test_wrong_sizes_are_refused_by_name(cuda_on_host):
    arguments = {"chunks": 0, "num_chunks": 0, "num_tensors": 0, "grads": 0, "has_weights": False}
    bucket = cuda_on_host.cuda.Bucket
    float32, step = cuda_on_host.DType.float32, cuda_on_host.Operation.step
    with pytest.raises(ValueError, match="rule must be a known name, got lion"):
        bucket("lion", float32, state=[0, 0], **arguments)
    with pytest.raises(ValueError, match="state must have 2 entries, got 3"):
        bucket("adamw", float32, state=[0, 0, 0], **arguments)
    empty = bucket("adamw", float32, state=[0, 0], **arguments)
    with pytest.raises(ValueError, match="num_rows must be <= 2, got 3"):
        empty.run_row(step, float32, 8, 3, 1.0, 0, 0, 0)
