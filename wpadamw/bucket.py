"""Buckets: parameters of one group that one kernel call serves, their state in flat buffers.

Owns addresses, flat state, what the parameters hold, and the caches over them. Knows nothing of
closures or files.

An exception may arrive after any line (Ctrl-C raises KeyboardInterrupt wherever it finds the
program). So an operation is noted before the kernel writes, and settled afterwards, at once or
before anything else is done with the bucket: the kernels' own count tells what has been written.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw._backends.interface import Backend, Completed, Gradients, Rows
from wpadamw.bucket_state import BucketState
from wpadamw.checks import Mode
from wpadamw.compat import increment_version
from wpadamw.copies import Copies
from wpadamw.flat_state import StateDict
from wpadamw.rules.rule import Rule, Settings
from wpadamw.tensors import versions

_LEARNS = operator.attrgetter("requires_grad")


class StepCall(NamedTuple):
    """What a step over a bucket takes from its group and from the call."""

    settings: Settings
    factor: float | Tensor  # of gradients; a float64 tensor where the host does not know it
    predict_next: bool
    found_inf: Tensor | None = None  # on the device; not 0: the step does nothing
    sums: Tensor | None = None  # of the rule's terms, if it has any
    tracked: Tensor | None = None  # receives how good predictions were


class Write(NamedTuple):
    """An operation that has been begun, and what is so when it has been done."""

    completed: Completed  # the kernels' counts before
    advanced: int
    held: list[bool]
    where: list[bool] | None  # parameters that it writes (None: all)
    resume: Callable[[], None] | None = None  # of an update: does the rest, once it is counted


class Bucket(BucketState):
    """Parameters that share device, dtype and rule, with their optimizer state.

    ``held`` tells which parameters hold predictions; the other arguments are those of
    `BucketState`.
    """

    def __init__(
        self,
        params: list[Tensor],
        rule: Rule,
        has_backup: bool,
        backend: Backend,
        states: list[StateDict],
        held: list[bool],
        counts_on_device: bool = False,
        num_looks: int = 1,
        copies: Copies | None = None,
        master: str = "float32",
    ) -> None:
        super().__init__(
            params, rule, has_backup, backend, states, counts_on_device, num_looks, copies, master
        )
        self.uniform: dict[Mode, list[bool]] = {
            "true": [False] * len(params),
            "predicted": [True] * len(params),
        }
        self.held = held
        self.set_aside: dict[int, Tensor] = {}  # records of frozen parameters, by id
        self.is_after_literal_step = False
        self.begun: Write | None = None

    def refresh(self) -> None:
        """Takes note of what happened outside. To be called before anything else is done."""
        self.settle()
        if self.ledger.refresh():
            self.state_versions = None
        if self.brings_weights() and self.written_outside():  # a model that was loaded last
            self.take_weights(self.saved_beside())

    def quick_look(self) -> list[Gradients] | None:
        """The gradients, if all else is as the last own write has left it; else, or if, None."""
        is_settled = self.begun is None and not (self.staged or self.to_begin)
        is_settled = is_settled and self.can_recreate()
        is_settled = is_settled and not self.ledger.is_written() and self.has_own_states()
        return self.gradients.quick_look() if is_settled and self.watch.is_untouched() else None

    # What parameters hold.

    def holds_all(self, mode: Mode) -> bool:
        """Whether all parameters hold the weights of a mode."""
        return self.held is self.uniform[mode] or self.held == self.uniform[mode]

    def _computed_back(self) -> list[bool] | None:
        """Which parameters hold predictions, if true weights are computed from them."""
        return self.held if self.recovers else None

    # The three operations.

    def step(self, grads: Gradients, call: StepCall) -> None:
        """Restores, updates and, if asked to, predicts the parameters that have a gradient."""
        settings, factor, predict_next, found_inf, sums, tracked = call
        has_grad, held = grads.has_grad, self._computed_back()

        def launch(rows: Rows) -> None:
            self.kernels.step(grads, rows, factor, predict_next, found_inf, tracked)

        def run() -> None:
            begin = self.ledger.begin_step
            launch(begin(settings, has_grad, held, predict_next, found_inf, sums))

        def resume() -> None:
            launch(self.ledger.resumed_step(held))

        self.forget_aside(has_grad)
        after = self.uniform["predicted" if predict_next else "true"]
        if has_grad is not None:
            pairs = zip(has_grad, self.held, strict=True)
            after = [predict_next if chosen else before for chosen, before in pairs]
        self._write(run, after, has_grad, resume)
        self.is_after_literal_step = not predict_next

    def sums(self, grads: list[Gradients], call: StepCall) -> Tensor:
        """The sums of the rule's terms, float64, [num_terms, parameters]. Writes nothing."""
        self.stage()
        rows = self.ledger.terms_row(call.settings, self._computed_back())
        found = [self.kernels.sums(same, rows, call.factor) for same in grads]
        # A parameter's gradient has one dtype: all other summands are 0.
        return functools.reduce(operator.add, found)

    def predict(self, settings: Settings) -> None:
        """Goes to predicted weights; ``settings`` are for those that have no prediction yet."""
        if self.recovers and any(self.held):
            self.restore()
        if self.is_way_back():
            self.came = None  # the next one begins here
        self.is_after_literal_step = False
        self._write(
            lambda: self.kernels.predict(self.ledger.begin_predict(settings)),
            self.uniform["predicted"],
        )

    def restore(self) -> None:
        """Goes to true weights."""
        self.is_after_literal_step = False
        own = self.kernels
        if self.came is not None and self.is_way_back():
            self.kernels = self.backend.Kernels(self.came)  # for this once
        try:
            self._write(
                lambda: self.kernels.restore(self.ledger.begin_restore(self._computed_back())),
                self.uniform["true"],
            )
        finally:
            self.settle()
            self.kernels = own

    def move(self, mode: Mode, settings: Settings) -> None:
        """Takes all parameters to a mode, whatever they hold."""
        if mode == "true":
            self.restore()
        else:
            self.predict(settings)

    def true_weights(self) -> list[Tensor]:
        """The true weights, which parameters hold now, of the parameters' shapes."""
        held = map(self.tensors.held, range(len(self.params)))
        dense = held if self.tensors.weight is None else self.tensors.weight
        pairs = zip(self.params, dense, strict=True)
        return [torch.view_as_complex(w) if param.is_complex() else w for param, w in pairs]

    def rewrite(self, values: list[Tensor | None], are_true: bool = True) -> None:
        """Gives parameters, which hold true weights now, other values; None leaves one as it is.

        They are the true weights from now on, unless these are kept in a backup, or by the caller.
        """
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for i, value in enumerate(values):
            if value is not None:
                places, parts = self._places(i, layout.as_real(value), are_true)
                targets += places
                sources += parts
        if targets:
            torch._foreach_copy_(targets, sources)
        self.finish_write([True] * len(values))  # copying has raised versions, too

    def _places(self, i: int, value: Tensor, are_true: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Where another value of parameter i goes to, and what goes there."""
        places, parts = self.tensors.parts(i, value)
        if self.tensors.weight is not None and self.copies is not None:
            return [self.tensors.weight[i]], [value]
        if self.tensors.weight is not None and are_true:
            return [*places, self.tensors.weight[i]], [*parts, value]
        return places, parts

    # Frozen parameters.

    def is_frozen_anew(self) -> bool:
        """Whether other parameters are frozen than at the last look."""
        if all(map(_LEARNS, self.params)):
            return bool(self.set_aside)
        return self._frozen() != self.set_aside.keys()

    def _frozen(self) -> set[int]:
        return set(map(id, itertools.filterfalse(_LEARNS, self.params)))

    def follow_freezing(self, settings: Settings) -> None:
        """Has frozen parameters hold true weights, until they are trained again."""
        is_predicted, frozen, set_aside = any(self.held), self._frozen(), dict(self.set_aside)
        if is_predicted:
            self.restore()
        for param, record in zip(self.params, self.ledger.predictions, strict=True):
            if id(param) in frozen:
                set_aside.setdefault(id(param), record.clone())
            elif id(param) in set_aside:
                record.copy_(set_aside.pop(id(param)))
        self.ledger.refresh()
        self.ledger.record_null([id(param) in frozen for param in self.params])
        self.set_aside = set_aside
        if is_predicted:
            self.predict(settings)

    def forget_aside(self, where: list[bool] | None) -> None:
        """To be called with updates (None: of all): what was set aside is of former weights."""
        if self.set_aside:
            updated = self.params if where is None else itertools.compress(self.params, where)
            for param in updated:
                self.set_aside.pop(id(param), None)

    # Writing.

    def increment(self, params: list[Tensor]) -> None:
        """Tells autograd that kernels wrote to all parameters."""
        increment_version(params)

    def _write(
        self,
        run: Callable[[], None],
        held: list[bool],
        where: list[bool] | None = None,
        resume: Callable[[], None] | None = None,
    ) -> None:
        """Runs kernels; ``held`` is so afterwards."""
        self.stage()
        completed, advanced = self.kernels.completed(), self.kernels.advanced()
        self.begun = Write(completed, advanced, held, where, resume)
        try:
            run()
        finally:
            self.settle()

    def settle(self) -> None:
        """Notes what an operation has written. To be called before anything else is done."""
        if self.begun is not None:
            self._settle(self.begun)
            self.begun = None

    def _settle(self, begun: Write) -> None:
        completed = self.kernels.completed()
        is_undone = completed == begun.completed
        if begun.resume and is_undone and self.kernels.advanced() != begun.advanced:
            begun.resume()
            completed = self.kernels.completed()
        if isinstance(completed, list):
            assert isinstance(begun.completed, list)
            self._settle_each(begun, list(map(operator.ne, completed, begun.completed)))
        elif completed != begun.completed:
            self.ledger.commit()
            self.held = begun.held
        self.state_versions = self.state_versions or versions(self.flats)
        self.finish(begun)

    def finish(self, begun: Write) -> None:
        """To be called after an operation has written."""
        self.finish_write(begun.where)

    def _settle_each(self, begun: Write, done: list[bool]) -> None:
        self.ledger.commit(done)
        pairs = zip(done, begun.held, self.held, strict=True)
        self.held = [after if is_done else old for is_done, after, old in pairs]
