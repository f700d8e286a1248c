"""The C++ loops of ``csrc/cpu`` for CPU tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wpadamw._backends.extension import dtype_code, extension, storage
from wpadamw._backends.interface import BucketTensors, Gradients, LedgerTensors, Operation, Rows
from wpadamw.rules.stored import is_noisy
from wpadamw.rules.summing import in_order

NAME = "cpp"

_MAX_THREADS = 1024  # of what torch allows: each costs a stack


def why_not(device_type: str) -> str | None:
    """Why this backend cannot serve a type of device, or None if it can."""
    if device_type != "cpu":
        return "serves CPU tensors only"
    return extension() if isinstance(extension(), str) else None


class Kernels:
    """Predict, restore and step over a bucket in one parallel region each."""

    raise_versions = False

    def __init__(self, bucket: BucketTensors) -> None:
        self.bucket = bucket  # keeps alive what the addresses point to
        self.operation = extension().Operation
        self.param_dtype = dtype_code(bucket.params[0].dtype)
        self.dtypes = {
            dtype: dtype_code(dtype) for dtype in (bucket.params[0].dtype, torch.float32)
        }
        self.table = extension().Bucket(
            rule=bucket.rule.name,
            param_dtype=self.param_dtype,
            params=[param.data_ptr() for param in bucket.params],
            offsets=bucket.offsets,
            numels=[param.numel() for param in bucket.params],
            weights=[weight.data_ptr() for weight in bucket.weight or ()],
            state=[flat.data_ptr() for flat in bucket.state_flat],
            num_looks=bucket.num_looks,
            has_averages=bucket.has_averages,
            is_noisy=is_noisy(bucket.rule),
            **storage(bucket),
        )

    def completed(self) -> int:
        """How many operations have been done."""
        return int(self.table.completed)

    def advanced(self) -> int:
        """None: counts are the host's."""
        return 0

    def step(
        self,
        grads: Gradients,
        rows: Rows,
        factor: float | Tensor,
        predict_next: bool,
        found_inf: Tensor | None = None,
        tracked: Tensor | None = None,
    ) -> None:
        """Restore, update and, with ``predict_next``, predict."""
        if found_inf is not None and float(found_inf):
            return
        operation = self.operation.step_and_predict if predict_next else self.operation.step
        self._set_grads(grads)
        address = 0 if tracked is None else tracked.data_ptr()
        self._run(operation, self.dtypes[grads.dtype], rows, float(factor), address)

    def predict(self, rows: Rows) -> None:
        """Go to the predicted weights."""
        self._run(self.operation.predict, self.param_dtype, rows)

    def restore(self, rows: Rows) -> None:
        """Go to the true weights."""
        self._run(self.operation.restore, self.param_dtype, rows)

    def sums(self, grads: Gradients, rows: Rows, factor: float | Tensor) -> Tensor:
        """The sums of the rule's terms."""
        shape = self.bucket.rule.num_terms, len(self.bucket.params)
        out = torch.empty(shape, dtype=torch.float64, device="cpu")
        self._set_grads(grads)
        self.table.sums(
            self.dtypes[grads.dtype],
            *_addresses(rows),
            float(factor),
            num_threads(),
            out.data_ptr(),
        )
        return out

    def total(self, sums: Tensor) -> Tensor:
        """The sum of float64 numbers from the first to the last."""
        return in_order(sums)

    def advance(
        self, ledger: LedgerTensors, operation: Operation, found_inf: Tensor | None
    ) -> None:
        """Not called: counts are the host's."""
        raise NotImplementedError

    def _set_grads(self, grads: Gradients) -> None:
        self.table.set_grads(grads.addresses)

    def _run(
        self,
        operation: Any,
        grad_dtype: Any,
        rows: Rows,
        factor: float = 1.0,
        tracked: int = 0,
    ) -> None:
        self.table.run(operation, grad_dtype, *_addresses(rows), factor, num_threads(), tracked)


def _addresses(rows: Rows) -> tuple[int, int, int]:
    index = 0 if rows.index is None else rows.index.data_ptr()
    return rows.scalars.data_ptr(), len(rows.scalars), index


def num_threads() -> int:
    """How many threads torch would use."""
    return min(torch.get_num_threads(), _MAX_THREADS)
