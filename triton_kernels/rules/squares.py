"""The squares of gradients: a sum without an update, for norms."""

from __future__ import annotations

import triton
import triton.language as tl  # noqa: F401 -- the interpreter looks for it


@triton.jit
def terms(weight, state, grad, step, look):
    """``g*g``."""
    return (grad * grad,)
