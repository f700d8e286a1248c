"""One step over one parameter group, after everything about it has been checked."""

from __future__ import annotations

from typing import NamedTuple

from wpadamw.buckets import Bucket, StepGradients
from wpadamw.columns import StepOptions
from wpadamw.identify import Mode
from wpadamw.plan import Group
from wpadamw.scalars import Prediction


class GroupStep(NamedTuple):
    """A checked step over one group."""

    group: Group
    buckets: list[Bucket]
    grads: list[StepGradients | None]
    options: StepOptions

    def run(self) -> None:
        """Cannot fail: the group ends wholly in one mode."""
        target: Mode = "predicted" if self.options.predict_next else "true"
        changes_mode = self.group["weights_are"] != target
        for bucket, grads in zip(self.buckets, self.grads, strict=True):
            is_moved = changes_mode and (grads is None or grads.has_grad is not None)
            if is_moved:  # parameters without a gradient follow the mode without an update
                move(bucket, target, self.options.prediction)
            mode = target if is_moved else self.group["weights_are"]
            if grads is not None:
                bucket.step(grads, self.options, holds_prediction=mode == "predicted")
        self.group["weights_are"] = target


def move(bucket: Bucket, mode: Mode, prediction: Prediction) -> None:
    """Takes a bucket from the other mode to this one."""
    if mode == "true":
        bucket.restore()
    else:
        bucket.predict(prediction)
