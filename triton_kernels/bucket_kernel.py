"""Predict, restore and step over a bucket, for every rule and dtype.

One launch serves all tensors of a bucket, one program each chunk of one. What happens to an element
stands in ``rules``, whose functions come as arguments.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.chunk import load_chunk
from wpadamw.triton_kernels.looks import predict_by, recover_by
from wpadamw.triton_kernels.tuples import (
    load_each,
    load_row,
    pointers_to_each,
    store_each,
)


@triton.jit
def run_block(
    first,
    numel,
    param,
    grad,
    weight,
    states,
    averages,
    offset,
    begin,
    factor,
    row,
    moves,
    last_row,
    holds_prediction,
    STEP: tl.constexpr,
    PREDICT: tl.constexpr,
    RECOVER: tl.constexpr,
    TRACKS: tl.constexpr,
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
    STATE_ALIGNMENT: tl.constexpr,
    BLOCK_NUMEL: tl.constexpr,
):
    """BLOCK_NUMEL elements of a chunk from ``first`` on; those from ``numel`` on, if any, are not.

    All loads of arrays come before the first use of one. To make room in the registers scalars are
    loaded no sooner than they are needed, and values are stored as soon as they are known.

    With TRACKS a step returns for each element how far what its parameter has held was from the new
    weight, and how far the weight has moved.
    """
    i = first + tl.arange(0, BLOCK_NUMEL)
    mask = None if numel is None else i < numel
    # Said of pointers, here: what is known of an address is lost when it becomes a pointer, and
    # what is known of a pointer when it is an argument.
    param = tl.multiple_of(param.to(tl.pointer_type(PARAM_DTYPE)), PARAM_ALIGNMENT) + i
    states = pointers_to_each(states, offset, i, STATE_ALIGNMENT, NUM_STATES)
    if weight is None:
        w = tl.load(param, mask).to(STATE_DTYPE)
    else:
        weight = weight.to(tl.pointer_type(STATE_DTYPE))
        weight = tl.multiple_of(weight, STATE_ALIGNMENT) + i
        w = tl.load(weight, mask)
    if STEP is not None:
        grad = grad.to(tl.pointer_type(GRAD_DTYPE)) + begin
        grad = tl.multiple_of(grad, GRAD_ALIGNMENT) + i
        g = tl.load(grad, mask).to(STATE_DTYPE)
    state = load_each(states, mask, NUM_STATES)
    if TRACKS:
        shown = w if weight is None else tl.load(param, mask).to(STATE_DTYPE)

    if RECOVER is not None:
        recovered = recover_by(
            last_row + LOOKS_AT,
            holds_prediction,
            w,
            state,
            RECOVER,
            NUM_LOOK,
            NUM_LOOKS,
            STATE_DTYPE,
        )
        w = tl.where(holds_prediction, recovered, w)
    old = w
    if STEP is not None or PREDICT is not None:
        look = load_row(row + LOOKS_AT, moves, NUM_LOOK, STATE_DTYPE)
    if STEP is not None:
        step = load_row(row, None, NUM_STEP, STATE_DTYPE)
        g *= tl.load(factor).to(STATE_DTYPE)
        w, state = STEP(w, state, g, step, look)
        store_each(states, state, mask, NUM_STATES)
        if weight is not None:
            tl.store(weight, w, mask)
        if averages is not None:
            averages = tl.multiple_of(averages + offset, STATE_ALIGNMENT) + i
            share = tl.load(row + NUM_STEP).to(STATE_DTYPE)
            average = tl.load(averages, mask)
            tl.store(averages, average + (w - average) * share, mask)
    new = w
    if PREDICT is not None:
        predicted = predict_by(
            row + LOOKS_AT, moves, w, state, look, PREDICT, NUM_LOOK, NUM_LOOKS, STATE_DTYPE
        )
        w = predicted if STEP is not None else tl.where(moves, predicted, w)
    tl.store(param, w.to(PARAM_DTYPE), mask)
    if TRACKS:
        return shown - new, new - old


@triton.jit(do_not_specialize=["num_tensors"])
def bucket_kernel(
    chunks,
    grads,
    states,
    averages,
    scalars,
    index,
    num_tensors,
    factor,
    found_inf,
    STEP: tl.constexpr,
    PREDICT: tl.constexpr,
    RECOVER: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
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
):
    """One chunk. An operation is told by the functions of the rule that it needs, else None.

    STEP where it updates, PREDICT where it predicts, RECOVER where what it begins with may be a
    prediction: where true weights do not lie apart (HAS_WEIGHTS), in updates and restores.

    ``grads`` holds the address of each tensor's gradient, 0 where updates leave it alone; ``index``
    each tensor's row of scalars, then each tensor's last row, or -1 where it holds true weights. A
    prediction whose row is -1 moves nothing. A row has NUM_STEP numbers of an update, with
    ``averages`` (else None) the share of a weight in these, and from LOOKS_AT on its looks.
    ``factor`` is what gradients are multiplied by. Alignments are the bytes of as many elements as
    16 bytes of state hold: all arrays get the same layout.
    """
    if found_inf is not None:  # noqa: SIM102 -- decided when it is compiled
        if tl.load(found_inf) != 0:
            return
    param, weight, offset, begin, tensor, numel = load_chunk(chunks)
    grad = param
    if STEP is not None:
        grad = tl.load(grads + tensor)
        if grad == 0:
            return
    place = tl.load(index + tensor).to(tl.int64)
    last_place = tl.load(index + num_tensors + tensor).to(tl.int64)
    row = scalars + place * (LOOKS_AT + NUM_LOOKS * NUM_LOOK)
    last_row = scalars + last_place * (LOOKS_AT + NUM_LOOKS * NUM_LOOK)

    # A chunk begins at a multiple of these bytes where its tensor does.
    is_aligned = (param % PARAM_ALIGNMENT == 0) & (grad % GRAD_ALIGNMENT == 0)
    if HAS_WEIGHTS:
        is_aligned &= weight % 16 == 0
    if is_aligned & (numel == CHUNK_NUMEL):
        run_block(
            0,
            None,
            param,
            grad,
            weight if HAS_WEIGHTS else None,
            states,
            averages,
            offset,
            begin,
            factor,
            row,
            place >= 0,
            last_row,
            last_place >= 0,
            STEP,
            PREDICT,
            RECOVER,
            False,
            NUM_STATES,
            NUM_STEP,
            LOOKS_AT,
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
        # Blocks of another size: with the same, loads would get the layout of the way above, and
        # change it in shared memory.
        for first in range(0, numel, CHUNK_NUMEL // 2):
            run_block(
                first,
                numel,
                param,
                grad,
                weight if HAS_WEIGHTS else None,
                states,
                averages,
                offset,
                begin,
                factor,
                row,
                place >= 0,
                last_row,
                last_place >= 0,
                STEP,
                PREDICT,
                RECOVER,
                False,
                NUM_STATES,
                NUM_STEP,
                LOOKS_AT,
                NUM_LOOK,
                NUM_LOOKS,
                PARAM_DTYPE,
                GRAD_DTYPE,
                STATE_DTYPE,
                1,
                1,
                1,
                CHUNK_NUMEL // 2,
            )
