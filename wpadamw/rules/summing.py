"""The order in which terms are summed: the same on every backend, whatever works in parallel."""

from __future__ import annotations

import functools
import operator

from torch import Tensor

from wpadamw import layout

# A tensor is summed in chunks of this many elements, from its first one. On a device each is one
# block: kChunkNumel of csrc/combinations.h.
CHUNK_NUMEL = 2048


def total(terms: Tensor) -> Tensor:
    """The sum of a tensor's elements in memory order, in float64.

    By halves within a chunk, with zeros for what it lacks, in the dtype of the terms; then the
    chunks from the first to the last, in float64.
    """
    flat = terms.detach().as_strided((terms.numel(),), (1,))
    padded = flat.new_zeros(-(-flat.numel() // CHUNK_NUMEL), CHUNK_NUMEL)
    padded.view(-1)[: flat.numel()] = flat
    while padded.shape[1] > 1:
        half = padded.shape[1] // 2
        padded = padded[:, :half] + padded[:, half:]
    return in_order(padded.view(-1).double())


def in_order(numbers: Tensor) -> Tensor:
    """The sum of float64 numbers from the first to the last, one element."""
    if not layout.host_must_not_wait(numbers.device):  # Python's numbers are the same, and faster
        return numbers.new_tensor(functools.reduce(operator.add, numbers.tolist(), 0.0))
    return functools.reduce(operator.add, numbers.unbind(), numbers.new_zeros(()))
