"""How the numbers of a state are stored: the formats of ``wpadamw/formats.py``, element by element.

bfloat16 is its bits here, int16: that rounds alike wherever kernels run.
"""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.exact import divide, sqrt

# The order of FORMATS in the specification.
WHOLE, BFLOAT16 = tl.constexpr(0), tl.constexpr(1)
INT8, UINT8 = tl.constexpr(2), tl.constexpr(3)

BLOCK_NUMEL = tl.constexpr(64)
BITS_OF_NOISE = tl.constexpr(16)
SPACING = tl.constexpr(2**25)  # of streams: counts are below it
UNIT_OF_NOISE = tl.constexpr(2.0**-16)
# Bits of float32: all but the sign, and those of special numbers.
MAGNITUDE, INFINITY = tl.constexpr(0x7FFFFFFF), tl.constexpr(0x7F800000)
QUIET_NAN = tl.constexpr(0x7FC00000)
# What roots are multiplied by is a little too large, so that the largest number has the largest
# code whatever is rounded.
ABOVE = tl.constexpr(1.0 + 2.0**-22)
# Noise stays this far below a whole, so that what has been decoded is rounded to its own code.
MOST_NOISE = tl.constexpr(2**16 - 128)


@triton.jit
def encoded(values, noise, FORMAT: tl.constexpr):
    """What is stored of numbers without scales."""
    return noisy_bfloat16(values, noise) if FORMAT == BFLOAT16 else values


# Codes of blocks.


@triton.jit
def encoded_blocks(values, noise, FORMAT: tl.constexpr):
    """Codes, and the scale of each block, the largest magnitude in it."""
    MOST: tl.constexpr = 127.0 if FORMAT == INT8 else 255.0
    blocks = in_blocks(values)
    magnitudes = bits_of(blocks) & MAGNITUDE
    scales = float_of(quiet(tl.max(magnitudes, 1)))
    factors = divide(tl.full(scales.shape, MOST * ABOVE, tl.float32), root(scales, FORMAT))
    share = 0.5
    if FORMAT == UINT8:
        whole = in_blocks(noise).to(tl.int32)
        whole = tl.where(whole < MOST_NOISE, whole, MOST_NOISE)
        share = whole.to(tl.float32) * UNIT_OF_NOISE
    moved = root(float_of(magnitudes), FORMAT) * factors[:, None] + share
    # What is no number has code 0: its scale tells.
    moved = tl.where(moved > 0.0, moved, 0.0)
    codes = tl.where(moved < MOST, moved, MOST).to(tl.int32)
    if FORMAT == INT8:
        codes = tl.where(blocks < 0.0, -codes, codes).to(tl.int8)
    else:  # what is not zero stays so: something may be divided by it
        codes = tl.where((blocks > 0.0) & (codes == 0), 1, codes).to(tl.uint8)
    return tl.reshape(codes, values.shape), scales


@triton.jit
def decoded_blocks(codes, scales, FORMAT: tl.constexpr):
    """The square of codes with a sign, the fourth power of others, of the scale."""
    UNIT: tl.constexpr = 1.0 / (127.0 if FORMAT == INT8 else 255.0)
    of_code = in_blocks(codes).to(tl.float32) * UNIT
    square = of_code * tl.abs(of_code)
    if FORMAT == UINT8:
        square = square * square
    return tl.reshape(square * scales[:, None], codes.shape)


@triton.jit
def in_blocks(x):
    """Neighbours that share a scale, side by side."""
    return tl.reshape(x, (x.shape[0] // BLOCK_NUMEL, BLOCK_NUMEL))


@triton.jit
def root(magnitudes, FORMAT: tl.constexpr):
    """The square root, of means of squares the fourth one."""
    found = sqrt(magnitudes)
    return sqrt(found) if FORMAT == UINT8 else found


# bfloat16.


@triton.jit
def widened(x):
    """float32, of bfloat16, too."""
    return float_of(x.to(tl.int32) << 16) if x.dtype == tl.int16 else x.to(tl.float32)


@triton.jit
def narrowed(values, DTYPE: tl.constexpr):
    """The nearest numbers of a dtype, int16 for bfloat16."""
    return nearest_bfloat16(values) if tl.int16 == DTYPE else values.to(DTYPE)


@triton.jit
def nearest_bfloat16(values):
    """To even, if both are as near."""
    bits = quiet(bits_of(values))
    # One more where the last kept bit is odd: that carries exactly when rounding is up.
    return upper_half(bits + 0x7FFF + ((bits >> 16) & 1))


@triton.jit
def noisy_bfloat16(values, noise):
    """Up where the bits that are cut off and the noise make a whole."""
    return upper_half(quiet(bits_of(values)) + noise.to(tl.int32))


@triton.jit
def upper_half(bits):
    """bfloat16, of bits of float32."""
    return (bits >> 16).to(tl.int16)


@triton.jit
def bits_of(values):
    """Of float32."""
    return values.to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    """Of its bits."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def quiet(bits):
    """One NaN for all."""
    return tl.where((bits & MAGNITUDE) > INFINITY, QUIET_NAN, bits)


# Noise: a hash of the place of a number in its tensor, and of the update.


@triton.jit
def noise(places, count, STREAM: tl.constexpr):
    """Whole numbers below 2^16, uint32. Moments have stream 0, weights stream 1."""
    key = mixed(count.to(tl.uint32) + SPACING * STREAM)
    return mixed(places.to(tl.uint32) + key) >> BITS_OF_NOISE


@triton.jit
def mixed(x):
    """A permutation of the numbers below 2^32 that spreads each bit over all."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


# Weights in two parts: a bfloat16 parameter, and what it lacks.


@triton.jit
def join(high, rest):
    """The float32 numbers of which bfloat16 numbers are the upper half."""
    # Below a zero from outside there is nothing: its sign would be borrowed from.
    is_below_zero = ((high & 0x7FFF) == 0) & (rest < 0)
    return float_of((high.to(tl.int32) << 16) + tl.where(is_below_zero, 0, rest).to(tl.int32))


@triton.jit
def split(values):
    """The nearest bfloat16 numbers, ties away from zero, and the rest."""
    bits = quiet(bits_of(values))
    rest = bits.to(tl.int16)  # the lower half, with a sign
    return upper_half(bits - rest.to(tl.int32)), rest
