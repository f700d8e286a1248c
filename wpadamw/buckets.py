"""Buckets: parameters of one group that one kernel call serves, their state in flat buffers.

Owns addresses, flat state, what the parameters hold, and the caches over them. Knows nothing of
closures or files.

An exception may arrive after any line (Ctrl-C raises KeyboardInterrupt wherever it finds the
program). So an operation is noted before the kernel writes, and settled afterwards, at once or before
anything else is done with the bucket: what has been written is found out from the kernels' own count.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw._backends.interface import (
    NO_ROWS,
    Backend,
    BucketTensors,
    Completed,
    Gradients,
)
from wpadamw.checks import why_no_memory
from wpadamw.columns import Columns, Numbers, StepOptions
from wpadamw.compat import clear_autocast_cache, increment_version
from wpadamw.device_columns import DeviceColumns
from wpadamw.gradients import GradientReader
from wpadamw.rules import AdamW
from wpadamw.scalars import Mode, Prediction
from wpadamw.tensors import layouts

# Each parameter starts at a multiple of this many elements of the flat buffers: whole cache lines
# and whole 16-byte accesses for every dtype.
PADDING = 64

# Every name that this package may put into the state of a parameter.
OWN_NAMES = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "weight", "prediction"}

StateDict = dict[str, Any]


def all_same(left: Iterable[object], right: Iterable[object]) -> bool:
    """Whether two equally long iterables hold the same objects."""
    return all(map(operator.is_, left, right))


def holds(dicts: list[dict[Any, Any]], values: list[Any]) -> bool:
    """Whether the values of the dicts are, in order, these very objects."""
    found = itertools.chain.from_iterable(map(dict.values, dicts))
    return sum(map(len, dicts)) == len(values) and all_same(found, values)


# Asked of every tensor of the state in every step: the extension's twin takes a tenth of the time.
with contextlib.suppress(ImportError):
    from wpadamw._C import holds


def _check_shape(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise RuntimeError(
            f"{name} must have shape {tuple(expected.shape)} like the parameter, "
            f"got {tuple(found.shape)}"
        )


def _is_part(tensor: Tensor) -> bool:
    """Whether others may share the tensor's memory, and so its version counter."""
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


class _Write(NamedTuple):
    """An operation that has been begun, and what is so when it has been done."""

    completed: Completed  # the kernels' counts before
    advanced: int
    numbers: Numbers | None
    held: list[bool]
    where: list[bool] | None  # parameters that it writes (None: all)
    resume: Callable[[], None] | None = None  # does the rest, if counts have been advanced


class Bucket:
    """Parameters that share device, dtype and rule, with their optimizer state.

    Args:
        params: parameters, none of them twice.
        rule: the update rule.
        has_backup: keep the true weights in the state.
        backend: whose kernels to use.
        states: per parameter the state so far, {} at its first gradient. Its tensors are copied
            into the flat buffers and replaced by views of them.
        held: which parameters hold predictions.
        counts_on_device: keep counts, records and scalars there, so that the host never waits for
            them and CUDA graphs can capture a step.
    """

    def __init__(
        self,
        params: list[Tensor],
        rule: AdamW,
        has_backup: bool,
        backend: Backend,
        states: list[StateDict],
        held: list[bool],
        counts_on_device: bool = False,
    ) -> None:
        self.params, self.rule, self.has_backup, self.states = params, rule, has_backup, states
        self.locals = [layout.local(param) for param in params]
        self.has_dtensors = any(map(operator.is_not, self.locals, params))
        self.staged: dict[int, Tensor] = {}
        dense = [self._dense(i) for i in range(len(params))]
        self.layouts = layouts(self.locals)
        self.dtype = params[0].dtype  # they may be cast later
        self.real_dtype = layout.REAL_DTYPE[self.dtype]
        self.tensors = self._allocate(dense)
        self.gradients = GradientReader(params, dense)
        self.backend, self.kernels = backend, backend.Kernels(self.tensors)
        self.counts_on_device = counts_on_device
        self.uniform: dict[Mode, list[bool]] = {
            "true": [False] * len(params),
            "predicted": [True] * len(params),
        }
        self.held = held
        self.is_after_literal_step = False
        self.begun: _Write | None = None
        self.versions: list[int] | None = None
        self._absorb()
        self.state_versions: list[int] | None = self._state_versions()
        self.own_versions()
        # Where nobody else raises the counters they need not be read again after a write.
        self.knows_versions = not self.kernels.raise_versions and not any(
            map(_is_part, self.locals)
        )

    # Construction.

    def _dense(self, i: int) -> Tensor:
        """The memory that kernels read and write for parameter i."""
        if (reason := why_no_memory(self.params[i])) is not None:
            raise RuntimeError(f"params[{i}] {reason}")
        real = layout.as_real(self.locals[i].detach())
        if layout.is_dense(real) and layout.is_aligned(real):
            return real
        # A view with gaps, or at an odd address: kernels work on a copy of it.
        self.staged[i] = real.clone(memory_format=torch.contiguous_format)
        return self.staged[i]

    def _allocate(self, dense: list[Tensor]) -> BucketTensors:
        padded = [-(-tensor.numel() // PADDING) * PADDING for tensor in dense]
        offsets = [0, *itertools.accumulate(padded)]
        total, device = offsets.pop(), dense[0].device

        def flat() -> Tensor:
            return torch.zeros(total, dtype=self.real_dtype, device=device)

        def views(buffer: Tensor) -> list[Tensor]:
            return [layout.view_like(buffer, o, t) for o, t in zip(offsets, dense, strict=True)]

        weight_flat = flat() if self.has_backup else None
        state_flat = [flat() for _ in self.rule.state_names]
        return BucketTensors(
            rule=self.rule,
            params=dense,
            offsets=offsets,
            weight_flat=weight_flat,
            state_flat=state_flat,
            weight=None if weight_flat is None else views(weight_flat),
            state=[views(buffer) for buffer in state_flat],
        )

    def _absorb(self) -> None:
        """Copies what state there is into the flat buffers and puts views in its place."""
        views = [self._views(i) for i in range(len(self.params))]
        for i, state in enumerate(self.states):
            for name in views[i].keys() & state.keys():
                _check_shape(f"state of params[{i}]: {name}", state[name], views[i][name])
        self.columns: Columns | DeviceColumns = Columns(self.states)
        if self.counts_on_device:
            self.columns = DeviceColumns(self.columns, self.tensors.params[0].device, self.kernels)
        for i, state in enumerate(self.states):
            self._absorb_parameter(i, state, views[i])
        self.state_values = [value for state in self.states for value in state.values()]

    def _views(self, i: int) -> StateDict:
        kinds = dict(zip(self.rule.state_names, self.tensors.state, strict=True))
        if self.tensors.weight is not None:
            kinds["weight"] = self.tensors.weight
        return {name: self._exposed(i, kind[i]) for name, kind in kinds.items()}

    def _absorb_parameter(self, i: int, state: StateDict, views: StateDict) -> None:
        if self.tensors.weight is not None and "weight" not in state:
            self.tensors.weight[i].copy_(self.tensors.params[i])
        for name in views.keys() & state.keys():
            views[name].copy_(state[name])
        step, prediction = self.columns.steps[i], self.columns.predictions[i]
        own = {"step": step, **views, "prediction": prediction}
        # In one call: there is no moment at which the state has lost an entry.
        state.update(own)
        for name in OWN_NAMES - own.keys():
            state.pop(name, None)

    def _exposed(self, i: int, view: Tensor) -> Tensor:
        """A state view as users see it: complex, or DTensor, like the parameter."""
        param = self.params[i]
        if param.is_complex():
            view = torch.view_as_complex(view)
        if not layout.is_dtensor(param):
            return view
        return type(param).from_local(  # type: ignore[attr-defined,no-any-return]
            view,
            param.device_mesh,  # type: ignore[attr-defined]
            param.placements,  # type: ignore[attr-defined]
            run_check=False,
            shape=param.shape,
            stride=param.stride(),
        )

    # Is everything still where it was?

    def has_tensors_in_place(self) -> bool:
        """Whether parameters lie where and as they did at construction."""
        if self.has_dtensors:
            self.locals = [layout.local(param) for param in self.params]
        try:
            return self.layouts.are_of(self.locals)
        except RuntimeError:  # a tensor without memory; a new bucket will say so
            return False

    def is_intact(self) -> bool:
        """Whether parameters and state tensors are where they were at construction."""
        return self.has_tensors_in_place() and self.has_own_states()

    def has_own_states(self) -> bool:
        """Whether the state tensors are those of construction."""
        return holds(self.states, self.state_values)

    def has_states_of(self, state: Mapping[Tensor, StateDict]) -> bool:
        """Whether these are the parameters' state dicts."""
        return all_same(map(state.get, self.params), self.states)

    def own_versions(self) -> None:
        """Takes the present values of the parameters for the optimizer's own."""
        self.versions = [tensor._version for tensor in self.locals]

    def doubt(self, where: list[bool]) -> None:
        """Has parameters looked at as if just written to."""
        versions = self.versions or [-1] * len(where)
        pairs = zip(versions, where, strict=True)
        self.versions = [-1 if chosen else version for version, chosen in pairs]

    def written_outside(self) -> list[int]:
        """Indices of parameters that others wrote to since the last own write."""
        versions = [tensor._version for tensor in self.locals]
        if versions == self.versions:
            return []
        if self.versions is None:  # an own write was interrupted
            return list(range(len(versions))) if self.has_backup else []
        pairs = zip(versions, self.versions, strict=True)
        return [i for i, (found, expected) in enumerate(pairs) if found != expected]

    def refresh(self) -> None:
        """Takes note of what happened outside. To be called before anything else is done."""
        self.settle()
        if self.columns.refresh():
            self.state_versions = None

    def can_recreate(self) -> bool:
        """Whether the state is that from which parameters got what they hold."""
        return self.state_versions is not None and self.state_versions == self._state_versions()

    def _state_versions(self) -> list[int]:
        flats = [*self.tensors.state_flat, self.tensors.weight_flat]
        return [flat._version for flat in flats if flat is not None]

    # What parameters hold.

    def holds_all(self, mode: Mode) -> bool:
        """Whether all parameters hold the weights of a mode."""
        return self.held is self.uniform[mode] or self.held == self.uniform[mode]

    def _computed_back(self) -> list[bool] | None:
        """Which parameters hold predictions, if true weights are computed from them."""
        return None if self.has_backup else self.held

    # The three operations.

    def step(self, grads: Gradients, options: StepOptions) -> None:
        """Restores, updates and, if asked to, predicts the parameters that have a gradient."""
        columns, has_grad, held = self.columns, grads.has_grad, self._computed_back()
        mode: Mode = "predicted" if options.predict_next else "true"
        after = self.uniform[mode]
        if has_grad is not None:
            pairs = zip(has_grad, self.held, strict=True)
            after = [options.predict_next if chosen else before for chosen, before in pairs]
        resume = None
        if isinstance(columns, DeviceColumns):

            def resume() -> None:
                rows = columns.step_rows(options, held)
                self.kernels.step(grads, rows, NO_ROWS, options.predict_next)

        def run() -> None:
            rows, last = columns.begin_step(options, has_grad, held)
            self.kernels.step(grads, rows, last, options.predict_next)

        self._write(run, columns.after_step(options, has_grad), after, has_grad, resume)
        self.is_after_literal_step = not options.predict_next

    def predict(self, prediction: Prediction) -> None:
        """Goes to predicted weights; ``prediction`` is for those that have none yet."""
        if not self.has_backup and any(self.held):
            self.restore()
        rows = self.columns.begin_predict(prediction)
        self.is_after_literal_step = False
        self._write(
            lambda: self.kernels.predict(rows), self.columns.numbers(), self.uniform["predicted"]
        )

    def restore(self) -> None:
        """Goes to true weights."""
        rows = self.columns.last_rows(self._computed_back())
        self.is_after_literal_step = False
        self._write(
            lambda: self.kernels.restore(rows), self.columns.numbers(), self.uniform["true"]
        )

    def move(self, mode: Mode, prediction: Prediction) -> None:
        """Takes all parameters to a mode, whatever they hold."""
        if mode == "true":
            self.restore()
        else:
            self.predict(prediction)

    # Writing.

    def _write(
        self,
        run: Callable[[], None],
        numbers: Numbers | None,
        held: list[bool],
        where: list[bool] | None = None,
        resume: Callable[[], None] | None = None,
    ) -> None:
        """Runs kernels; ``numbers`` and ``held`` are so afterwards."""
        self.stage()
        completed, advanced = self.kernels.completed(), self.kernels.advanced()
        self.begun = _Write(completed, advanced, numbers, held, where, resume)
        try:
            run()
        finally:
            self.settle()

    def settle(self) -> None:
        """Notes what an operation has written. To be called before anything else is done."""
        if self.begun is not None:
            self._settle(self.begun)
            self.begun = None

    def _settle(self, begun: _Write) -> None:
        completed = self.kernels.completed()
        if completed == begun.completed and begun.resume is not None:
            if self.kernels.advanced() != begun.advanced:
                begun.resume()
                completed = self.kernels.completed()
        if isinstance(completed, list):
            self._settle_each(begun, completed)
        elif completed != begun.completed:
            self.columns.commit(begun.numbers)
            self.held = begun.held
        self.state_versions = []
        self.finish_write(begun.where)

    def _settle_each(self, begun: _Write, completed: list[int]) -> None:
        done = list(map(operator.ne, completed, begun.completed))
        before = self.columns.numbers()
        if begun.numbers is not None and before is not None:
            self.columns.commit(begun.numbers.where(done, before))
        pairs = zip(done, begun.held, self.held, strict=True)
        self.held = [after if d else before for d, after, before in pairs]

    def stage(self) -> None:
        """Brings the dense copies of parameters with gaps up to date."""
        for i, staged in self.staged.items():
            staged.copy_(layout.as_real(self.locals[i].detach()))

    def finish_write(self, where: list[bool] | None = None) -> None:
        """To be called after writes to parameters (None: all): for autograd, and as own writes."""
        for i, staged in self.staged.items():
            layout.as_real(self.locals[i].detach()).copy_(staged)
        clear_autocast_cache()
        if self.state_versions is not None:
            self.state_versions = self._state_versions()
        versions, self.versions = self.versions, None
        increment_version(list(itertools.compress(self.locals, where)) if where else self.locals)
        if versions is not None and where is None and self.knows_versions:
            self.versions = [version + 1 for version in versions]
        else:
            self.own_versions()
        torch.clear_autocast_cache()  # it holds casts of the former values
