"""A bucket of matrices whose updates are computed before a kernel writes."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw._backends.interface import Completed, Gradients
from wpadamw.bucket import Bucket, StepCall, Write
from wpadamw.checks import check_kind
from wpadamw.copy_bucket import CopyBucket
from wpadamw.orthogonal import Updates
from wpadamw.rules.rule import Rule


class DirectedBucket(Bucket):
    """Kernels take finished updates in the place of gradients, and keep them.

    The first state of the rule is the momentum from which updates are computed. It is written after
    a kernel has written all the rest. Until then a step holds both anew, and the gradients times
    their factor: three numbers per parameter, beside what the products of matrices take.
    """

    def __init__(self, params: list[Tensor], rule: Rule, *args: Any) -> None:
        for param in params:
            check_kind(param, rule)
        super().__init__(params, rule, *args)
        self.momenta: dict[int, Tensor] = {}  # after the step that has begun, by position

    def step(self, grads: Gradients, call: StepCall) -> None:
        """Updates the parameters that have a gradient, and predicts if asked to."""
        self.momenta, updates = self._ahead(grads, call)
        super().step(updates, call._replace(factor=1.0))

    @torch.no_grad()
    def _ahead(self, grads: Gradients, call: StepCall) -> tuple[dict[int, Tensor], Gradients]:
        """The momenta and the updates that follow from gradients. Nothing is written."""
        how, former = call.settings.updates, self.tensors.state[0]
        given = self._scaled(grads, call.factor)
        momenta = {i: how.after(former[i], grad) for i, grad in given.items()}
        tensors = self._updates(how, momenta, given)
        if call.found_inf is not None:  # the momentum remains what it is, too
            is_void = call.found_inf != 0
            momenta = {i: torch.where(is_void, former[i], m) for i, m in momenta.items()}
        addresses = [0 if update is None else update.data_ptr() for update in tensors]
        return momenta, Gradients(self.real_dtype, tensors, addresses, grads.has_grad)

    def _scaled(self, grads: Gradients, factor: float | Tensor) -> dict[int, Tensor]:
        """The gradients that there are, times their factor, in the dtype of the state."""
        if isinstance(factor, Tensor):
            factor = factor.to(self.real_dtype)
        pairs = enumerate(grads.tensors)
        return {i: grad.to(self.real_dtype) * factor for i, grad in pairs if grad is not None}

    def _updates(
        self, how: Updates, momenta: dict[int, Tensor], grads: dict[int, Tensor]
    ) -> list[Tensor | None]:
        """The updates of parameters that have a gradient, laid out like these."""
        updates: list[Tensor | None] = [None] * len(self.params)
        by_shape: dict[torch.Size, list[int]] = {}
        for i in momenta:
            by_shape.setdefault(self.params[i].shape, []).append(i)
        for shape, places in by_shape.items():
            mixes = [how.mix(momenta[i], grads[i]).bfloat16() for i in places]
            wholes = [layout.whole(self.params[i], m) for i, m in zip(places, mixes, strict=True)]
            for i, found in zip(places, how.all_orthogonal(wholes), strict=True):
                update = torch.empty_like(self.tensors.params[i], dtype=self.real_dtype)
                update.copy_(layout.shard_of(self.params[i], found))
                updates[i] = update.mul_(how.size(shape))
        return updates

    def finish(self, begun: Write) -> None:
        """To be called after an operation has written."""
        if begun.resume is not None:
            self._keep_momenta(begun.completed, self.kernels.completed())
        super().finish(begun)

    def _keep_momenta(self, before: Completed, now: Completed) -> None:
        """Writes the momenta of parameters that a step has written; may be repeated."""
        if isinstance(now, list) and isinstance(before, list):
            done = list(map(operator.ne, now, before))
        else:
            done = [now != before] * len(self.params)
        for i, momentum in self.momenta.items():
            if done[i]:
                self.tensors.state[0][i].copy_(momentum)
        self.momenta = {}


class DirectedCopyBucket(DirectedBucket, CopyBucket):
    """The same with predictions in copies of the parameters."""


# By whether their rule is one of matrices, and whether copies hold the predictions.
BUCKETS: dict[tuple[bool, bool], type[Bucket]] = {
    (False, False): Bucket,
    (False, True): CopyBucket,
    (True, False): DirectedBucket,
    (True, True): DirectedCopyBucket,
}
