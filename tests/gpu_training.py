"""What the tests that need a GPU share: the device, its backends, the same training on it."""

from __future__ import annotations

import pytest
import torch
from helpers import Twins, load_mid_training, random_parameters

import wpadamw
from wpadamw import WPAdamW

DEVICE = "cuda"
KERNELS = [name for name in wpadamw.backends()["cuda"] if name != "torch"]


def skip_unless_present(name: str) -> None:
    if reason := wpadamw.backends()["cuda"][name]:
        pytest.skip(f"backend {name}: {reason}")


def trio(backend: str, numels: list[int], dtype: torch.dtype, step: int = 0, **options) -> Twins:
    """One training: by kernels on the GPU, by the specification there, and by the CPU's loop.

    ``options`` may name the optimizer's class as ``make``.
    """
    result = Twins(
        lambda: random_parameters(numels, dtype),
        backends=(backend, "torch", "cpp"),
        device=DEVICE,
        **{"lr": 0.01, **options},
    )
    if step:
        result.run(lambda optimizer: load_mid_training(optimizer, step))
    return result


def parameter(values: torch.Tensor) -> torch.nn.Parameter:
    """A parameter on the GPU with memory of its own, whose gradient is 0."""
    param = torch.nn.Parameter(values.detach().to(DEVICE, copy=True))
    param.grad = torch.zeros_like(param)
    return param


def kernels_of(optimizer: WPAdamW) -> list[object]:
    """The kernels that serve an optimizer after its first step."""
    plans = optimizer._plans.by_group.values()
    return [bucket.kernels for plan in plans for bucket in plan.buckets]
