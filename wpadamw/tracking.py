"""How good predictions were: what a step has measured of them on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wpadamw import sums
from wpadamw.bucket import Bucket


@dataclass(frozen=True)
class PredictionStats:
    """Of one parameter group in one step: where gradients were computed, and where that led.

    Float64 tensors of one element on the group's device. NaN where nothing has moved.

    Attributes:
        error: the distance of the predicted weights from the new ones, in lengths of the step: 1
            where nothing was predicted, 0 for perfect predictions.
        best_steps: the ``prediction_steps`` with which the error would have been the least.
        cosine: of the angle between the predicted move and the step.
    """

    error: Tensor
    best_steps: Tensor
    cosine: Tensor


class Tracked(NamedTuple):
    """What a step has summed over each parameter of a bucket, see `Kernels.step`."""

    bucket: Bucket
    sums: Tensor  # float64, [3, parameters]


def room_for(bucket: Bucket) -> Tensor:
    """For the sums over each parameter of a bucket."""
    device = bucket.tensors.params[0].device
    return torch.empty(3, len(bucket.params), dtype=torch.float64, device=device)


def unless_void(
    found: list[Tracked], former: list[Tracked], found_inf: Tensor | None
) -> list[Tracked]:
    """What a step has found, or what the former one has if the device did nothing in this one."""
    if found_inf is None or [each.bucket for each in found] != [each.bucket for each in former]:
        return found
    pairs = zip(found, former, strict=True)
    return [new._replace(sums=_unless(found_inf, new.sums, old.sums)) for new, old in pairs]


def _unless(found_inf: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(found_inf.to(new.device, non_blocking=True) != 0, old, new)


def stats(params: Sequence[Tensor], tracked: Sequence[Tracked], steps: float) -> PredictionStats:
    """Of a group with these parameters, from what its last step has summed.

    With e the error of a prediction, d the step and p = d + e the predicted move, |p| and the
    products of p follow from the sums of e*e, d*d and e*d.
    """
    each = sums.of_parameters([(part.bucket.params, part.sums) for part in tracked], params)
    error, step, product = sums.total(tracked[0].bucket.kernels, each)
    predicted, along = error + 2.0 * product + step, product + step
    return PredictionStats(
        error=(error / step).sqrt(),
        best_steps=steps * along / predicted,
        cosine=along / (predicted * step).sqrt(),
    )
