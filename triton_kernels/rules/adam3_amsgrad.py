"""AdaM3 with the running maximum of s in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.rules import adabelief, adam3
from wpadamw.triton_kernels.rules.amsgrad import with_largest

scalars, predict, recover = adabelief.scalars, adabelief.predict, adabelief.recover


@triton.jit
def step(weight, state, grad, step, look):
    """``g = g + w*weight_decay``, ``w = w*decay - u*step_size``."""
    exp_avg, exp_avg_var, max_exp_avg_var = state
    grad = adabelief.with_decay(grad, weight, step)
    state = with_largest(adam3.moments((exp_avg, exp_avg_var), grad, step), max_exp_avg_var)
    return adabelief.move(weight, state, step, look), state
