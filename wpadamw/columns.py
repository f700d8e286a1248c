"""Columns: the small numbers of each parameter of a bucket, step count and last prediction.

The tensors are the truth (``opt.state`` shows views of them); Python copies of them spare the
reading in every step, and version counters tell when somebody wrote to the tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch

from wpadamw._backends.interface import Rows
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
    grad_factor: float
    predict_next: bool


def _distinct_rows(keys: Sequence[Hashable], make: Callable[[Any], Scalars | None]) -> Rows:
    """One row per parameter; ``make`` runs once per distinct key."""
    distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    index = [distinct[key] for key in keys] if len(distinct) > 1 else []
    return Rows([make(key) for key in distinct], index)


def _as_prediction(values: Any) -> Prediction:
    return NO_PREDICTION if values is None else Prediction(*torch.as_tensor(values).tolist())


class Columns:
    """Step counts and last predictions of a bucket's parameters."""

    def __init__(self, states: Sequence[dict[str, Any]]) -> None:
        self.steps = torch.tensor([float(state.get("step", 0.0)) for state in states])
        predictions = [_as_prediction(state.get("prediction")) for state in states]
        self.predictions = torch.tensor(predictions, dtype=torch.float64)
        self._read()

    def refresh(self) -> None:
        """Reads the tensors again if somebody wrote to them."""
        if self.versions != (self.steps._version, self.predictions._version):
            self._read()

    def count_steps(self, has_grad: list[bool]) -> None:
        """One more update where there was a gradient."""
        self.counts = list(map(operator.add, self.counts, has_grad))
        if all(has_grad):
            self.steps.add_(1.0)
        else:
            self.steps.copy_(torch.tensor(self.counts, dtype=self.steps.dtype))
        self._own()

    def record(self, prediction: Prediction, where: list[bool]) -> None:
        """Notes the prediction that some parameters hold from now on."""
        # The object that is there already, if equal: comparing objects then suffices below.
        prediction = next((old for old in self.records[:1] if old == prediction), prediction)
        pairs = zip(self.records, where, strict=True)
        records = [prediction if chosen else old for old, chosen in pairs]
        if all(map(operator.is_, records, self.records)):
            return
        self.records = records
        self.predictions.copy_(torch.tensor(records, dtype=torch.float64))
        self._own()

    def step_rows(self, options: StepOptions) -> Rows:
        """The scalars of each parameter's next update."""

        def make(count: int) -> Scalars:
            return step_scalars(
                options.prediction, options.weight_decay, count + 1, options.grad_factor
            )

        return _distinct_rows(self.counts, make)

    def prediction_rows(self, neutral: Scalars | None = NEUTRAL) -> Rows:
        """The scalars of each parameter's last prediction; ``neutral`` where it moved nothing."""

        def make(key: tuple[int, Prediction]) -> Scalars | None:
            scalars = prediction_scalars(key[1], key[0])
            return neutral if scalars is NEUTRAL else scalars

        return _distinct_rows(list(zip(self.counts, self.records, strict=True)), make)

    def _read(self) -> None:
        self.counts = [int(count) for count in self.steps.tolist()]
        self.records = [Prediction(*row) for row in self.predictions.tolist()]
        self._own()

    def _own(self) -> None:
        self.versions = (self.steps._version, self.predictions._version)
