"""The ledger: the small numbers of each parameter of a bucket, step count and last prediction.

The tensors are the truth (``opt.state`` shows views of them); Python copies of them spare the
reading in every step, and version counters tell when somebody wrote to the tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wpadamw._backends.interface import Kind, Rows
from wpadamw.records import Numbers, Record, rows_of_records
from wpadamw.rules.rule import Rule, Settings
from wpadamw.tensors import versions


def _is_repeated(values: Sequence[Any]) -> bool:
    """Whether all values equal the first; fast where they are one object."""
    return values.count(values[0]) == len(values)


class Ledger:
    """Step counts and last predictions of a bucket's parameters, and the scalars from them."""

    def __init__(self, rule: Rule, states: Sequence[dict[str, Any]], num_looks: int) -> None:
        self.rule, self.num_looks = rule, num_looks
        self.num_step, self.width = len(rule.Step._fields), rule.row_width(num_looks)
        nothing = [0.0] * (self.width - self.num_step)
        self.no_record: Record = (float(Kind.none), *nothing)
        self.null_record: Record = (float(Kind.null), *nothing)
        # Filling a Python array takes a tenth of the time of an operation on a tensor.
        self.step_memory = array("f", [float(state.get("step", 0.0)) for state in states])
        self.steps = torch.frombuffer(self.step_memory, dtype=torch.float32)
        records = [self._as_record(state.get("prediction")) for state in states]
        self.record_memory = array("d", [number for record in records for number in record])
        self.predictions = _table(self.record_memory, len(self.no_record))
        # Of an operation in which all parameters do the same: its row, and that of what they hold.
        self.row_memory = array("d", [0.0] * 2 * self.width)
        self.both_rows = Rows(_table(self.row_memory, self.width))
        self.own_row = Rows(self.both_rows.scalars[:1])
        self.tensors = [self.steps, self.predictions]
        self.versions = versions(self.tensors)
        self._numbers: Numbers | None = None
        self.pending = self.numbers  # what is so when the operation that has begun will be done

    def _as_record(self, values: Any) -> Record:
        if values is None:
            return self.no_record
        numbers = torch.as_tensor(values, dtype=torch.float64).tolist()
        if numbers[0] != Kind.made:
            return self._unmade(numbers[0], numbers[1 : 1 + self.rule.num_terms])
        missing = (len(self.no_record) - len(numbers)) // max(1, len(self.rule.still))
        return (*numbers, *[*self.rule.still] * missing)

    def _unmade(self, kind: float, sums: Sequence[float]) -> Record:
        return (kind, *sums, *self.no_record[1 + len(sums) :])

    def is_written(self) -> bool:
        """Whether somebody wrote to the tensors."""
        return not self.versions.are_of(self.tensors)

    def refresh(self) -> bool:
        """Reads the tensors again if somebody wrote to them, and tells whether."""
        is_changed = self.is_written()
        if is_changed:
            self.versions = versions(self.tensors)
            self.forget()
        return is_changed

    def forget(self) -> None:
        """Has the tensors read again: their memory is written to."""
        self._numbers = None

    @property
    def numbers(self) -> Numbers:
        """Counts and records of this moment."""
        if self._numbers is None:
            counts = [int(count) for count in self.steps.tolist()]
            records = [tuple(record) for record in self.predictions.tolist()]
            self._numbers = Numbers(counts, records)
        return self._numbers

    def all_made(self) -> bool:
        """Whether the last update of every parameter has been predicted from."""
        return all(record[0] for record in self.numbers.records)

    def on_host(self) -> Ledger:
        """A copy of its own."""
        states = zip(self.numbers.counts, self.numbers.records, strict=True)
        copies = [{"step": count, "prediction": record} for count, record in states]
        return Ledger(self.rule, copies, self.num_looks)

    # Operations: what they need, and what is so afterwards.

    def begin_step(
        self,
        settings: Settings,
        has_grad: list[bool] | None,
        held: list[bool] | None,
        predict_next: bool,
        found_inf: Tensor | None = None,
        sums: Tensor | None = None,
    ) -> Rows:
        """The scalars of each parameter's next update, and of the prediction that it holds.

        Args:
            settings: of the update.
            has_grad: which parameters are updated (None: all).
            held: which parameters hold predictions (None: it is no matter).
            predict_next: whether the update is predicted from.
            found_inf: None: the host has looked at it.
            sums: of the rule's terms, [num_terms, parameters]; None: they are to be summed.
        """
        counts = self.numbers.counts
        sums_of: list[tuple[float, ...]] = [()] * len(counts)
        if sums is not None:
            sums_of = [tuple(of_one) for of_one in sums.T.tolist()]
        if _is_repeated(counts) and _is_repeated(sums_of):
            rows = self._one_row(settings, counts[0] + 1, sums_of[0], has_grad, predict_next)
        else:
            rows = self._distinct_rows(settings, sums_of, has_grad, predict_next)
        return rows if held is None or not any(held) else self._with_held(rows, held)

    def terms_row(self, settings: Settings, held: list[bool] | None) -> Rows:
        """The scalars of the terms of each parameter's next update; counts nothing."""
        return self.begin_step(settings, None, held, predict_next=False)

    def resumed_step(self, held: list[bool] | None) -> Rows:
        """The rows of a step that has been counted: here the host counts it last."""
        raise NotImplementedError

    def begin_predict(self, settings: Settings) -> Rows:
        """Scalars of each parameter's prediction; ``settings`` are for those that have none."""
        self.pending = Numbers(self.numbers.counts, self._all_made(settings))
        records = self.pending.records
        if _is_repeated(records) and records[0][0] == Kind.made:
            self.row_memory[self.num_step : self.width] = array("d", records[0][1:])
            return self.own_row
        return rows_of_records(torch.tensor(records, dtype=torch.float64, device="cpu"), self.rule)

    def begin_restore(self, held: list[bool] | None) -> Rows:
        """The predictions that parameters hold; ``held`` tells which do (None: it is no matter)."""
        self.pending = self.numbers
        if held is None or not any(held):
            return self.own_row
        return self._with_held(self.own_row, held)

    def prediction_rows(self) -> Rows:
        """The scalars that re-create each parameter's last prediction."""
        return rows_of_records(self.predictions, self.rule)

    def commit(self, done: list[bool] | None = None) -> None:
        """Writes down what has been done (None: all of it); may be interrupted, and repeated."""
        numbers = self.pending if done is None else self.pending.where(done, self.numbers)
        if numbers.counts is not self.numbers.counts:
            self.step_memory[:] = _repeated(numbers.counts, "f")
        if numbers.records is not self.numbers.records:
            self.record_memory[:] = _flat(numbers.records)
        self._numbers = numbers

    # Changes from elsewhere.

    def record_missing(self, settings: Settings) -> None:
        """Notes that parameters without a prediction hold that of these hyper-parameters."""
        self.begin_predict(settings)
        self.commit()

    def record_null(self, where: list[bool]) -> None:
        """Notes that parameters hold what came from outside."""
        pairs = zip(self.numbers.records, where, strict=True)
        records = [self.null_record if chosen else record for record, chosen in pairs]
        self.pending = Numbers(self.numbers.counts, records)
        self.commit()

    def reset_time(self) -> None:
        """Sets the counts to 0; records stay."""
        self.pending = Numbers([0] * len(self.numbers.counts), self.numbers.records)
        self.commit()

    # Scalars.

    def _one_row(
        self,
        settings: Settings,
        count: int,
        sums: tuple[float, ...],
        has_grad: list[bool] | None,
        predict_next: bool,
    ) -> Rows:
        step, looks = self.rule.row(settings, count, self.num_looks, sums)
        self.row_memory[: self.width] = array("d", (*step, *looks))
        record = self._record(looks, sums, predict_next)
        num_params = len(self.numbers.counts)
        done = Numbers([count] * num_params, [record] * num_params)
        self.pending = done if has_grad is None else done.where(has_grad, self.numbers)
        return self.own_row

    def _record(
        self, looks: tuple[float, ...], sums: tuple[float, ...], predict_next: bool
    ) -> Record:
        if predict_next:
            return (float(Kind.made), *looks)
        return self._unmade(Kind.none, sums) if sums else self.no_record

    def _distinct_rows(
        self,
        settings: Settings,
        sums_of: list[tuple[float, ...]],
        has_grad: list[bool] | None,
        predict_next: bool,
    ) -> Rows:
        counts = self.numbers.counts
        keys = list(zip(counts, sums_of, strict=True))
        places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        rows = [self.rule.row(settings, k + 1, self.num_looks, sums) for k, sums in places]
        pairs = zip(rows, places, strict=True)
        made = [self._record(looks, sums, predict_next) for (_, looks), (_, sums) in pairs]
        places_of = [places[key] for key in keys]
        done = Numbers([count + 1 for count in counts], [made[place] for place in places_of])
        self.pending = done if has_grad is None else done.where(has_grad, self.numbers)
        table = torch.tensor(
            [(*step, *looks) for step, looks in rows], dtype=torch.float64, device="cpu"
        )
        index = torch.tensor([places_of, [-1] * len(counts)], dtype=torch.int32, device="cpu")
        return Rows(table, index)

    def _with_held(self, rows: Rows, held: list[bool]) -> Rows:
        """Rows, and those of the predictions that parameters hold."""
        record = self.numbers.records[0]
        is_one = record[0] == Kind.made and all(held) and _is_repeated(self.numbers.records)
        if rows is self.own_row and is_one:
            self.row_memory[self.width + self.num_step :] = array("d", record[1:])
            return self.both_rows
        of_held = rows_of_records(self.predictions, self.rule)
        assert of_held.index is not None
        own = torch.zeros(len(held), dtype=torch.int32, device="cpu")
        if rows.index is not None:
            own = rows.index[0]
        holds = torch.tensor(held, device="cpu") & (of_held.index[1] >= 0)
        last = torch.where(holds, of_held.index[1] + len(rows.scalars), -1)
        return Rows(torch.cat([rows.scalars, of_held.scalars]), torch.stack([own, last]))

    def _all_made(self, settings: Settings) -> list[Record]:
        if self.all_made():
            return self.numbers.records
        # By count, and by what a record without a prediction keeps.
        keys = list(zip(*self.numbers, strict=True))
        made = {key: self._made(settings, *key) for key in set(keys)}
        return [made[key] for key in keys]

    def _made(self, settings: Settings, count: int, record: Record) -> Record:
        if record[0]:
            return record
        if count == 0:
            return self.null_record
        sums = record[1 : 1 + self.rule.num_terms]
        return (float(Kind.made), *self.rule.row(settings, count, self.num_looks, sums)[1])


def _table(memory: array[float], width: int) -> Tensor:
    # A rule may have no scalars at all.
    return torch.frombuffer(memory, dtype=torch.float64).view(-1, width)


def _repeated(numbers: list[Any], code: str) -> array[float]:
    if _is_repeated(numbers):
        return array(code, numbers[:1]) * len(numbers)
    return array(code, numbers)


def _flat(records: list[Record]) -> array[float]:
    if _is_repeated(records):
        return array("d", records[0]) * len(records)
    return array("d", [number for record in records for number in record])
