"""What an update rule says: its mathematics, and the scalars that it needs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]
# A row of scalars: a named tuple of the rule's own, of numbers or of tensors of one element.
Row = Any
Group = dict[str, Any]
Scope = Literal["tensor", "group", "global"]


# Updates that a prediction may look ahead to one by one.
MAX_ROLLOUT = 1000


class Settings(NamedTuple):
    """What the scalars of updates and of predictions from them are computed from.

    A prediction goes by a share of the last update and of each one that would follow it without
    gradients: as far as its momentum carries the weights. ``shares`` begin with the last update.
    """

    hyper: Row
    shares: tuple[float, ...]
    updates: Any = None  # how a rule of matrices computes these, see `wpadamw.orthogonal.Updates`

    def padded(self, num_looks: int) -> tuple[float, ...]:
        """As many shares as looks: by more than there are nothing moves."""
        return self.shares + (0.0,) * (num_looks - len(self.shares))


def shares(group: Group) -> tuple[float, ...]:
    """How far the predictions of a group go, see `Settings`."""
    steps = float(group["prediction_steps"])
    if group["prediction"] == "linear":
        return (steps,)
    return (0.0, *(min(1.0, steps - past) for past in range(num_looks(group) - 1)))


def num_looks(group: Group) -> int:
    """How many shares they have; 1 for what no step would be taken with."""
    steps = group["prediction_steps"]
    is_rollout = group["prediction"] == "rollout" and isinstance(steps, Real)
    return 1 + max(1, math.ceil(steps)) if is_rollout and 0 <= steps <= MAX_ROLLOUT else 1


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
        still: the ``Look`` of a prediction that moves nothing.
    """

    name: ClassVar[str]
    state_names: ClassVar[tuple[str, ...]]
    # Whether it corrects a bias that depends on the count of updates. Checkpoints of the original
    # optimizer have an entry ``step`` then.
    has_time: ClassVar[bool] = True
    # Tensors in those that nothing reads.
    unused_names: ClassVar[tuple[str, ...]] = ()
    # Tensors that begin as the true weight, at any time: a state may come without them.
    from_weight: ClassVar[tuple[str, ...]] = ()
    # Tensors of the state that the original does not save: without them nothing is predicted.
    own_names: ClassVar[tuple[str, ...]] = ()
    # Tensors of the state that are means of squares: never negative, and of a wide range.
    squares: ClassVar[tuple[str, ...]] = ()
    # Those that are no moments: they keep the precision of the weights.
    whole_names: ClassVar[tuple[str, ...]] = ()
    # Whether kernels take finished updates in the place of gradients: those of real matrices, which
    # no element knows alone.
    is_of_matrices: ClassVar[bool] = False
    Hyper: ClassVar[Any]
    Step: ClassVar[Any]
    Look: ClassVar[Any]
    still: ClassVar[Any]

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """The hyper-parameters of a group, with its lr as a number, or as a tensor."""
        raise NotImplementedError

    def settings(self, group: Group, lr: float | Tensor) -> Settings:
        """The same, and how far its predictions go."""
        return Settings(self.hyper(group, lr), shares(group))

    def scalars(
        self,
        hyper: Row,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Row, Row]:
        """``Step`` of update number ``count`` and ``Look`` of a prediction, in float64.

        The prediction goes by a share of that update or, ``ahead`` of it, by a share of the update
        that would follow after so many without gradients. With a ``power`` and a ``sqrt`` of
        tensors the numbers may be tensors.
        """
        raise NotImplementedError

    def row(
        self, settings: Settings, count: int, num_looks: int, sums: Sequence[float] = ()
    ) -> tuple[Row, tuple[float, ...]]:
        """``Step`` of update number ``count``, and the looks of the prediction from it in a row.

        Without ``sums`` those that the terms need.
        """
        hyper = settings.hyper
        step, look = self.scalars(hyper, count, 0, settings.shares[0])
        if sums:
            step, look = self.with_sums(hyper, step, look, sums)
        if num_looks == 1:
            return step, look
        looks = list(look)
        for ahead, share in enumerate(settings.padded(num_looks)[1:], start=1):
            row = self.scalars(hyper, count, ahead, share)
            looks += (self.with_sums(hyper, *row, sums) if sums else row)[1]
        return step, tuple(looks)

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

    # Sums over elements, needed before a weight may move; most rules have none.
    num_terms: ClassVar[int] = 0

    def scope(self, group: Group) -> Scope:
        """What they go over: each tensor, all of a group, or those of all groups like it."""
        return "tensor"

    def terms(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, ...]:
        """What is summed, element by element: ``num_terms`` tensors. Writes nothing."""
        raise NotImplementedError

    def with_sums(self, hyper: Row, step: Row, look: Row, sums: Sequence[Any]) -> tuple[Row, Row]:
        """The scalars of an update whose terms have these sums; ``look`` may be one ahead."""
        raise NotImplementedError

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """What `recover` lacks to solve the predictions of a group, or None if it can."""
        return None

    def row_width(self, num_looks: int = 1) -> int:
        """Numbers of a row ``[*Step, *Look, ...]``."""
        return len(self.Step._fields) + num_looks * len(self.Look._fields)

    def can_recover(self) -> bool:
        """Whether predictions can be solved for the true weights at all."""
        return type(self).recover is not Rule.recover


class Rules(NamedTuple):
    """The rules of a group: mostly the same for all of its parameters."""

    main: Rule  # of matrices; its name is that of the group
    rest: Rule  # of parameters that are none

    def of(self, param: Tensor) -> Rule:
        """The rule of a parameter."""
        return self.main if param.ndim == 2 else self.rest


def all_rules(kind: type[Rule] = Rule) -> list[type[Rule]]:
    """The rules that have been imported; what wraps a rule has no name of its own."""
    found = [rule for sub in kind.__subclasses__() for rule in (sub, *all_rules(sub))]
    return [rule for rule in found if hasattr(rule, "name")]


def relatives(rule: Rule) -> list[type[Rule]]:
    """The rules that have the state of a rule, or more: options switch between them."""
    own = {*rule.state_names} - {*rule.from_weight}
    return [other for other in all_rules() if own <= set(other.state_names)]


def minimum(a: Any, b: Any) -> Any:
    """The smaller one of numbers or tensors; a NaN in the first one stays."""
    return torch.where(a > b, b, a) if isinstance(a, Tensor) else b if a > b else a


def maximum(a: Any, b: Any) -> Any:
    """The larger one of numbers or tensors; ``b`` where the first one is NaN."""
    return torch.where(a > b, a, b) if isinstance(a, Tensor) else a if a > b else b


def root(x: Any) -> Any:
    """The correctly rounded square root of a number >= 0, or of a tensor."""
    return sqrt(x) if isinstance(x, Tensor) else math.sqrt(x)


def why_decay_is_too_strong(group: Group, lr: float) -> str | None:
    """Why a decoupled decay leaves nothing of a weight in its prediction, or None if it does."""
    share, weight_decay = max(shares(group)), group["weight_decay"]
    if not group["predict_decay"] or share * lr * weight_decay < 1.0:
        return None
    return f"needs prediction_steps * lr * weight_decay < 1, got {share} * {lr} * {weight_decay}"


def sqrt(x: Tensor) -> Tensor:
    """The correctly rounded square root of float32 or float64."""
    # torch.sqrt calls a vector library on CPU that is off by one ulp for some inputs. float32 goes
    # through float64; float64 through the complex root, which is libm's and exact for reals.
    if x.dtype == torch.float64 and x.device.type == "cpu":
        root = torch.complex(x, torch.zeros_like(x)).sqrt().real
        return torch.where(x > 0, root, x.sqrt())  # negative numbers have no real root: NaN
    return x.double().sqrt().to(x.dtype)
