"""Rows of scalars as the flat tables that kernels read."""

from __future__ import annotations

from wpadamw._backends.interface import Rows
from wpadamw.scalars import NEUTRAL


def flatten(rows: Rows, last: Rows, num_params: int) -> tuple[list[float], list[int]]:
    """All numbers of the distinct rows, and per parameter the row of its prediction, or -1.

    The second list is empty where no parameter holds a prediction.
    """
    numbers = [number for row in rows.distinct for number in row or NEUTRAL]
    if all(row is None for row in last.distinct):
        return numbers, []
    position, num_rows = [], len(rows.distinct)
    for row in last.distinct:
        position.append(-1 if row is None else num_rows)
        num_rows += row is not None
        numbers.extend(row or ())
    return numbers, [position[i] for i in last.index or [0] * num_params]
