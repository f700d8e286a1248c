"""The kernels of ``csrc/cuda`` for CUDA tensors."""

from __future__ import annotations

import torch

from wpadamw._backends.device_kernels import DeviceKernels
from wpadamw._backends.extension import dtype_code, extension
from wpadamw._backends.interface import (
    BucketTensors,
    ColumnTensors,
    DeviceRows,
    Operation,
    Rows,
)
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
            weight=_address(bucket.weight_flat),
            state=[flat.data_ptr() for flat in bucket.state_flat],
        )

    def completed(self) -> int:
        """How many operations have been launched."""
        return int(self.device_bucket.completed)

    def advanced(self) -> int:
        """How many calls of `advance` have been launched."""
        return int(self.device_bucket.advanced)

    def _run(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        rows: Rows | DeviceRows,
        last: Rows,
    ) -> None:
        if isinstance(rows, DeviceRows) or rows.index or last.index or rows.grad_factor is not None:
            super()._run(operation, grad_dtype, rows, last)
        else:  # one row for all travels with the launch
            self.device_bucket.run_row(
                self.operations[operation],
                self.dtypes[grad_dtype],
                rows[0],
                last.get(0) or (),
                current_stream(self.device),
            )

    def _launch(self, operation: Operation, grad_dtype: torch.dtype, rows: DeviceRows) -> None:
        self.device_bucket.run_rows(
            self.operations[operation],
            self.dtypes[grad_dtype],
            rows.scalars.data_ptr(),
            rows.index.data_ptr(),
            _address(rows.found_inf),
            current_stream(self.device),
        )

    def _advance(self, columns: ColumnTensors, operation: Operation) -> None:
        self.device_bucket.advance(
            columns.steps.numel(),
            columns.steps.data_ptr(),
            columns.predictions.data_ptr(),
            columns.options.data_ptr(),
            columns.has_grad.data_ptr(),
            columns.rows.scalars.data_ptr(),
            columns.rows.index.data_ptr(),
            self.operations[operation],
            _address(columns.rows.found_inf),
            current_stream(self.device),
        )
