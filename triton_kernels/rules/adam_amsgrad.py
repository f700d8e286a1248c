"""Adam with the running maximum of v in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.rules import adam
from wpadamw.triton_kernels.rules.amsgrad import with_largest

scalars, predict, recover = adam.scalars, adam.predict, adam.recover


@triton.jit
def step(weight, state, grad, step, look):
    """``g = g + w*weight_decay``, ``w = w - u*step_size``."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    grad = adam.with_decay(grad, weight, step)
    state = with_largest(adam.moments((exp_avg, exp_avg_sq), grad, step), max_exp_avg_sq)
    return adam.move(weight, state, step, look), state
