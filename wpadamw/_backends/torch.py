"""The specification as a backend: any device, any dtype, one parameter at a time."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from wpadamw import formats
from wpadamw._backends.interface import (
    BucketTensors,
    Completed,
    Gradients,
    LedgerTensors,
    Operation,
    Rows,
)
from wpadamw._backends.torch_ledger import ONE, advance, write
from wpadamw.layout import REAL_DTYPE
from wpadamw.rules.rule import Row, Rule, State
from wpadamw.rules.stored import formats_of, is_noisy
from wpadamw.rules.summing import in_order, total

NAME = "torch"


def why_not(device_type: str) -> str | None:
    """Why this backend cannot serve a type of device, or None if it can."""
    if device_type == "meta":
        return "meta tensors have no data"
    if device_type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    return None


class _Scalars(NamedTuple):
    """What a parameter does in an operation; nothing where ``is_one`` is a False tensor."""

    step: Row
    looks: list[Row]
    is_one: Tensor | None  # None: it does


class _Column:
    """One of the two columns of `Rows`: the rule's scalars in the dtype of the state."""

    def __init__(self, rule: Rule, rows: Rows, column: int, like: Tensor) -> None:
        self.rule, self.num_step = rule, len(rule.Step._fields)
        self.table, self.are_rows = rows.scalars.to(like.device, like.dtype), None
        if rows.index is not None:  # on a device nobody reads it
            index = rows.index[column].to(like.device)
            self.table = self.table.index_select(0, index.clamp(min=0))
            self.are_rows = index >= 0
        self.place = column if rows.index is None else None

    def get(self, i: int) -> _Scalars | None:
        """The scalars of parameter i, None where no parameter has any."""
        place = i if self.place is None else self.place
        if place >= len(self.table):
            return None
        row = self.table[place].unbind()
        step, looks = self.rule.Step(*row[: self.num_step]), row[self.num_step :]
        width = len(self.rule.Look._fields)
        begins = range(0, len(looks), width) if width else (0,)
        rows = [self.rule.Look(*looks[begin : begin + width]) for begin in begins]
        return _Scalars(step, rows, None if self.are_rows is None else self.are_rows[i])


def _where(scalars: _Scalars, value: Tensor, other: Tensor) -> Tensor:
    return value if scalars.is_one is None else torch.where(scalars.is_one, value, other)


def _tracked(error: Tensor, step: Tensor) -> Tensor:
    """The sums of squares and products that predictions are judged by."""
    terms = (error * error, step * step, error * step)
    return torch.stack([total(of_term.contiguous()) for of_term in terms])


class Kernels:
    """Predict, restore and step over a bucket through `wpadamw.rules`."""

    raise_versions = True

    def __init__(self, bucket: BucketTensors) -> None:
        self.bucket, self.rule = bucket, bucket.rule
        self.formats = formats_of(bucket.rule)
        param = bucket.params[0]
        self.like = torch.empty(0, dtype=REAL_DTYPE[param.dtype], device=param.device)
        # Operations that each parameter has been through, and last the calls of `advance`.
        self.counts = array("q", [0]) * (len(bucket.params) + 1)
        self.count_of = torch.frombuffer(self.counts, dtype=torch.int64).unbind()

    def completed(self) -> Completed:
        """How many operations each parameter has been through."""
        return list(self.counts[:-1])

    def advanced(self) -> int:
        """How many calls of `advance` have been done."""
        return self.counts[-1]

    @torch.no_grad()
    def step(
        self,
        grads: Gradients,
        rows: Rows,
        factor: float | Tensor,
        predict_next: bool,
        found_inf: Tensor | None = None,
        tracked: Tensor | None = None,
    ) -> None:
        """Restore, update and, with ``predict_next``, predict."""
        is_void = None if found_inf is None else found_inf != 0
        of_step, of_held = self._scalars(rows, 0), self._scalars(rows, 1)
        if tracked is not None:
            tracked.zero_()
        for i, grad in self._scaled(grads, factor):
            scalars = of_step.get(i)
            assert scalars is not None
            old = self._true_weight(i, of_held)
            weight, state = self.rule.step(
                old, self._state(i), grad, scalars.step, scalars.looks[0]
            )
            stored = self._stored(i, state, scalars)
            held = weight
            if predict_next:  # by what can be read again
                held = self._predicted(weight, self._loaded(stored), scalars)
            if tracked is not None:
                found = _tracked(self.bucket.held(i) - weight, weight - old)
                tracked[:, i] = found if is_void is None else torch.where(is_void, 0.0, found)
            count = scalars.step.count if is_noisy(self.rule) else None
            targets, values = self.bucket.parts(i, held, count)
            self._write_step(i, weight, stored, targets, values, is_void)

    @torch.no_grad()
    def predict(self, rows: Rows) -> None:
        """Go to the predicted weights."""
        of_prediction = self._scalars(rows, 0)
        for i in range(len(self.bucket.params)):
            weight, scalars = self._stored_weight(i), of_prediction.get(i)
            if scalars is not None:
                predicted = self._predicted(weight, self._state(i), scalars)
                weight = _where(scalars, predicted, weight)
            self._write(i, *self.bucket.parts(i, weight))

    @torch.no_grad()
    def restore(self, rows: Rows) -> None:
        """Go to the true weights."""
        of_held = self._scalars(rows, 1)
        for i in range(len(self.bucket.params)):
            self._write(i, *self.bucket.parts(i, self._true_weight(i, of_held)))

    @torch.no_grad()
    def sums(self, grads: Gradients, rows: Rows, factor: float | Tensor) -> Tensor:
        """The sums of the rule's terms, float64, [num_terms, parameters]."""
        of_step, of_held = self._scalars(rows, 0), self._scalars(rows, 1)
        num_params, device = len(self.bucket.params), self.bucket.params[0].device
        sums = torch.zeros(self.rule.num_terms, num_params, dtype=torch.float64, device=device)
        for i, grad in self._scaled(grads, factor):
            scalars = of_step.get(i)
            assert scalars is not None
            weight, state = self._true_weight(i, of_held), self._state(i)
            terms_of = self.rule.terms(weight, state, grad, scalars.step, scalars.looks[0])
            for k, terms in enumerate(terms_of):
                sums[k, i] = total(terms)
        return sums

    def total(self, sums: Tensor) -> Tensor:
        """The sum of float64 numbers from the first to the last."""
        return in_order(sums)

    def advance(
        self, ledger: LedgerTensors, operation: Operation, found_inf: Tensor | None
    ) -> None:
        """Fill in the rows of an operation; count and record what it does."""
        advance(self.rule, ledger, operation, found_inf, self.count_of[-1])

    def _scalars(self, rows: Rows, column: int) -> _Column:
        return _Column(self.rule, rows, column, self.like)

    def _scaled(self, grads: Gradients, factor: float | Tensor) -> Iterator[tuple[int, Tensor]]:
        """The gradients that there are, times their factor, in the dtype of the state."""
        # Rounded from float64, once.
        factor = torch.as_tensor(factor, dtype=torch.float64, device=self.like.device)
        factor = factor.to(self.like.dtype)
        for i, grad in enumerate(grads.tensors):
            if grad is not None:
                yield i, grad.to(self.like.dtype) * factor

    def _write_step(
        self,
        i: int,
        weight: Tensor,
        stored: list[list[Tensor]],
        targets: list[Tensor],
        values: list[Tensor],
        is_void: Tensor | None,
    ) -> None:
        for kind, new in enumerate(stored):
            targets += self.bucket.stored(kind, i)
            values += new
        if self.bucket.weight is not None:
            targets.append(self.bucket.weight[i])
            values.append(weight)
        if is_void is not None:
            pairs = zip(targets, values, strict=True)
            values = [torch.where(is_void, target, value) for target, value in pairs]
        self._write(i, targets, values)

    def _write(self, i: int, targets: list[Tensor], values: list[Tensor]) -> None:
        """All that an operation writes of parameter i, and its count, in one call."""
        write([*targets, self.count_of[i]], [*values, self.count_of[i] + ONE])

    def _state(self, i: int) -> State:
        return tuple(self.bucket.load(kind, i) for kind in range(len(self.formats)))

    def _stored(self, i: int, state: State, scalars: _Scalars) -> list[list[Tensor]]:
        """What is stored of a new state, by format."""
        noise = None
        if is_noisy(self.rule):
            param = self.bucket.params[i]
            noise = formats.noise_like(param, scalars.step.count)
        pairs = zip(self.formats, state, strict=True)
        return [form.store(values, noise) for form, values in pairs]

    def _loaded(self, stored: list[list[Tensor]]) -> State:
        pairs = zip(self.formats, stored, strict=True)
        return tuple(form.load(tensors, self.like.dtype) for form, tensors in pairs)

    def _predicted(self, weight: Tensor, state: State, scalars: _Scalars) -> Tensor:
        for look in scalars.looks:
            weight = self.rule.predict(weight, state, look)
        return weight

    def _stored_weight(self, i: int) -> Tensor:
        return self.bucket.held(i) if self.bucket.weight is None else self.bucket.weight[i]

    def _true_weight(self, i: int, of_held: _Column) -> Tensor:
        stored = self._stored_weight(i).to(self.like.dtype)
        held = None if self.bucket.weight is not None else of_held.get(i)
        if held is None or not self.rule.can_recover():  # what it holds will do
            return stored
        recovered = stored
        for look in reversed(held.looks):
            recovered = self.rule.recover(recovered, self._state(i), look)
        return _where(held, recovered, stored)
