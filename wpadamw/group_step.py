"""One step over one parameter group, after everything about it has been checked."""

from __future__ import annotations

from typing import NamedTuple

from wpadamw.buckets import Bucket, StepGradients
from wpadamw.columns import StepOptions
from wpadamw.identify import Mode
from wpadamw.plan import GroupPlan
from wpadamw.scalars import Prediction
from wpadamw.scaling import Scaling


class GroupStep(NamedTuple):
    """A checked step over one group."""

    plan: GroupPlan
    grads: list[StepGradients | None]  # per bucket
    scaling: Scaling

    def run(self) -> None:
        """Cannot fail: the group ends wholly in one mode."""
        group, prediction = self.plan.group, self.plan.prediction()
        target: Mode = "predicted" if group["predict_in_step"] else "true"
        for bucket, grads in zip(self.plan.buckets, self.grads, strict=True):
            mode = group["weights_are"]
            if mode != target and self._may_skip_some(grads):
                # Parameters without an update follow the mode all the same.
                move(bucket, target, prediction)
                mode = target
            if grads is not None:
                options = self._options(bucket, prediction)
                bucket.step(grads, options, holds_prediction=mode == "predicted")
        group["weights_are"] = target

    def _may_skip_some(self, grads: StepGradients | None) -> bool:
        is_for_all = grads is not None and grads.has_grad is None
        return not is_for_all or self.scaling.found_inf is not None

    def _options(self, bucket: Bucket, prediction: Prediction) -> StepOptions:
        group, device = self.plan.group, bucket.tensors.params[0].device
        return StepOptions(
            prediction=prediction,
            weight_decay=float(group["weight_decay"]),
            grad_factor=self.scaling.factor(-1.0 if group["maximize"] else 1.0, device),
            predict_next=group["predict_in_step"],
            found_inf=self.scaling.found_inf_on(device),
        )


def move(bucket: Bucket, mode: Mode, prediction: Prediction) -> None:
    """Takes a bucket from the other mode to this one."""
    if mode == "true":
        bucket.restore()
    else:
        bucket.predict(prediction)
