"""Counts, records and scalars of a bucket's parameters where the host must not wait for them.

``csrc/cuda/advance_kernel.h`` in Triton: a block of parameters each program. Records are
``[kind, *Look]``, rows ``[*Step, *Look]``, of any rule.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.tuples import choose, load_row, store_row

BLOCK_SIZE = 128
NUM_WARPS = 4  # a parameter each thread

# wpadamw._backends.interface.Kind.
NONE, MADE, NULL = tl.constexpr(0.0), tl.constexpr(1.0), tl.constexpr(2.0)


@triton.jit
def zeros_for(count, NUM_LOOK: tl.constexpr):
    """What a record has after its kind where no prediction is made."""
    zero = tl.zeros(count.shape, tl.float64)
    zeros = ()
    for _ in tl.static_range(NUM_LOOK):
        zeros = zeros + (zero,)  # noqa: RUF005 -- Triton has no unpacking
    return zeros


@triton.jit
def store_record(record, kind, look, mask, NUM_LOOK: tl.constexpr):
    """Write a kind, and after it what re-creates the prediction."""
    tl.store(record, kind, mask)
    store_row(record + 1, look, mask, NUM_LOOK)


@triton.jit(do_not_specialize=["num_tensors"])
def advance_kernel(
    steps,
    predictions,
    hyper,
    has_grad,
    scalars,
    index,
    num_tensors,
    found_inf,
    SCALARS: tl.constexpr,
    NUM_HYPER: tl.constexpr,
    NUM_STEP: tl.constexpr,
    NUM_LOOK: tl.constexpr,
    UPDATE: tl.constexpr,
    PREDICT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """The rows of an operation: of a step if it updates, else of a prediction, or of neither.

    SCALARS is the rule's function.
    """
    WIDTH: tl.constexpr = NUM_STEP + NUM_LOOK
    i = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask, last = i < num_tensors, i + num_tensors
    record, row = predictions + i * (1 + NUM_LOOK), scalars + i * WIDTH
    count = tl.load(steps + i, mask).to(tl.int64)
    kind, held = tl.load(record, mask), load_row(record + 1, mask, NUM_LOOK, tl.float64)
    zeros = zeros_for(count, NUM_LOOK)

    # What parameters hold before the operation.
    store_row(scalars + last * WIDTH + NUM_STEP, held, mask, NUM_LOOK)
    tl.store(index + last, tl.where(kind == MADE, last, -1).to(tl.int32), mask)
    moves = mask
    if UPDATE:
        count += 1
        step, look = SCALARS(load_row(hyper, None, NUM_HYPER, tl.float64), count)
        store_row(row, step, mask, NUM_STEP)
        store_row(row + NUM_STEP, look, mask, NUM_LOOK)
        where = mask & (tl.load(has_grad + i, mask) != 0)
        if found_inf is not None:
            where &= tl.load(found_inf + 0 * i) == 0
        tl.store(steps + i, count.to(tl.float32), where)
        kind = tl.full(count.shape, MADE if PREDICT else NONE, tl.float64)
        store_record(record, kind, look if PREDICT else zeros, where, NUM_LOOK)
    elif PREDICT:
        step, look = SCALARS(load_row(hyper, None, NUM_HYPER, tl.float64), count)
        is_new, is_first = kind == NONE, count == 0
        look = choose(is_new, choose(is_first, zeros, look, NUM_LOOK), held, NUM_LOOK)
        kind = tl.where(is_new, tl.where(is_first, NULL, MADE), kind)
        store_row(row + NUM_STEP, look, mask, NUM_LOOK)
        store_record(record, kind, look, mask & is_new, NUM_LOOK)
        moves = kind == MADE
    tl.store(index + i, tl.where(moves, i, -1).to(tl.int32), mask)
