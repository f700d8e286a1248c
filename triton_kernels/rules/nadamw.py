"""AdamW along the Nesterov mix of gradient and momentum (Choi et al. 2019, arXiv 1910.05446)."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it
from wpadamw.triton_kernels.rules import adamw

scalars, predict, recover = adamw.scalars, adamw.predict, adamw.recover


@triton.jit
def step(weight, state, grad, step, look):
    """``n = m + (g - m)*(1-beta1)``; the update takes n, the prediction m."""
    one_minus_beta1, _beta2, _one_minus_beta2, _decay, _step_size = step
    exp_avg, exp_avg_sq = adamw.moments(state, grad, step)
    mix = adamw.mean(exp_avg, grad, one_minus_beta1)
    return adamw.move(weight, (mix, exp_avg_sq), step, look), (exp_avg, exp_avg_sq)
