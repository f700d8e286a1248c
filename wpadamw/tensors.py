"""What tensors are at this moment: where they lie, with which dtype, shape, strides and device.

Asked in every step, since a tensor can change all of it and stay the same object (``p.grad.t_()``,
``p.data = ...``). One call of the extension asks a whole list; the same in Python stands here for
versions of torch that lack DLPack's C exchange interface.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from wpadamw import layout

InC: Any = None
VersionsInC: Any = None
with contextlib.suppress(ImportError):
    from wpadamw._C import Layouts as InC
    from wpadamw._C import Versions as VersionsInC

# Addresses (0 for None), which tensors have a gradient (None: all), and whether the gradients are
# float32 instead of the tensors' dtype.
Found = tuple[list[int], list[bool] | None, bool]


class Layouts(Protocol):
    """The layouts of a list of tensors, as they were at construction."""

    def are_of(self, tensors: list[Tensor]) -> bool:
        """Whether tensors are where and what the others were."""

    def addresses_of(self, grads: list[Tensor | None]) -> Found | None:
        """Where gradients lie.

        None if one of them must be looked at more closely: it is no plain tensor, does not lie
        like its tensor, or their dtypes differ.
        """

    def grads_of(self, params: list[Tensor]) -> list[Tensor | None]:
        """The gradients of parameters."""


def layouts(tensors: list[Tensor]) -> Layouts:
    """The layouts of tensors, asked for in C where torch and the extension can."""
    try:
        return cast(Layouts, InC(Tensor, tensors))
    except (TypeError, AttributeError, ValueError):  # no extension; torch without the interface
        return PythonLayouts(tensors)


class PythonLayouts:
    """The same as the extension's ``Layouts``."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.layouts = [_layout(tensor) for tensor in tensors]
        self.addresses = [tensor.data_ptr() for tensor in tensors]

    def are_of(self, tensors: list[Tensor]) -> bool:
        """Whether tensors are where and what the others were."""
        return (
            list(map(Tensor.data_ptr, tensors)) == self.addresses
            and list(map(_layout, tensors)) == self.layouts
        )

    def addresses_of(self, grads: list[Tensor | None]) -> Found | None:
        """Where gradients lie."""
        pairs = zip(grads, self.layouts, strict=True)
        if not all(grad is None or _is_plain(grad, like) for grad, like in pairs):
            return None
        dtypes = {grad.dtype for grad in grads if grad is not None}
        if len(dtypes) > 1:
            return None
        addresses = [0 if grad is None else grad.data_ptr() for grad in grads]
        has_grad = [grad is not None for grad in grads]
        is_float32 = bool(dtypes) and dtypes != {self.layouts[0][1]}
        return addresses, None if all(has_grad) else has_grad, is_float32

    def grads_of(self, params: list[Tensor]) -> list[Tensor | None]:
        """The gradients of parameters."""
        return [param.grad for param in params]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    shape, strides = tensor.shape, tensor.stride()
    # Strides of dimensions of one element say nothing.
    told = tuple(s for s, size in zip(strides, shape, strict=True) if size > 1)
    return tensor.device, tensor.dtype, shape, told if tensor.numel() else ()


def _is_plain(grad: Tensor, like: tuple[Any, ...]) -> bool:
    if type(grad) is not Tensor or grad.layout is not torch.strided or grad.is_nested:
        return False
    device, dtype, shape, strides = _layout(grad)
    return (
        (device, shape, strides) == (like[0], *like[2:])
        and dtype in (like[1], torch.float32)
        and not grad.is_neg()
        and layout.has_memory(grad)
        and layout.is_aligned(grad)
    )


class Versions(Protocol):
    """How often each tensor of a list had been written to when it was looked at."""

    def are_of(self, tensors: list[Tensor]) -> bool:
        """Whether none has been written to since then."""

    def differing(self, tensors: list[Tensor]) -> list[int]:
        """Indices of those that have been written to since then."""

    def raise_all(self) -> None:
        """To be called after one write to each of them."""

    def doubt(self, i: int) -> None:
        """Has one of them found to be written to."""


def versions(tensors: list[Tensor]) -> Versions:
    """The versions of tensors at this moment."""
    return cast(Versions, (VersionsInC or PythonVersions)(tensors))


class PythonVersions:
    """The same as the extension's ``Versions``."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.known = [tensor._version for tensor in tensors]

    def are_of(self, tensors: list[Tensor]) -> bool:
        """Whether none has been written to since then."""
        return [tensor._version for tensor in tensors] == self.known

    def differing(self, tensors: list[Tensor]) -> list[int]:
        """Indices of those that have been written to since then."""
        pairs = enumerate(zip(tensors, self.known, strict=True))
        return [i for i, (tensor, version) in pairs if tensor._version != version]

    def raise_all(self) -> None:
        """To be called after one write to each of them."""
        self.known = [version + 1 for version in self.known]

    def doubt(self, i: int) -> None:
        """Has one of them found to be written to."""
        self.known[i] = -1
