"""Launches of Triton kernels over a bucket whose state has the dtype of the mathematics."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from wpadamw._backends.device_kernels import DeviceKernels
from wpadamw._backends.interface import BucketTensors, LedgerTensors, Operation, Rows
from wpadamw.rules.around import plain
from wpadamw.rules.stored import is_noisy
from wpadamw.rules.summing import CHUNK_NUMEL


def triton_dtype(dtype: torch.dtype) -> Any:
    return getattr(importlib.import_module("triton.language"), str(dtype).removeprefix("torch."))


def _updates(operation: Operation) -> bool:
    return operation in (Operation.step, Operation.step_and_predict)


def _predicts(operation: Operation) -> bool:
    return operation in (Operation.step_and_predict, Operation.predict)


class BucketKernels(DeviceKernels):
    """Predict, restore and step over a bucket in one launch each."""

    def __init__(self, bucket: BucketTensors, modules: dict[str, Any], rule: Any) -> None:
        """With the modules of kernels by name, and the rule in Triton."""
        super().__init__(bucket)
        of_rule = plain(bucket.rule)
        self.modules, self.rule = modules, rule
        self.states = tuple(bucket.state_flat[: len(of_rule.state_names)])
        self.averages = bucket.state_flat[-1] if bucket.has_averages else None
        self.num_hyper = len(of_rule.Hyper._fields)
        # Triton launches from Python: an exception may come between a launch and its count.
        self.num_launches = self.num_advances = 0
        self.state_dtype = torch.promote_types(self.param_dtype, torch.float32)
        self.widths = {
            "NUM_STEP": len(of_rule.Step._fields),
            "LOOKS_AT": len(bucket.rule.Step._fields),
            "NUM_LOOK": len(bucket.rule.Look._fields),
            "NUM_LOOKS": bucket.num_looks,
        }
        grad_dtypes = {self.param_dtype, torch.float32}
        self.options = {
            (operation, grad_dtype): self._options(operation, grad_dtype)
            for operation in Operation
            for grad_dtype in grad_dtypes
        }

    def completed(self) -> int:
        """How many operations have been launched."""
        return self.num_launches

    def advanced(self) -> int:
        """How many calls of `advance` have been launched."""
        return self.num_advances

    # What is known when a kernel is compiled.

    def _options(self, operation: Operation, grad_dtype: torch.dtype) -> dict[str, Any]:
        """Of an operation: the functions of the rule that it needs, and the types of the arrays."""
        updates = _updates(operation)
        may_hold_prediction = updates or operation is Operation.restore
        return {
            "STEP": self._function("step", updates),
            "PREDICT": self._function("predict", _predicts(operation)),
            "RECOVER": self._recover(may_hold_prediction),
            **self._types(grad_dtype, self._num_accesses(operation)),
        }

    def _num_accesses(self, operation: Operation) -> int:
        """How often a thread accesses each array: with other numbers compilers spill float64."""
        if self.state_dtype != torch.float64:
            return 2
        if self.bucket.num_looks > 1:
            return 4
        return 1 if operation is Operation.predict else 2

    def _function(self, name: str, is_needed: bool) -> Any:
        return getattr(self.rule, name, None) if is_needed else None

    def _recover(self, may_hold_prediction: bool) -> Any:
        return self._function("recover", may_hold_prediction and self.bucket.weight is None)

    def _types(self, grad_dtype: torch.dtype, num_accesses: int = 2) -> dict[str, Any]:
        """The types of the arrays; of each a thread does so many accesses in a whole chunk."""
        width = 16 // self.state_dtype.itemsize  # elements of a 16-byte access of the state
        return {
            **self.widths,
            "HAS_WEIGHTS": self.bucket.weight is not None,
            "NUM_STATES": len(self.states),
            "PARAM_DTYPE": triton_dtype(self.param_dtype),
            "GRAD_DTYPE": triton_dtype(grad_dtype),
            "STATE_DTYPE": triton_dtype(self.state_dtype),
            "PARAM_ALIGNMENT": width * self.param_dtype.itemsize,
            "GRAD_ALIGNMENT": width * grad_dtype.itemsize,
            "CHUNK_NUMEL": CHUNK_NUMEL,
            "num_warps": CHUNK_NUMEL // (num_accesses * width * 32),
            "enable_fp_fusion": False,
        }

    # Launches.

    def _launch(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        rows: Rows,
        factor: float | Tensor,
        found_inf: Tensor | None,
        tracked: Tensor | None = None,
    ) -> None:
        rows, factor = self.table.rows(rows), self.table.factor_of(factor)
        partial = None if tracked is None else self._room_to_track(len(tracked))
        if self.table.num_chunks:
            arguments = (*self._arguments(rows, factor), found_inf)
            self._launch_chunks(operation, grad_dtype, arguments, partial)
        if partial is not None and tracked is not None:
            self._sum_chunks(partial, tracked)
        self.num_launches += 1

    def _launch_chunks(
        self,
        operation: Operation,
        grad_dtype: torch.dtype,
        arguments: tuple[Any, ...],
        partial: Tensor | None,
    ) -> None:
        """An operation over all chunks, the sums of each of which go to ``partial``, if any."""
        grid = (self.table.num_chunks,)
        if partial is not None:
            kernel = self.modules["track_kernel"].track_kernel
            kernel[grid](*arguments, partial, **self._track_options(operation, grad_dtype))
        else:
            kernel = self.modules["bucket_kernel"].bucket_kernel
            kernel[grid](*arguments, **self.options[operation, grad_dtype])

    def _arguments(self, rows: Rows, factor: Tensor) -> tuple[Any, ...]:
        """What every kernel over a bucket is given."""
        table = self.table
        arrays = (table.chunks, table.grads.tensor, self.states, self.averages)
        return (*arrays, rows.scalars, rows.index, table.num_params, factor)

    def _sum(self, grad_dtype: torch.dtype, rows: Rows, factor: Tensor) -> Tensor:
        partial, sums = self._room_for_sums(self.bucket.rule.num_terms)
        if self.table.num_chunks:
            self._launch_sums(grad_dtype, self._arguments(rows, factor), partial)
        self._sum_chunks(partial, sums)
        return sums

    def _launch_sums(
        self, grad_dtype: torch.dtype, arguments: tuple[Any, ...], partial: Tensor
    ) -> None:
        """The sums of the rule's terms over each chunk."""
        kernel = self.modules["reduce_kernel"].chunk_sums_kernel
        kernel[(self.table.num_chunks,)](*arguments, partial, **self._sum_options(grad_dtype))

    def _sum_chunks(self, partial: Tensor, sums: Tensor) -> None:
        """The sums of tensors from those of their chunks."""
        module, table = self.modules["reduce_kernel"], self.table
        module.tensor_sums_kernel[(table.num_params, len(sums))](
            partial,
            table.num_chunks,
            self._ends(),
            table.grads.tensor,
            sums,
            NUM_AHEAD=module.NUM_AHEAD,
            num_warps=1,
            enable_fp_fusion=False,
        )

    def _track_options(self, operation: Operation, grad_dtype: torch.dtype) -> dict[str, Any]:
        return {
            **self.options[operation, grad_dtype],
            "NUM_HALVINGS": CHUNK_NUMEL.bit_length() - 1,
            "num_warps": self.modules["reduce_kernel"].NUM_WARPS,
        }

    def _sum_options(self, grad_dtype: torch.dtype) -> dict[str, Any]:
        return {
            **self._types(grad_dtype),
            "TERMS": self.rule.terms,
            "RECOVER": self._recover(True),
            "NUM_TERMS": self.bucket.rule.num_terms,
            "NUM_HALVINGS": CHUNK_NUMEL.bit_length() - 1,
            "num_warps": self.modules["reduce_kernel"].NUM_WARPS,
        }

    def _ends(self) -> Tensor:
        """Where the chunks of each tensor begin, and after them all where the last ones end."""
        tensors = (self.table.chunks[:, 4] & 0xFFFFFFFF).contiguous()
        places = torch.arange(self.table.num_params + 1, device=self.device)
        return torch.searchsorted(tensors, places)

    def _total(self, sums: Tensor) -> Tensor:
        module = self.modules["reduce_kernel"]
        ends = torch.arange(2, device=self.device) * sums.numel()
        total = torch.empty(1, dtype=torch.float64, device=self.device)
        module.tensor_sums_kernel[(1, 1)](
            sums,
            sums.numel(),
            ends,
            torch.ones_like(ends),
            total,
            NUM_AHEAD=module.NUM_AHEAD,
            num_warps=1,
            enable_fp_fusion=False,
        )
        return total[0]

    def _advance(
        self, ledger: LedgerTensors, operation: Operation, found_inf: Tensor | None
    ) -> None:
        module = self.modules["advance_kernel"]
        num_params = ledger.steps.numel()
        module.advance_kernel[(-(-num_params // module.BLOCK_SIZE),)](
            ledger.steps,
            ledger.predictions,
            ledger.hyper,
            ledger.shares,
            ledger.has_grad,
            ledger.sums,
            ledger.rows.scalars,
            ledger.rows.index,
            num_params,
            found_inf,
            SCALARS=self.rule.scalars,
            WITH_SUMS=getattr(self.rule, "with_sums", None),
            NUM_TERMS=len(ledger.sums),
            NUM_HYPER=self.num_hyper,
            **self.widths,
            HAS_AVERAGES=self.averages is not None,
            IS_NOISY=is_noisy(self.bucket.rule),
            UPDATE=_updates(operation),
            PREDICT=_predicts(operation),
            BLOCK_SIZE=module.BLOCK_SIZE,
            num_warps=module.NUM_WARPS,
            enable_fp_fusion=False,
        )
        self.num_advances += 1
