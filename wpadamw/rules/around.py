"""A rule around another one: what is added to any rule."""

from __future__ import annotations

import math
import operator
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from wpadamw.rules.rule import Group, Row, Rule, Settings, State


class Around(Rule):
    """The same rule, whose ``Step`` has further fields behind its own.

    Args:
        rule: the rule inside.
        fields: names of the further fields.
        own: what else is different, of what a rule's class says.
    """

    def __init__(self, rule: Rule, fields: tuple[str, ...], **own: Any) -> None:
        self.rule = rule
        # What its class says of another rule.
        vars(self).update(
            name=rule.name,
            state_names=rule.state_names,
            from_weight=rule.from_weight,
            has_time=rule.has_time,
            unused_names=rule.unused_names,
            own_names=rule.own_names,
            squares=rule.squares,
            whole_names=rule.whole_names,
            is_of_matrices=rule.is_of_matrices,
            Hyper=rule.Hyper,
            Step=namedtuple("Step", (*rule.Step._fields, *fields)) if fields else rule.Step,
            Look=rule.Look,
            still=rule.still,
            num_terms=rule.num_terms,
            scope=rule.scope,
        )
        vars(self).update(own)

    def of_rule(self, state: State) -> State:
        """What of the state is the inner rule's."""
        return state[: len(self.rule.state_names)]

    def hyper(self, group: Group, lr: float | Tensor) -> Row:
        """Those of the rule."""
        return self.rule.hyper(group, lr)

    def settings(self, group: Group, lr: float | Tensor) -> Settings:
        """The rule's, with these hyper-parameters."""
        return self.rule.settings(group, lr)._replace(hyper=self.hyper(group, lr))

    def further(self, hyper: Row, count: Any, power: Callable[[Any, Any], Any]) -> tuple[Any, ...]:
        """The further fields of ``Step``."""
        return ()

    def scalars(
        self,
        hyper: Row,
        count: Any,
        ahead: Any = 0,
        share: Any = 1.0,
        power: Callable[[Any, Any], Any] = operator.pow,
        sqrt: Callable[[Any], Any] = math.sqrt,
    ) -> tuple[Row, Row]:
        """The rule's, and the further fields."""
        step, look = self.rule.scalars(self._hyper(hyper), count, ahead, share, power, sqrt)
        return self.Step(*step, *self.further(hyper, count + ahead, power)), look

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, State]:
        """That of the rule."""
        return self.rule.step(weight, state, grad, self._step(step), look)

    def predict(self, weight: Tensor, state: State, look: Row) -> Tensor:
        """That of the rule."""
        return self.rule.predict(weight, self.of_rule(state), look)

    def recover(self, predicted: Tensor, state: State, look: Row) -> Tensor:
        """That of the rule."""
        return self.rule.recover(predicted, self.of_rule(state), look)

    def terms(
        self, weight: Tensor, state: State, grad: Tensor, step: Row, look: Row
    ) -> tuple[Tensor, ...]:
        """Those of the rule."""
        return self.rule.terms(weight, self.of_rule(state), grad, self._step(step), look)

    def with_sums(self, hyper: Row, step: Row, look: Row, sums: Sequence[Any]) -> tuple[Row, Row]:
        """Those of the rule."""
        moved, look = self.rule.with_sums(self._hyper(hyper), self._step(step), look, sums)
        return self.Step(*moved, *step[len(moved) :]), look

    def why_not_recoverable(self, group: Group, lr: float) -> str | None:
        """As the rule says."""
        return self.rule.why_not_recoverable(group, lr)

    def can_recover(self) -> bool:
        """As the rule says."""
        return self.rule.can_recover()

    def _hyper(self, hyper: Row) -> Row:
        fields = self.rule.Hyper._fields
        return hyper if len(hyper) == len(fields) else self.rule.Hyper(*hyper[: len(fields)])

    def _step(self, step: Row) -> Row:
        return self.rule.Step(*step[: len(self.rule.Step._fields)])


def plain(rule: Rule) -> Rule:
    """A rule without anything around it."""
    return plain(rule.rule) if isinstance(rule, Around) else rule
