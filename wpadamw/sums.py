"""Sums over the elements of parameters, their gradients and state: the summing pass.

It only reads, before any weight moves. The sum has one tree (docs/numerics.md): the same bits on
every backend, for any number of threads, in whatever buckets the parameters lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wpadamw import _backends, flat_state, layout
from wpadamw.compat import device_guard
from wpadamw.gradients import GradientReader
from wpadamw.ledger import no_rows
from wpadamw.rules.squares import Squares
from wpadamw.tensors import layouts


class _Squares:
    """Parameters of one device and dtype, and what squares their gradients."""

    def __init__(self, params: list[Tensor], backend_name: str) -> None:
        dense = [_dense(param) for param in params]
        self.gradients = GradientReader(params, dense)
        backend = _backends.choose(backend_name, dense[0].device.type)
        tensors = flat_state.allocate(dense, Squares(), False, layout.REAL_DTYPE[params[0].dtype])
        self.kernels = backend.Kernels(tensors)

    def sums(self) -> Tensor | None:
        """Of each gradient, 0 where there is none; None if there is none at all."""
        rows, total = no_rows(Squares()), None
        for grads in self.gradients.read():
            sums = self.kernels.sums(grads, rows, 1.0)[0]
            total = sums if total is None else total + sums  # each in one dtype, 0 in others
        return total


def _dense(param: Tensor) -> Tensor:
    real = layout.as_real(param.detach())
    return real if layout.is_dense(real) and layout.is_aligned(real) else torch.empty_like(real)


class SquaredGradients:
    """The sum of the squares of all gradients of some parameters.

    Args:
        params: in the order in which they are summed.
        backend_name: whose kernels to use.
    """

    def __init__(self, params: Sequence[Tensor], backend_name: str) -> None:
        self.params = list(params)
        self.layouts = layouts(self.params)
        places: dict[Any, list[int]] = {}
        for i, param in enumerate(params):
            places.setdefault((param.device, param.dtype), []).append(i)
        self.parts = [_Squares([params[i] for i in part], backend_name) for part in places.values()]
        self.order = torch.tensor([i for part in places.values() for i in part]).argsort()

    def serves(self, params: Sequence[Tensor]) -> bool:
        """Whether it was made for these parameters, as they lie now."""
        is_same = len(params) == len(self.params) and flat_state.all_same(params, self.params)
        return is_same and self.layouts.are_of(self.params)

    def total(self) -> Tensor:
        """In float64, one element, on the device of the first parameter."""
        device = self.params[0].device
        sums = [(part, part.sums()) for part in self.parts]
        found = [
            torch.zeros(len(part.gradients.params), dtype=torch.float64, device=device)
            if of_part is None
            else of_part.to(device, non_blocking=True)
            for part, of_part in sums
        ]
        ordered = torch.cat(found)
        if len(found) > 1:
            ordered = ordered[self.order.to(device, non_blocking=True)]
        with device_guard(device):
            return self.parts[0].kernels.total(ordered)
