"""Arrays in small formats: numbers are decoded when loaded, and encoded when stored."""

from __future__ import annotations

import triton
import triton.language as tl
from wpadamw.triton_kernels.formats import (
    decoded_blocks,
    encoded,
    encoded_blocks,
    join,
    narrowed,
    noisy_bfloat16,
    split,
    widened,
)


@triton.jit
def pointer_to(array, offset, i, DTYPE: tl.constexpr, WIDTH: tl.constexpr):
    """Elements of an array, given as address or pointer, from an offset on, if there is one.

    An aligned access has WIDTH of them, or 16 bytes.
    """
    SIZE: tl.constexpr = WIDTH * DTYPE.primitive_bitwidth // 8
    # Said of pointers, here: what is known of an address is lost when it becomes a pointer, and
    # what is known of a pointer when it is an argument.
    pointer = array.to(tl.pointer_type(DTYPE))
    if offset is not None:
        pointer += offset
    return tl.multiple_of(pointer, SIZE if SIZE < 16 else 16) + i


@triton.jit
def pointers_to_state(states, offset, i, NUMBER: tl.constexpr, WIDTH: tl.constexpr):
    """Elements of each tensor of the state."""
    pointers = ()
    for k in tl.static_range(NUMBER):
        pointer = pointer_to(states[k], offset, i, states[k].dtype.element_ty, WIDTH)
        pointers = pointers + (pointer,)  # noqa: RUF005 -- Triton has no unpacking
    return pointers


@triton.jit
def load_state(states, scales, block, mask, has_block, FORMATS: tl.constexpr, NUMBER: tl.constexpr):
    """The numbers of each tensor of the state; ``block`` tells where scales lie, if any."""
    numbers = ()
    for k in tl.static_range(NUMBER):
        values = tl.load(states[k], mask)
        if scales[k] is not None:
            values = decoded_blocks(values, tl.load(scales[k] + block, has_block), FORMATS[k])
        numbers = numbers + (widened(values),)  # noqa: RUF005 -- Triton has no unpacking
    return numbers


@triton.jit
def store_state(
    states,
    scales,
    block,
    values,
    mask,
    has_block,
    noises,
    FORMATS: tl.constexpr,
    NUMBER: tl.constexpr,
):
    """Writes new numbers of the state; returns what can be read again."""
    numbers = ()
    for k in tl.static_range(NUMBER):
        if scales[k] is not None:
            # What is no element has no part in a scale.
            present = values[k] if mask is None else tl.where(mask, values[k], 0.0)
            stored, scale = encoded_blocks(present, noises, FORMATS[k])
            tl.store(scales[k] + block, scale, has_block)
            number = decoded_blocks(stored, scale, FORMATS[k])
        else:
            stored = encoded(values[k], noises, FORMATS[k])
            number = widened(stored)
        tl.store(states[k], stored, mask)
        numbers = numbers + (number,)  # noqa: RUF005 -- Triton has no unpacking
    return numbers


@triton.jit
def load_param(param, rest, mask):
    """What parameters hold."""
    held = tl.load(param, mask)
    return widened(held) if rest is None else join(held, tl.load(rest, mask))


@triton.jit
def store_param(param, rest, values, mask, noises, DTYPE: tl.constexpr):
    """Writes what parameters are to hold, rounded with noise if there is any."""
    if noises is not None:
        tl.store(param, noisy_bfloat16(values, noises), mask)
    elif rest is None:
        tl.store(param, narrowed(values, DTYPE), mask)
    else:
        high, low = split(values)
        tl.store(param, high, mask)
        tl.store(rest, low, mask)
