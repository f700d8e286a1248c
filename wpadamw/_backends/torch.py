"""The specification as a backend: any device, any dtype, one parameter at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw._backends.interface import BucketTensors, Gradients, Rows
from wpadamw.scalars import Scalars

NAME = "torch"


def why_not(device_type: str) -> str | None:
    """Why this backend cannot serve a type of device, or None if it can."""
    if device_type == "meta":
        return "meta tensors have no data"
    if device_type == "cuda" and not torch.cuda.is_available():
        return "no CUDA device"
    return None


class Kernels:
    """Predict, restore and step over a bucket through `wpadamw.rules`."""

    raise_versions = True

    def __init__(self, bucket: BucketTensors) -> None:
        self.bucket = bucket

    @torch.no_grad()
    def step(self, grads: Gradients, rows: Rows, last: Rows, predict_next: bool) -> None:
        """Restore, update and, with ``predict_next``, predict."""
        for i, grad in enumerate(grads.tensors):
            if grad is not None:
                self._step_parameter(i, grad, rows[i], last.get(i), predict_next)

    @torch.no_grad()
    def predict(self, rows: Rows) -> None:
        """Go to the predicted weights."""
        for i, param in enumerate(self.bucket.params):
            state, s = self._state(i), rows[i]
            weight, direction = self._true_weight(i, None), self.bucket.rule.direction(state, s)
            param.copy_(self.bucket.rule.predict_weight(weight, direction, s))

    @torch.no_grad()
    def restore(self, last: Rows) -> None:
        """Go to the true weights."""
        for i, param in enumerate(self.bucket.params):
            param.copy_(self._true_weight(i, last.get(i)))

    def _step_parameter(
        self, i: int, grad: Tensor, s: Scalars, last: Scalars | None, predict_next: bool
    ) -> None:
        rule, state = self.bucket.rule, self._state(i)
        weight = self._true_weight(i, last)
        new_state = rule.update(state, grad.to(weight.dtype) * s.grad_factor, s)
        direction = rule.direction(new_state, s)
        weight = rule.step_weight(weight, direction, s)
        for flat, values in zip(state, new_state, strict=True):
            flat.copy_(values)
        if self.bucket.weight is not None:
            self.bucket.weight[i].copy_(weight)
        held = rule.predict_weight(weight, direction, s) if predict_next else weight
        self.bucket.params[i].copy_(held)

    def _state(self, i: int) -> tuple[Tensor, ...]:
        return tuple(views[i] for views in self.bucket.state)

    def _true_weight(self, i: int, last: Scalars | None) -> Tensor:
        if self.bucket.weight is not None:
            return self.bucket.weight[i]
        param = self.bucket.params[i]
        if last is None:
            return param.clone()
        rule = self.bucket.rule
        return rule.recover_weight(param, rule.direction(self._state(i), last), last)
