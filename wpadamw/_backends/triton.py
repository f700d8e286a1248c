"""The kernels of ``triton_kernels`` for CUDA tensors, ROCm's included."""

from __future__ import annotations

import importlib
import re
from functools import cache
from typing import Any

import torch

from wpadamw._backends.device_kernels import DeviceKernels
from wpadamw._backends.device_table import CHUNK_NUMEL
from wpadamw._backends.interface import *

NAME = "triton"

# Tests of the kernels pass from here on: see docs/compatibility.md.
_OLDEST = (3, 4)


@cache
def _kernels() -> Any:
    """The modules of the kernels by name, or as a string the reason why they cannot be imported."""
    try:
        found = importlib.import_module("triton").__version__
        if tuple(map(int, re.findall(r"\d+", found)[:2])) < _OLDEST:
            return f"triton {found} is older than {'.'.join(map(str, _OLDEST))}"
        names = ("bucket_kernels", "advance_kernel")
        return {name: importlib.import_module(f"wpadamw.triton_kernels.{name}") for name in names}
    except Exception as error:  # a broken installation raises what it likes
        return f"triton cannot be imported: {error}"


def why_not(device_type: str) -> str | None:
    """Why this backend cannot serve a type of device, or None if it can."""
    if device_type != "cuda":
        return "serves CUDA tensors only"
    if not torch.cuda.is_available():
        return "no CUDA device"
    return _kernels() if isinstance(_kernels(), str) else None


def _triton_dtype(dtype: torch.dtype) -> Any:
    return getattr(importlib.import_module("triton.language"), str(dtype).removeprefix("torch."))


def _does(operation: Operation) -> dict[str, bool]:
    return {
        "UPDATE": operation in (Operation.step, Operation.step_and_predict),
        "PREDICT": operation in (Operation.step_and_predict, Operation.predict),
    }


class Kernels(DeviceKernels):
    """Predict, restore and step over a bucket in one launch each."""

    def __init__(self, bucket: BucketTensors) -> None:
        super().__init__(bucket)
        self.modules = _kernels()
        # Triton launches from Python: an exception may come between a launch and its count.
        self.num_launches = self.num_advances = 0
        first, *others = bucket.state_flat
        weight = first if bucket.weight_flat is None else bucket.weight_flat
        states = [first, *others, *[first] * (2 - len(others))]
        self.tensors = [self.table.chunks, self.table.grads.tensor, weight, *states]
        self.options = {
            (operation, grad_dtype): self._options(operation, grad_dtype)
            for operation in Operation
            for grad_dtype in {self.param_dtype, torch.float32}
        }

    def completed(self) -> int:
        """How many operations have been launched."""
        return self.num_launches

    def advanced(self) -> int:
        """How many calls of `advance` have been launched."""
        return self.num_advances

    def _options(self, operation: Operation, grad_dtype: torch.dtype) -> dict[str, Any]:
        """Everything of a launch that is known when it is compiled."""
        state = self.bucket.state_flat
        width = 16 // state[0].element_size()  # elements of a 16-byte access of the state
        # Of each array a thread does two, or one where the registers do not suffice: gradients
        # that become float64 made some compilers spill.
        num_accesses = 1 if grad_dtype.itemsize < self.param_dtype.itemsize else 2
        return {
            **_does(operation),
            "HAS_BACKUP": self.bucket.weight_flat is not None,
            "RULE": self.bucket.rule.name,
            "NUM_STATES": len(state),
            "PARAM_DTYPE": _triton_dtype(self.param_dtype),
            "GRAD_DTYPE": _triton_dtype(grad_dtype),
            "PARAM_ALIGNMENT": width * self.param_dtype.itemsize,
            "GRAD_ALIGNMENT": width * grad_dtype.itemsize,
            "CHUNK_NUMEL": CHUNK_NUMEL,
            "num_warps": CHUNK_NUMEL // (num_accesses * width * 32),
            "enable_fp_fusion": False,
        }

    def _launch(self, operation: Operation, grad_dtype: torch.dtype, rows: DeviceRows) -> None:
        if self.table.num_chunks:
            self._launch_bucket(operation, grad_dtype, rows)
        self.num_launches += 1

    def _launch_bucket(
        self, operation: Operation, grad_dtype: torch.dtype, rows: DeviceRows
    ) -> None:
        self.modules["bucket_kernels"].bucket_kernel[(self.table.num_chunks,)](
            *self.tensors,
            rows.scalars,
            rows.index,
            self.table.num_params,
            rows.found_inf,
            **self.options[operation, grad_dtype],
        )

    def _advance(self, columns: ColumnTensors, operation: Operation) -> None:
        module = self.modules["advance_kernel"]
        num_blocks = -(-columns.steps.numel() // module.BLOCK_SIZE)
        module.advance_kernel[(num_blocks,)](
            columns.steps,
            columns.predictions,
            columns.options,
            columns.has_grad,
            columns.rows.scalars,
            columns.rows.index,
            columns.steps.numel(),
            columns.rows.found_inf,
            BLOCK_SIZE=module.BLOCK_SIZE,
            num_warps=module.NUM_WARPS,
            enable_fp_fusion=False,
            **_does(operation),
        )
        self.num_advances += 1
