"""The table of chunks: the rows of ``wpadamw/_backends/device_table.py``."""

from __future__ import annotations

import triton
import triton.language as tl

COLUMNS = tl.constexpr(5)


@triton.jit
def load_chunk(chunks):
    """That of this program.

    Addresses of its parameter and of its true weight (0: none apart), offset, begin, its tensor and
    its number of elements.
    """
    chunk = chunks + tl.program_id(0).to(tl.int64) * COLUMNS
    packed = tl.load(chunk + 4)
    tensor, numel = packed & 0xFFFFFFFF, packed >> 32
    param, weight, offset = tl.load(chunk), tl.load(chunk + 1), tl.load(chunk + 2)
    return param, weight, offset, tl.load(chunk + 3), tensor, numel
