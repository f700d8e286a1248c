"""What a bucket hands to a backend, and what a backend offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wpadamw.rules import AdamW
from wpadamw.scalars import Scalars


class Operation(Enum):
    """What a kernel does; names and order are those of ``csrc/operation.h``."""

    step = 0
    step_and_predict = 1
    predict = 2
    restore = 3


class Gradients(NamedTuple):
    """The gradients of one step that have one dtype; None where a parameter has none of it."""

    dtype: torch.dtype
    tensors: Sequence[Tensor | None]
    addresses: Sequence[int]  # 0 for None
    has_grad: list[bool] | None  # per parameter; None: all have one


class Rows:
    """Scalars per parameter: few distinct rows, and which of them each parameter takes.

    An empty ``index`` stands for row 0 everywhere. None as a row says that the parameter holds its
    true weights. ``grad_factor``, a float64 tensor of one element on the parameters' device, takes
    the place of every row's own.
    """

    __slots__ = ("distinct", "grad_factor", "index")

    def __init__(
        self,
        distinct: Sequence[Scalars | None],
        index: Sequence[int] = (),
        grad_factor: Tensor | None = None,
    ) -> None:
        self.distinct, self.index, self.grad_factor = distinct, index, grad_factor

    def of(self, params: Sequence[int]) -> Rows:
        """The rows of some parameters, in this order."""
        index = [self.index[i] for i in params] if self.index else ()
        return Rows(self.distinct, index, self.grad_factor)

    def get(self, i: int) -> Scalars | None:
        """The row of parameter ``i``."""
        return self.distinct[self.index[i] if self.index else 0]

    def __getitem__(self, i: int) -> Scalars:
        row = self.get(i)
        assert row is not None
        return row


@dataclass(frozen=True)
class DeviceRows:
    """Scalars per parameter in device memory: of this operation, and of the prediction held."""

    scalars: Tensor  # float64, rows of `Scalars`
    index: Tensor  # int32, [2, parameters]: the row of each, and the row of its prediction or -1
    found_inf: Tensor | None = None  # float32, one element; not 0: the operation does nothing

    def of(self, params: Sequence[int]) -> DeviceRows:
        """The rows of some parameters, in this order."""
        chosen = torch.tensor(params, device=self.index.device)
        return DeviceRows(self.scalars, self.index[:, chosen], self.found_inf)


class ColumnTensors(NamedTuple):
    """Counts and records of n parameters in device memory, and room for rows computed from them."""

    steps: Tensor  # float32, [n]
    predictions: Tensor  # float64, [n, 7]: rows of `Prediction`
    options: Tensor  # float64, [9]: a `Prediction`, the weight decay of the step, the grad_factor
    has_grad: Tensor  # bool, [n]
    rows: DeviceRows


@dataclass
class BucketTensors:
    """Dense real tensors, one per parameter; each parameter's have the same shape and strides."""

    rule: AdamW
    params: list[Tensor]
    offsets: list[int]  # of each parameter in the flat buffers, in elements
    weight_flat: Tensor | None
    state_flat: list[Tensor]
    weight: list[Tensor] | None
    state: list[list[Tensor]]  # [kind][parameter]


NO_ROWS = Rows([None])  # every parameter holds its true weights, or has a backup


Completed = int | list[int]  # of a bucket's parameters together, or of each


class Kernels(Protocol):
    """The three operations over a bucket. They check nothing.

    ``raise_versions`` says whether they raise the version counters of what they write. Where the
    first argument of rows is `DeviceRows`, it holds the last rows too.

    An exception may arrive after any line, that of a Ctrl-C for one. So the count of completed
    operations rises in the very call that writes the last of what an operation writes: a caller
    that was interrupted finds out by it whether its operation has been done.
    """

    raise_versions: bool

    def completed(self) -> Completed:
        """How many operations have been done, or are certain to be."""

    def advanced(self) -> int:
        """How many calls of `advance` have been done, or are certain to be."""

    def step(
        self, grads: Gradients, rows: Rows | DeviceRows, last: Rows, predict_next: bool
    ) -> None:
        """Restore, update and, with ``predict_next``, predict, where there is a gradient."""

    def predict(self, rows: Rows | DeviceRows) -> None:
        """From true to predicted weights."""

    def restore(self, last: Rows | DeviceRows) -> None:
        """To true weights; ``last`` are the predictions that the parameters hold."""

    def advance(self, columns: ColumnTensors, operation: Operation) -> None:
        """Fill in the rows of an operation; count and record what a step or a prediction does."""


class Backend(Protocol):
    """A module of this package."""

    NAME: str

    def why_not(self, device_type: str) -> str | None:
        """Why it cannot serve a type of device here, or None if it can."""

    def Kernels(self, bucket: BucketTensors) -> Kernels:
        """Bind the operations to a bucket."""
