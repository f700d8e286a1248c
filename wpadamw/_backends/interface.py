"""What a bucket hands to a backend, and what a backend offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wpadamw.rules import AdamW
from wpadamw.scalars import Scalars


class Gradients(NamedTuple):
    """The gradients of one step that have one dtype; None where a parameter has none of it."""

    dtype: torch.dtype
    tensors: Sequence[Tensor | None]
    addresses: Sequence[int]  # 0 for None


class Rows:
    """Scalars per parameter: few distinct rows, and which of them each parameter takes.

    An empty ``index`` stands for row 0 everywhere. None as a row says that the parameter holds its
    true weights.
    """

    __slots__ = ("distinct", "index")

    def __init__(self, distinct: Sequence[Scalars | None], index: Sequence[int] = ()) -> None:
        self.distinct, self.index = distinct, index

    def get(self, i: int) -> Scalars | None:
        """The row of parameter ``i``."""
        return self.distinct[self.index[i] if self.index else 0]

    def __getitem__(self, i: int) -> Scalars:
        row = self.get(i)
        assert row is not None
        return row


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


class Kernels(Protocol):
    """The three operations over a bucket. They check nothing.

    ``raise_versions`` says whether they raise the version counters of what they write.
    """

    raise_versions: bool

    def step(self, grads: Gradients, rows: Rows, last: Rows, predict_next: bool) -> None:
        """Restore, update and, with ``predict_next``, predict, where there is a gradient."""

    def predict(self, rows: Rows) -> None:
        """From true to predicted weights."""

    def restore(self, last: Rows) -> None:
        """To true weights; ``last`` are the predictions that the parameters hold."""


class Backend(Protocol):
    """A module of this package."""

    NAME: str

    def why_not(self, device_type: str) -> str | None:
        """Why it cannot serve a type of device here, or None if it can."""

    def Kernels(self, bucket: BucketTensors) -> Kernels:
        """Bind the operations to a bucket."""
