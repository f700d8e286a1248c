"""Small tensors on a device that the host refills without waiting for it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FORMATS = {torch.int64: "q", torch.int32: "i", torch.float64: "d", torch.bool: "b"}


class _Slot:
    """Memory of the host, pinned, that must not change before its copy has been made."""

    def __init__(self, tensor: Tensor) -> None:
        self.host = torch.zeros_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self.copied: Any = None
        if tensor.is_cuda:
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def is_free(self) -> bool:
        return self.copied is None or bool(self.copied.query())


class Upload:
    """A tensor on the device, all or the first elements of which are filled from the host.

    Copies are made in stream order. A captured CUDA graph repeats the copies made during its
    capture: it keeps the memory that it copies from, and from then on nobody can know what the
    tensor holds.

    Args:
        numel: elements.
        dtype: of int64, int32, float64 and bool.
        device: where the tensor lies.
    """

    def __init__(self, numel: int, dtype: torch.dtype, device: torch.device) -> None:
        self.tensor = torch.zeros(numel, dtype=dtype, device=device)
        self.slots = [_Slot(self.tensor), _Slot(self.tensor)]
        self.of_graphs: list[_Slot] = []
        self.known: list[Any] | Tensor | None = None

    def fill(self, values: Sequence[Any]) -> Tensor:
        """The tensor, after it has received these values."""
        is_known = isinstance(self.known, list) and values == self.known
        if not self._holds(values, is_known):
            source = array(_FORMATS[self.tensor.dtype], values)
            self._send(torch.frombuffer(source, dtype=self.tensor.dtype))
            self.known = list(values)
        return self.tensor

    def fill_from(self, source: Tensor) -> Tensor:
        """The tensor, after it has received the values of a tensor of the host."""
        flat = source.flatten()
        is_known = isinstance(self.known, Tensor) and torch.equal(flat, self.known)
        if not self._holds(flat, is_known):
            self._send(flat)
            self.known = flat.clone()
        return self.tensor

    def forget(self) -> None:
        """To be called after the device wrote to the tensor."""
        self.known = None

    def _holds(self, values: Sequence[Any] | Tensor, is_known: bool) -> bool:
        """Whether nothing has to be sent; a graph sends it again whatever is there."""
        return len(values) == 0 or (is_known and not self.of_graphs and not self._is_capturing())

    def _is_capturing(self) -> bool:
        return self.tensor.is_cuda and torch.cuda.is_current_stream_capturing()

    def _send(self, source: Tensor) -> None:
        if self._is_capturing():
            # Another slot for each: memory cannot be pinned while a graph is captured.
            self.of_graphs.append(self.slots.pop() if self.slots else _Slot(self.tensor))
            self._copy(source, self.of_graphs[-1])
            return
        slot = self._free_slot()
        self._copy(source, slot)
        if slot.copied is not None:
            slot.copied.record()

    def _copy(self, source: Tensor, slot: _Slot) -> None:
        slot.host[: len(source)] = source
        self.tensor[: len(source)].copy_(slot.host[: len(source)], non_blocking=True)

    def _free_slot(self) -> _Slot:
        for slot in self.slots:
            if slot.is_free():
                return slot
        self.slots.append(_Slot(self.tensor))
        return self.slots[-1]
