"""What the backends for GPUs share: the table of a bucket, and the way of a call to its launch."""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw._backends.device_table import DeviceTable
from wpadamw._backends.interface import (
    BucketTensors,
    Gradients,
    LedgerTensors,
    Operation,
    Rows,
)
from wpadamw.compat import device_guard


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
        self,
        grads: Gradients,
        rows: Rows,
        factor: float | Tensor,
        predict_next: bool,
        found_inf: Tensor | None = None,
        tracked: Tensor | None = None,
    ) -> None:
        """Restore, update and, with ``predict_next``, predict."""
        operation = Operation.step_and_predict if predict_next else Operation.step
        with device_guard(self.device):
            self.table.grads.fill(grads.addresses)
            self._launch(operation, grads.dtype, rows, factor, found_inf, tracked)

    def predict(self, rows: Rows) -> None:
        """Go to the predicted weights."""
        with device_guard(self.device):
            self._launch(Operation.predict, self.param_dtype, rows, 1.0, None)

    def restore(self, rows: Rows) -> None:
        """Go to the true weights."""
        with device_guard(self.device):
            self._launch(Operation.restore, self.param_dtype, rows, 1.0, None)

    def sums(self, grads: Gradients, rows: Rows, factor: float | Tensor) -> Tensor:
        """The sums of the rule's terms, float64, [num_terms, parameters]."""
        with device_guard(self.device):
            self.table.grads.fill(grads.addresses)
            return self._sum(grads.dtype, self.table.rows(rows), self.table.factor_of(factor))

    def total(self, sums: Tensor) -> Tensor:
        """The sum of float64 numbers from the first to the last."""
        with device_guard(self.device):
            return self._total(sums)

    def advance(
        self, ledger: LedgerTensors, operation: Operation, found_inf: Tensor | None
    ) -> None:
        """Fill in the rows of an operation; count and record what it does."""
        with device_guard(self.device):
            self._advance(ledger, operation, found_inf)

    def _room_for_sums(self, num_terms: int) -> tuple[Tensor, Tensor]:
        """For the sums of chunks, and for those of tensors."""
        partial, sums = (
            torch.empty(num_terms, columns, dtype=torch.float64, device=self.device)
            for columns in (self.table.num_chunks, self.table.num_params)
        )
        return partial, sums

    def _room_to_track(self, num_tracked: int) -> Tensor:
        """For the sums of chunks in a step: zeros, as one that turns out void sums nothing."""
        shape = num_tracked, self.table.num_chunks
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def _launch(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        rows: Rows,
        factor: float | Tensor,
        found_inf: Tensor | None,
        tracked: Tensor | None = None,
    ) -> None:
        """Run an operation over all chunks on the current stream."""
        raise NotImplementedError

    def _sum(self, grad_dtype: torch.dtype, rows: Rows, factor: Tensor) -> Tensor:
        """Sum the rule's terms on the current stream."""
        raise NotImplementedError

    def _total(self, sums: Tensor) -> Tensor:
        """Add numbers in order, on the current stream."""
        raise NotImplementedError

    def _advance(
        self, ledger: LedgerTensors, operation: Operation, found_inf: Tensor | None
    ) -> None:
        """Run the kernel of `advance` on the current stream."""
        raise NotImplementedError
