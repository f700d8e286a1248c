"""The squares of gradients: a sum without an update, for norms."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from wpadamw.rules.rule import Row, Rule, State


class _NoScalars(NamedTuple):
    pass


class Squares(Rule):
    """Has no state, moves no weight."""

    name = "squares"
    state_names = ()
    Hyper = Step = Look = _NoScalars
    still = _NoScalars()
    num_terms = 1

    def scalars(
        self,
        hyper: Row,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Row, Row]:
        """None."""
        return _NoScalars(), _NoScalars()

    def terms(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, ...]:
        """``g*g``."""
        return (grad * grad,)
