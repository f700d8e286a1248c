"""Sums over the elements of parameters, their gradients and state: the summing pass.

It only reads, before any weight moves. The sum has one tree (docs/numerics.md): the same bits on
every backend, for any number of threads, in whatever buckets the parameters lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from wpadamw import _backends, flat_state, layout
from wpadamw._backends.interface import Kernels
from wpadamw.gradients import GradientReader
from wpadamw.records import no_rows
from wpadamw.rules.rule import Rule
from wpadamw.tensors import layouts


class _Part:
    """Parameters of one device and dtype, and what sums the terms of a rule over them."""

    def __init__(self, rule: Rule, params: list[Tensor], backend_name: str) -> None:
        self.rule, self.num_params = rule, len(params)
        self.dense = [_dense(param) for param in params]
        self.gradients = GradientReader(params, self.dense)
        backend = _backends.choose(backend_name, self.dense[0].device.type)
        real_dtype = layout.REAL_DTYPE[params[0].dtype]
        self.kernels = backend.Kernels(flat_state.allocate(self.dense, rule, False, real_dtype))

    def sums(self) -> Tensor:
        """Of each tensor: float64, [num_terms, parameters], 0 where there is no gradient."""
        rows = no_rows(self.rule)
        # A parameter's gradient has one dtype: all other summands are 0.
        found = [self.kernels.sums(grads, rows, 1.0) for grads in self.gradients.read()]
        shape, device = (self.rule.num_terms, self.num_params), self.dense[0].device
        return sum(found, torch.zeros(shape, dtype=torch.float64, device=device))


def _dense(param: Tensor) -> Tensor:
    real = layout.as_real(param.detach())
    return real if layout.is_dense(real) and layout.is_aligned(real) else torch.empty_like(real)


def ordered(sums: list[Tensor], order: Tensor) -> Tensor:
    """Sums of parts as columns in an order of their own, on the device of the first part."""
    device = sums[0].device
    if len(sums) == 1:
        return sums[0]
    found = torch.cat([part.to(device, non_blocking=True) for part in sums], dim=1)
    return found[:, order.to(device, non_blocking=True)]


def of_parameters(
    parts: Iterable[tuple[Sequence[Tensor], Tensor]], params: Iterable[Tensor]
) -> Tensor:
    """Sums over parameters, of what each part has of them, as columns in the parameters' order.

    A part has parameters, and a column for each; parameters that are in none are left out. Nothing
    goes from the host to the device: a step may be captured.
    """
    columns: dict[int, Tensor] = {}
    device: torch.device | None = None
    for own, each in parts:
        device = device or each.device
        of_own = each.to(device, non_blocking=True).unbind(dim=1)
        for param, column in zip(own, of_own, strict=True):
            known = columns.get(id(param))
            columns[id(param)] = column if known is None else known + column
    return torch.stack([columns[id(param)] for param in params if id(param) in columns], dim=1)


def total(kernels: Kernels, sums: Tensor) -> Tensor:
    """The sum over each row, from the first to the last column."""
    return torch.stack([kernels.total(of_term.contiguous()).reshape(()) for of_term in sums])


class GradientSums:
    """The sums of a rule's terms over the gradients of parameters; the rule has no state.

    Args:
        rule: whose terms are summed.
        params: in the order in which they are summed.
        backend_name: whose kernels to use.
    """

    def __init__(self, rule: Rule, params: Sequence[Tensor], backend_name: str) -> None:
        self.rule, self.params = rule, list(params)
        self.layouts = layouts(self.params)
        places: dict[Any, list[int]] = {}
        for i, param in enumerate(params):
            places.setdefault((param.device, param.dtype), []).append(i)
        chosen = [[params[i] for i in part] for part in places.values()]
        self.parts = [_Part(rule, part, backend_name) for part in chosen]
        order = [i for part in places.values() for i in part]
        self.order = torch.tensor(order, device="cpu").argsort()

    def serves(self, params: list[Tensor]) -> bool:
        """Whether it was made for these parameters, as they lie now."""
        return flat_state.are_same(params, self.params) and self.layouts.are_of(self.params)

    def of_each(self) -> Tensor:
        """Float64 on the device of the first parameter, [num_terms, parameters]."""
        return ordered([part.sums() for part in self.parts], self.order)

    def total(self) -> Tensor:
        """The sums of these, [num_terms]."""
        return total(self.parts[0].kernels, self.of_each())
