"""One step over many small tensors, and what a step costs the host."""

from __future__ import annotations

import statistics

import pytest
import torch
from contestants import Shape, contestants, fp32_kinds
from measure import Contestant, Race, host_time_ms, rounded


@pytest.mark.parametrize("gradients", ["new", "kept"])
def bench_many_tensors(race, scale, device, gradients):
    shape = Shape.equal(scale.num_tensors, scale.tensor, torch.float32, device)
    how = {"new": "new gradients in each step", "kept": "gradients kept in place"}[gradients]
    title = f"{scale.num_tensors:,} float32 tensors of {scale.tensor:,} elements, {how}"
    race(
        f"many_{gradients}",
        title,
        fp32_kinds(device),
        shape,
        scale.many_rounds,
        has_new_gradients=gradients == "new",
    )


def bench_host_cost(benchmark, scale, device):
    sizes = (1, scale.num_tensors)
    names = [kind.name for kind in fp32_kinds(device)]
    race = Race([c for size in sizes for c in _steps(size, names, device)], host_time_ms)
    race.warm_up()
    benchmark.group = "host"
    benchmark.pedantic(race, rounds=scale.many_rounds)
    rows = {name: _host_cost(race, name, *sizes) for name in names}
    title = f"Host time of a step: 1 and {sizes[1]:,} float32 tensors of 1 element"
    benchmark.extra_info |= {"table": "host", "title": title, "rows": rows}


def _steps(num_tensors: int, names: list[str], device: torch.device) -> list[Contestant]:
    shape = Shape.equal(num_tensors, 1, torch.float32, device)
    runners = contestants(fp32_kinds(device), shape, has_new_gradients=True)
    return [
        Contestant(_label(c.name, num_tensors), c.run, prepare=c.prepare)
        for c in runners
        if c.name in names
    ]


def _label(name: str, num_tensors: int) -> str:
    return f"{name} x {num_tensors}"


def _host_cost(race: Race, name: str, few: int, many: int) -> dict[str, float | int | None]:
    """The line through the medians: its slope, and its value at no tensor."""
    low, high = (
        1e3 * statistics.median(race.samples[_label(name, number)]) for number in (few, many)
    )
    slope = (high - low) / (many - few)
    return {
        "us_per_tensor": rounded(slope),
        "us_per_step": rounded(low - few * slope),
        "n": len(race.samples[_label(name, many)]),
    }
