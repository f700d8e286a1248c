"""Predict, restore and step over a bucket in small formats: ``bucket_kernel`` with these.

Numbers are decoded when they are loaded and encoded when they are stored; between stand the rule's
functions, for float32. Encoding looks at blocks of neighbours, so that one thread has several.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.chunk import load_chunk
from wpadamw.triton_kernels.formats import BLOCK_NUMEL, noise, widened
from wpadamw.triton_kernels.looks import predict_by, recover_by
from wpadamw.triton_kernels.reduce_kernel import sum_by_halves
from wpadamw.triton_kernels.stored import (
    load_param,
    load_state,
    pointer_to,
    pointers_to_state,
    store_param,
    store_state,
)
from wpadamw.triton_kernels.tuples import load_row


@triton.jit
def run_block(
    first,
    numel,
    chunk,
    begin,
    states,
    scales,
    rest,
    averages,
    sums,
    factor,
    row,
    moves,
    last_looks,
    holds_prediction,
    STEP: tl.constexpr,
    PREDICT: tl.constexpr,
    RECOVER: tl.constexpr,
    TERMS: tl.constexpr,
    IS_NOISY: tl.constexpr,
    HAS_NOISY_PARAMS: tl.constexpr,
    FORMATS: tl.constexpr,
    NUM_STATES: tl.constexpr,
    NUM_STEP: tl.constexpr,
    LOOKS_AT: tl.constexpr,
    NUM_LOOK: tl.constexpr,
    NUM_LOOKS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    NUM_TERMS: tl.constexpr,
    NUM_HALVINGS: tl.constexpr,
    WIDTH: tl.constexpr,
    NUMEL: tl.constexpr,
):
    """An operation over NUMEL elements of a chunk, or the rule's terms alone.

    They begin with ``first``; those from ``numel`` on, if any, are not.
    """
    NEEDS_GRAD: tl.constexpr = STEP is not None or TERMS is not None
    param, grad, weight, offset = chunk
    i = first + tl.arange(0, NUMEL)
    block = (offset + first) // BLOCK_NUMEL + tl.arange(0, NUMEL // BLOCK_NUMEL)
    mask = None if numel is None else i < numel
    has_block = None if numel is None else block * BLOCK_NUMEL < offset + numel
    param = pointer_to(param, None, i, PARAM_DTYPE, WIDTH)
    rest = None if rest is None else pointer_to(rest, offset, i, tl.int16, WIDTH)
    states = pointers_to_state(states, offset, i, NUM_STATES, WIDTH)
    held = load_param(param, rest, mask)
    w = held
    if weight is not None:
        weight = pointer_to(weight, None, i, tl.float32, WIDTH)
        w = tl.load(weight, mask)
    if NEEDS_GRAD:
        g = widened(tl.load(pointer_to(grad, begin, i, GRAD_DTYPE, WIDTH), mask))
    state = load_state(states, scales, block, mask, has_block, FORMATS, NUM_STATES)

    if RECOVER is not None:
        recovered = recover_by(
            last_looks, holds_prediction, w, state, RECOVER, NUM_LOOK, NUM_LOOKS, tl.float32
        )
        w = tl.where(holds_prediction, recovered, w)
    old = w
    if NEEDS_GRAD or PREDICT is not None:
        look = load_row(row + LOOKS_AT, moves, NUM_LOOK, tl.float32)
    if NEEDS_GRAD:
        step = load_row(row, None, NUM_STEP, tl.float32)
        g *= tl.load(factor).to(tl.float32)
    if STEP is not None:
        w, state = STEP(w, state, g, step, look)
        count = tl.load(row + LOOKS_AT - 1) if IS_NOISY else None
        noises = noise(begin + i, count, 0) if IS_NOISY else None
        # A prediction goes by what can be read again.
        state = store_state(
            states, scales, block, state, mask, has_block, noises, FORMATS, NUM_STATES
        )
        if weight is not None:
            tl.store(weight, w, mask)
        if averages is not None:
            averages = pointer_to(averages, offset, i, tl.float32, WIDTH)
            average = tl.load(averages, mask)
            share = tl.load(row + NUM_STEP).to(tl.float32)
            tl.store(averages, average + (w - average) * share, mask)
    new = w
    if PREDICT is not None:
        predicted = predict_by(
            row + LOOKS_AT, moves, w, state, look, PREDICT, NUM_LOOK, NUM_LOOKS, tl.float32
        )
        w = predicted if STEP is not None else tl.where(moves, predicted, w)
    if TERMS is None:
        of_param = None
        if STEP is not None and HAS_NOISY_PARAMS:
            of_param = noise(begin + i, count, 1)
        store_param(param, rest, w, mask, of_param, PARAM_DTYPE)
    if sums is not None:
        if TERMS is None:
            error, moved = held - new, new - old
            terms = error * error, moved * moved, error * moved
        else:
            terms = TERMS(w, state, g, step, look)
        store_sums(sums, terms, mask, NUM_TERMS, NUM_HALVINGS)


@triton.jit
def store_sums(sums, terms, mask, NUMBER: tl.constexpr, NUM_HALVINGS: tl.constexpr):
    """The sum of each term over this program's chunk, zeros for what it lacks."""
    sums += tl.program_id(0).to(tl.int64)
    for k in tl.static_range(NUMBER):
        term = terms[k] if mask is None else tl.where(mask, terms[k], 0.0)
        total = sum_by_halves(term, NUM_HALVINGS)
        tl.store(sums + k * tl.num_programs(0), total.to(tl.float64))


@triton.jit(do_not_specialize=["num_tensors"])
def stored_kernel(
    chunks,
    grads,
    states,
    averages,
    scalars,
    index,
    num_tensors,
    factor,
    found_inf,
    scales,
    rest,
    sums,
    STEP: tl.constexpr,
    PREDICT: tl.constexpr,
    RECOVER: tl.constexpr,
    TERMS: tl.constexpr,
    NUM_TERMS: tl.constexpr,
    IS_NOISY: tl.constexpr,
    HAS_NOISY_PARAMS: tl.constexpr,
    FORMATS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    NUM_STATES: tl.constexpr,
    NUM_STEP: tl.constexpr,
    LOOKS_AT: tl.constexpr,
    NUM_LOOK: tl.constexpr,
    NUM_LOOKS: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    WIDTH: tl.constexpr,
    NUM_HALVINGS: tl.constexpr,
    CHUNK_NUMEL: tl.constexpr,
    PIECE_NUMEL: tl.constexpr,
):
    """One chunk; the arguments are those of ``bucket_kernel``, and more.

    ``scales`` has those of each tensor of the state, None of one without any, and ``rest`` what
    parameters lack that are the upper half of weights, else None. FORMATS are those of the state;
    what is bfloat16 comes as int16. A row of a rule that IS_NOISY has the count of the update
    before its looks. With HAS_NOISY_PARAMS steps round bfloat16 parameters with noise.

    ``sums``, if asked for, has each chunk's sum of the first of NUM_TERMS terms, then those of the
    second one: of TERMS, and nothing is written, or of what ``track_kernel`` tells.

    Accesses have WIDTH elements in whole chunks. Of others PIECE_NUMEL elements are done at a time:
    one for each thread, or all if they are summed.
    """
    if found_inf is not None:  # noqa: SIM102 -- decided when it is compiled
        if tl.load(found_inf) != 0:
            return
    param, weight, offset, begin, tensor, numel = load_chunk(chunks)
    grad = param
    if STEP is not None or TERMS is not None:
        grad = tl.load(grads + tensor)
        if grad == 0:
            return
    place = tl.load(index + tensor).to(tl.int64)
    last_place = tl.load(index + num_tensors + tensor).to(tl.int64)
    row = scalars + place * (LOOKS_AT + NUM_LOOKS * NUM_LOOK)
    last_looks = scalars + last_place * (LOOKS_AT + NUM_LOOKS * NUM_LOOK) + LOOKS_AT

    chunk = param, grad, weight if HAS_WEIGHTS else None, offset
    # A chunk begins at a multiple of as many bytes where its tensor does.
    if ((param | grad | weight) % 16 == 0) & (numel == CHUNK_NUMEL):
        run_block(
            0,
            None,
            chunk,
            begin,
            states,
            scales,
            rest,
            averages,
            sums,
            factor,
            row,
            place >= 0,
            last_looks,
            last_place >= 0,
            STEP,
            PREDICT,
            RECOVER,
            TERMS,
            IS_NOISY,
            HAS_NOISY_PARAMS,
            FORMATS,
            NUM_STATES,
            NUM_STEP,
            LOOKS_AT,
            NUM_LOOK,
            NUM_LOOKS,
            PARAM_DTYPE,
            GRAD_DTYPE,
            NUM_TERMS,
            NUM_HALVINGS,
            WIDTH,
            CHUNK_NUMEL,
        )
    else:
        for first in range(0, numel, PIECE_NUMEL):
            run_block(
                first,
                numel,
                chunk,
                begin,
                states,
                scales,
                rest,
                averages,
                sums,
                factor,
                row,
                place >= 0,
                last_looks,
                last_place >= 0,
                STEP,
                PREDICT,
                RECOVER,
                TERMS,
                IS_NOISY,
                HAS_NOISY_PARAMS,
                FORMATS,
                NUM_STATES,
                NUM_STEP,
                LOOKS_AT,
                NUM_LOOK,
                NUM_LOOKS,
                PARAM_DTYPE,
                GRAD_DTYPE,
                NUM_TERMS,
                NUM_HALVINGS,
                1,
                PIECE_NUMEL,
            )
