"""Predictions go by one look after the other, and back in the contrary order.

The looks of a row lie side by side. PREDICT and RECOVER are the rule's functions for one.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.tuples import load_row


@triton.jit
def predict_by(
    looks,
    mask,
    w,
    state,
    first,
    PREDICT: tl.constexpr,
    NUM_LOOK: tl.constexpr,
    NUM_LOOKS: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
):
    """The predicted weights; ``first`` is the first look, which has been loaded."""
    w = PREDICT(w, state, first)
    if NUM_LOOKS > 1:  # decided when it is compiled
        for k in range(1, NUM_LOOKS):
            look = load_row(looks + k * NUM_LOOK, mask, NUM_LOOK, STATE_DTYPE)
            w = PREDICT(w, state, look)
    return w


@triton.jit
def recover_by(
    looks,
    mask,
    w,
    state,
    RECOVER: tl.constexpr,
    NUM_LOOK: tl.constexpr,
    NUM_LOOKS: tl.constexpr,
    STATE_DTYPE: tl.constexpr,
):
    """The true weights."""
    if NUM_LOOKS > 1:
        for k in range(1, NUM_LOOKS):
            look = load_row(looks + (NUM_LOOKS - k) * NUM_LOOK, mask, NUM_LOOK, STATE_DTYPE)
            w = RECOVER(w, state, look)
    return RECOVER(w, state, load_row(looks, mask, NUM_LOOK, STATE_DTYPE))
