"""One step over one parameter group, after everything about it has been checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from wpadamw._backends.interface import Gradients
from wpadamw.bucket import Bucket, StepCall
from wpadamw.plan import GroupPlan
from wpadamw.scaling import Scaling
from wpadamw.tracking import Tracked, room_for


class GroupStep(NamedTuple):
    """A checked step over one group."""

    plan: GroupPlan
    grads: list[list[Gradients]]  # per bucket, one entry per dtype
    scaling: Scaling
    sums: Sequence[Tensor | None] = ()  # per bucket, of the terms of its rule

    def run(self) -> None:
        """Fails only where it is interrupted; otherwise the group ends wholly in one mode."""
        group = self.plan.group
        target = self.plan.mode_after_step()
        if target == "predicted":
            group["weights_are"] = target  # "true" is said only where all parameters are
        tracked: list[Tracked] = []
        for i, (bucket, grads) in enumerate(zip(self.plan.buckets, self.grads, strict=True)):
            call = self.call(bucket, self.sums[i] if self.sums else None)
            if not bucket.holds_all(target) and self._may_skip_some(grads):
                # Parameters without an update follow the mode all the same.
                bucket.move(target, call.settings)
            for same_dtype in grads:
                bucket.step(same_dtype, self._tracked(bucket, call, tracked))
        group["weights_are"] = target
        if tracked:
            self.plan.note_tracked(tracked, self.scaling.found_inf)

    def _tracked(self, bucket: Bucket, call: StepCall, tracked: list[Tracked]) -> StepCall:
        if not self.plan.group["track_prediction"]:
            return call
        tracked.append(Tracked(bucket, room_for(bucket)))
        return call._replace(tracked=tracked[-1].sums)

    def _may_skip_some(self, grads: list[Gradients]) -> bool:
        is_for_all = len(grads) == 1 and grads[0].has_grad is None
        return not is_for_all or self.scaling.found_inf is not None

    def call(self, bucket: Bucket, sums: Tensor | None = None) -> StepCall:
        """What the step of a bucket takes."""
        group, device = self.plan.group, bucket.tensors.params[0].device
        return StepCall(
            self.plan.settings(bucket.rule),
            self.scaling.factor(-1.0 if group["maximize"] else 1.0, device),
            group["predict_in_step"],
            self.scaling.found_inf_on(device),
            sums,
        )
