"""The ledger in device memory, for steps that may not have run.

The host neither reads nor waits: kernels compute the scalars of each parameter from its count and
the hyper-parameters, a learning rate on the device included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw._backends.interface import Kernels, LedgerTensors, Operation, Rows
from wpadamw._backends.upload import Upload
from wpadamw.ledger import Ledger
from wpadamw.records import rows_of_records
from wpadamw.rules.rule import Settings


class DeviceLedger:
    """The same as `Ledger`, for steps that the host must not wait for."""

    def __init__(self, ledger: Ledger, device: torch.device, kernels: Kernels) -> None:
        self.rule, self.kernels = ledger.rule, kernels
        num_params = len(ledger.steps)
        self.steps = ledger.steps.to(device, copy=True)
        self.predictions = ledger.predictions.to(device, copy=True)
        self.num_looks = ledger.num_looks
        self.hyper = Upload(len(self.rule.Hyper._fields), torch.float64, device)
        self.shares = Upload(self.num_looks, torch.float64, device)
        self.has_grad = Upload(num_params, torch.bool, device)
        self.no_sums = torch.zeros(
            self.rule.num_terms, num_params, dtype=torch.float64, device=device
        )
        self.rows = Rows(
            torch.zeros(2 * num_params, ledger.width, dtype=torch.float64, device=device),
            torch.zeros(2, num_params, dtype=torch.int32, device=device),
        )

    def is_written(self) -> bool:
        """Nothing is cached."""
        return False

    def refresh(self) -> bool:
        """Nothing is cached."""
        return False

    def all_made(self) -> bool:
        """Whether every update is known to have been predicted from: the host does not know."""
        return False

    def on_host(self) -> Ledger:
        """A copy for the host, which waits for it."""
        states = zip(self.steps.tolist(), self.predictions.cpu(), strict=True)
        copies = [{"step": step, "prediction": record} for step, record in states]
        return Ledger(self.rule, copies, self.num_looks)

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

        Counts and records are those after the step from now on. The arguments are those of
        `Ledger.begin_step`.
        """
        self._fill(settings)
        self.has_grad.fill(has_grad or [True] * len(self.steps))
        operation = Operation.step_and_predict if predict_next else Operation.step
        self._advance(operation, found_inf, sums)
        return self.resumed_step(held)

    def terms_row(self, settings: Settings, held: list[bool] | None) -> Rows:
        """The scalars of the terms of each parameter's next update; counts nothing."""
        self._fill(settings)
        tensors = self._tensors(None)
        scratch = tensors._replace(steps=self.steps.clone(), predictions=self.predictions.clone())
        self.kernels.advance(scratch, Operation.step, None)
        return self._of_held(held)

    def resumed_step(self, held: list[bool] | None) -> Rows:
        """The rows of a step that has been counted."""
        return self._of_held(held)

    def begin_predict(self, settings: Settings) -> Rows:
        """Scalars of each parameter's prediction; ``settings`` are for those that have none."""
        self._fill(settings)
        return self._advance(Operation.predict)

    def begin_restore(self, held: list[bool] | None) -> Rows:
        """The predictions that parameters hold; ``held`` tells which do (None: it is no matter)."""
        if held is not None and any(held):
            self._advance(Operation.restore)
        return self._of_held(held)

    def prediction_rows(self) -> Rows:
        """The scalars that re-create each parameter's last prediction."""
        return rows_of_records(self.predictions, self.rule)

    def commit(self, done: list[bool] | None = None) -> None:
        """Nothing: kernels have counted and recorded."""

    def record_missing(self, settings: Settings) -> None:
        """Notes that parameters without a prediction hold that of these hyper-parameters."""
        on_host = self.on_host()
        on_host.record_missing(settings)
        self.predictions.copy_(on_host.predictions)

    def record_null(self, where: list[bool]) -> None:
        """Notes that parameters hold what came from outside."""
        on_host = self.on_host()
        on_host.record_null(where)
        self.predictions.copy_(on_host.predictions)

    def reset_time(self) -> None:
        """Sets the counts to 0; records stay."""
        self.steps.zero_()

    def _of_held(self, held: list[bool] | None) -> Rows:
        """The rows without the predictions that parameters do not hold."""
        index = self.rows.index
        assert index is not None
        if held is None or not any(held):
            index[1] = -1
        elif not all(held):
            index[1] = torch.where(torch.tensor(held, device=index.device), index[1], -1)
        return self.rows

    def _fill(self, settings: Settings) -> None:
        hyper = settings.hyper
        self.shares.fill(list(settings.padded(self.num_looks)))
        known = [0.0 if isinstance(value, Tensor) else value for value in hyper]
        on_device = self.hyper.fill(known)
        for i, value in enumerate(hyper):
            if isinstance(value, Tensor):
                on_device[i : i + 1] = value.reshape(1)
                self.hyper.forget()

    def _advance(
        self,
        operation: Operation,
        found_inf: Tensor | None = None,
        sums: Tensor | None = None,
    ) -> Rows:
        self.kernels.advance(self._tensors(sums), operation, found_inf)
        return self.rows

    def _tensors(self, sums: Tensor | None) -> LedgerTensors:
        return LedgerTensors(
            self.steps,
            self.predictions,
            self.hyper.tensor,
            self.shares.tensor,
            self.has_grad.tensor,
            self.no_sums if sums is None else sums,
            self.rows,
        )
