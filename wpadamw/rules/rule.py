"""What an update rule says: its mathematics, and the scalars that it needs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

State = tuple[Tensor, ...]
# A row of scalars: a named tuple of the rule's own, of numbers or of tensors of one element.
Row = Any
Group = dict[str, Any]


class Rule:
    """An update rule in plain PyTorch: the specification that every other backend equals.

    Out of place, one rounding per operation, in the order as written (docs/numerics.md).
    An object without state of its own: tensors come in and go out. Its twins in ``csrc/rules`` and
    ``triton_kernels/rules`` have the same file name, the same functions and the same names of
    scalars.

    Attributes:
        name: the name of its files.
        state_names: the tensors that it keeps per parameter, under PyTorch's names.
        Hyper: named tuple of the hyper-parameters that its scalars are computed from.
        Step: named tuple of the scalars that an update needs.
        Look: named tuple of the scalars that prediction and recovery need.
    """

    name: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]
    # Whether checkpoints of the original optimizer have an entry ``step``.
    original_counts: ClassVar[bool] = True
    Hyper: ClassVar[Any]
    Step: ClassVar[Any]
    Look: ClassVar[Any]

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The hyper-parameters of a group, with its lr as a number, or as a tensor."""
        raise NotImplementedError

    def scalars(
        self,
        hyper: Row,
        count: Any,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Row, Row]:
        """``Step`` of update number ``count`` and ``Look`` of the prediction from it, in float64.

        With a ``power`` and a ``sqrt`` of tensors the numbers may be tensors.
        """
        raise NotImplementedError

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, State]:
        """The true weight and the state after a gradient."""
        raise NotImplementedError

    def predict(self, weight: Tensor, state: State, look: Row) -> Tensor:
        """The predicted weight."""
        raise NotImplementedError

    def recover(self, predicted: Tensor, state: State, look: Row) -> Tensor:
        """The true weight from the predicted one: `predict` solved for it."""
        raise NotImplementedError

    # Sums over elements, needed before a weight may move; most rules have none. They go over the
    # elements of each tensor, or of all tensors of a group.
    num_terms: ClassVar[int] = 0
    scope: ClassVar[Literal["tensor", "group"]] = "tensor"

    def terms(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, ...]:
        """What is summed, element by element: ``num_terms`` tensors. Writes nothing."""
        raise NotImplementedError

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """What `recover` lacks to solve the predictions of a group, or None if it can."""
        return None

    def row_width(self) -> int:
        """Numbers of a row ``[*Step, *Look]``."""
        return len(self.Step._fields) + len(self.Look._fields)

    def can_recover(self) -> bool:
        """Whether predictions can be solved for the true weights at all."""
        return type(self).recover is not Rule.recover


def all_rules(kind: type[Rule] = Rule) -> list[type[Rule]]:
    """The rules that have been imported."""
    return [rule for sub in kind.__subclasses__() for rule in (sub, *all_rules(sub))]


def relatives(rule: Rule) -> list[type[Rule]]:
    """The rules that have the state of a rule, or more: options switch between them."""
    own = set(rule.state_names)
    return [other for other in all_rules() if own <= set(other.state_names)]


def sqrt(x: Tensor) -> Tensor:
    """The correctly rounded square root of float32 or float64."""
    # torch.sqrt calls a vector library on CPU that is off by one ulp for some inputs. float32 goes
    # through float64; float64 through the complex root, which is libm's and exact for reals.
    if x.dtype == torch.float64 and x.device.type == "cpu":
        root = torch.complex(x, torch.zeros_like(x)).sqrt().real
        return torch.where(x > 0, root, x.sqrt())  # negative numbers have no real root: NaN
    return x.double().sqrt().to(x.dtype)
