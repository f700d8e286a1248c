"""Do parameters hold the weights that the optimizer would write? The kernels say it.

What they would write is written to a small buffer, piece by piece, and compared with what is there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw._backends.interface import BucketTensors, Rows
from wpadamw.bucket import Bucket
from wpadamw.flat_state import PADDING, padded
from wpadamw.formats import num_blocks
from wpadamw.records import no_rows
from wpadamw.rules.stored import decoded, formats_of

# The dtype in which weights are computed, and that in which they are held.
Cast = tuple[torch.dtype, torch.dtype]


# Elements with which a CPU works before it has to read them from memory again.
_IN_CACHE = 2**18


class _Piece(NamedTuple):
    """Elements [begin, end) of a parameter, in memory order."""

    param: int
    begin: int
    end: int


def unexpected(bucket: Bucket, params: list[Tensor] | None = None) -> list[int]:
    """Indices of parameters that do not hold what the bucket wrote, or what was cast from it.

    Args:
        bucket: knows what it wrote.
        params: dense tensors to look at in the place of its own, in the same memory order.
    """
    bucket.stage()
    cast = (bucket.real_dtype, bucket.tensors.params[0].dtype)
    predicted = list(itertools.compress(range(len(bucket.held)), bucket.held))
    true = [i for i, holds_prediction in enumerate(bucket.held) if not holds_prediction]
    rows = bucket.ledger.prediction_rows()
    return sorted(
        differing(bucket, predicted, rows, cast, params)
        | differing(bucket, true, None, cast, params)
    )


def differing(
    bucket: Bucket,
    indices: list[int],
    rows: Rows | None,
    cast: Cast,
    params: list[Tensor] | None = None,
    source: BucketTensors | None = None,
) -> set[int]:
    """Which of a bucket's parameters do not hold their true weights, or predictions by ``rows``.

    ``source`` has another state in the place of the bucket's.
    """
    found: set[int] = set()
    params = params or bucket.tensors.params
    needed = sum(padded(bucket.tensors.params[i].numel()) for i in indices)
    capacity = min(_capacity(bucket), needed)
    buffer = torch.empty(capacity, dtype=cast[1], device=bucket.tensors.params[0].device)
    for pieces in _windows(bucket, indices, capacity):
        expected = _written(bucket, source or bucket.tensors, pieces, rows, cast, buffer)
        for piece, values in zip(pieces, expected, strict=True):
            held = _memory(params[piece.param])[piece.begin : piece.end]
            if piece.param not in found and not _same(held, values.to(held)):
                found.add(piece.param)
    return found


def _windows(bucket: Bucket, indices: list[int], capacity: int) -> Iterator[list[_Piece]]:
    """All elements of some parameters, as many at a time as the buffer takes."""
    room = capacity
    window: list[_Piece] = []
    for i in indices:
        begin, numel = 0, bucket.tensors.params[i].numel()
        while begin < numel:
            end = min(numel, begin + room)
            window.append(_Piece(i, begin, end))
            room -= padded(end - begin)
            begin = end
            if room == 0:
                yield window
                window, room = [], capacity
    if window:
        yield window


def _capacity(bucket: Bucket) -> int:
    """Elements of the buffer: no matter beside the parameters, and enough for few rounds."""
    flat = bucket.tensors.state_flat[0]
    if layout.host_must_not_wait(flat.device):
        return max(2**22, flat.numel() // 32 // PADDING * PADDING)
    return min(max(2**14, flat.numel() // 16 // PADDING * PADDING), _IN_CACHE)


def _written(
    bucket: Bucket,
    source: BucketTensors,
    pieces: list[_Piece],
    rows: Rows | None,
    cast: Cast,
    buffer: Tensor,
) -> list[Tensor]:
    """What the kernels write to the pieces."""
    tensors = _tensors(source, pieces, cast, buffer)
    if rows is None and tensors.weight and cast[0] == cast[1]:
        return tensors.weight  # which would be copied as they are
    kernels = bucket.backend.Kernels(tensors)
    if rows is None:
        kernels.restore(no_rows(bucket.rule, tensors.num_looks))
    else:
        kernels.predict(rows.of([piece.param for piece in pieces]))
    return tensors.params


def _tensors(
    source: BucketTensors, pieces: list[_Piece], cast: Cast, buffer: Tensor
) -> BucketTensors:
    """The state of the pieces, with a buffer in the place of the parameters."""
    computed = cast[0]
    assert source.weight_flat is not None
    numels = [piece.end - piece.begin for piece in pieces]
    first = source.offsets[pieces[0].param] + pieces[0].begin
    last = source.offsets[pieces[-1].param] + pieces[-1].end
    starts = [source.offsets[piece.param] + piece.begin - first for piece in pieces]
    flat = [source.weight_flat[first:last].to(computed), *_state(source, first, last, computed)]
    places = [0, *itertools.accumulate(map(padded, numels))]
    pairs = list(zip(starts, numels, strict=True))
    return BucketTensors(
        rule=decoded(source.rule),
        params=[buffer[p : p + n] for p, n in zip(places, numels, strict=False)],
        offsets=starts,
        weight_flat=flat[0],
        state_flat=flat[1:],
        weight=[flat[0][s : s + n] for s, n in pairs],
        state=[[f[s : s + n] for s, n in pairs] for f in flat[1:]],
        num_looks=source.num_looks,
    )


def _state(source: BucketTensors, first: int, last: int, dtype: torch.dtype) -> list[Tensor]:
    """The numbers of a stretch of the flat buffers, which begins where a block of codes does."""
    blocks = slice(first // PADDING, num_blocks(last))
    scales = source.scales_flat or [None] * len(source.state_flat)
    triples = zip(formats_of(source.rule), source.state_flat, scales, strict=True)
    return [
        form.load([codes[first:last], *([] if s is None else [s[blocks]])], dtype).to(dtype)
        for form, codes, s in triples
    ]


def _memory(dense: Tensor) -> Tensor:
    """The elements of a dense tensor in memory order."""
    return dense.detach().as_strided((dense.numel(),), (1,))


def _same(a: Tensor, b: Tensor) -> bool:
    a_words, b_words = _words(a), _words(b)
    if a_words is not None and b_words is not None and torch.equal(a_words, b_words):
        return True
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _words(values: Tensor) -> Tensor | None:
    """The bits of numbers in words, which compare in half the time; None if there is a rest."""
    size = values.element_size()
    is_whole = values.numel() * size % 8 == values.storage_offset() * size % 8 == 0
    return values.view(torch.int64) if is_whole else None
