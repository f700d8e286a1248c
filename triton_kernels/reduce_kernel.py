"""Sums over each tensor of a bucket, of the terms of a rule: read only.

A first kernel sums chunks, one program each, a second one the chunks of a tensor. The order is that
of ``wpadamw/rules/summing.py``, whatever works in parallel.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.chunk import load_chunk
from wpadamw.triton_kernels.looks import recover_by
from wpadamw.triton_kernels.tuples import load_each, load_row, pointers_to_each

NUM_WARPS = 4  # the fewer there are, the fewer sums cross them
NUM_AHEAD = 32  # chunks that are loaded before the first of them is added


@triton.jit
def sum_by_halves(x, NUM_HALVINGS: tl.constexpr):
    """The sum of a block: its first half plus its second half, and so on."""
    # tl.sum has an order of its own, but two numbers have only one.
    for _ in tl.static_range(NUM_HALVINGS - 1):
        x = tl.sum(tl.reshape(x, (2, x.shape[0] // 2)), 0)
    return tl.sum(x, 0)


@triton.jit
def block_terms(
    first,
    numel,
    param,
    grad,
    weight,
    states,
    offset,
    begin,
    factor,
    step,
    look,
    last_looks,
    holds_prediction,
    TERMS: tl.constexpr,
    RECOVER: tl.constexpr,
    NUM_TERMS: tl.constexpr,
    NUM_STATES: tl.constexpr,
    NUM_LOOK: tl.constexpr,
    NUM_LOOKS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    PARAM_ALIGNMENT: tl.constexpr,
    GRAD_ALIGNMENT: tl.constexpr,
    STATE_ALIGNMENT: tl.constexpr,
    BLOCK_NUMEL: tl.constexpr,
):
    """The terms of BLOCK_NUMEL elements from ``first`` on; 0 from ``numel`` on, if it is known."""
    i = first + tl.arange(0, BLOCK_NUMEL)
    mask = None if numel is None else i < numel
    # Said of pointers, here: what is known of an address is lost when it becomes a pointer, and
    # what is known of a pointer when it is an argument.
    param = tl.multiple_of(param.to(tl.pointer_type(PARAM_DTYPE)), PARAM_ALIGNMENT) + i
    grad = grad.to(tl.pointer_type(GRAD_DTYPE)) + begin
    grad = tl.multiple_of(grad, GRAD_ALIGNMENT) + i
    states = pointers_to_each(states, offset, i, STATE_ALIGNMENT, NUM_STATES)
    if weight is None:
        w = tl.load(param, mask).to(STATE_DTYPE)
    else:
        weight = weight.to(tl.pointer_type(STATE_DTYPE))
        weight = tl.multiple_of(weight, STATE_ALIGNMENT) + i
        w = tl.load(weight, mask)
    g = tl.load(grad, mask).to(STATE_DTYPE)
    state = load_each(states, mask, NUM_STATES)
    if RECOVER is not None:
        recovered = recover_by(
            last_looks, holds_prediction, w, state, RECOVER, NUM_LOOK, NUM_LOOKS, STATE_DTYPE
        )
        w = tl.where(holds_prediction, recovered, w)
    terms = TERMS(w, state, g * factor, step, look)
    present = ()
    for k in tl.static_range(NUM_TERMS):
        term = terms[k] if numel is None else tl.where(mask, terms[k], 0.0)
        present = present + (term,)  # noqa: RUF005 -- Triton has no unpacking
    return present


@triton.jit(do_not_specialize=["num_tensors"])
def chunk_sums_kernel(
    chunks,
    grads,
    states,
    averages,
    scalars,
    index,
    num_tensors,
    factor,
    sums,
    TERMS: tl.constexpr,
    RECOVER: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    NUM_TERMS: tl.constexpr,
    NUM_STATES: tl.constexpr,
    NUM_STEP: tl.constexpr,
    LOOKS_AT: tl.constexpr,
    NUM_LOOK: tl.constexpr,
    NUM_LOOKS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
    PARAM_ALIGNMENT: tl.constexpr,
    GRAD_ALIGNMENT: tl.constexpr,
    CHUNK_NUMEL: tl.constexpr,
    NUM_HALVINGS: tl.constexpr,
):
    """One chunk: ``sums`` has each chunk's sum of the first term, then those of the second one.

    Those of tensors without a gradient stay as they are. The arguments are those of
    ``bucket_kernel``, the operation is an update.
    """
    param, weight, offset, begin, tensor, numel = load_chunk(chunks)
    grad = tl.load(grads + tensor)
    if grad == 0:
        return
    row = scalars + tl.load(index + tensor).to(tl.int64) * (LOOKS_AT + NUM_LOOKS * NUM_LOOK)
    step = load_row(row, None, NUM_STEP, STATE_DTYPE)
    look = load_row(row + LOOKS_AT, None, NUM_LOOK, STATE_DTYPE)
    last = tl.load(index + num_tensors + tensor).to(tl.int64)
    last_looks = scalars + last * (LOOKS_AT + NUM_LOOKS * NUM_LOOK) + LOOKS_AT
    size = tl.load(factor).to(STATE_DTYPE)

    sums += tl.program_id(0).to(tl.int64)
    is_aligned = (param % PARAM_ALIGNMENT == 0) & (grad % GRAD_ALIGNMENT == 0)
    if HAS_WEIGHTS:
        is_aligned &= weight % 16 == 0
    if is_aligned & (numel == CHUNK_NUMEL):
        terms = block_terms(
            0,
            None,
            param,
            grad,
            weight if HAS_WEIGHTS else None,
            states,
            offset,
            begin,
            size,
            step,
            look,
            last_looks,
            last >= 0,
            TERMS,
            RECOVER,
            NUM_TERMS,
            NUM_STATES,
            NUM_LOOK,
            NUM_LOOKS,
            PARAM_DTYPE,
            GRAD_DTYPE,
            STATE_DTYPE,
            PARAM_ALIGNMENT,
            GRAD_ALIGNMENT,
            16,
            CHUNK_NUMEL,
        )
    else:
        terms = block_terms(
            0,
            numel,
            param,
            grad,
            weight if HAS_WEIGHTS else None,
            states,
            offset,
            begin,
            size,
            step,
            look,
            last_looks,
            last >= 0,
            TERMS,
            RECOVER,
            NUM_TERMS,
            NUM_STATES,
            NUM_LOOK,
            NUM_LOOKS,
            PARAM_DTYPE,
            GRAD_DTYPE,
            STATE_DTYPE,
            1,
            1,
            1,
            CHUNK_NUMEL,
        )
    for k in tl.static_range(NUM_TERMS):
        total = sum_by_halves(terms[k], NUM_HALVINGS)
        tl.store(sums + k * tl.num_programs(0), total.to(tl.float64))


@triton.jit(do_not_specialize=["num_chunks"])
def tensor_sums_kernel(chunk_sums, num_chunks, ends, grads, sums, NUM_AHEAD: tl.constexpr):
    """One term of one tensor: its chunks, which end where ``ends`` tells, from the first one on."""
    tensor, term = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    first, end = tl.load(ends + tensor), tl.load(ends + tensor + 1)
    end = tl.where(tl.load(grads + tensor) == 0, first, end)
    chunk_sums += term * num_chunks
    total = tl.full((), 0.0, tl.float64)
    for chunk in range(first, end, NUM_AHEAD):
        # One after the other is how they are added; they need not be waited for that way.
        ahead = load_run(chunk_sums + chunk, end - chunk, NUM_AHEAD)
        for k in tl.static_range(NUM_AHEAD):
            total += ahead[k]
    tl.store(sums + term * tl.num_programs(0) + tensor, total)


@triton.jit
def load_run(array, numel, NUMBER: tl.constexpr):
    """So many numbers, 0 from ``numel`` on."""
    values = ()
    for k in tl.static_range(NUMBER):
        values = values + (tl.load(array + k, k < numel, 0.0),)  # noqa: RUF005
    return values
