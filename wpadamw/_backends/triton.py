"""The kernels of ``triton_kernels`` for CUDA tensors, ROCm's included."""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

import torch

from wpadamw._backends.interface import BucketTensors
from wpadamw._backends.triton_bucket import BucketKernels
from wpadamw._backends.triton_stored import StoredKernels
from wpadamw.rules.around import plain
from wpadamw.rules.rule import Rule

NAME = "triton"

# Tests of the kernels pass from here on: see docs/compatibility.md.
_OLDEST = (3, 4)
_KERNELS = ("bucket_kernel", "track_kernel", "reduce_kernel", "advance_kernel", "stored_kernel")


@cache
def _kernels() -> Any:
    """The modules of the kernels by name, or as a string the reason why they cannot be imported."""
    try:
        found = importlib.import_module("triton").__version__
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < _OLDEST:
            return f"triton {found} is older than {'.'.join(map(str, _OLDEST))}"
        return {
            name: importlib.import_module(f"wpadamw.triton_kernels.{name}") for name in _KERNELS
        }
    except Exception as error:  # a broken installation raises what it likes
        return f"triton cannot be imported: {error}"


def why_not(device_type: str) -> str | None:
    """Why this backend cannot serve a type of device, or None if it can."""
    if device_type != "cuda":
        return "serves CUDA tensors only"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return _kernels() if isinstance(_kernels(), str) else None


def _module_of(rule: Rule) -> Any:
    """The rule in Triton: the file of its name, or what a rule from elsewhere names."""
    name = getattr(rule, "triton_module", f"wpadamw.triton_kernels.rules.{rule.name}")
    return importlib.import_module(name)


def Kernels(bucket: BucketTensors) -> BucketKernels:
    """Bind the operations to a bucket, by how it is stored."""
    kind = StoredKernels if bucket.is_small else BucketKernels
    return kind(bucket, _kernels(), _module_of(plain(bucket.rule)))
