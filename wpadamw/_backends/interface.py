"""What a bucket hands to a backend, and what a backend offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from wpadamw import formats
from wpadamw.rules.averaged import NAME as AVERAGE
from wpadamw.rules.rule import Rule
from wpadamw.rules.stored import formats_of


class Operation(Enum):
    """What a kernel does; names and order are those of ``csrc/operation.h``."""

    step = 0
    step_and_predict = 1
    predict = 2
    restore = 3


class Kind(IntEnum):
    """Whether the last update of a parameter has been predicted from."""

    none = 0
    made = 1
    null = 2  # a prediction that moves nothing: the weights came from outside


class Gradients(NamedTuple):
    """The gradients of one step that have one dtype; None where a parameter has none of it."""

    dtype: torch.dtype
    tensors: Sequence[Tensor | None]
    addresses: Sequence[int]  # 0 for None
    has_grad: list[bool] | None  # per parameter; None: all have one


@dataclass(frozen=True)
class Rows:
    """The scalars of an operation per parameter, in the memory of the host or of the device.

    A row is ``[*Step, *Look, ...]`` of the bucket's rule, with as many looks as the bucket says:
    predictions go by one after the other, and back in the contrary order. Updates take the first.

    Per parameter ``index`` names the row of the operation (for a prediction -1 where it moves
    nothing), then, in its second row, the row of the prediction that the parameter holds, or -1
    where it holds its true weights or has a backup. Without an index all parameters take row 0, and
    hold the prediction of row 1 if there is one: such rows lie in the memory of the host.
    """

    scalars: Tensor  # float64, [rows, len(Step) + num_looks*len(Look)]
    index: Tensor | None = None  # int32, [2, parameters]

    def of(self, params: Sequence[int]) -> Rows:
        """The rows of some parameters, in this order; no others: a table has room for two each."""
        if self.index is None:
            return self
        index = self.index[:, torch.tensor(params, device=self.index.device)]
        scalars = self.scalars[index.flatten().clamp(min=0).long()]
        places = torch.arange(index.numel(), dtype=torch.int32, device=index.device)
        return Rows(scalars, torch.where(index < 0, -1, places.view_as(index)))


class LedgerTensors(NamedTuple):
    """Counts and records of n parameters in device memory, and room for rows computed from them."""

    steps: Tensor  # float32, [n]
    predictions: Tensor  # float64, [n, 1 + num_looks*len(Look)]: a `Kind`, and what re-creates it
    hyper: Tensor  # float64, [len(Hyper)]
    shares: Tensor  # float64, [num_looks], see `wpadamw.rules.rule.Settings`
    has_grad: Tensor  # bool, [n]
    sums: Tensor  # float64, [num_terms, n]: of the rule's terms, for a step
    rows: Rows  # scalars [2*n, ...]: each parameter's own row, then the row of what it holds


@dataclass
class BucketTensors:
    """Dense real tensors, one per parameter; each parameter's have the same shape and strides.

    ``params`` are what predictions are written to, and ``weight`` holds the true weights where they
    lie apart: in a backup of the parameters, or in the parameters, where ``params`` are copies.

    State is stored as the rule's formats say: ``state`` are codes then, in ``scales`` a number for
    each `formats.BLOCK_NUMEL` of them. With ``rest`` parameters are the upper half of float32
    numbers, and that is the lower one, see `formats.join`. With ``has_noisy_params`` they are all
    that there is of these: a step rounds them with noise.
    """

    rule: Rule
    params: list[Tensor]
    offsets: list[int]  # of each parameter in the flat buffers, in elements
    weight_flat: Tensor | None  # the buffer behind `weight`, if that is a backup
    state_flat: list[Tensor]
    weight: list[Tensor] | None  # of the state's dtype
    state: list[list[Tensor]]  # [kind][parameter]
    num_looks: int = 1  # of a row of scalars
    scales_flat: list[Tensor | None] = field(default_factory=list)  # [kind]; [] if there are none
    scales: list[list[Tensor]] = field(default_factory=list)  # [kind][parameter]
    rest_flat: Tensor | None = None
    rest: list[Tensor] | None = None
    has_noisy_params: bool = False

    @property
    def has_averages(self) -> bool:
        """Whether the last of the state are averages, apart from the rule that kernels know."""
        return AVERAGE in self.rule.state_names

    @property
    def is_small(self) -> bool:
        """Whether anything is stored in another format than that of the mathematics."""
        are_whole = all(form == formats.WHOLE for form in formats_of(self.rule))
        return self.rest is not None or self.has_noisy_params or not are_whole

    def stored(self, kind: int, i: int) -> list[Tensor]:
        """The memory of a tensor of parameter i's state: numbers, or codes and scales."""
        scales = self.scales[kind] if self.scales else []
        return [self.state[kind][i], *scales[i : i + 1]]

    def load(self, kind: int, i: int) -> Tensor:
        """The numbers of a tensor of parameter i's state."""
        form = formats_of(self.rule)[kind]
        dtype = torch.promote_types(self.params[i].dtype, torch.float32)
        return form.load(self.stored(kind, i), dtype)

    def held(self, i: int) -> Tensor:
        """What parameter i holds, in the dtype of the mathematics."""
        param = self.params[i]
        if self.rest is not None:
            return formats.join(param, self.rest[i])
        return param.to(torch.promote_types(param.dtype, torch.float32))

    def parts(
        self, i: int, values: Tensor, count: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Where new values of parameter i go to, and what goes there.

        Args:
            i: the parameter.
            values: the new ones.
            count: of the update that they come from, else to the nearest.
        """
        if self.rest is None:
            if self.has_noisy_params and count is not None:
                noise = formats.noise_like(self.params[i], count, stream=1)
                return [self.params[i]], [formats.noisy_bfloat16(values, noise)]
            return [self.params[i]], [values]
        return [self.params[i], self.rest[i]], [*formats.split(values.float())]


Completed = int | list[int]  # of a bucket's parameters together, or of each


class Kernels(Protocol):
    """The three operations over a bucket. They check nothing.

    ``raise_versions`` says whether they raise the version counters of what they write.

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
        self,
        grads: Gradients,
        rows: Rows,
        factor: float | Tensor,
        predict_next: bool,
        found_inf: Tensor | None = None,
        tracked: Tensor | None = None,
    ) -> None:
        """Restore, update and, with ``predict_next``, predict, where there is a gradient.

        Args:
            grads: the gradients.
            rows: of the updates, and of the predictions that the parameters hold.
            factor: what gradients are multiplied by, of float64; as a tensor of one element it lies
                on the device.
            predict_next: whether to predict.
            found_inf: of float32, one element on the device; not 0: nothing is done.
            tracked: float64, [3, parameters], receives the sums over each parameter, added up like
                those of `sums`, of ``(p - w')^2``, ``(w' - w)^2`` and ``(p - w')*(w' - w)``: p is
                what is held before the step, w and w' are the true weight before and after it.
                0 without a gradient, and where nothing is done.
        """

    def predict(self, rows: Rows) -> None:
        """From true to predicted weights."""

    def restore(self, rows: Rows) -> None:
        """To true weights; rows are those of the predictions that the parameters hold."""

    def sums(self, grads: Gradients, rows: Rows, factor: float | Tensor) -> Tensor:
        """The sums of the rule's terms, float64, [num_terms, parameters]; 0 without a gradient.

        Reads what a step reads and writes nothing. Terms are summed by halves within chunks of
        2,048 elements, in the state's dtype, with zeros for what a chunk lacks; the sums of
        a tensor's chunks from the first to the last, in float64.
        """

    def total(self, sums: Tensor) -> Tensor:
        """The sum of float64 numbers from the first to the last: one element on their device."""

    def advance(
        self, ledger: LedgerTensors, operation: Operation, found_inf: Tensor | None
    ) -> None:
        """Fill in the rows of an operation; count and record what a step or a prediction does.

        A step's own rows are those of the updates that follow the counts, a prediction's those of
        the records. Where there is a gradient and ``found_inf`` is not set a step raises the count
        and records its prediction, or none. A prediction is recorded where there is none: that of
        the hyper-parameters, or a null one before the first update. A record of none keeps the sums
        of the step behind its kind: a prediction goes by them.
        """


class Backend(Protocol):
    """A module of this package."""

    NAME: str

    def why_not(self, device_type: str) -> str | None:
        """Why it cannot serve a type of device here, or None if it can."""

    def Kernels(self, bucket: BucketTensors) -> Kernels:
        """Bind the operations to a bucket."""
