"""Launches of Triton kernels over a bucket in small formats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wpadamw._backends.interface import BucketTensors, Operation
from wpadamw._backends.triton_bucket import BucketKernels, triton_dtype
from wpadamw.formats import FORMATS
from wpadamw.rules.stored import formats_of, is_noisy
from wpadamw.rules.summing import CHUNK_NUMEL

_THREADS = 256  # with 8 elements each: one access of bfloat16
# Where chunks are summed, those that are not whole are done at once, too.
_SUMMED = {"PIECE_NUMEL": CHUNK_NUMEL, "num_warps": _THREADS // 32}


def _as_bits(dtype: torch.dtype) -> torch.dtype:
    """Kernels know bfloat16 by its bits."""
    return torch.int16 if dtype == torch.bfloat16 else dtype


class StoredKernels(BucketKernels):
    """Predict, restore, step and sum in one kernel."""

    def __init__(self, bucket: BucketTensors, modules: dict[str, Any], rule: Any) -> None:
        """With the modules of kernels by name, and the rule in Triton."""
        super().__init__(bucket, modules, rule)
        self.states = tuple(flat.view(_as_bits(flat.dtype)) for flat in self.states)
        num_states = len(self.states)
        self.scales = tuple(bucket.scales_flat or [None] * num_states)[:num_states]

    def _options(self, operation: Operation, grad_dtype: torch.dtype) -> dict[str, Any]:
        return {**super()._options(operation, grad_dtype), "TERMS": None, "NUM_TERMS": 3}

    def _sum_options(self, grad_dtype: torch.dtype) -> dict[str, Any]:
        options = {**super()._sum_options(grad_dtype), "STEP": None, "PREDICT": None}
        return {**options, **_SUMMED}

    def _track_options(self, operation: Operation, grad_dtype: torch.dtype) -> dict[str, Any]:
        return {**super()._track_options(operation, grad_dtype), **_SUMMED}

    def _types(self, grad_dtype: torch.dtype, num_accesses: int = 2) -> dict[str, Any]:
        num_states = len(self.states)
        return {
            **self.widths,
            "IS_NOISY": is_noisy(self.bucket.rule),
            "HAS_NOISY_PARAMS": self.bucket.has_noisy_params,
            "FORMATS": tuple(map(FORMATS.index, formats_of(self.bucket.rule)[:num_states])),
            "HAS_WEIGHTS": self.bucket.weight is not None,
            "NUM_STATES": num_states,
            "PARAM_DTYPE": triton_dtype(_as_bits(self.param_dtype)),
            "GRAD_DTYPE": triton_dtype(_as_bits(grad_dtype)),
            "WIDTH": 16 // max(tensor.dtype.itemsize for tensor in self._written()),
            "NUM_HALVINGS": CHUNK_NUMEL.bit_length() - 1,
            "CHUNK_NUMEL": CHUNK_NUMEL,
            "PIECE_NUMEL": _THREADS,
            "num_warps": _THREADS // 32,
            "enable_fp_fusion": False,
        }

    def _written(self) -> list[Tensor]:
        """One array of each dtype. All get the layout in which no store has more than 16 bytes."""
        bucket = self.bucket
        return [bucket.params[0], *bucket.state_flat, *(bucket.weight or [])[:1]]

    def _launch_chunks(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        arguments: tuple[Any, ...],
        partial: Tensor | None,
    ) -> None:
        options = self.options[operation, grad_dtype]
        if partial is not None:
            options = self._track_options(operation, grad_dtype)
        self._launch_kernel(arguments, partial, options)

    def _launch_sums(
        self, grad_dtype: torch.dtype, arguments: tuple[Any, ...], partial: Tensor
    ) -> None:
        self._launch_kernel((*arguments, None), partial, self._sum_options(grad_dtype))

    def _launch_kernel(
        self, arguments: tuple[Any, ...], partial: Tensor | None, options: dict[str, Any]
    ) -> None:
        kernel = self.modules["stored_kernel"].stored_kernel
        further = (self.scales, self.bucket.rest_flat, partial)
        kernel[(self.table.num_chunks,)](*arguments, *further, **options)
