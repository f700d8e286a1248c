"""The kernels of ``csrc/cuda`` for CUDA tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw._backends.device_kernels import DeviceKernels
from wpadamw._backends.extension import dtype_code, extension, storage
from wpadamw._backends.interface import BucketTensors, LedgerTensors, Operation, Rows
from wpadamw.compat import current_stream
from wpadamw.rules.stored import is_noisy

NAME = "cuda"


def why_not(device_type: str) -> str | None:
    """Why this backend cannot serve a type of device, or None if it can."""
    if device_type != "cuda":
        return "serves CUDA tensors only"
    if isinstance(extension(), str):
        return str(extension())
    if not hasattr(extension(), "cuda"):
        return "the extension wpadamw._C was built without CUDA"
    if torch.version.hip is not None:
        return "torch was built for ROCm"
    return extension().cuda.why_not() or None


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Kernels(DeviceKernels):
    """Predict, restore and step over a bucket in one launch each."""

    def __init__(self, bucket: BucketTensors) -> None:
        super().__init__(bucket)
        self.operations = {op: getattr(extension().Operation, op.name) for op in Operation}
        self.dtypes = {dtype: dtype_code(dtype) for dtype in (self.param_dtype, torch.float32)}
        self.device_bucket = extension().cuda.Bucket(
            rule=bucket.rule.name,
            param_dtype=self.dtypes[self.param_dtype],
            chunks=self.table.chunks.data_ptr(),
            num_chunks=self.table.num_chunks,
            num_tensors=self.table.num_params,
            grads=self.table.grads.tensor.data_ptr(),
            has_weights=bucket.weight is not None,
            state=[flat.data_ptr() for flat in bucket.state_flat],
            num_looks=bucket.num_looks,
            has_averages=bucket.has_averages,
            is_noisy=is_noisy(bucket.rule),
            **storage(bucket),
        )

    def completed(self) -> int:
        """How many operations have been launched."""
        return int(self.device_bucket.completed)

    def advanced(self) -> int:
        """How many calls of `advance` have been launched."""
        return int(self.device_bucket.advanced)

    def _launch(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        rows: Rows,
        factor: float | Tensor,
        found_inf: Tensor | None,
        tracked: Tensor | None = None,
    ) -> None:
        codes = self.operations[operation], self.dtypes[grad_dtype]
        scale = (0.0, factor.data_ptr()) if isinstance(factor, Tensor) else (factor, 0)
        partial = None if tracked is None else self._room_to_track(len(tracked))
        sums = _address(partial), _address(tracked)
        ends = *scale, _address(found_inf), current_stream(self.device), *sums
        if rows.index is None and self.bucket.num_looks == 1:  # they travel with the launch
            number = len(rows.scalars)
            self.device_bucket.run_row(*codes, rows.scalars.data_ptr(), number, *ends)
        else:
            there = self.table.rows(rows)
            addresses = there.scalars.data_ptr(), _address(there.index)
            self.device_bucket.run_rows(*codes, *addresses, *ends)

    def _sum(self, grad_dtype: torch.dtype, rows: Rows, factor: Tensor) -> Tensor:
        partial, sums = self._room_for_sums(self.bucket.rule.num_terms)
        self.device_bucket.sums(
            self.dtypes[grad_dtype],
            rows.scalars.data_ptr(),
            _address(rows.index),
            0.0,
            factor.data_ptr(),
            partial.data_ptr(),
            sums.data_ptr(),
            current_stream(self.device),
        )
        return sums

    def _total(self, sums: Tensor) -> Tensor:
        total = torch.empty((), dtype=torch.float64, device=self.device)
        extension().cuda.total(
            sums.data_ptr(), sums.numel(), total.data_ptr(), current_stream(self.device)
        )
        return total

    def _advance(
        self, ledger: LedgerTensors, operation: Operation, found_inf: Tensor | None
    ) -> None:
        self.device_bucket.advance(
            ledger.steps.numel(),
            ledger.steps.data_ptr(),
            ledger.predictions.data_ptr(),
            ledger.hyper.data_ptr(),
            ledger.shares.data_ptr(),
            ledger.has_grad.data_ptr(),
            ledger.sums.data_ptr(),
            ledger.rows.scalars.data_ptr(),
            _address(ledger.rows.index),
            self.operations[operation],
            _address(found_inf),
            current_stream(self.device),
        )
