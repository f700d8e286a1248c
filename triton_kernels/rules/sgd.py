"""SGD with momentum, as ``torch.optim.SGD`` has it (Sutskever et al. 2013 with lr outside)."""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.exact import power


@triton.jit
def scalars(hyper, count, ahead, share):
    """The scalars of update number ``count`` and of a share of a later one, predicted."""
    lr, momentum, dampening, weight_decay, nesterov = hyper
    is_plain = tl.where(count == 1, 1.0, tl.where(momentum == 0, 1.0, 0.0)).to(tl.float64)
    step = (
        weight_decay,
        momentum * (1.0 - is_plain),
        1.0 - dampening * (1.0 - is_plain),
        nesterov,
        1.0 - nesterov + nesterov * momentum,
        lr,
    )
    return step, (share * lr * power(momentum, ahead),)


@triton.jit
def step(weight, state, grad, step, look):
    """``g = g + w*decay``, ``m = m*momentum + g*(1-dampening)``, ``w = w - (g or m, mixed)*lr``."""
    (momentum_buffer,) = state
    weight_decay, momentum, grad_size, grad_share, momentum_share, lr = step
    grad = grad + weight * weight_decay
    momentum_buffer = momentum_buffer * momentum + grad * grad_size
    direction = grad * grad_share + momentum_buffer * momentum_share
    return weight - direction * lr, (momentum_buffer,)


@triton.jit
def predict(weight, state, look):
    """``p = w - m*predict_size``."""
    (momentum_buffer,) = state
    (predict_size,) = look
    return weight - momentum_buffer * predict_size


@triton.jit
def recover(predicted, state, look):
    """``w = p + m*predict_size``."""
    (momentum_buffer,) = state
    (predict_size,) = look
    return predicted + momentum_buffer * predict_size
