"""The weights that autograd saves in a forward, and which ones the backward pass gets for them.

In an asynchronous pipeline weights change between the two. Autograd asks its hooks for what it has
saved: they give the weight that is meant, and anything else as it was saved, unless somebody has
written to it since then.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_pre_hook

from wpadamw import layout
from wpadamw.compat import is_in_backward
from wpadamw.tensors import layouts, versions

Backward = Literal["current", "forward"]

MODIFIED = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: a {dtype} tensor of shape {shape}, no weight of the stage"
)
WRITTEN = (
    "parameter {name!r} was written to while micro-batches that have used it are in flight: with "
    'backward="forward" it is only the stage\'s own updates that may'
)
AGAIN = (
    "a forward that is run again in the backward pass finds other weights there: activation "
    'checkpointing needs backward="current", got "forward"'
)


class _Saved:
    """What autograd has saved and is no weight."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.versions = tensor, versions([tensor])

    def read(self) -> Tensor:
        """The tensor as it was saved."""
        if not self.versions.are_of([self.tensor]):
            raise RuntimeError(self.why_modified())
        return self.tensor

    def why_modified(self) -> str:
        return MODIFIED.format(dtype=self.tensor.dtype, shape=tuple(self.tensor.shape))


class _CurrentWeight:
    """A weight, or a view of one, in its own memory."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def read(self) -> Tensor:
        """The weight of this moment."""
        return self.tensor


class _ForwardWeight(_Saved):
    """The same, for which the weight of the forward is given."""

    def __init__(self, tensor: Tensor, name: str) -> None:
        super().__init__(tensor)
        self.name = name
        self.has_copy = False

    def keep(self, copies: dict[int, UntypedStorage]) -> None:
        """Goes over to a copy; weights in the same memory share it."""
        storage = self.tensor.untyped_storage()
        if address(storage) not in copies:
            copies[address(storage)] = cast(UntypedStorage, storage.clone())  # type: ignore[no-untyped-call]
        self.tensor = _like(self.tensor, copies[address(storage)])
        self.versions, self.has_copy = versions([self.tensor]), True

    def why_modified(self) -> str:
        return WRITTEN.format(name=self.name)


class SavedWeights:
    """The weights of a module in the graphs of its forwards.

    Args:
        module: its parameters are the weights.
        backward: whether backward passes get the ``"current"`` weights or those of the
            ``"forward"``. These are copied when there are others, where graphs still need them.
    """

    def __init__(self, module: nn.Module, backward: Backward) -> None:
        self.backward = backward
        self.params = dict(module.named_parameters())
        self.look()
        self.alive: weakref.WeakSet[_ForwardWeight] = weakref.WeakSet()
        self.num_writes = 0
        self.writes_before: dict[int, int] = {}  # the forward of a micro-batch

    def recorded(self, chunk: int) -> AbstractContextManager[Any]:
        """For the forward of a micro-batch."""
        self.writes_before[chunk] = self.num_writes
        if not self.layouts.are_of(self._locals()):
            self.look()
        return saved_tensors_hooks(self._pack, _read)

    def look(self) -> None:
        """Takes note of where parameters lie."""
        params = self._locals()
        addresses = [address(param.untyped_storage()) for param in params]
        self.names = dict(zip(addresses, self.params, strict=True))
        self.names.pop(0, None)  # parameters without elements
        self.layouts = layouts(params)

    def _locals(self) -> list[Tensor]:
        return list(map(layout.local, self.params.values()))

    @contextmanager
    def used(self, chunk: int) -> Iterator[None]:
        """For its backward pass."""
        is_older = self.writes_before.get(chunk) != self.num_writes
        if self.backward == "forward" and is_older:
            with disable_saved_tensors_hooks(AGAIN), _no_forwards():
                yield
        else:
            yield

    def keep(self) -> None:
        """To be called before parameters are written to.

        Raises:
            RuntimeError: if somebody else has. There are no new copies.
        """
        pending = [weight for weight in self.alive if not weight.has_copy]
        for weight in pending:
            weight.read()
        self.num_writes += 1
        copies: dict[int, UntypedStorage] = {}
        for weight in pending:
            weight.keep(copies)

    def _pack(self, tensor: Tensor) -> _Saved | _CurrentWeight:
        saved = tensor.detach()  # the tensor itself would be a cycle
        name = _name_of(saved, self.names)
        if name is None:
            return _Saved(saved)
        if self.backward == "current":
            return _CurrentWeight(saved)
        weight = _ForwardWeight(saved, name)
        self.alive.add(weight)
        return weight


def address(storage: UntypedStorage) -> int:
    """Where a storage begins; 0 if it is empty."""
    return storage.data_ptr() if storage.nbytes() else 0


def _read(saved: _Saved | _CurrentWeight) -> Tensor:
    return saved.read()


def _name_of(tensor: Tensor, names: dict[int, str]) -> str | None:
    """The name of the parameter in whose memory a tensor lies."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    return names.get(address(layout.local(tensor).untyped_storage()))


def _like(tensor: Tensor, storage: UntypedStorage) -> Tensor:
    """What a tensor is, in another storage."""
    place = tensor.storage_offset(), tensor.size(), tensor.stride()
    view = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, *place)
    view = view.conj() if tensor.is_conj() else view
    return view.neg() if tensor.is_neg() else view


@contextmanager
def _no_forwards() -> Iterator[None]:
    """For a backward pass in which no module may be called.

    (Checkpoints without reentrant autograd have hooks of their own for what they save again.)
    """
    handle = register_module_forward_pre_hook(_refuse)
    try:
        yield
    finally:
        handle.remove()


def _refuse(module: nn.Module, args: Any) -> None:
    if is_in_backward():
        raise RuntimeError(AGAIN)
