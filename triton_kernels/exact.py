"""Square root and division, rounded once, subnormal numbers included; whole powers."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl


def _flushes() -> bool:
    """Whether sqrt_rn and div_rn take subnormals for zero: before Triton 3.6, on NVIDIA."""
    major, minor = triton.__version__.split(".")[:2]
    is_interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    return (int(major), int(minor)) < (3, 6) and torch.version.hip is None and not is_interpreted


COUNT_BITS = tl.constexpr(25)  # float32 counts whole numbers up to 2^24
FLUSHES = tl.constexpr(_flushes())


@triton.jit
def sqrt(x):
    """The root of a block of float32 or float64."""
    if x.dtype == tl.float64:  # that of tl.sqrt is exact, and sqrt_rn takes float32 alone
        root = tl.sqrt(x)
    elif FLUSHES:
        root = tl.inline_asm_elementwise("sqrt.rn.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def divide(x, y):
    """The quotient of blocks of float32 or float64."""
    if x.dtype == tl.float64:  # that of / is exact, and div_rn takes float32 alone
        quotient = x / y
    elif FLUSHES:
        quotient = tl.inline_asm_elementwise(
            "div.rn.f32 $0, $1, $2;", "=f,f,f", [x, y], tl.float32, True, 1
        )
    else:
        quotient = tl.div_rn(x, y)
    return quotient


@triton.jit
def power(base, exponent):
    """base^exponent by repeated squaring, for a block of whole exponents."""
    result = tl.full(exponent.shape, 1.0, tl.float64)
    for bit in range(COUNT_BITS):
        result = tl.where(((exponent >> bit) & 1) != 0, result * base, result)
        base = base * base
    return result
