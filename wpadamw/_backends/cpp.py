"""The C++ loop of ``csrc/cpu`` for CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wpadamw._backends.extension import dtype_code, extension
from wpadamw._backends.interface import NO_ROWS, BucketTensors, Gradients, Rows
from wpadamw._backends.rows import flatten
from wpadamw.scalars import NEUTRAL

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
        self.grad_addresses: Sequence[int] | None = None  # those that the table holds
        self.table = extension().Bucket(
            rule=bucket.rule.name,
            param_dtype=self.param_dtype,
            params=[param.data_ptr() for param in bucket.params],
            offsets=bucket.offsets,
            numels=[param.numel() for param in bucket.params],
            weight=0 if bucket.weight_flat is None else bucket.weight_flat.data_ptr(),
            state=[flat.data_ptr() for flat in bucket.state_flat],
        )

    def completed(self) -> int:
        """How many operations have been done."""
        return int(self.table.completed)

    def advanced(self) -> int:
        """None: counts are the host's."""
        return 0

    def step(self, grads: Gradients, rows: Rows, last: Rows, predict_next: bool) -> None:
        """Restore, update and, with ``predict_next``, predict."""
        operation = self.operation.step_and_predict if predict_next else self.operation.step
        if grads.addresses is not self.grad_addresses:
            self.table.set_grads(grads.addresses)
            self.grad_addresses = grads.addresses
        self._run(operation, rows, last, self.dtypes[grads.dtype])

    def predict(self, rows: Rows) -> None:
        """Go to the predicted weights."""
        self._run(self.operation.predict, rows, NO_ROWS)

    def restore(self, last: Rows) -> None:
        """Go to the true weights."""
        self._run(self.operation.restore, Rows([NEUTRAL]), last)

    def _run(self, operation: Any, rows: Rows, last: Rows, grad_dtype: Any = None) -> None:
        table, last_index = flatten(rows, last, len(self.bucket.params))
        self.table.run(
            operation,
            grad_dtype or self.param_dtype,
            table,
            rows.index,
            last_index,
            min(torch.get_num_threads(), _MAX_THREADS),
        )
