"""One step over one tensor, far larger than the caches and small."""

from __future__ import annotations

import pytest
import torch

from wpadamw.bench import registry
from wpadamw.bench.registry import FUSED, OURS, OURS_WITHOUT_BACKUP, TRITON, TRITON_WITHOUT_BACKUP
from wpadamw.bench.speed.entry import entrants_on
from wpadamw.bench.speed.shapes import Shape


def bench_large_fp32(race, scale, device):
    shape = Shape.equal(1, scale.large, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor"
    those = entrants_on(device, "fp32")
    if device.type == "cpu":
        those.append(registry.entrants("peers")[registry.DEEPSPEED])
    race("large_fp32", title, those, shape, scale.large_rounds)


def bench_large_bf16(race, scale, device):
    shape = Shape.equal(1, scale.large, torch.bfloat16, device)
    title = f"{shape.total:,} bfloat16 parameters in one tensor, float32 master weights"
    race("large_bf16", title, entrants_on(device, "bf16"), shape, scale.large_rounds)


def bench_large_cast(race, scale, device):
    shape = Shape.equal(1, scale.large, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor, and their copy in bfloat16"
    race("large_cast", title, entrants_on(device, "cast"), shape, scale.large_rounds)


def bench_large_extras(race, scale, device):
    shape = Shape.equal(1, scale.large, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor, and steps that do more"
    race("large_extras", title, entrants_on(device, "extras"), shape, scale.large_rounds)


def bench_large_small(race, scale, device):
    shape = Shape.equal(1, scale.large, torch.float32, device)
    title = f"{shape.total:,} parameters in one tensor, and small formats"
    race("large_small", title, entrants_on(device, "small"), shape, scale.large_rounds)


def bench_huge_fp32(race, scale, device):
    if scale.huge is None:
        pytest.skip("for GPUs: a CPU's step is as fast per parameter as over the large tensor")
    shape = Shape.equal(1, scale.huge, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor"
    wanted = (FUSED, OURS, OURS_WITHOUT_BACKUP, TRITON, TRITON_WITHOUT_BACKUP)
    those = [each for each in entrants_on(device, "fp32") if each.name in wanted]
    race("huge_fp32", title, those, shape, scale.large_rounds)


@pytest.mark.parametrize("is_rotated", [False, True], ids=["in_cache", "rotated"])
def bench_small_fp32(race, scale, device, is_rotated):
    shape = Shape.equal(1, scale.small, torch.float32, device)
    where = "rotated past the cache" if is_rotated else "left in the cache"
    race(
        "small_fp32_rotated" if is_rotated else "small_fp32",
        f"{shape.total:,} float32 parameters in one tensor, inputs {where}",
        entrants_on(device, "fp32"),
        shape,
        scale.small_rounds,
        is_rotated=is_rotated,
        is_warm=not is_rotated,
    )
