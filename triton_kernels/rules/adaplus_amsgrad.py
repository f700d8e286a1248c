"""AdaPlus with the running maximum of s in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.rules import adabelief
from wpadamw.triton_kernels.rules.amsgrad import with_largest

scalars, predict, recover = adabelief.scalars, adabelief.predict, adabelief.recover


@triton.jit
def step(weight, state, grad, step, look):
    """``n = m + (g - m)*(1-beta1)``; the update takes n, the prediction m."""
    exp_avg, exp_avg_sq, max_exp_avg_sq = state
    grad = adabelief.with_decay(grad, weight, step)
    state = with_largest(adabelief.moments((exp_avg, exp_avg_sq), grad, step), max_exp_avg_sq)
    mix = adabelief.mean(state[0], grad, step)
    return adabelief.move(weight, (mix, state[1], state[2]), step, look), state
