"""One step over many small tensors, and what a step costs the host."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.nn import Parameter

from wpadamw.bench.registry import COPY, OURS, entrants
from wpadamw.bench.report.markup import rounded
from wpadamw.bench.speed.entry import entrants_on, optimizer, renew_gradients
from wpadamw.bench.speed.measure import Contestant, Race, Row, host_time_ms, table_rows
from wpadamw.bench.speed.shapes import Shape


@pytest.mark.parametrize("gradients", ["new", "kept"])
def bench_many_tensors(race, scale, device, gradients):
    shape = Shape.equal(scale.num_tensors, scale.tensor, torch.float32, device)
    how = {"new": "new gradients in each step", "kept": "gradients kept in place"}[gradients]
    title = f"{scale.num_tensors:,} float32 tensors of {scale.tensor:,} elements, {how}"
    race(
        f"many_{gradients}",
        title,
        entrants_on(device, "fp32"),
        shape,
        scale.many_rounds,
        has_new_gradients=gradients == "new",
    )


def bench_many_parts(benchmark, hold, scale, device):
    """What any optimizer has to ask and do, in the state in which a step finds it."""
    many = Shape.equal(scale.num_tensors, scale.tensor, torch.float32, device)
    one = Shape.equal(1, many.total, torch.float32, device)
    ours = entrants("fp32")[OURS]
    race = Race(host_time_ms)
    for name, shape in ((OURS, many), ("its memory pass: as many elements in one tensor", one)):
        race.enter(name, partial(optimizer, ours, shape, has_new_gradients=True))
    for name, look in PARTS.items():
        race.enter(name, partial(_looker, look, many))
    benchmark.group = "many_parts"
    hold(race, scale.many_rounds)
    rows = table_rows(race, reference=OURS, roof=COPY)
    title = f"Parts of a step over {scale.num_tensors:,} tensors with new gradients"
    benchmark.extra_info |= {"table": "many_parts", "title": title, "rows": rows}


def _looker(look: Callable[[list[Parameter]], object], shape: Shape) -> Contestant:
    params = shape.parameters()
    return Contestant(partial(look, params), prepare=partial(renew_gradients, params))


def _find(params: list[Parameter]) -> None:
    for param in params:
        param.data_ptr(), param.grad.data_ptr()


def _check(params: list[Parameter]) -> None:
    for param in params:
        grad = param.grad
        _ = grad.dtype, grad.layout, grad.device, grad.shape, grad.is_contiguous(), grad.is_neg()


def _version(params: list[Parameter]) -> None:
    for param in params:
        _ = param._version
    torch.autograd.graph.increment_version(params)


PARTS = {
    "addresses of parameters and gradients": _find,
    "dtype, layout, device, shape, strides of gradients": _check,
    "version counters of parameters, read and raised": _version,
}


def bench_host_cost(benchmark, hold, scale, device):
    few, many = 1, scale.num_tensors
    those = entrants_on(device, "fp32")
    race = Race(host_time_ms)
    for number in (few, many):
        shape = Shape.equal(number, 1, torch.float32, device)
        for each in those:
            build = partial(optimizer, each, shape, has_new_gradients=True)
            race.enter(_label(each.name, number), build, why_not=each.missing)
    benchmark.group = "host"
    hold(race, scale.many_rounds)
    rows = {each.name: _host_cost(race, each.name, few, many) for each in those}
    title = f"Host time of a step: 1 and {many:,} float32 tensors of 1 element"
    benchmark.extra_info |= {"table": "host", "title": title, "rows": rows}


def _label(name: str, num_tensors: int) -> str:
    return f"{name} x {num_tensors}"


def _host_cost(race: Race, name: str, few: int, many: int) -> Row:
    """The line through the medians: its slope, and its value at no tensor."""
    labels = [_label(name, number) for number in (few, many)]
    for label in labels:
        if label in race.left_out:
            return {"why": race.left_out[label]}
    low, high = (1e3 * statistics.median(race.samples[label]) for label in labels)
    slope = (high - low) / (many - few)
    return {
        "us_per_tensor": rounded(slope),
        "us_per_step": rounded(low - few * slope),
        "n": len(race.samples[labels[-1]]),
    }
