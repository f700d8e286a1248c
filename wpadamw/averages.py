"""True weights that are given other values: by a user, or by averages of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw.bucket import Bucket
from wpadamw.compat import disable_dynamo, forget_gathered, outside_inference_mode
from wpadamw.modes import Modes

# Of a parameter and its true weight: the new one, or None to leave it.
Update = Callable[[Tensor, Tensor], Tensor | None]


class Averages(Modes):
    """What changes true weights between steps, and what shows others in their place."""

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
        self._clients.check_no_averages("set_true_weights()")
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
        self._forget_gathered()
        if self._keeping.copies is not None:
            self._renew_copies(anew=True)
        self._return_to(modes)

    @disable_dynamo
    @outside_inference_mode
    @torch.no_grad()
    def switch_to_average(self) -> None:
        """Have training go on from the averages: true weights take their values.

        Moments, averages and counts stay, and predictions go on from the new weights. Groups
        without ``ema`` stay as they are.

        Raises:
            RuntimeError: if no group has ``ema``, and inside `averaged_weights`.

        Example:
            >>> for epoch in range(epochs):
            ...     train(model, opt)
            ...     opt.switch_to_average()
        """
        self._check_averages("switch_to_average")
        self._clients.check_no_averages("switch_to_average()")
        self._settle_averages()
        self.set_true_weights(lambda param, _: self._average(param))

    @disable_dynamo
    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Run the body with averages in the parameters; the former bits come back afterwards.

        To evaluate and to save the averaged model, also as a decorator. Averages are rounded to the
        parameters' dtype; parameters of groups without ``ema``, or without an update so far, hold
        their true weights. Attached models do not predict inside. Whatever is written to the
        parameters inside is lost. Statistics of batch normalisation are still those of training:
        `torch.optim.swa_utils.update_bn` inside computes them for the averages.

        Raises:
            RuntimeError: if no group has ``ema``. And inside from `step`, from all that moves the
                parameters to other weights or changes the true ones, from copies of the optimizer,
                and from its `state_dict` if the true weights have no backup.

        Example:
            >>> with opt.averaged_weights():
            ...     evaluate(model)
        """
        self._check_averages("averaged_weights")
        if self._clients.shows_averages:
            yield
            return
        with self.true_weights():
            self._settle_averages()
            kept = self._weights_without_backup()
            try:
                self._clients.show_averages()
                self._show_averages()
                yield
            finally:
                self._clients.shows_averages = False
                self._show_true(kept)

    def _check_averages(self, name: str) -> None:
        if all(group["ema"] is None for group in self.param_groups):
            raise RuntimeError(f"{name} needs ema, got an optimizer without it")

    @outside_inference_mode
    @torch.no_grad()
    def _settle_averages(self) -> None:
        """Takes note of what came from outside; averages that have yet to begin do."""
        self._finish_loading()
        self._put_in_order()
        if self._keeping.copies is not None:
            self._renew_copies()  # which stay what they are while averages are shown

    def _average(self, param: Tensor) -> Tensor | None:
        """The average of a parameter, of a DTensor that of its shard."""
        average = self.state.get(param, {}).get("average")
        return None if average is None else layout.local(average)

    def _buckets(self) -> list[Bucket]:
        return [bucket for group in self.param_groups for bucket in self._plan(group).buckets]

    def _weights_without_backup(self) -> dict[Tensor, Tensor]:
        """What parameters hold that cannot have it again from a backup."""
        return {
            param: weight.clone()
            for bucket in self._buckets()
            if not bucket.has_backup
            for param, weight in zip(bucket.params, bucket.true_weights(), strict=True)
        }

    @outside_inference_mode
    @torch.no_grad()
    def _show_averages(self) -> None:
        for bucket in self._buckets():
            bucket.rewrite(list(map(self._average, bucket.params)), are_true=False)
        self._forget_gathered()

    @outside_inference_mode
    @torch.no_grad()
    def _show_true(self, kept: dict[Tensor, Tensor]) -> None:
        for bucket in self._buckets():
            if bucket.has_backup:
                bucket.restore()
            else:
                bucket.rewrite(list(map(kept.get, bucket.params)), are_true=False)
        self._forget_gathered()

    def _forget_gathered(self) -> None:
        if any(map(layout.is_dtensor, self._params())):
            forget_gathered()


def _checked(update: Update, params: list[Tensor], weights: list[Tensor]) -> list[Tensor | None]:
    values = [update(param, weight) for param, weight in zip(params, weights, strict=True)]
    for weight, value in zip(weights, values, strict=True):
        if value is not None and value.shape != weight.shape:
            raise ValueError(
                f"update must return weights of shape {tuple(weight.shape)}, "
                f"got {tuple(value.shape)}"
            )
    return values
