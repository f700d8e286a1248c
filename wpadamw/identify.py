"""Which weights does a parameter hold: its true ones, its predicted ones, or some from outside?

Asked after loading a checkpoint and after a write that was not the optimizer's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from wpadamw.buckets import Bucket
from wpadamw.scalars import NULL_PREDICTION

Mode = Literal["true", "predicted"]
Found = Literal["true", "predicted", "both", "neither"]


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def predicted_weights(bucket: Bucket, i: int) -> Tensor:
    """The prediction of parameter i from its backup, in the parameter's dtype."""
    tensors, rule = bucket.tensors, bucket.rule
    assert tensors.weight is not None
    scalars = bucket.columns.prediction_rows()[i]
    state = tuple(kind[i] for kind in tensors.state)
    predicted = rule.predict_weight(tensors.weight[i], rule.direction(state, scalars), scalars)
    return predicted.to(tensors.params[i].dtype)


def identify(bucket: Bucket, indices: Iterable[int]) -> dict[int, Found]:
    """Compares parameters of a bucket with their backups and the predictions from them."""
    bucket.stage()
    return {i: _identify_parameter(bucket, i) for i in indices}


def _identify_parameter(bucket: Bucket, i: int) -> Found:
    if bucket.tensors.weight is None:
        return "neither"
    held = bucket.tensors.params[i]
    is_true = _same(held, bucket.tensors.weight[i].to(held.dtype))
    is_predicted = _same(held, predicted_weights(bucket, i))
    if is_true:
        return "both" if is_predicted else "true"
    return "predicted" if is_predicted else "neither"


def common_mode(found: Iterable[Found]) -> Mode | None:
    """The mode of a whole group, or None where it makes no difference."""
    kinds = set(found) - {"both"}
    if not kinds:
        return None
    return "predicted" if kinds == {"predicted"} else "true"


def settle(bucket: Bucket, found: dict[int, Found], mode: Mode) -> None:
    """Brings parameters into their group's mode; those from outside become the true weights."""
    for i, kind in found.items():
        _settle_parameter(bucket, i, kind, mode)
    bucket.finish_write([i in found for i in range(len(bucket.params))])
    if mode == "predicted":
        adopted = [found.get(i) == "neither" for i in range(len(bucket.params))]
        bucket.columns.record(NULL_PREDICTION, adopted)


def _settle_parameter(bucket: Bucket, i: int, kind: Found, mode: Mode) -> None:
    held, weight = bucket.tensors.params[i], bucket.tensors.weight
    if weight is None or kind in ("both", mode):
        return
    if kind == "neither":
        weight[i].copy_(held)
    else:
        held.copy_(weight[i] if mode == "true" else predicted_weights(bucket, i))
