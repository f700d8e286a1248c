"""The specification as a backend: any device, any dtype, one parameter at a time."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

from wpadamw._backends.interface import (
    NO_ROWS,
    BucketTensors,
    ColumnTensors,
    Completed,
    DeviceRows,
    Gradients,
    Operation,
    Rows,
)
from wpadamw._backends.torch_columns import ONE, advance, write
from wpadamw.scalars import Scalars

NAME = "torch"


def why_not(device_type: str) -> str | None:
    """Why this backend cannot serve a type of device, or None if it can."""
    if device_type == "meta":
        return "meta tensors have no data"
    if device_type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    return None


class _TensorRows:
    """One of the two columns of `DeviceRows`: scalars that are tensors of one element."""

    grad_factor = None

    def __init__(self, rows: DeviceRows, column: int, dtype: torch.dtype) -> None:
        index = rows.index[column]
        self.is_row = index >= 0
        self.scalars = rows.scalars.index_select(0, index.clamp(min=0)).to(dtype)

    def get(self, i: int) -> Scalars:
        return Scalars(*self.scalars[i])

    __getitem__ = get


AnyRows = Rows | _TensorRows


class Kernels:
    """Predict, restore and step over a bucket through `wpadamw.rules`."""

    raise_versions = True

    def __init__(self, bucket: BucketTensors) -> None:
        self.bucket = bucket
        self.real_dtype = bucket.state_flat[0].dtype
        # Operations that each parameter has been through, and last the calls of `advance`.
        self.counts = array("q", [0]) * (len(bucket.params) + 1)
        self.count_of = torch.frombuffer(self.counts, dtype=torch.int64).unbind()

    def completed(self) -> Completed:
        """How many operations each parameter has been through."""
        return list(self.counts[:-1])

    def advanced(self) -> int:
        """How many calls of `advance` have been done."""
        return self.counts[-1]

    @torch.no_grad()
    def step(
        self, grads: Gradients, rows: Rows | DeviceRows, last: Rows, predict_next: bool
    ) -> None:
        """Restore, update and, with ``predict_next``, predict."""
        found_inf = rows.found_inf if isinstance(rows, DeviceRows) else None
        is_void = None if found_inf is None else found_inf != 0
        of_step, of_last = self._rows(rows, 0), self._rows(rows, 1, last)
        for i, grad in enumerate(grads.tensors):
            if grad is not None:
                self._step_parameter(i, grad, of_step, of_last, predict_next, is_void)

    @torch.no_grad()
    def predict(self, rows: Rows | DeviceRows) -> None:
        """Go to the predicted weights."""
        of_prediction = self._rows(rows, 0)
        for i, param in enumerate(self.bucket.params):
            state, s = self._state(i), of_prediction[i]
            weight, direction = self._true_weight(i, NO_ROWS), self.bucket.rule.direction(state, s)
            self._write(i, [param], [self.bucket.rule.predict_weight(weight, direction, s)])

    @torch.no_grad()
    def restore(self, last: Rows | DeviceRows) -> None:
        """Go to the true weights."""
        of_last = self._rows(last, 1)
        for i, param in enumerate(self.bucket.params):
            self._write(i, [param], [self._true_weight(i, of_last)])

    def advance(self, columns: ColumnTensors, operation: Operation) -> None:
        """Fill in the rows of an operation; count and record what it does."""
        advance(columns, operation, self.count_of[-1])

    def _write(self, i: int, targets: list[Tensor], values: list[Tensor]) -> None:
        """All that an operation writes of parameter i, and its count, in one call."""
        write([*targets, self.count_of[i]], [*values, self.count_of[i] + ONE])

    def _rows(self, rows: Rows | DeviceRows, column: int, last: Rows | None = None) -> AnyRows:
        if isinstance(rows, DeviceRows):
            return _TensorRows(rows, column, self.real_dtype)
        return rows if last is None else last

    def _step_parameter(
        self,
        i: int,
        grad: Tensor,
        rows: AnyRows,
        last: AnyRows,
        predict_next: bool,
        is_void: Tensor | None,
    ) -> None:
        rule, state, s = self.bucket.rule, self._state(i), rows[i]
        factor = s.grad_factor if rows.grad_factor is None else rows.grad_factor.to(self.real_dtype)
        weight = self._true_weight(i, last)
        new_state = rule.update(state, grad.to(weight.dtype) * factor, s)
        direction = rule.direction(new_state, s)
        weight = rule.step_weight(weight, direction, s)
        held = rule.predict_weight(weight, direction, s) if predict_next else weight
        targets = [*state, self.bucket.params[i]]
        values = [*new_state, held]
        if self.bucket.weight is not None:
            targets.append(self.bucket.weight[i])
            values.append(weight)
        if is_void is not None:
            pairs = zip(targets, values, strict=True)
            values = [torch.where(is_void, target, value) for target, value in pairs]
        self._write(i, targets, values)

    def _state(self, i: int) -> tuple[Tensor, ...]:
        return tuple(views[i] for views in self.bucket.state)

    def _true_weight(self, i: int, last: AnyRows) -> Tensor:
        if self.bucket.weight is not None:
            return self.bucket.weight[i]
        param, s = self.bucket.params[i], last.get(i)
        if s is None:
            return param.clone()
        rule = self.bucket.rule
        weight = rule.recover_weight(param, rule.direction(self._state(i), s), s)
        return (
            torch.where(last.is_row[i], weight, param) if isinstance(last, _TensorRows) else weight
        )
