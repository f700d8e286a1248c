"""Counts, records and scalars of a bucket's parameters where the host must not wait for them.

``csrc/cuda/advance_kernel.cu`` in Triton: a block of parameters each program.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.step_scalars import moves_nothing, store_step_scalars

BLOCK_SIZE = 128
NUM_WARPS = 4  # a parameter each thread

NUM_SCALARS = tl.constexpr(10)  # fields of wpadamw.scalars.Scalars
NUM_RECORDED = tl.constexpr(7)  # fields of wpadamw.scalars.Prediction; the first is `made`


@triton.jit
def load_prediction(record, mask):
    """The hyper-parameters of a prediction."""
    lr, beta1, beta2 = (
        tl.load(record + 1, mask),
        tl.load(record + 2, mask),
        tl.load(record + 3, mask),
    )
    eps, weight_decay = tl.load(record + 4, mask), tl.load(record + 5, mask)
    return lr, beta1, beta2, eps, weight_decay, tl.load(record + 6, mask)


@triton.jit
def store_prediction_scalars(row, mask, record, count):
    """Write what re-creates a recorded prediction; returns whether it moves nothing."""
    lr, beta1, beta2, eps, weight_decay, prediction_steps = load_prediction(record, mask)
    still = moves_nothing(lr, beta1, beta2, eps, weight_decay, prediction_steps, count)
    store_step_scalars(
        row, mask, still, lr, beta1, beta2, eps, weight_decay, prediction_steps, 0.0, count, 1.0
    )
    return still


@triton.jit
def record_prediction(record, options, is_made, where):
    """Record the prediction of the options, or none if it is not made."""
    for k in tl.static_range(NUM_RECORDED):
        tl.store(record + k, tl.where(is_made, tl.load(options + k), 0.0), where)


@triton.jit
def advance_step(row, mask, record, options, steps, has_grad, count, found_inf):
    """The scalars of the next update; it is counted and recorded unless there is none."""
    lr, beta1, beta2, eps, predicted_weight_decay, prediction_steps = load_prediction(options, None)
    weight_decay, grad_factor = tl.load(options + NUM_RECORDED), tl.load(options + NUM_RECORDED + 1)
    count += 1
    store_step_scalars(
        row,
        mask,
        count == 0,
        lr,
        beta1,
        beta2,
        eps,
        predicted_weight_decay,
        prediction_steps,
        weight_decay,
        count,
        grad_factor,
    )
    where = mask & (tl.load(has_grad, mask) != 0)
    if found_inf is not None:
        where &= tl.load(found_inf + 0 * count) == 0
    tl.store(steps, count.to(tl.float32), where)
    record_prediction(record, options, tl.load(options) != 0, where)


@triton.jit
def advance_prediction(row, mask, record, options, count):
    """The scalars of the recorded prediction, or of that of the options where there is none."""
    is_made = tl.load(record, mask) != 0
    store_prediction_scalars(row, mask, tl.where(is_made, record, options + 0 * count), count)
    record_prediction(record, options, mask, mask & ~is_made)


@triton.jit(do_not_specialize=["num_tensors"])
def advance_kernel(
    steps,
    predictions,
    options,
    has_grad,
    scalars,
    index,
    num_tensors,
    found_inf,
    UPDATE: tl.constexpr,
    PREDICT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    """The rows of an operation: of a step if it updates, else of a prediction, or of neither."""
    i = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask, last = i < num_tensors, i + num_tensors
    record, row = predictions + i * NUM_RECORDED, scalars + i * NUM_SCALARS
    count = tl.load(steps + i, mask).to(tl.int64)

    still = store_prediction_scalars(scalars + last * NUM_SCALARS, mask, record, count)
    tl.store(index + i, i.to(tl.int32), mask)
    tl.store(index + last, tl.where(still, -1, last).to(tl.int32), mask)
    if UPDATE:
        advance_step(row, mask, record, options, steps + i, has_grad + i, count, found_inf)
    elif PREDICT:
        advance_prediction(row, mask, record, options, count)
