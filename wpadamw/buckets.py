"""Buckets: parameters of one group that one kernel call serves, their state in flat buffers.

Owns addresses, flat state and the caches over them. Knows nothing of modes, closures or files.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw._backends.interface import Backend, BucketTensors, Gradients
from wpadamw.columns import Columns, StepOptions
from wpadamw.compat import increment_version
from wpadamw.device_columns import DeviceColumns
from wpadamw.rules import AdamW
from wpadamw.scalars import Prediction

# Each parameter starts at a multiple of this many elements of the flat buffers: whole cache lines
# and whole 16-byte accesses for every dtype.
PADDING = 64

SPARSE_GRADIENT = "Adam does not support sparse gradients, please consider SparseAdam instead"

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


def _reference(grad: Tensor | None) -> Callable[[], Tensor | None]:
    return weakref.ref(grad) if grad is not None else _no_gradient


def _no_gradient() -> None:
    return None


def _addresses(tensors: list[Tensor | None]) -> list[int]:
    try:
        return list(map(Tensor.data_ptr, tensors))  # type: ignore[arg-type]
    except TypeError:  # at None
        return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _is_part(tensor: Tensor) -> bool:
    """Whether others may share the tensor's memory, and so its version counter."""
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


class StepGradients(NamedTuple):
    """The gradients of one bucket in one step."""

    by_dtype: list[Gradients]
    has_grad: list[bool] | None  # per parameter; None: all have one


class Bucket:
    """Parameters that share device, dtype and rule, with their optimizer state.

    Args:
        params: parameters, none of them twice.
        rule: the update rule.
        has_backup: keep the true weights in the state.
        backend: whose kernels to use.
        states: per parameter the state so far, {} at its first gradient. Its tensors are copied
            into the flat buffers and replaced by views of them.
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
        counts_on_device: bool = False,
    ) -> None:
        self.params, self.rule, self.has_backup, self.states = params, rule, has_backup, states
        self.locals = [layout.local(param) for param in params]
        self.has_dtensors = any(map(operator.is_not, self.locals, params))
        self.staged: dict[int, Tensor] = {}
        dense = [self._dense(i) for i in range(len(params))]
        self.param_addresses = self._addresses()
        self.real_dtype = layout.REAL_DTYPE[params[0].dtype]
        self.has_empty = not all(tensor.numel() for tensor in dense)
        self.contiguous_shapes = [t.shape if t.is_contiguous() else None for t in dense]
        self.tensors = self._allocate(dense)
        self.kernels = backend.Kernels(self.tensors)
        self.counts_on_device = counts_on_device
        self._absorb()
        self.grad_refs: list[Callable[[], Tensor | None]] = []
        self.grad_addresses: list[int] = []
        self.has_grad: list[bool] = []
        self.grad_dtypes: set[torch.dtype] = set()
        self.own_versions()
        # Where nobody else raises the counters they need not be read again after a write.
        self.knows_versions = not self.kernels.raise_versions and not any(
            map(_is_part, self.locals)
        )

    # Construction.

    def _dense(self, i: int) -> Tensor:
        """The memory that kernels read and write for parameter i."""
        local = self.locals[i].detach()
        if local.is_conj() or local.is_neg() or layout.overlaps(local):
            raise RuntimeError(
                f"params[{i}] must own one number per element, got a conjugate, negative or "
                f"expanded view of shape {tuple(local.shape)} and strides {local.stride()}"
            )
        real = layout.as_real(local)
        if layout.is_dense(real):
            return real
        # A view with gaps: kernels work on a dense copy of it.
        self.staged[i] = real.contiguous()
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
        for name in OWN_NAMES & state.keys():
            del state[name]
        state["step"] = self.columns.steps[i]
        state.update(views)
        state["prediction"] = self.columns.predictions[i]

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

    def _addresses(self) -> list[int]:
        if self.has_dtensors:
            self.locals = [layout.local(param) for param in self.params]
        return list(map(Tensor.data_ptr, self.locals))

    def is_intact(self) -> bool:
        """Whether parameters and state tensors are where they were at construction."""
        return self._addresses() == self.param_addresses and holds(self.states, self.state_values)

    def has_states_of(self, state: Mapping[Tensor, StateDict]) -> bool:
        """Whether these are the parameters' state dicts."""
        return all_same(map(state.get, self.params), self.states)

    def own_versions(self) -> None:
        """Takes the present values of the parameters for the optimizer's own."""
        self.versions = [tensor._version for tensor in self.locals]

    def doubt(self, where: list[bool]) -> None:
        """Has parameters looked at as if just written to."""
        pairs = zip(self.versions, where, strict=True)
        self.versions = [-1 if chosen else version for version, chosen in pairs]

    def disturbed(self) -> list[Tensor]:
        """Parameters whose values may not be the optimizer's own: written to, or moved.

        Without a backup nothing can be compared: moved values are trusted.
        """
        written = set(self.written_outside())
        if self.has_backup:
            pairs = zip(self._addresses(), self.param_addresses, strict=True)
            written |= {i for i, (found, expected) in enumerate(pairs) if found != expected}
        return [self.params[i] for i in sorted(written)]

    def written_outside(self) -> list[int]:
        """Indices of parameters that others wrote to since the last own write."""
        versions = [tensor._version for tensor in self.locals]
        if versions == self.versions:
            return []
        pairs = zip(versions, self.versions, strict=True)
        return [i for i, (found, expected) in enumerate(pairs) if found != expected]

    # Gradients.

    def gradients(self) -> StepGradients | None:
        """The gradients of this step, checked and dense; None if no parameter has one.

        Raises:
            RuntimeError: for a gradient that does not fit its parameter; nothing is written.
        """
        grads = [param.grad for param in self.params]
        if self._is_known(grads):
            return StepGradients(self._by_dtype(grads, self.grad_addresses), self._partly())
        if all(grad is None for grad in grads):
            return None
        return StepGradients(self._checked(grads), self._partly())

    def _partly(self) -> list[bool] | None:
        return None if all(self.has_grad) else self.has_grad

    def _is_known(self, grads: list[Tensor | None]) -> bool:
        """Whether these are the gradients of the last step, at their old addresses."""
        return (
            len(self.grad_refs) == len(grads)
            and all_same([reference() for reference in self.grad_refs], grads)
            and _addresses(grads) == self.grad_addresses
        )

    @torch.no_grad()
    def _checked(self, grads: list[Tensor | None]) -> list[Gradients]:
        fitted, dtypes = grads, {self.tensors.params[0].dtype}
        if not self._fit_as_they_are(grads):
            fitted = [self._fit(i, grad) for i, grad in enumerate(grads)]
            dtypes = {grad.dtype for grad in fitted if grad is not None}
        # Copies must be made anew in every step, and a gradient without elements has no address by
        # which to tell it from none. Weak references let zero_grad free the memory.
        is_repeatable = not self.has_empty and all_same(fitted, grads)
        self.grad_refs = list(map(_reference, grads)) if is_repeatable else []
        self.grad_addresses = _addresses(fitted)
        self.has_grad, self.grad_dtypes = [grad is not None for grad in grads], dtypes
        return self._by_dtype(fitted, self.grad_addresses)

    def _fit_as_they_are(self, grads: list[Tensor | None]) -> bool:
        """Whether all are plain, and contiguous like their parameters: the usual case, quickly."""
        dtype, device = self.tensors.params[0].dtype, self.tensors.params[0].device
        return all(
            grad is None
            or (
                type(grad) is Tensor
                and grad.layout is torch.strided
                and grad.dtype is dtype
                and grad.is_contiguous()
                and grad.shape == shape
                and grad.device == device
                and not grad.is_neg()
            )
            for grad, shape in zip(grads, self.contiguous_shapes, strict=True)
        )

    def _fit(self, i: int, grad: Tensor | None) -> Tensor | None:
        """The gradient of parameter i in the parameter's memory order, as real numbers."""
        if grad is None:
            return None
        if grad.layout != torch.strided:
            raise RuntimeError(SPARSE_GRADIENT)
        grad = layout.as_real(layout.local(grad))
        dense = self.tensors.params[i]
        if grad.shape != dense.shape or grad.device != dense.device:
            raise RuntimeError(
                f"the gradient of params[{i}] must have shape {tuple(dense.shape)} and device "
                f"{dense.device} like the parameter, got {tuple(grad.shape)} and {grad.device}"
            )
        if grad.dtype not in (dense.dtype, torch.float32):
            grad = grad.to(self.real_dtype)
        if not layout.same_strides(grad, dense):
            grad = torch.empty_like(dense, dtype=grad.dtype).copy_(grad)
        return grad

    def _by_dtype(self, grads: list[Tensor | None], addresses: list[int]) -> list[Gradients]:
        if len(self.grad_dtypes) == 1:
            return [Gradients(next(iter(self.grad_dtypes)), grads, addresses)]
        return [self._of_dtype(dtype, grads, addresses) for dtype in self.grad_dtypes]

    def _of_dtype(
        self, dtype: torch.dtype, grads: list[Tensor | None], addresses: list[int]
    ) -> Gradients:
        chosen = [grad is not None and grad.dtype == dtype for grad in grads]
        return Gradients(
            dtype,
            [grad if keep else None for grad, keep in zip(grads, chosen, strict=True)],
            [address * keep for address, keep in zip(addresses, chosen, strict=True)],
        )

    # The three operations.

    def step(self, grads: StepGradients, options: StepOptions, holds_prediction: bool) -> None:
        """Restores, updates and, if asked to, predicts the parameters that have a gradient."""
        needs_last = holds_prediction and not self.has_backup
        rows, last = self.columns.begin_step(options, grads.has_grad, needs_last)
        self.stage()
        for same_dtype in grads.by_dtype:
            self.kernels.step(same_dtype, rows, last, options.predict_next)
        self.finish_write(grads.has_grad)
        self.columns.end_step(options, grads.has_grad)

    def predict(self, prediction: Prediction) -> None:
        """Goes from true to predicted weights; ``prediction`` is for those that have none yet."""
        rows = self.columns.begin_predict(prediction)
        self.stage()
        self.kernels.predict(rows)
        self.finish_write()

    def restore(self) -> None:
        """Goes from predicted to true weights."""
        self.stage()
        self.kernels.restore(self.columns.last_rows(needs_last=not self.has_backup))
        self.finish_write()

    def stage(self) -> None:
        """Brings the dense copies of parameters with gaps up to date."""
        for i, staged in self.staged.items():
            staged.copy_(layout.as_real(self.locals[i].detach()))

    def finish_write(self, where: list[bool] | None = None) -> None:
        """To be called after writes to parameters (None: all): for autograd, and as own writes."""
        for i, staged in self.staged.items():
            layout.as_real(self.locals[i].detach()).copy_(staged)
        if where is None and self.knows_versions:
            increment_version(self.locals)
            self.versions = [version + 1 for version in self.versions]
        else:
            increment_version(
                list(itertools.compress(self.locals, where or itertools.repeat(True)))
            )
            self.own_versions()
        torch.clear_autocast_cache()  # it holds casts of the former values
