"""The kernels of ``csrc/cuda`` for CUDA tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw._backends.device_kernels import DeviceKernels
from wpadamw._backends.extension import dtype_code, extension
from wpadamw._backends.interface import BucketTensors, Ledger, Operation, Rows
from wpadamw.compat import current_stream

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


def _address(tensor: Tensor | None) -> int:
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
            weight=_address(bucket.weight_flat),
            state=[flat.data_ptr() for flat in bucket.state_flat],
        )

    def completed(self) -> int:
        """How many operations have been launched."""
        return int(self.device_bucket.completed)

    def advanced(self) -> int:
        """How many calls of `advance` have been launched."""
        return int(self.device_bucket.advanced)

    def _run_row(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        rows: Rows,
        factor: float | Tensor,
        found_inf: Tensor | None,
    ) -> None:
        """With rows of the host that all parameters share: they travel with the launch."""
        self.device_bucket.run_row(
            self.operations[operation],
            self.dtypes[grad_dtype],
            rows.scalars.data_ptr(),
            len(rows.scalars),
            *_factor(factor),
            _address(found_inf),
            current_stream(self.device),
        )

    def _launch(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        rows: Rows,
        factor: float | Tensor,
        found_inf: Tensor | None,
    ) -> None:
        self.device_bucket.run_rows(
            self.operations[operation],
            self.dtypes[grad_dtype],
            rows.scalars.data_ptr(),
            _address(rows.index),
            *_factor(factor),
            _address(found_inf),
            current_stream(self.device),
        )

    def _sums(
        self,
        grad_dtype: torch.dtype,
        rows: Rows,
        factor: float | Tensor,
        partial: Tensor,
        out: Tensor,
    ) -> None:
        self.device_bucket.sums(
            self.dtypes[grad_dtype],
            rows.scalars.data_ptr(),
            _address(rows.index),
            *_factor(factor),
            partial.data_ptr(),
            out.data_ptr(),
            current_stream(self.device),
        )

    def _advance(self, ledger: Ledger, operation: Operation, found_inf: Tensor | None) -> None:
        self.device_bucket.advance(
            ledger.steps.numel(),
            ledger.steps.data_ptr(),
            ledger.predictions.data_ptr(),
            ledger.hyper.data_ptr(),
            ledger.has_grad.data_ptr(),
            ledger.rows.scalars.data_ptr(),
            _address(ledger.rows.index),
            self.operations[operation],
            _address(found_inf),
            current_stream(self.device),
        )


def _factor(factor: float | Tensor) -> tuple[float, int]:
    """A factor of the host, or the address of one on the device."""
    return (1.0, factor.data_ptr()) if isinstance(factor, Tensor) else (factor, 0)
