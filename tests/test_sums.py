"""Sums over elements have one order: norms of gradients have the same bits, however asked for."""

from __future__ import annotations

import pytest
import torch
from helpers import BACKENDS, assert_same_bits, wide

from wpadamw import WPAdamW
from wpadamw.rules.squares import Squares
from wpadamw.rules.summing import in_order, total
from wpadamw.sums import GradientSums

NUMELS = (5, 3000, 0, 64, 100_003, 2048)


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    params = [torch.nn.Parameter(torch.zeros(numel, dtype=dtype)) for numel in NUMELS]
    for param in params:
        param.grad = wide(param.shape, dtype, generator)
    return params


def norm_of(groups, **options):
    return WPAdamW(groups, **options).clip_grad_norm_(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_norm_has_the_same_bits_on_every_backend(dtype, num_threads):
    norms = [norm_of(parameters(dtype), backend=backend) for backend in BACKENDS]
    for norm in norms:
        assert_same_bits("norm", norm, norms[-1])


def test_the_norm_has_the_same_bits_in_whatever_groups_the_parameters_lie():
    params = parameters()
    whole = norm_of(params)
    groups = [params[:1], params[1:4], params[4:]]
    for order in (groups, groups[::-1], [params[::-1]]):
        assert_same_bits("norm", norm_of([{"params": group} for group in order]), whole)


def test_the_norm_is_that_of_all_gradients():
    params = parameters()
    norm = norm_of(params)
    params[1].grad = None
    want = torch.cat([p.grad.double().flatten() for p in params if p.grad is not None]).norm()
    torch.testing.assert_close(norm_of(params).double(), want, rtol=1e-6, atol=0.0)
    assert norm > norm_of(params)


def test_the_tree_is_by_halves_then_in_order():
    terms = wide(5000, torch.float32, torch.Generator().manual_seed(2))
    expected = 0.0
    for first in range(0, 5000, 2048):
        chunk = terms[first : first + 2048].tolist()
        values = torch.tensor(chunk + [0.0] * (2048 - len(chunk)))
        while len(values) > 1:
            values = values[: len(values) // 2] + values[len(values) // 2 :]
        expected += float(values)
    assert float(total(terms)) == expected


def test_sums_go_over_each_tensor_or_over_all_of_them():
    params = [*parameters(), *parameters(torch.float64)]
    sums = GradientSums(Squares(), params, "auto")
    each, whole = sums.of_each(), sums.total()
    assert (each.shape, whole.shape) == ((1, len(params)), (1,))
    assert each[0].tolist() == [float(total(p.grad * p.grad)) for p in params]
    assert float(whole) == float(in_order(each[0]))


def test_clipping_reads_gradients_and_writes_nothing():
    params = parameters()
    before = [param.grad.clone() for param in params]
    opt = WPAdamW(params)
    opt.clip_grad_norm_(1.0)
    assert not opt.state
    for param, grad in zip(params, before, strict=True):
        assert_same_bits("grad", param.grad, grad)
        assert param.eq(0).all()
