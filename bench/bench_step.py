"""One step over one tensor: far larger than the caches, and small."""

from __future__ import annotations

import torch
from contestants import BF16, Shape, contestants, fp32_kinds


def bench_large_fp32(race, scale, device):
    shape = Shape(1, scale.large, torch.float32, device)
    runners = contestants(fp32_kinds(device), shape, has_new_gradients=False)
    title = f"{shape.total:,} float32 parameters in one tensor"
    race("large_fp32", title, runners, scale.large_rounds)


def bench_large_bf16(race, scale, device):
    shape = Shape(1, scale.large, torch.bfloat16, device)
    runners = contestants(BF16, shape, has_new_gradients=False)
    title = f"{shape.total:,} bfloat16 parameters in one tensor, float32 master weights"
    race("large_bf16", title, runners, scale.large_rounds)


def bench_small_fp32(race, scale, device):
    shape = Shape(1, scale.small, torch.float32, device)
    runners = contestants(fp32_kinds(device), shape, has_new_gradients=True)
    title = f"{shape.total:,} float32 parameters in one tensor"
    race("small_fp32", title, runners, scale.small_rounds)
