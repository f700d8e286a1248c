"""Counts, records and scalars on a device, in plain PyTorch: the specification of `advance`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wpadamw._backends.interface import ColumnTensors, Operation
from wpadamw.rules import sqrt
from wpadamw.scalars import NEUTRAL, Prediction, Scalars, step_scalars

# float32 counts whole numbers up to 2^24.
_COUNT_BITS = 25

ONE = torch.ones((), dtype=torch.int64)


def write(targets: list[Tensor], values: list[Tensor]) -> None:
    """Copies values into tensors in one call, which no exception from elsewhere can divide."""
    torch._foreach_copy_(targets, values)


def power(base: Tensor, exponent: Tensor) -> Tensor:
    """``base**exponent`` for whole exponents by repeated squaring: one result on all devices."""
    result = torch.ones_like(exponent, dtype=torch.float64)
    for bit in range(_COUNT_BITS):
        is_set = (exponent >> bit) & 1 != 0
        result = torch.where(is_set, result * base, result)
        base = base * base
    return result


def _table(scalars: Scalars, counts: Tensor) -> Tensor:
    table = torch.empty(len(counts), len(scalars), dtype=torch.float64, device=counts.device)
    for i, column in enumerate(scalars):
        table[:, i] = column
    return table


def _step_table(
    prediction: Prediction, weight_decay: float | Tensor, counts: Tensor, factor: float | Tensor
) -> Tensor:
    of_tensors: Any = step_scalars  # its formulas hold for tensors in the place of numbers
    return _table(of_tensors(prediction, weight_decay, counts, factor, power, sqrt), counts)


def _moves_nothing(predictions: Tensor, counts: Tensor) -> Tensor:
    return (counts == 0) | (predictions[:, 1:] == 0).all(dim=1)


def _prediction_table(predictions: Tensor, counts: Tensor) -> Tensor:
    recorded = Prediction(*predictions.unbind(dim=1))  # type: ignore[arg-type]
    table = _step_table(recorded, 0.0, counts, 1.0)
    still = _moves_nothing(predictions, counts)
    return torch.where(still.unsqueeze(1), _table(NEUTRAL, counts), table)


@torch.no_grad()
def advance(columns: ColumnTensors, operation: Operation, count: Tensor) -> None:
    """Fill in the rows of an operation; count and record what a step or a prediction does.

    ``count`` rises by one together with the last of it.
    """
    num_params, counts = len(columns.steps), columns.steps.long()
    scalars, index = columns.rows.scalars, columns.rows.index
    own = torch.arange(num_params, dtype=torch.int32, device=index.device)
    index[0] = own
    index[1] = torch.where(_moves_nothing(columns.predictions, counts), -1, num_params + own)
    scalars[num_params:] = _prediction_table(columns.predictions, counts)
    if operation is Operation.predict:
        is_made = columns.predictions[:, :1] != 0
        columns.predictions.copy_(torch.where(is_made, columns.predictions, columns.options[:7]))
        scalars[:num_params] = _prediction_table(columns.predictions, counts)
        write([count], [count + ONE])
    elif operation is Operation.restore:
        write([count], [count + ONE])
    else:
        _advance_step(columns, counts, count)


def _advance_step(columns: ColumnTensors, counts: Tensor, count: Tensor) -> None:
    scalars, found_inf = columns.rows.scalars, columns.rows.found_inf
    *prediction, weight_decay, grad_factor = columns.options
    made = Prediction(*prediction)
    scalars[: len(counts)] = _step_table(made, weight_decay, counts + 1, grad_factor)
    is_busy = columns.has_grad if found_inf is None else columns.has_grad & (found_inf == 0)
    record = torch.where(columns.options[0] != 0, columns.options[:7], 0.0)
    predictions = torch.where(is_busy.unsqueeze(1), record, columns.predictions)
    write(
        [columns.steps, columns.predictions, count],
        [columns.steps + is_busy, predictions, count + ONE],
    )
