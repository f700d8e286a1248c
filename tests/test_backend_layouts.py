"""How parameters, gradients and buckets lie in memory changes no bit, on either backend."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from helpers import (
    BACKENDS,
    PLACES,
    Twins,
    assert_same_bits,
    kinds_and,
    needs_cpp,
    random_parameters,
    set_grad,
    wide,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from wpadamw import WPAdamW

pytestmark = needs_cpp

GUARD = 7.0
# More than what the CPU loop keeps in the cache: it writes these parameters past it.
STREAMED_BYTES = 9 << 20


# Odd addresses.


class Guarded:
    """Parameters inside larger buffers, ``offset`` elements from an aligned address."""

    def __init__(self, numels, dtype, offset):
        self.offset = offset
        self.buffers = []
        self.params = [self.inside(values) for values in random_parameters(numels, dtype)]

    def inside(self, values):
        buffer = torch.full((values.numel() + 64,), GUARD, dtype=values.dtype)
        assert buffer.data_ptr() % 64 == 0
        view = buffer[self.offset : self.offset + values.numel()]
        view.copy_(values.detach())
        self.buffers.append(buffer)
        return torch.nn.Parameter(view)

    def assert_guards_survive(self):
        for buffer, param in zip(self.buffers, self.params, strict=True):
            assert param.data_ptr() == buffer.data_ptr() + self.offset * param.element_size()
            before, after = buffer[: self.offset], buffer[self.offset + param.numel() :]
            assert (before == GUARD).all() and (after == GUARD).all()


class GuardedTwins(Twins):
    """The same training over guarded parameters."""

    def __init__(self, numels, dtype, offset, **options):
        self.guarded = []
        super().__init__(lambda: self.make(numels, dtype, offset), **options)

    def make(self, numels, dtype, offset):
        self.guarded.append(Guarded(numels, dtype, offset))
        return self.guarded[-1].params

    def run(self, action):
        super().run(action)
        for guarded in self.guarded:
            guarded.assert_guards_survive()


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(PLACES))
def test_neighbours_of_parameters_at_odd_addresses_survive(
    dtype, grad_dtype, options, offset, generator
):
    pair = GuardedTwins([1, 15, 32, 33, 129], dtype, offset, **options)
    pair.run_everything(generator, grad_dtype)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_parameters_too_large_for_the_cache_get_the_same_bits(
    dtype, offset, instruction_set, num_threads, generator
):
    pair = GuardedTwins([37, STREAMED_BYTES // dtype.itemsize + 19], dtype, offset)
    pair.set_random_grads(generator, torch.float32)
    pair.run(WPAdamW.step)


# Strides.


def channels_last(values):
    return values.reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)


def transposed(values):
    return values.reshape(10, 12).t().contiguous().t()


def permuted(values):
    return values.reshape(4, 5, 6).permute(2, 0, 1).contiguous().permute(1, 2, 0)


def gappy(values):
    holder = torch.zeros(10, 24, dtype=values.dtype)
    holder[:, ::2] = values.reshape(10, 12)
    return holder[:, ::2]


def odd_stride_of_a_dimension_of_one(values):
    return values.as_strided((1, 120), (7, 1))


LAYOUTS = {
    "contiguous": lambda values: values.reshape(2, 3, 4, 5),
    "channels-last": channels_last,
    "transposed": transposed,
    "permuted": permuted,
    "gappy": gappy,
    "odd-stride-of-a-dimension-of-one": odd_stride_of_a_dimension_of_one,
}


def reverse_dimensions(tensor):
    return tensor.permute(*reversed(range(tensor.ndim)))


GRAD_LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "like-the-parameter": lambda grad: grad,
    "gappy": lambda grad: torch.stack([grad, grad], dim=-1)[..., 0],
    "reversed": lambda grad: reverse_dimensions(reverse_dimensions(grad).contiguous()),
}


def train_with_layout(values, grads, layout, grad_layout, backend, **options):
    """Parameter and state after a few steps, in the order of ``values``."""
    param = torch.nn.Parameter(layout(values.clone()))
    optimizer = WPAdamW([param], lr=0.01, backend=backend, **options)
    for grad in grads:
        set_grad(param, grad_layout(layout(grad.clone())))
        optimizer.step()
        optimizer.restore()
    optimizer.predict()
    return {"param": param, **optimizer.state[param]}


def assert_layout_changes_no_bit(values, grads, layout, grad_layout, backend, **options):
    plain = train_with_layout(values, grads, torch.clone, torch.clone, "torch", **options)
    result = train_with_layout(values, grads, layout, grad_layout, backend, **options)
    for name, tensor in result.items():
        if name in ("step", "prediction"):
            assert_same_bits(name, tensor, plain[name])
        else:
            assert_same_bits(name, tensor, layout(plain[name].detach()))


@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=["float32", "complex64"])
@pytest.mark.parametrize("grad_layout", GRAD_LAYOUTS.values(), ids=GRAD_LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_change_no_bit(backend, layout, grad_layout, dtype, backup, generator):
    values, *grads = (wide(120, dtype, generator) for _ in range(4))
    assert_layout_changes_no_bit(values, grads, layout, grad_layout, backend, backup=backup)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_repeat_one_number_change_no_bit(backend, layout, generator):
    values = wide(120, torch.float32, generator)
    shape = layout(values).shape
    grad = torch.tensor(0.25)

    def expand(same_numbers):
        assert (same_numbers == grad).all()
        return grad.expand(shape)

    grads = [grad.expand(120)] * 2
    assert_layout_changes_no_bit(values, grads, layout, expand, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lazy", ["conjugate", "negative"])
def test_lazily_conjugate_and_negative_gradients_change_no_bit(backend, lazy, generator):
    values, grad = (wide(120, torch.complex64, generator) for _ in range(2))
    if lazy == "negative":
        values, grad = values.real.clone(), torch._neg_view(grad.real.clone())
        assert grad.is_neg()
    else:
        grad = grad.conj()
        assert grad.is_conj()
    plain = grad.resolve_conj().resolve_neg()
    want = train_with_layout(values, [plain], torch.clone, torch.clone, "torch")
    got = train_with_layout(values, [plain], torch.clone, lambda _: grad, backend)
    for name, tensor in got.items():
        assert_same_bits(name, tensor, want[name])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (0,), (0, 3), (3, 0, 2)], ids=str)
def test_scalar_and_empty_parameters_change_no_bit(backend, shape, generator):
    numel = torch.Size(shape).numel()
    values, *grads = (wide(numel, torch.float32, generator) for _ in range(3))
    layout = lambda tensor: tensor.reshape(shape)  # noqa: E731
    assert_layout_changes_no_bit(values, grads, layout, torch.clone, backend)


def test_parameters_with_gaps_leave_the_gaps_alone(generator):
    for backend in BACKENDS:
        holder = torch.full((10, 24), GUARD)
        holder[:, ::2] = wide((10, 12), torch.float32, generator)
        param = torch.nn.Parameter(holder[:, ::2])
        param.grad = wide((10, 12), torch.float32, generator)
        before = param.detach().clone()
        WPAdamW([param], backend=backend).step()
        assert (holder[:, 1::2] == GUARD).all()
        assert (param != before).all()
        assert_same_bits("holder", holder[:, ::2], param)


# How numbers are spread over parameters, groups and buckets.

NUMEL = 1000


@functools.cache
def train_whole(backup):
    return train_in_parts([], list, 1, "torch", backup=backup)


def train_in_parts(bounds, order, groups, backend, **options):
    """One vector, cut at ``bounds``; the parts in some order and spread over groups."""
    generator = torch.Generator().manual_seed(5)
    pairs = list(itertools.pairwise([0, *sorted(bounds), NUMEL]))

    def parts(flat):
        return [flat[begin:end].clone() for begin, end in pairs]

    params = [torch.nn.Parameter(part) for part in parts(wide(NUMEL, torch.float32, generator))]
    chosen = [params[i] for i in order(range(len(params)))]
    by_group = [{"params": chosen[k::groups]} for k in range(groups)]
    optimizer = WPAdamW(by_group, lr=0.01, backend=backend, **options)
    for _ in range(2):
        for param, grad in zip(params, parts(wide(NUMEL, torch.float32, generator)), strict=True):
            param.grad = grad
        optimizer.step()
    return [torch.cat([param.detach() for param in params])] + [
        torch.cat([optimizer.state[param][name] for param in params])
        for name in ("exp_avg", "exp_avg_sq")
    ]


@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40)
@given(
    bounds=st.lists(st.integers(0, NUMEL), max_size=12),
    order=st.sampled_from([list, lambda indices: list(reversed(indices))]),
    groups=st.integers(1, 3),
)
def test_cutting_regrouping_and_reordering_change_no_bit(backend, backup, bounds, order, groups):
    cut = train_in_parts(bounds, order, groups, backend, backup=backup)
    for name, got, want in zip(
        ("param", "exp_avg", "exp_avg_sq"), cut, train_whole(backup), strict=True
    ):
        assert_same_bits(name, got, want)


def test_dtypes_in_one_group_change_no_bit(generator):
    params = [
        torch.nn.Parameter(wide(70, dtype, generator))
        for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.complex64)
    ]
    alone = [torch.nn.Parameter(param.detach().clone()) for param in params]
    grads = [wide(70, param.dtype, generator) for param in params]
    for param, grad in zip(params + alone, grads * 2, strict=True):
        param.grad = grad
    WPAdamW(params, backend="cpp").step()
    for i, param in enumerate(alone):
        WPAdamW([param], backend="cpp").step()
        assert_same_bits(f"params[{i}]", params[i], param)
