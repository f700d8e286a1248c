"""AdamW with the running maximum of v in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.rules import adamw

scalars, predict, recover = adamw.scalars, adamw.predict, adamw.recover


@triton.jit
def step(weight, state, grad, step, look):
    """``w = w*decay - u*step_size``."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    state = with_largest(adamw.moments((exp_avg, exp_avg_sq), grad, step), max_exp_avg_sq)
    return adamw.move(weight, state, step, look), state


@triton.jit
def with_largest(moments, largest):
    """The moments after a gradient, and the running maximum of the second one."""
    return moments[0], moments[1], maximum(largest, moments[1])


@triton.jit
def maximum(a, b):
    """The larger one; a NaN on either side wins, as in torch.maximum."""
    return tl.where((a > b) | (a != a), a, b)
