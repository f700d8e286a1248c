"""A short program for tools that watch kernels: ``python -m wpadamw.bench.gpu.probe check``.

``check [DEVICE [BACKEND ...]]`` runs every kernel over small tensors at even and odd addresses, for
compute-sanitizer; ``profile [DEVICE]`` marks one launch of each over a large tensor, for ncu.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import Parameter

import wpadamw
from wpadamw import WPAdamW

from ..registry import FOREACH, PLAIN, REPLAYED
from ..speed.entry import entrants_on, renew_gradients
from ..speed.shapes import PARTS, Shape

NUMELS = (1, 17, 2048, 2049, 5000)  # around a block of 2,048
LARGE = 2**26
NUM_WARMUP_STEPS = 3
NOT_PROFILED = (FOREACH, PLAIN, REPLAYED)  # many kernels of torch, and one that is there already

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"backup": False},
    {"amsgrad": True},
    {"predict_in_step": False},
    {"amp": True},
    {"capturable": True},
    {"compute_dtype": torch.bfloat16},
    {"moments": "bfloat16"},
    {"moments": "int8", "backup": False},
)


def main() -> None:
    """Check or profile."""
    mode, device, *backends = [*sys.argv[1:], "cuda"] if len(sys.argv) == 2 else sys.argv[1:]
    where = torch.device(device)
    done = profile(where) if mode == "profile" else check(where, backends)
    print(f"{mode}: {', '.join(done)}")


def check(device: torch.device, backends: Sequence[str] = ()) -> list[str]:
    """Every backend that is there, or those named, with every option, over both dtypes."""
    reasons = wpadamw.backends()[device.type]
    present = backends or [name for name, why in reasons.items() if why is None]
    for name, options, dtype, offset in itertools.product(
        present, OPTIONS, (torch.float32, torch.bfloat16), (0, 1)
    ):
        needs_float32 = not options.get("backup", True) or "compute_dtype" in options
        if dtype is torch.float32 or not needs_float32:
            _exercise(WPAdamW(_odd_parameters(dtype, device, offset), backend=name, **options))
    return list(present)


def _odd_parameters(dtype: torch.dtype, device: torch.device, offset: int) -> list[Parameter]:
    """Parameters, and gradients, that begin at odd addresses and end where their memory does."""
    params = []
    for numel in NUMELS:
        value, grad = (
            torch.randn(offset + numel, device=device).to(dtype)[offset:] for _ in range(2)
        )
        params.append(Parameter(value))
        params[-1].grad = grad
    return params


def _exercise(optimizer: WPAdamW) -> None:
    params = optimizer.param_groups[0]["params"]
    for action in (WPAdamW.predict, WPAdamW.restore):
        optimizer.step()
        action(optimizer)
        renew_gradients(params)
    params[0].grad = None
    optimizer.clip_grad_norm_(0.1)
    optimizer.step()


def profile(device: torch.device, numel: int = LARGE) -> list[str]:
    """One step of each optimizer."""
    done: list[str] = []
    for part, dtype in PARTS.items():
        for entrant in entrants_on(device, part):
            name = f"{entrant.name} over {dtype}"  # that of some is in several parts
            if entrant.missing is None and entrant.name not in NOT_PROFILED and name not in done:
                optimizer = entrant.build(Shape.equal(1, numel, dtype, device).parameters())
                _profile(optimizer.step, device)
                done.append(name)
    return done


def _profile(run: Callable[[], object], device: torch.device) -> None:
    for _ in range(NUM_WARMUP_STEPS):
        run()
    with _marked(device):
        run()


@contextmanager
def _marked(device: torch.device) -> Iterator[None]:
    """Where ncu looks, started with ``--profile-from-start off``."""
    if device.type != "cuda":
        yield
        return
    profiler: Any = torch.cuda.profiler
    torch.cuda.synchronize()
    profiler.start()
    yield
    torch.cuda.synchronize()
    profiler.stop()


if __name__ == "__main__":
    main()
