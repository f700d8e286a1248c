"""Prints as JSON what optimizers hold and take.

``python -m wpadamw.bench.speed.memory_probe NUMEL DEVICE``, a process of its own: what others
allocated and freed would hide in the peak.
"""

from __future__ import annotations

import gc
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..registry import Entrant
from ..report.markup import rounded
from .entry import entrants_on, too_large
from .measure import LeftOut, Row, first_line
from .shapes import PARTS, Shape

NUM_WARMUP_STEPS = 3


def main() -> None:
    """Probe all optimizers over parameters of both dtypes."""
    numel, device = int(sys.argv[1]), torch.device(sys.argv[2])
    rows = {}
    for part, dtype in PARTS.items():
        for entrant in entrants_on(device, part):
            name = f"{entrant.name}, {str(dtype).removeprefix('torch.')}"
            rows[name] = row(entrant, Shape.equal(1, numel, dtype, device))
            gc.collect()
    print(json.dumps(rows))


def row(entrant: Entrant, shape: Shape) -> Row:
    """What was found, or why nothing was."""
    needed = (entrant.held_bytes + entrant.temporary_bytes) * shape.total
    try:
        if why_not := entrant.missing or too_large(needed, shape.device):
            raise LeftOut(why_not)
        return probe(entrant, shape)
    except Exception as error:
        return {"why": first_line(error)}


def probe(entrant: Entrant, shape: Shape) -> Row:
    """Bytes per parameter between steps, and how many more at the worst moment of one."""
    optimizer = entrant.build(shape.parameters())
    for _ in range(NUM_WARMUP_STEPS):
        optimizer.step()
    measured_peak = cuda_peak if shape.device.type == "cuda" else resident_peak
    extra = measured_peak(optimizer.step)
    return {
        "state_bytes": rounded(storage_bytes(optimizer.state) / shape.total),
        "peak_extra_bytes": None if extra is None else round(extra / shape.total, 2),
    }


def cuda_peak(run: Callable[[], object]) -> int:
    """Bytes by which allocations grow at most while ``run`` is under way."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def resident_peak(run: Callable[[], object]) -> int | None:
    """Bytes by which resident memory grows at most, or None where Linux does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    except OSError:
        return None
    before = _status_bytes("VmRSS")
    run()
    return max(_status_bytes("VmHWM") - before, 0)


def _status_bytes(key: str) -> int:
    found = re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(map(tensors_in, value))


def storage_bytes(value: object) -> int:
    """The bytes behind all tensors in nested containers, each storage counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors_in(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


if __name__ == "__main__":
    main()
