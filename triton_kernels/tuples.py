"""Tuples of values: rows of scalars that lie side by side, and an element each of several arrays.

Whoever calls these does not know how many there are, or what they mean: that is the rule's.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_row(row, mask, NUMBER: tl.constexpr, DTYPE: tl.constexpr):
    """Numbers that lie side by side, rounded to a dtype; without meaning where the mask is not."""
    values = ()
    for k in tl.static_range(NUMBER):
        values = values + (tl.load(row + k, mask).to(DTYPE),)  # noqa: RUF005 -- not in Triton
    return values


@triton.jit
def store_row(row, values, mask, NUMBER: tl.constexpr):
    """Write numbers side by side."""
    for k in tl.static_range(NUMBER):
        tl.store(row + k, values[k], mask)


@triton.jit
def choose(condition, values, others, NUMBER: tl.constexpr):
    """``tl.where`` of tuples."""
    chosen = ()
    for k in tl.static_range(NUMBER):
        chosen = chosen + (tl.where(condition, values[k], others[k]),)  # noqa: RUF005
    return chosen


@triton.jit
def pointers_to_each(arrays, offset, i, ALIGNMENT: tl.constexpr, NUMBER: tl.constexpr):
    """The same elements of several arrays, from an offset on."""
    pointers = ()
    for k in tl.static_range(NUMBER):
        array = tl.multiple_of(arrays[k] + offset, ALIGNMENT)
        pointers = pointers + (array + i,)  # noqa: RUF005
    return pointers


@triton.jit
def load_each(pointers, mask, NUMBER: tl.constexpr):
    """What several arrays hold."""
    values = ()
    for k in tl.static_range(NUMBER):
        values = values + (tl.load(pointers[k], mask),)  # noqa: RUF005
    return values


@triton.jit
def store_each(pointers, values, mask, NUMBER: tl.constexpr):
    """Write to several arrays."""
    for k in tl.static_range(NUMBER):
        tl.store(pointers[k], values[k], mask)
