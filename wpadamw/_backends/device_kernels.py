"""What the backends for GPUs share: the table of a bucket, and the way of a call to its launch."""

from __future__ import annotations

import torch

from wpadamw._backends.device_table import DeviceTable
from wpadamw._backends.interface import (
    NO_ROWS,
    BucketTensors,
    ColumnTensors,
    DeviceRows,
    Gradients,
    Operation,
    Rows,
)
from wpadamw.compat import device_guard
from wpadamw.scalars import NEUTRAL


class DeviceKernels:
    """Predict, restore and step over a bucket in one launch each."""

    raise_versions = False

    def __init__(self, bucket: BucketTensors) -> None:
        self.bucket = bucket  # keeps alive what the addresses point to
        self.device, self.param_dtype = bucket.params[0].device, bucket.params[0].dtype
        with device_guard(self.device):
            self.table = DeviceTable(bucket)

    def completed(self) -> int:
        """How many operations have been launched."""
        raise NotImplementedError

    def advanced(self) -> int:
        """How many calls of `advance` have been launched."""
        raise NotImplementedError

    def step(
        self, grads: Gradients, rows: Rows | DeviceRows, last: Rows, predict_next: bool
    ) -> None:
        """Restore, update and, with ``predict_next``, predict."""
        operation = Operation.step_and_predict if predict_next else Operation.step
        with device_guard(self.device):
            self.table.grads.fill(grads.addresses)
            self._run(operation, grads.dtype, rows, last)

    def predict(self, rows: Rows | DeviceRows) -> None:
        """Go to the predicted weights."""
        with device_guard(self.device):
            self._run(Operation.predict, self.param_dtype, rows, NO_ROWS)

    def restore(self, last: Rows | DeviceRows) -> None:
        """Go to the true weights."""
        with device_guard(self.device):
            if isinstance(last, DeviceRows):
                self._run(Operation.restore, self.param_dtype, last, NO_ROWS)
            else:
                self._run(Operation.restore, self.param_dtype, Rows([NEUTRAL]), last)

    def advance(self, columns: ColumnTensors, operation: Operation) -> None:
        """Fill in the rows of an operation; count and record what it does."""
        with device_guard(self.device):
            self._advance(columns, operation)

    def _run(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        rows: Rows | DeviceRows,
        last: Rows,
    ) -> None:
        in_memory = rows if isinstance(rows, DeviceRows) else self.table.rows(rows, last)
        self._launch(operation, grad_dtype, in_memory)

    def _launch(self, operation: Operation, grad_dtype: torch.dtype, rows: DeviceRows) -> None:
        """Run an operation over all chunks on the current stream."""
        raise NotImplementedError

    def _advance(self, columns: ColumnTensors, operation: Operation) -> None:
        """Run the kernel of `advance` on the current stream."""
        raise NotImplementedError
