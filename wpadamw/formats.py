"""How the numbers of a state are stored, each format with the order of its roundings.

Rules know float32 alone: a number is decoded when it is loaded, and encoded when it is stored
(docs/numerics.md, "Small formats"). Twins are ``csrc/formats.h`` and ``triton_kernels/formats.py``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from wpadamw import layout
from wpadamw.rules.rule import sqrt

# Neighbours in memory that share a scale; parameters begin at multiples of it in flat buffers.
BLOCK_NUMEL = 64

_BITS_OF_NOISE = 16
_WORD = 0xFFFFFFFF
_BITS_OF_COUNT = 25  # float32 counts whole numbers up to 2^24
# What roots are multiplied by is a little too large, so that the largest number has the largest
# code whatever is rounded.
_ABOVE = 1.0 + 2.0**-22
# Noise stays this far below a whole, so that what has been decoded is rounded to its own code.
_MOST_NOISE = (1 << _BITS_OF_NOISE) - 128


class Format(NamedTuple):
    """How a tensor of the state is stored.

    Attributes:
        name: as in ``csrc/formats.h``.
        dtype: of what is stored; None: that of the mathematics.
        most: the largest code, where blocks of codes share a scale, else 0.
        is_noisy: whether numbers are rounded up as often as they lie above, else to the nearest.
    """

    name: str
    dtype: torch.dtype | None = None
    most: int = 0
    is_noisy: bool = False

    def load(self, stored: list[Tensor], dtype: torch.dtype) -> Tensor:
        """The numbers behind what is stored of a tensor: codes and, if there are any, scales."""
        if not self.most:
            return stored[0].to(dtype)
        return _decoded(self, stored[0], stored[1])

    def store(self, values: Tensor, noise: Tensor | None = None) -> list[Tensor]:
        """What is stored of numbers.

        Args:
            values: as the rule has them; where scales are shared, contiguous.
            noise: of the same shape, see `noise_like`; without it rounding is to the nearest.
        """
        noise = noise if self.is_noisy else None
        if self.most:
            return _encoded(self, values, noise)
        if self.dtype is None:
            return [values]
        return [values.bfloat16() if noise is None else noisy_bfloat16(values, noise)]


WHOLE = Format("whole")
BFLOAT16 = Format("bfloat16", torch.bfloat16, is_noisy=True)
# A number x with a sign is the square of its code, of the largest magnitude in its block:
# |x| = (code/127)^2 * scale. A mean of squares is its fourth power: x = (code/255)^4 * scale.
INT8 = Format("int8", torch.int8, most=127)
UINT8 = Format("uint8", torch.uint8, most=255, is_noisy=True)

FORMATS = (WHOLE, BFLOAT16, INT8, UINT8)
# By the option `moments`: of what has a sign, and of means of squares.
OF_MOMENTS = {
    "float32": (WHOLE, WHOLE),
    "bfloat16": (BFLOAT16, BFLOAT16),
    "int8": (INT8, UINT8),
}


def numbers(stored: list[Tensor | None]) -> Tensor:
    """The numbers behind a tensor of a state, whatever its format, and its scales, if any."""
    values, scales = stored
    assert values is not None
    form = next((form for form in FORMATS if form.most and form.dtype == values.dtype), None)
    if form is None:
        return values
    assert scales is not None
    return form.load([values.contiguous(), scales.to(values.device)], torch.float32)


def num_blocks(numel: int) -> int:
    """How many scales belong to so many codes."""
    return -(-numel // BLOCK_NUMEL)


def _blocks(flat: Tensor) -> Tensor:
    return pad(flat, (0, -len(flat) % BLOCK_NUMEL)).view(-1, BLOCK_NUMEL)


def _encoded(form: Format, values: Tensor, noise: Tensor | None) -> list[Tensor]:
    """Codes of the values' shape, and the scale of each block, the largest magnitude in it."""
    blocks = _blocks(values.reshape(-1))
    magnitudes = blocks.abs()
    scales = _largest(magnitudes)
    # As tensors: torch takes a number over a tensor as a product with the reciprocal.
    factors = torch.full_like(scales, form.most * _ABOVE) / _root(form, scales)
    share = (
        0.5
        if noise is None
        else _blocks(noise.reshape(-1)).clamp(max=_MOST_NOISE).float() * 2.0**-_BITS_OF_NOISE
    )
    codes = torch.floor(_root(form, magnitudes) * factors[:, None] + share)
    # What is no number has code 0: its scale tells.
    codes = torch.where(codes > 0.0, codes, 0.0).clamp(max=form.most)
    if form.dtype == torch.int8:
        codes = torch.where(blocks < 0.0, -codes, codes)
    else:  # what is not zero stays so: something may be divided by it
        codes = torch.where(blocks > 0.0, codes.clamp(min=1.0), codes)
    codes = codes.view(-1)[: values.numel()].view(values.shape)
    return [codes.to(form.dtype), scales]


def _root(form: Format, magnitudes: Tensor) -> Tensor:
    root = sqrt(magnitudes)
    return sqrt(root) if form.dtype == torch.uint8 else root


def _largest(magnitudes: Tensor) -> Tensor:
    """Of each block; NaN if one is: bits of numbers >= 0 have their order, and NaN is above all."""
    bits = magnitudes.view(torch.int32)
    largest = bits.amax(1) if len(bits) else bits.new_zeros(0)
    found = largest.view(torch.float32)
    return torch.where(found.isnan(), torch.nan, found)


def _decoded(form: Format, codes: Tensor, scales: Tensor) -> Tensor:
    root = codes.reshape(-1).float() * torch.tensor(1.0 / form.most, dtype=torch.float32).item()
    square = root * root.abs()
    if form.dtype == torch.uint8:
        square = square * square
    return (_blocks(square) * scales[:, None]).view(-1)[: codes.numel()].view(codes.shape)


def noisy_bfloat16(values: Tensor, noise: Tensor) -> Tensor:
    """Up where the bits that are cut off and the noise make a whole."""
    bits = (values.view(torch.int32) + noise.int()) & -(1 << _BITS_OF_NOISE)
    rounded = torch.where(values.isnan(), torch.nan, bits.view(torch.float32))
    return rounded.bfloat16()


# Noise: a hash of the place of a number in its tensor, and of the update.


def noise(numel: int, count: Tensor, stream: int = 0) -> Tensor:
    """Whole numbers below 2^16 for the elements of a tensor, in memory order.

    Args:
        numel: how many there are.
        count: of the update, one element; the device and the noise come from it.
        stream: 0 for moments, 1 for weights.
    """
    key = _mixed(count.long() + (stream << _BITS_OF_COUNT))
    places = torch.arange(numel, dtype=torch.int64, device=count.device)
    return _mixed((places + key) & _WORD) >> _BITS_OF_NOISE


def noise_like(tensor: Tensor, count: Tensor, stream: int = 0) -> Tensor:
    """The same in the shape of a dense tensor."""
    return layout.view_like(noise(tensor.numel(), count, stream), 0, tensor)


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the numbers below 2^32 that spreads each bit over all."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & _WORD
    return x ^ (x >> 16)


# Weights in two parts: a bfloat16 parameter, and what it lacks.


def join(high: Tensor, rest: Tensor) -> Tensor:
    """The float32 numbers of which bfloat16 numbers are the upper half."""
    bits = (high.view(torch.int16).int() << 16) + _above_zero(high, rest)
    return bits.view(torch.float32)


def _above_zero(high: Tensor, rest: Tensor) -> Tensor:
    # Below a zero from outside there is nothing: its sign would be borrowed from.
    return torch.where(high == 0, rest.clamp(min=0), rest).int()


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bfloat16 numbers, ties away from zero, and the rest: int16, in units of 2^-16.

    `join` gives the same bits back, but for NaN, which becomes one quiet NaN.
    """
    is_nan = values.isnan()
    bits = torch.where(is_nan, 0x7FC00000, values.view(torch.int32))
    rest = bits.to(torch.int16)  # the lower half, with a sign
    high = (bits - rest.int()) >> 16
    return high.to(torch.int16).view(torch.bfloat16), rest
