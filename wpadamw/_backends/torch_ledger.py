"""Counts, records and scalars on a device, in plain PyTorch: the specification of `advance`."""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw._backends.interface import Kind, LedgerTensors, Operation
from wpadamw.rules.rule import Row, Rule, sqrt

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


def _rows(row: Row, counts: Tensor) -> Tensor:
    """Scalars as rows of a table, one per count."""
    columns = [torch.as_tensor(column, device=counts.device).expand(len(counts)) for column in row]
    return torch.stack(columns, dim=1) if columns else counts.new_zeros(len(counts), 0).double()


def _scalars(
    rule: Rule, ledger: LedgerTensors, counts: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor]:
    """``Step`` of each parameter, and its looks."""
    hyper = rule.Hyper(*ledger.hyper)
    rows = [
        rule.scalars(hyper, counts, counts.new_tensor(ahead), share, power, sqrt)
        for ahead, share in enumerate(ledger.shares)
    ]
    if rule.num_terms:
        rows = [rule.with_sums(hyper, *row, sums.unbind()) for row in rows]
    looks = torch.cat([_rows(look, counts) for _, look in rows], dim=1)
    return _rows(rows[0][0], counts), looks


@torch.no_grad()
def advance(
    rule: Rule,
    ledger: LedgerTensors,
    operation: Operation,
    found_inf: Tensor | None,
    count: Tensor,
) -> None:
    """Fill in the rows of an operation; count and record what a step or a prediction does.

    ``count`` rises by one together with the last of it.
    """
    num_params, num_step = len(ledger.steps), len(rule.Step._fields)
    scalars, index = ledger.rows.scalars, ledger.rows.index
    assert index is not None
    own = torch.arange(num_params, dtype=torch.int32, device=index.device)
    index[0] = own
    index[1] = torch.where(ledger.predictions[:, 0] == Kind.made, num_params + own, -1)
    scalars[num_params:, num_step:] = ledger.predictions[:, 1:]
    if operation is Operation.predict:
        _advance_prediction(rule, ledger, own)
        write([count], [count + ONE])
    elif operation is Operation.restore:
        write([count], [count + ONE])
    else:
        _advance_step(rule, ledger, operation, found_inf, count)


def _advance_prediction(rule: Rule, ledger: LedgerTensors, own: Tensor) -> None:
    predictions, counts = ledger.predictions, ledger.steps.long()
    sums = predictions[:, 1 : 1 + rule.num_terms].T
    _, look = _scalars(rule, ledger, counts, sums)
    made = torch.cat([torch.full_like(look[:, :1], Kind.made), look], dim=1)
    null = torch.cat([torch.full_like(look[:, :1], Kind.null), torch.zeros_like(look)], dim=1)
    missing = torch.where((counts == 0).unsqueeze(1), null, made)
    predictions.copy_(torch.where(predictions[:, :1] == Kind.none, missing, predictions))
    scalars, index = ledger.rows.scalars, ledger.rows.index
    assert index is not None
    scalars[: len(own), -look.shape[1] :] = predictions[:, 1:]
    index[0] = torch.where(predictions[:, 0] == Kind.made, own, -1)


def _advance_step(
    rule: Rule,
    ledger: LedgerTensors,
    operation: Operation,
    found_inf: Tensor | None,
    count: Tensor,
) -> None:
    step, look = _scalars(rule, ledger, ledger.steps.long() + 1, ledger.sums)
    ledger.rows.scalars[: len(step)] = torch.cat([step, look], dim=1)
    is_busy = ledger.has_grad if found_inf is None else ledger.has_grad & (found_inf == 0)
    record = torch.cat([torch.full_like(look[:, :1], Kind.made), look], dim=1)
    if operation is Operation.step:
        record = torch.zeros_like(record)
        record[:, 1 : 1 + rule.num_terms] = ledger.sums.T
    predictions = torch.where(is_busy.unsqueeze(1), record, ledger.predictions)
    write(
        [ledger.steps, ledger.predictions, count],
        [ledger.steps + is_busy, predictions, count + ONE],
    )
