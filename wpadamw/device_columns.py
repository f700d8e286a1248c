"""Step counts and last predictions in device memory, for steps that may not have run.

The host neither reads nor waits: kernels compute the scalars of each parameter from its count and
the hyper-parameters, a learning rate on the device included.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wpadamw._backends.interface import (
    NO_ROWS,
    ColumnTensors,
    DeviceRows,
    Kernels,
    Operation,
    Rows,
)
from wpadamw._backends.upload import Upload
from wpadamw.columns import Columns, StepOptions
from wpadamw.scalars import Prediction, Scalars


class DeviceColumns:
    """The same as `Columns`, for steps that the host must not wait for."""

    def __init__(self, columns: Columns, device: torch.device, kernels: Kernels) -> None:
        self.kernels, num_params = kernels, len(columns.counts)
        self.steps = columns.steps.to(device, copy=True)
        self.predictions = columns.predictions.to(device, copy=True)
        # A Prediction, the weight decay of a step, and its grad_factor.
        self.options = Upload(len(Prediction._fields) + 2, torch.float64, device)
        self.has_grad = Upload(num_params, torch.bool, device)
        num_scalars = len(Scalars._fields)
        self.rows = DeviceRows(
            torch.zeros(2 * num_params, num_scalars, dtype=torch.float64, device=device),
            torch.zeros(2, num_params, dtype=torch.int32, device=device),
        )

    def refresh(self) -> bool:
        """Nothing is cached."""
        return False

    def all_made(self) -> bool:
        """Whether every update is known to have been predicted from: the host does not know."""
        return False

    def on_host(self) -> Columns:
        """A copy for the host, which waits for it."""
        states = zip(self.steps.tolist(), self.predictions.cpu(), strict=True)
        return Columns([{"step": step, "prediction": record} for step, record in states])

    def record(self, prediction: Prediction, where: list[bool]) -> None:
        """Notes the prediction that some parameters hold from now on."""
        chosen = torch.tensor(where, device=self.predictions.device).unsqueeze(1)
        record = torch.tensor(prediction, dtype=torch.float64, device=self.predictions.device)
        self.predictions.copy_(torch.where(chosen, record, self.predictions))

    def begin_step(
        self, options: StepOptions, has_grad: list[bool] | None, held: list[bool] | None
    ) -> tuple[DeviceRows, Rows]:
        """The scalars of each parameter's next update, and those of the prediction it holds.

        Counts and records are those after the step from now on.
        """
        prediction = options.prediction._replace(made=float(options.predict_next))
        self._fill(prediction, options.weight_decay, options.grad_factor)
        self.has_grad.fill(has_grad or [True] * len(self.steps))
        operation = Operation.step_and_predict if options.predict_next else Operation.step
        self._advance(operation, options.found_inf)
        return self.step_rows(options, held), NO_ROWS

    def step_rows(self, options: StepOptions, held: list[bool] | None) -> DeviceRows:
        """The rows of a step for which counts and records have been advanced."""
        return self._of_held(replace(self.rows, found_inf=options.found_inf), held)

    def numbers(self) -> None:
        """The host does not know them."""

    def after_step(self, options: StepOptions, has_grad: list[bool] | None) -> None:
        """The host does not know."""

    def begin_predict(self, prediction: Prediction) -> DeviceRows:
        """Scalars of each parameter's prediction; ``prediction`` is for those that have none."""
        self._fill(prediction, 0.0, 1.0)
        return self._advance(Operation.predict)

    def last_rows(self, held: list[bool] | None) -> Rows | DeviceRows:
        """The predictions that parameters hold; ``held`` tells which do (None: it is no matter)."""
        if held is None or not any(held):
            return NO_ROWS
        return self._of_held(self._advance(Operation.restore), held)

    def prediction_rows(self) -> DeviceRows:
        """The scalars that re-create each parameter's last prediction."""
        rows = self._advance(Operation.restore)
        index = torch.arange(len(self.steps), dtype=torch.int32, device=rows.index.device)
        return DeviceRows(
            rows.scalars, torch.stack([index + len(index), torch.full_like(index, -1)])
        )

    @staticmethod
    def _of_held(rows: DeviceRows, held: list[bool] | None) -> DeviceRows:
        """Rows without the predictions that parameters do not hold."""
        if held is None or not any(held):
            rows.index[1] = -1
        elif not all(held):
            holds = torch.tensor(held, device=rows.index.device)
            rows.index[1] = torch.where(holds, rows.index[1], -1)
        return rows

    def _fill(self, prediction: Prediction, *others: float | Tensor) -> None:
        values: list[float | Tensor] = [*prediction, *others]
        known = [0.0 if isinstance(value, Tensor) else value for value in values]
        options = self.options.fill(known)
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                options[i : i + 1] = value.reshape(1)
                self.options.forget()

    def _advance(self, operation: Operation, found_inf: Tensor | None = None) -> DeviceRows:
        rows = replace(self.rows, found_inf=found_inf)
        columns = ColumnTensors(
            self.steps, self.predictions, self.options.tensor, self.has_grad.tensor, rows
        )
        self.kernels.advance(columns, operation)
        return rows
