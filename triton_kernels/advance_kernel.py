"""Counts, records and scalars of a bucket's parameters where the host must not wait for them.

``csrc/cuda/advance_kernel.h`` in Triton: a block of parameters each program. Records are
``[kind, *Look]``, rows ``[*Step, *Look]``, of any rule; behind ``Step`` there may be the share of
averages, and the count for noise.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.exact import power
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
def load_sums(sums, stride, mask, NUM_TERMS: tl.constexpr):
    """The sum of each term."""
    values = ()
    for k in tl.static_range(NUM_TERMS):
        values = values + (tl.load(sums + k * stride, mask),)  # noqa: RUF005
    return values


@triton.jit
def keep_sums(sums, zeros, look, NUM_TERMS: tl.constexpr, NUM_LOOK: tl.constexpr):
    """What a record without a prediction has behind its kind: sums, then zeros."""
    kept = ()
    for k in tl.static_range(NUM_LOOK):
        number = zeros[k]
        if k < NUM_TERMS:
            number = tl.where(look == 0, sums[k], zeros[k])
        kept = kept + (number,)  # noqa: RUF005 -- Triton has no unpacking
    return kept


@triton.jit
def average_share(ema, count):
    """Of a weight in its average, see ``wpadamw/rules/averaged.py``."""
    past = 1.0 - ema
    return (1.0 - past) / (1.0 - power(past, count))


@triton.jit(do_not_specialize=["num_tensors"])
def advance_kernel(
    steps,
    predictions,
    hyper,
    shares,
    has_grad,
    sums,
    scalars,
    index,
    num_tensors,
    found_inf,
    SCALARS: tl.constexpr,
    WITH_SUMS: tl.constexpr,
    NUM_TERMS: tl.constexpr,
    NUM_HYPER: tl.constexpr,
    NUM_STEP: tl.constexpr,
    LOOKS_AT: tl.constexpr,
    NUM_LOOK: tl.constexpr,
    NUM_LOOKS: tl.constexpr,
    HAS_AVERAGES: tl.constexpr,
    IS_NOISY: tl.constexpr,
    UPDATE: tl.constexpr,
    PREDICT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """The rows of an operation: of a step if it updates, else of a prediction, or of neither.

    SCALARS and WITH_SUMS are the rule's functions.
    """
    LOOKS: tl.constexpr = NUM_LOOKS * NUM_LOOK
    WIDTH: tl.constexpr = LOOKS_AT + LOOKS
    i = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask, last = i < num_tensors, i + num_tensors
    record, row = predictions + i * (1 + LOOKS), scalars + i * WIDTH
    looks, last_looks = row + LOOKS_AT, scalars + last * WIDTH + LOOKS_AT
    count = tl.load(steps + i, mask).to(tl.int64)
    kind = tl.load(record, mask)

    # What parameters hold before the operation.
    tl.store(index + last, tl.where(kind == MADE, last, -1).to(tl.int32), mask)
    where, is_first = mask & (kind == NONE), count == 0
    if UPDATE:
        count += 1
        where = mask & (tl.load(has_grad + i, mask) != 0)
        if found_inf is not None:
            where &= tl.load(found_inf + 0 * i) == 0
        tl.store(steps + i, count.to(tl.float32), where)
        if HAS_AVERAGES:
            share = average_share(tl.load(hyper + NUM_HYPER), count)
            tl.store(row + NUM_STEP, share, mask)
        if IS_NOISY:
            tl.store(row + LOOKS_AT - 1, count.to(tl.float64), mask)
    if UPDATE:
        summed = load_sums(sums + i, num_tensors, mask, NUM_TERMS)
    else:
        summed = load_sums(record + 1, 1, mask, NUM_TERMS)
    for k in range(NUM_LOOKS):
        if UPDATE or PREDICT:
            numbers = load_row(hyper, None, NUM_HYPER, tl.float64)
            step, look = SCALARS(numbers, count, 0 * count + k, tl.load(shares + k))
            if NUM_TERMS > 0:
                step, look = WITH_SUMS(numbers, step, look, summed)
            if UPDATE:
                store_row(row, step, mask & (k == 0), NUM_STEP)
        held = load_row(record + 1 + k * NUM_LOOK, mask, NUM_LOOK, tl.float64)
        store_row(last_looks + k * NUM_LOOK, held, mask, NUM_LOOK)
        if UPDATE or PREDICT:
            zeros = zeros_for(count, NUM_LOOK)
            if UPDATE:
                made = look if PREDICT else keep_sums(summed, zeros, k, NUM_TERMS, NUM_LOOK)
            else:
                made = choose(is_first, zeros, look, NUM_LOOK)
                look = choose(where, made, held, NUM_LOOK)
            store_row(looks + k * NUM_LOOK, look, mask, NUM_LOOK)
            store_row(record + 1 + k * NUM_LOOK, made, where, NUM_LOOK)
    moves = mask
    if UPDATE:
        tl.store(record, tl.full(count.shape, MADE if PREDICT else NONE, tl.float64), where)
    elif PREDICT:
        kind = tl.where(where, tl.where(is_first, NULL, MADE), kind)
        tl.store(record, kind, where)
        moves = kind == MADE
    tl.store(index + i, tl.where(moves, i, -1).to(tl.int32), mask)
