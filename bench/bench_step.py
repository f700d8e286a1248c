"""One step over one tensor, far larger than the caches and small, and over a language model."""

from __future__ import annotations

import pytest
import torch
from contestants import Shape, bf16_kinds, fp32_kinds
from names import FUSED, OURS, OURS_WITHOUT_BACKUP, TRITON, TRITON_WITHOUT_BACKUP


def bench_large_fp32(race, scale, device):
    shape = Shape.equal(1, scale.large, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor"
    race("large_fp32", title, fp32_kinds(device), shape, scale.large_rounds)


def bench_large_bf16(race, scale, device):
    shape = Shape.equal(1, scale.large, torch.bfloat16, device)
    title = f"{shape.total:,} bfloat16 parameters in one tensor, float32 master weights"
    race("large_bf16", title, bf16_kinds(device), shape, scale.large_rounds)


def bench_huge_fp32(race, scale, device):
    if scale.huge is None:
        pytest.skip("for GPUs: a CPU's step is as fast per parameter as over the large tensor")
    shape = Shape.equal(1, scale.huge, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor"
    wanted = (FUSED, OURS, OURS_WITHOUT_BACKUP, TRITON, TRITON_WITHOUT_BACKUP)
    kinds = [kind for kind in fp32_kinds(device) if kind.name in wanted]
    race("huge_fp32", title, kinds, shape, scale.large_rounds)


def bench_small_fp32(race, scale, device):
    shape = Shape.equal(1, scale.small, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor"
    race("small_fp32", title, fp32_kinds(device), shape, scale.small_rounds, has_new_gradients=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_model(race, scale, device, dtype):
    if scale.model is None:
        pytest.skip("for GPUs: all contestants together would not fit into a CPU's memory")
    shape = Shape(scale.model, dtype, device)
    is_bf16 = dtype is torch.bfloat16
    what = "bfloat16 parameters, float32 master weights" if is_bf16 else "float32 parameters"
    title = f"GPT-2, {len(shape.sizes)} tensors, {shape.total:,} {what}, new gradients in each step"
    kinds = (bf16_kinds if is_bf16 else fp32_kinds)(device)
    name = f"model_{'bf16' if is_bf16 else 'fp32'}"
    race(name, title, kinds, shape, scale.large_rounds, has_new_gradients=True)
