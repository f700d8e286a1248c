"""Counts of updates, records of predictions, and the rows of scalars that come from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wpadamw._backends.interface import Kind, Rows
from wpadamw.rules.rule import Rule

# The row ``prediction`` of a parameter's state: [kind, *Look, ...]. Where there is none yet, a rule
# that reduces finds what its last update has summed there: [kind, *sums, 0, ...].
Record = tuple[float, ...]


class Numbers(NamedTuple):
    """Counts and records of all parameters at one moment."""

    counts: list[int]
    records: list[Record]

    def where(self, done: list[bool], others: Numbers) -> Numbers:
        """These where ``done``, and the others elsewhere."""
        return Numbers(
            [a if d else b for a, b, d in zip(self.counts, others.counts, done, strict=True)],
            [a if d else b for a, b, d in zip(self.records, others.records, done, strict=True)],
        )


def no_rows(rule: Rule, num_looks: int = 1) -> Rows:
    """The rows of a restore from backups, which needs none."""
    return Rows(torch.zeros(1, rule.row_width(num_looks), dtype=torch.float64, device="cpu"))


def most_looks(rule: Rule, states: Sequence[dict[str, Any]]) -> int:
    """The number of looks of the longest record in some states, 1 at least."""
    records = [state.get("prediction") for state in states]
    lengths = [len(record) - 1 for record in records if record is not None]
    return max(lengths, default=0) // max(1, len(rule.Look._fields)) or 1


def rows_of_records(predictions: Tensor, rule: Rule) -> Rows:
    """What re-creates recorded predictions; row -1 for those that move nothing."""
    num_params, num_step = len(predictions), len(rule.Step._fields)
    index = torch.arange(num_params, dtype=torch.int32, device=predictions.device)
    index = torch.where(predictions[:, 0] == Kind.made, index, -1)
    scalars = torch.cat([predictions.new_zeros(num_params, num_step), predictions[:, 1:]], dim=1)
    return Rows(scalars, index.repeat(2, 1))
