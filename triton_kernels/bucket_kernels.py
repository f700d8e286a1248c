"""Predict, restore and step over a bucket, for every rule and dtype.

One launch serves all tensors of a bucket, one program each chunk of one: the rows of
``wpadamw/_backends/device_table.py``. What happens to an element stands in `rules`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels import rules

CHUNK_COLUMNS = tl.constexpr(4)

# A row of scalars: the fields of wpadamw.scalars.Scalars.
NUM_SCALARS = tl.constexpr(10)
GRAD_FACTOR = tl.constexpr(0)
ONE_MINUS_BETA1 = tl.constexpr(1)
BETA2 = tl.constexpr(2)
ONE_MINUS_BETA2 = tl.constexpr(3)
INV_SQRT_BC2 = tl.constexpr(4)
EPS = tl.constexpr(5)
DECAY = tl.constexpr(6)
STEP_SIZE = tl.constexpr(7)
PREDICT_DECAY = tl.constexpr(8)
PREDICT_SIZE = tl.constexpr(9)


@triton.jit
def scalar(row, COLUMN: tl.constexpr, like):
    """One number of a row of scalars, rounded to the dtype of a value."""
    return tl.load(row + COLUMN).to(like.dtype)


# A rule: what it does to the state, and the direction that it takes from there.


@triton.jit
def update(state0, state1, state2, grad, row, RULE: tl.constexpr):
    """The state after a gradient; kinds that the rule does not have stay as they are."""
    state0 = rules.exp_avg(state0, grad, scalar(row, ONE_MINUS_BETA1, grad))
    beta2, one_minus_beta2 = scalar(row, BETA2, grad), scalar(row, ONE_MINUS_BETA2, grad)
    state1 = rules.exp_avg_sq(state1, grad, beta2, one_minus_beta2)
    if RULE == "amsgrad":
        state2 = rules.maximum(state2, state1)
    return state0, state1, state2


@triton.jit
def direction(state0, state1, state2, row, RULE: tl.constexpr):
    """What the weight moves along."""
    exp_avg_sq = state2 if RULE == "amsgrad" else state1
    inv_sqrt_bc2, eps = scalar(row, INV_SQRT_BC2, state0), scalar(row, EPS, state0)
    return rules.adam_direction(state0, exp_avg_sq, inv_sqrt_bc2, eps)


# How weights move along a direction, with the numbers of a row.


@triton.jit
def step_weight(weight, direction, row):
    """The true weight after an update."""
    decay, step_size = scalar(row, DECAY, weight), scalar(row, STEP_SIZE, weight)
    return rules.step_weight(weight, direction, decay, step_size)


@triton.jit
def predict_weight(weight, direction, row):
    """The predicted weight."""
    decay, size = scalar(row, PREDICT_DECAY, weight), scalar(row, PREDICT_SIZE, weight)
    return rules.predict_weight(weight, direction, decay, size)


@triton.jit
def recover_weight(predicted, direction, row):
    """The true weight of a parameter that holds the prediction made with a row."""
    decay, size = scalar(row, PREDICT_DECAY, predicted), scalar(row, PREDICT_SIZE, predicted)
    return rules.recover_weight(predicted, direction, decay, size)


# Chunks.


@triton.jit
def run_block(
    first,
    numel,
    param,
    grad,
    weight,
    state0,
    state1,
    state2,
    offset,
    begin,
    row,
    last_row,
    holds_prediction,
    UPDATE: tl.constexpr,
    PREDICT: tl.constexpr,
    HAS_BACKUP: tl.constexpr,
    RULE: tl.constexpr,
    NUM_STATES: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    PARAM_ALIGNMENT: tl.constexpr,
    GRAD_ALIGNMENT: tl.constexpr,
    STATE_ALIGNMENT: tl.constexpr,
    BLOCK_NUMEL: tl.constexpr,
):
    """BLOCK_NUMEL elements of a chunk from ``first`` on; those from ``numel`` on, if any, are not.

    All loads of arrays come before the first use of one; values are stored as soon as they are
    known, to make room in the registers.
    """
    # What is predicted from are true weights.
    MAY_HOLD_PREDICTION: tl.constexpr = (not HAS_BACKUP) and (UPDATE or (not PREDICT))
    REAL: tl.constexpr = state0.dtype.element_ty
    i = first + tl.arange(0, BLOCK_NUMEL)
    mask = None if numel is None else i < numel
    # Said of pointers: what is known of an address is lost when it becomes a pointer.
    param = tl.multiple_of(param.to(tl.pointer_type(PARAM_DTYPE)), PARAM_ALIGNMENT) + i
    grad = tl.multiple_of(grad.to(tl.pointer_type(GRAD_DTYPE)) + begin, GRAD_ALIGNMENT) + i
    weight = tl.multiple_of(weight + offset, STATE_ALIGNMENT) + i
    state0 = tl.multiple_of(state0 + offset, STATE_ALIGNMENT) + i
    state1 = tl.multiple_of(state1 + offset, STATE_ALIGNMENT) + i
    state2 = tl.multiple_of(state2 + offset, STATE_ALIGNMENT) + i

    w = tl.load(weight, mask) if HAS_BACKUP else tl.load(param, mask).to(REAL)
    if UPDATE:
        g = tl.load(grad, mask).to(REAL)
    if (UPDATE or PREDICT) or MAY_HOLD_PREDICTION:
        # A kind of state that the rule does not have repeats the first; nobody looks at it.
        u0 = tl.load(state0, mask)
        u1 = tl.load(state1, mask) if NUM_STATES > 1 else u0
        u2 = tl.load(state2, mask) if NUM_STATES > 2 else u0

    if MAY_HOLD_PREDICTION:
        recovered = recover_weight(w, direction(u0, u1, u2, last_row, RULE), last_row)
        w = tl.where(holds_prediction, recovered, w)
    if UPDATE:
        u0, u1, u2 = update(u0, u1, u2, g * scalar(row, GRAD_FACTOR, g), row, RULE)
        tl.store(state0, u0, mask)
        if NUM_STATES > 1:
            tl.store(state1, u1, mask)
        if NUM_STATES > 2:
            tl.store(state2, u2, mask)
        w = step_weight(w, direction(u0, u1, u2, row, RULE), row)
        if HAS_BACKUP:
            tl.store(weight, w, mask)
    held = predict_weight(w, direction(u0, u1, u2, row, RULE), row) if PREDICT else w
    tl.store(param, held.to(PARAM_DTYPE), mask)


@triton.jit(do_not_specialize=["num_tensors"])
def bucket_kernel(
    chunks,
    grads,
    weight,
    state0,
    state1,
    state2,
    scalars,
    index,
    num_tensors,
    found_inf,
    UPDATE: tl.constexpr,
    PREDICT: tl.constexpr,
    HAS_BACKUP: tl.constexpr,
    RULE: tl.constexpr,
    NUM_STATES: tl.constexpr,
    PARAM_DTYPE: tl.constexpr,
    GRAD_DTYPE: tl.constexpr,
    PARAM_ALIGNMENT: tl.constexpr,
    GRAD_ALIGNMENT: tl.constexpr,
    CHUNK_NUMEL: tl.constexpr,
):
    """One chunk. An operation updates, or predicts, or both, or neither: then it restores.

    ``grads`` holds the address of each tensor's gradient, 0 where updates leave it alone; ``index``
    each tensor's row of scalars, then each tensor's last row, or -1 where it holds true weights.
    Pointers to a backup or a state that there is not may be any other of that dtype. Alignments are
    the bytes of as many elements as 16 bytes of state hold: all arrays get the same layout.
    """
    if found_inf is not None:  # noqa: SIM102 -- decided when it is compiled
        if tl.load(found_inf) != 0:
            return
    chunk = chunks + tl.program_id(0).to(tl.int64) * CHUNK_COLUMNS
    param, offset, begin = tl.load(chunk), tl.load(chunk + 1), tl.load(chunk + 2)
    tensor, numel = tl.load(chunk + 3) & 0xFFFFFFFF, tl.load(chunk + 3) >> 32
    grad = param
    if UPDATE:
        grad = tl.load(grads + tensor)
        if grad == 0:
            return
    row = scalars + tl.load(index + tensor).to(tl.int64) * NUM_SCALARS
    last = tl.load(index + num_tensors + tensor).to(tl.int64)
    last_row = scalars + tl.maximum(last, 0) * NUM_SCALARS

    # A chunk begins at a multiple of these bytes where its tensor does.
    is_aligned = (param % PARAM_ALIGNMENT == 0) & (grad % GRAD_ALIGNMENT == 0)
    if is_aligned & (numel == CHUNK_NUMEL):
        run_block(
            0,
            None,
            param,
            grad,
            weight,
            state0,
            state1,
            state2,
            offset,
            begin,
            row,
            last_row,
            last >= 0,
            UPDATE,
            PREDICT,
            HAS_BACKUP,
            RULE,
            NUM_STATES,
            PARAM_DTYPE,
            GRAD_DTYPE,
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
                weight,
                state0,
                state1,
                state2,
                offset,
                begin,
                row,
                last_row,
                last >= 0,
                UPDATE,
                PREDICT,
                HAS_BACKUP,
                RULE,
                NUM_STATES,
                PARAM_DTYPE,
                GRAD_DTYPE,
                1,
                1,
                1,
                CHUNK_NUMEL // 2,
            )
