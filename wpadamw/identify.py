"""Which weights does a parameter hold: its true ones, its predicted ones, or some from outside?

Asked after loading a checkpoint and after a write that was not the optimizer's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from wpadamw.buckets import Bucket
from wpadamw.columns import Columns
from wpadamw.scalars import NULL_PREDICTION, Prediction

Mode = Literal["true", "predicted"]
Found = Literal["true", "predicted", "both", "neither"]


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _predict(bucket: Bucket, columns: Columns, i: int, dtype: torch.dtype) -> Tensor:
    """The prediction of parameter i from its backup, computed in ``dtype``."""
    assert bucket.tensors.weight is not None
    rule, scalars = bucket.rule, columns.prediction_rows()[i]
    weight = bucket.tensors.weight[i].to(dtype)
    direction = rule.direction(tuple(kind[i].to(dtype) for kind in bucket.tensors.state), scalars)
    return rule.predict_weight(weight, direction, scalars).to(bucket.tensors.params[i].dtype)


def identify(bucket: Bucket, indices: Iterable[int], prediction: Prediction) -> dict[int, Found]:
    """Compares parameters of a bucket with their backups and the predictions from them.

    ``prediction`` is the group's, for parameters whose last update has none on record: they may
    hold one all the same, made after the state was saved.
    """
    bucket.stage()
    columns = bucket.columns.on_host()
    recorded = columns.records
    columns.records = [record if record.made else prediction for record in recorded]
    try:
        return {i: _identify_parameter(bucket, columns, i) for i in indices}
    finally:
        columns.records = recorded


def _identify_parameter(bucket: Bucket, columns: Columns, i: int) -> Found:
    if bucket.tensors.weight is None:
        return "neither"
    held = bucket.tensors.params[i]
    # A model cast from float32 to float64 holds the prediction that was made in float32.
    dtypes = {bucket.real_dtype, torch.float32}
    is_true = _same(held, bucket.tensors.weight[i].to(held.dtype))
    is_predicted = any(_same(held, _predict(bucket, columns, i, dtype)) for dtype in dtypes)
    if is_true:
        return "both" if is_predicted else "true"
    return "predicted" if is_predicted else "neither"


def group_modes(found: list[set[Found]], file_modes: list[Mode]) -> list[Mode]:
    """The modes of groups, from what their parameters hold and what the file says.

    The file decides for groups that do not tell, unless the others contradict it: then the model
    was saved in another mode than the optimizer.
    """
    told = [_common_mode(kinds) for kinds in found]
    pairs = list(zip(told, file_modes, strict=True))
    contradicting = {mode for mode, file_mode in pairs if mode not in (None, file_mode)}
    if len(contradicting) == 1:
        (other,) = contradicting
        return [mode or other for mode in told]
    return [mode or file_mode for mode, file_mode in pairs]


def _common_mode(kinds: set[Found]) -> Mode | None:
    if kinds <= {"both"}:
        return None
    return "predicted" if kinds <= {"predicted", "both"} else "true"


def settle(bucket: Bucket, found: dict[int, Found], mode: Mode, prediction: Prediction) -> None:
    """Brings parameters into their group's mode; those from outside become the true weights."""
    if mode == "predicted":
        unmade = [not record.made for record in bucket.columns.on_host().records]
        bucket.columns.record(prediction, unmade)
    columns = bucket.columns.on_host()
    for i, kind in found.items():
        _settle_parameter(bucket, columns, i, kind, mode)
    bucket.finish_write([i in found for i in range(len(bucket.params))])
    if mode == "predicted":
        adopted = [found.get(i) == "neither" for i in range(len(bucket.params))]
        bucket.columns.record(NULL_PREDICTION, adopted)


def _settle_parameter(bucket: Bucket, columns: Columns, i: int, kind: Found, mode: Mode) -> None:
    held, weight = bucket.tensors.params[i], bucket.tensors.weight
    if weight is None or kind in ("both", mode):
        return
    if kind == "neither":
        weight[i].copy_(held)
    else:
        predicted = mode == "predicted"
        held.copy_(_predict(bucket, columns, i, bucket.real_dtype) if predicted else weight[i])
