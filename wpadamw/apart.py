"""Plans that give each parameter a bucket of its own: such a bucket steps alone."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from wpadamw.bucket import Bucket, StepCall
from wpadamw.copies import Copies
from wpadamw.flat_state import holds
from wpadamw.plan import AllStates, GroupPlan
from wpadamw.rules.rule import Rules
from wpadamw.standing import Standing


class Part(NamedTuple):
    """Who serves a parameter."""

    bucket: Bucket
    standing: Standing | None


class ApartPlan(GroupPlan):
    """The buckets of one parameter group, one for each parameter that has state."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.parts: dict[int, Part] = {}  # by id of the parameter

    def is_current(self, rules: Rules, copies: Copies | None, state: AllStates) -> bool:
        """Whether parameters, rules and state dicts are those of the last look."""
        return self.fits(self.group, rules, copies) and holds([state], self.served.states)

    def is_at_target(self) -> bool:
        """Whether all parameters hold what they do after a step."""
        target = self.mode_after_step()
        return all(bucket.holds_all(target) for bucket in self.buckets)

    def is_standing(self, part: Part) -> bool:
        """Whether nothing but a gradient has changed, and `step_standing` may follow."""
        bucket, standing = part
        if standing is None or not bucket.holds_all(self.mode_after_step()):
            return False
        return standing.look()

    def step_standing(self, part: Part) -> None:
        """One update of a parameter, after `is_standing` has said yes."""
        bucket, standing = part
        assert standing is not None
        settings = self.checked_settings(bucket.rule)
        standing.step(settings, self._factor(), self.group["predict_in_step"])

    def step(self, bucket: Bucket) -> None:
        """One update of a parameter that has a gradient, after the bucket has been looked at."""
        settings = self.checked_settings(bucket.rule)
        call = StepCall(settings, self._factor(), self.group["predict_in_step"])
        grads = bucket.gradients.read()
        if bucket.rule.num_terms:
            call = call._replace(sums=bucket.sums(grads, call))
        for same_dtype in grads:
            bucket.step(same_dtype, call)

    def _factor(self) -> float:
        return -1.0 if self.group["maximize"] else 1.0

    def _by_kind(self, params: list[Tensor]) -> list[list[Tensor]]:
        return [[param] for param in params]

    def _standings(self) -> list[Standing] | None:
        for param in self.served.pending:
            self.parts.pop(id(param), None)
        for bucket in reversed(self.buckets):  # those that are new come last
            part = self.parts.get(id(bucket.params[0]))
            if part is not None and part.bucket is bucket:
                break
            self.parts[id(bucket.params[0])] = Part(bucket, Standing.of(bucket))
        return None  # so that steps over all parameters take the long way
