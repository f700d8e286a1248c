"""Columns: the small numbers of each parameter of a bucket, step count and last prediction.

The tensors are the truth (``opt.state`` shows views of them); Python copies of them spare the
reading in every step, and version counters tell when somebody wrote to the tensors.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wpadamw._backends.interface import NO_ROWS, Rows
from wpadamw.scalars import (
    NEUTRAL,
    NO_PREDICTION,
    Prediction,
    Scalars,
    prediction_scalars,
    step_scalars,
)


class StepOptions(NamedTuple):
    """What a step over a bucket takes from its group."""

    prediction: Prediction
    weight_decay: float
    grad_factor: float | Tensor  # a float64 tensor where the host does not know it
    predict_next: bool
    found_inf: Tensor | None = None  # on the device; not 0: the step does nothing

    @property
    def record(self) -> Prediction:
        """What a parameter holds after the step."""
        return self.prediction if self.predict_next else NO_PREDICTION


class Numbers(NamedTuple):
    """Counts and records of all parameters at one moment."""

    counts: list[int]
    records: list[Prediction]

    def where(self, done: list[bool], others: Numbers) -> Numbers:
        """These where ``done``, and the others elsewhere."""
        return Numbers(
            [a if d else b for a, b, d in zip(self.counts, others.counts, done, strict=True)],
            [a if d else b for a, b, d in zip(self.records, others.records, done, strict=True)],
        )


def _is_repeated(values: Sequence[Any]) -> bool:
    """Whether all values equal the first; fast where they are one object."""
    return values.count(values[0]) == len(values)


def _floats(counts: list[int]) -> array[float]:
    if _is_repeated(counts):
        return array("f", counts[:1]) * len(counts)
    return array("f", counts)


def _distinct_rows(keys: Sequence[Hashable], make: Callable[[Any], Scalars | None]) -> Rows:
    """One row per parameter; ``make`` runs once per distinct key."""
    if _is_repeated(keys):
        return Rows([make(keys[0])])
    distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return Rows([make(key) for key in distinct], [distinct[key] for key in keys])


def _as_prediction(values: Any) -> Prediction:
    if isinstance(values, Prediction):
        return values
    return NO_PREDICTION if values is None else Prediction(*torch.as_tensor(values).tolist())


class Columns:
    """Step counts and last predictions of a bucket's parameters."""

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        # Counting in a Python array takes a tenth of the time of an operation on a tensor.
        self.step_memory = array("f", [float(state.get("step", 0.0)) for state in states])
        self.steps = torch.frombuffer(self.step_memory, dtype=torch.float32)
        predictions = [_as_prediction(state.get("prediction")) for state in states]
        self.predictions = torch.tensor(predictions, dtype=torch.float64, device="cpu")
        self.counts: list[int] = []
        self.records: list[Prediction] = []
        self._read()

    @classmethod
    def of(cls, numbers: Numbers) -> Columns:
        """Columns of their own with the same counts and records."""
        pairs = zip(numbers.counts, numbers.records, strict=True)
        return cls([{"step": count, "prediction": record} for count, record in pairs])

    def refresh(self) -> bool:
        """Reads the tensors again if somebody wrote to them, and tells whether."""
        is_changed = self.versions != (self.steps._version, self.predictions._version)
        if is_changed:
            self._read()
        return is_changed

    def all_made(self) -> bool:
        """Whether the last update of every parameter has been predicted from."""
        return all(record.made for record in self.records)

    def record(self, prediction: Prediction, where: list[bool] | None = None) -> None:
        """Notes the prediction that parameters hold from now on (None: all of them)."""
        self.commit(self.numbers()._replace(records=self._recorded(prediction, where)))

    def numbers(self) -> Numbers:
        """Counts and records of this moment."""
        return Numbers(self.counts, self.records)

    def after_step(self, options: StepOptions, has_grad: list[bool] | None) -> Numbers:
        """Counts and records when a step will have been done where there is a gradient."""
        return Numbers(self._counted(has_grad), self._recorded(options.record, has_grad))

    def commit(self, numbers: Numbers) -> None:
        """Writes counts and records down; may be interrupted, and repeated then."""
        if numbers.counts is not self.counts:
            self.step_memory[:] = _floats(numbers.counts)
            self.counts = numbers.counts
        if numbers.records is not self.records:
            records = torch.tensor(numbers.records, dtype=torch.float64, device="cpu")
            self.predictions.copy_(records)
            self._own()
            self.records = numbers.records

    def _counted(self, has_grad: list[bool] | None) -> list[int]:
        if has_grad is None and _is_repeated(self.counts):
            return [self.counts[0] + 1] * len(self.counts)
        return list(map(operator.add, self.counts, has_grad or [True] * len(self.counts)))

    def _recorded(self, prediction: Prediction, where: list[bool] | None) -> list[Prediction]:
        if self.records[0] == prediction and _is_repeated(self.records):
            return self.records
        where = where or [True] * len(self.records)
        pairs = zip(self.records, where, strict=True)
        return [prediction if chosen else old for old, chosen in pairs]

    def begin_step(
        self, options: StepOptions, has_grad: list[bool] | None, held: list[bool] | None
    ) -> tuple[Rows, Rows]:
        """The scalars of each parameter's next update, and those of the prediction it holds."""
        factor = options.grad_factor
        known, unknown = (1.0, factor) if isinstance(factor, Tensor) else (factor, None)

        def make(count: int) -> Scalars:
            return step_scalars(options.prediction, options.weight_decay, count + 1, known)

        rows = _distinct_rows(self.counts, make)
        rows.grad_factor = unknown
        return rows, self.last_rows(held)

    def begin_predict(self, prediction: Prediction) -> Rows:
        """Scalars of each parameter's prediction; ``prediction`` is for those that have none."""
        self.record(prediction, [not record.made for record in self.records])
        return self.prediction_rows()

    def last_rows(self, held: list[bool] | None) -> Rows:
        """The predictions that parameters hold; ``held`` tells which do (None: it is no matter)."""
        if held is None or not any(held):
            return NO_ROWS
        return self.prediction_rows(None, held)

    def on_host(self) -> Columns:
        """Itself: the host knows everything here."""
        return self

    def prediction_rows(
        self, neutral: Scalars | None = NEUTRAL, held: list[bool] | None = None
    ) -> Rows:
        """The scalars of each parameter's last prediction; ``neutral`` where it moves nothing."""

        def make(key: tuple[int, Prediction]) -> Scalars | None:
            scalars = prediction_scalars(key[1], key[0])
            return neutral if scalars is NEUTRAL else scalars

        records = self.records
        if held is not None and not all(held):
            pairs = zip(records, held, strict=True)
            records = [record if holds else NO_PREDICTION for record, holds in pairs]
        return _distinct_rows(list(zip(self.counts, records, strict=True)), make)

    def _read(self) -> None:
        self.counts = [int(count) for count in self.steps.tolist()]
        self.records = [Prediction(*row) for row in self.predictions.tolist()]
        self._own()

    def _own(self) -> None:
        self.versions = (self.steps._version, self.predictions._version)
