"""The scalars of a step and of a prediction from counts on the device: ``csrc/step_scalars.h``.

Float64 values, one per parameter or one for all. The last bits of a power may differ from the
host's; rounded to float32 the scalars are the same.
"""

from __future__ import annotations

import triton
import triton.language as tl

COUNT_BITS = tl.constexpr(25)  # float32 counts whole numbers up to 2^24


@triton.jit
def power(base, exponent):
    """base^exponent by repeated squaring, for a block of whole exponents."""
    result = tl.full(exponent.shape, 1.0, tl.float64)
    for bit in range(COUNT_BITS):
        result = tl.where(((exponent >> bit) & 1) != 0, result * base, result)
        base = base * base
    return result


@triton.jit
def moves_nothing(lr, beta1, beta2, eps, weight_decay, prediction_steps, count):
    """Whether the parameter holds its true weights all the same.

    Before its first update, or because they came from outside.
    """
    is_null = (lr == 0) & (beta1 == 0) & (beta2 == 0)
    is_null &= (eps == 0) & (weight_decay == 0) & (prediction_steps == 0)
    return (count == 0) | is_null


@triton.jit
def store_step_scalars(
    row,
    mask,
    still,
    lr,
    beta1,
    beta2,
    eps,
    predicted_weight_decay,
    prediction_steps,
    weight_decay,
    count,
    grad_factor,
):
    """Write those of update number ``count`` and of the prediction from it.

    Where ``still``, those of the prediction that moves nothing.
    """
    bias_correction1 = 1.0 - power(beta1, count)
    inv_sqrt_bc2 = 1.0 / tl.sqrt(1.0 - power(beta2, count))
    predict_decay = 1.0 - prediction_steps * lr * predicted_weight_decay
    tl.store(row, tl.where(still, 1.0, grad_factor), mask)
    tl.store(row + 1, tl.where(still, 0.0, 1.0 - beta1), mask)
    tl.store(row + 2, tl.where(still, 1.0, beta2), mask)
    tl.store(row + 3, tl.where(still, 0.0, 1.0 - beta2), mask)
    tl.store(row + 4, tl.where(still, 1.0, inv_sqrt_bc2), mask)
    tl.store(row + 5, tl.where(still, 1.0, eps), mask)
    tl.store(row + 6, tl.where(still, 1.0, 1.0 - lr * weight_decay), mask)
    tl.store(row + 7, tl.where(still, 0.0, lr / bias_correction1), mask)
    tl.store(row + 8, tl.where(still, 1.0, predict_decay), mask)
    tl.store(row + 9, tl.where(still, 0.0, prediction_steps * lr / bias_correction1), mask)
