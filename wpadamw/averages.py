"""True weights that are given other values: by a user, or by averages of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw.compat import disable_dynamo, forget_gathered, outside_inference_mode
from wpadamw.modes import Modes

# Of a parameter and its true weight: the new one, or None to leave it.
Update = Callable[[Tensor, Tensor], Tensor | None]


class Averages(Modes):
    """What changes true weights between steps."""

    @disable_dynamo
    @outside_inference_mode
    @torch.no_grad()
    def set_true_weights(self, update: Update) -> None:
        """Give the true weights new values, as the optimizer's own writes.

        Moments stay, and predictions go on from the new weights: parameters hold afterwards what
        they held before, true weights or predictions. Writes to the parameters themselves count as
        weights from outside, which nothing is predicted from before the next update.

        Args:
            update: called with each parameter and its true weight: a tensor of the parameter's
                shape, float32 for narrower dtypes; of a DTensor the local shard. Returns the new
                weight, of the same shape, or None to leave it. Nothing is written before the last
                call has returned.

        Raises:
            ValueError: for a new weight of another shape. Weights are as before.

        Example:
            >>> opt.set_true_weights(lambda param, weight: weight.clamp(-1, 1))
        """
        modes = self._modes()
        self.restore()
        plans = [self._plan(group) for group in self.param_groups]
        buckets = [bucket for plan in plans for bucket in plan.buckets]
        values = [_checked(update, bucket.params, bucket.true_weights()) for bucket in buckets]
        pending = [param for plan in plans for param in plan.served.pending]
        locals_of = [layout.local(param).detach() for param in pending]
        of_pending = _checked(update, pending, locals_of)
        self._plans.is_interrupted = True
        for bucket, of_bucket in zip(buckets, values, strict=True):
            bucket.rewrite(of_bucket)
        for local, value in zip(locals_of, of_pending, strict=True):
            if value is not None:
                local.copy_(value)
        self._plans.is_interrupted = False
        if any(map(layout.is_dtensor, self._params())):
            forget_gathered()
        if self._keeping.copies is not None:
            self._renew_copies(anew=True)
        self._return_to(modes)


def _checked(update: Update, params: list[Tensor], weights: list[Tensor]) -> list[Tensor | None]:
    values = [update(param, weight) for param, weight in zip(params, weights, strict=True)]
    for weight, value in zip(weights, values, strict=True):
        if value is not None and value.shape != weight.shape:
            raise ValueError(
                f"update must return weights of shape {tuple(weight.shape)}, "
                f"got {tuple(value.shape)}"
            )
    return values
