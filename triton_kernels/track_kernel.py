"""A step over a bucket that also tells how good predictions were, by sums over its chunks."""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.bucket_kernel import run_block
from wpadamw.triton_kernels.chunk import load_chunk
from wpadamw.triton_kernels.reduce_kernel import sum_by_halves


@triton.jit(do_not_specialize=["num_tensors"])
def track_kernel(
    chunks,
    grads,
    states,
    averages,
    scalars,
    index,
    num_tensors,
    factor,
    found_inf,
    sums,
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
    NUM_HALVINGS: tl.constexpr,
):
    """One chunk; the arguments are those of ``bucket_kernel``.

    ``sums`` has each chunk's sum of squared errors, then those of squared steps, then those of the
    products. Those of tensors without a gradient stay as they are.
    """
    if found_inf is not None:  # noqa: SIM102 -- decided when it is compiled
        if tl.load(found_inf) != 0:
            return
    param, weight, offset, begin, tensor, numel = load_chunk(chunks)
    grad = tl.load(grads + tensor)
    if grad == 0:
        return
    place = tl.load(index + tensor).to(tl.int64)
    last_place = tl.load(index + num_tensors + tensor).to(tl.int64)
    row = scalars + place * (LOOKS_AT + NUM_LOOKS * NUM_LOOK)
    last_row = scalars + last_place * (LOOKS_AT + NUM_LOOKS * NUM_LOOK)

    is_aligned = (param % PARAM_ALIGNMENT == 0) & (grad % GRAD_ALIGNMENT == 0)
    if HAS_WEIGHTS:
        is_aligned &= weight % 16 == 0
    if is_aligned & (numel == CHUNK_NUMEL):
        error, moved = run_block(
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
            True,
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
        error, moved = run_block(
            0,
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
            True,
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
            CHUNK_NUMEL,
        )
    is_element = tl.arange(0, CHUNK_NUMEL) < numel
    terms = (error * error, moved * moved, error * moved)
    for k in tl.static_range(3):
        total = sum_by_halves(tl.where(is_element, terms[k], 0.0), NUM_HALVINGS)
        place_of_sum = sums + k * tl.num_programs(0) + tl.program_id(0).to(tl.int64)
        tl.store(place_of_sum, total.to(tl.float64))
