"""Which weights does a parameter hold: its true ones, its predicted ones, or some from outside?

Asked after loading, after a write that was not the optimizer's own, and before a switch between
modes overwrites what is there: weights written through ``.data`` leave no other trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw.buckets import Bucket
from wpadamw.columns import Columns
from wpadamw.scalars import NULL_PREDICTION, Mode, Prediction, Scalars

# Elements that are compared at a time: what they need of memory stays in the cache.
_CHUNK_NUMEL = 2**17

# The dtype in which values were computed, and that of the parameters which held them.
_Cast = tuple[torch.dtype, torch.dtype]


class Found(NamedTuple):
    """What a parameter holds. True and predicted weights may be the same."""

    true: bool
    predicted: bool

    @property
    def is_foreign(self) -> bool:
        """Whether the weights came from outside."""
        return not (self.true or self.predicted)

    def holds(self, mode: Mode) -> bool:
        """Whether it holds the weights of a mode."""
        return self.predicted if mode == "predicted" else self.true


def identify(
    bucket: Bucket, indices: Iterable[int], prediction: Prediction, is_loading: bool = False
) -> dict[int, Found]:
    """Compares parameters of a bucket with their backups and the predictions from them.

    ``prediction`` is the group's, for parameters whose last update has none on record: they may
    hold one all the same, made after the state was saved. While loading, values that went through a
    model of another dtype are known again, too.
    """
    bucket.stage()
    rows = _all_made(bucket, prediction).prediction_rows()
    casts = _casts(bucket, is_loading)
    return {
        i: Found(
            any(_holds(bucket, i, None, cast) for cast in casts),
            any(_holds(bucket, i, rows[i], cast) for cast in casts),
        )
        for i in indices
    }


def unexpected(bucket: Bucket) -> list[int]:
    """Indices of parameters that do not hold what they should."""
    if bucket.tensors.weight is None:
        return []
    bucket.stage()
    rows = bucket.columns.on_host().prediction_rows()
    cast = (bucket.real_dtype, bucket.tensors.params[0].dtype)
    return [
        i
        for i, holds_prediction in enumerate(bucket.held)
        if not _holds(bucket, i, rows[i] if holds_prediction else None, cast)
    ]


def _all_made(bucket: Bucket, prediction: Prediction) -> Columns:
    columns = Columns.of(bucket.columns.on_host().numbers())
    columns.record(prediction, [not record.made for record in columns.records])
    return columns


def _casts(bucket: Bucket, is_loading: bool) -> list[_Cast]:
    """How values may have come into a parameter: computed in one dtype, held in another."""
    former = layout.REAL_DTYPE if is_loading else bucket.former_dtypes
    casts = [(layout.REAL_DTYPE[dtype], dtype) for dtype in former if not dtype.is_complex]
    own = (bucket.real_dtype, bucket.tensors.params[0].dtype)
    return list(dict.fromkeys([own, *casts]))


def _holds(bucket: Bucket, i: int, scalars: Scalars | None, cast: _Cast) -> bool:
    """Whether parameter i holds its prediction by ``scalars`` (None: its true weights)."""
    if bucket.tensors.weight is None:
        return False
    chunks = _chunks(bucket, i, scalars, cast[0])
    return all(_same(held, expected.to(cast[1]).to(held.dtype)) for held, expected in chunks)


def _chunks(
    bucket: Bucket, i: int, scalars: Scalars | None, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    """What parameter i holds and what is expected of it, piece by piece in memory order."""
    param, tensors, rule = bucket.tensors.params[i], bucket.tensors, bucket.rule
    assert tensors.weight_flat is not None
    held, offset = param.detach().as_strided((param.numel(),), (1,)), tensors.offsets[i]
    for begin in range(0, param.numel(), _CHUNK_NUMEL):
        end = min(begin + _CHUNK_NUMEL, param.numel())
        expected, *state = (
            flat[offset + begin : offset + end].to(dtype)
            for flat in (tensors.weight_flat, *tensors.state_flat)
        )
        if scalars is not None:
            direction = rule.direction(tuple(state), scalars)
            expected = rule.predict_weight(expected, direction, scalars)
        yield held[begin:end], expected


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def group_modes(found: list[list[Found]], file_modes: list[Mode]) -> list[Mode]:
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


def _common_mode(kinds: list[Found]) -> Mode | None:
    telling = [kind for kind in kinds if kind.true != kind.predicted]
    if telling:
        return "predicted" if all(kind.predicted for kind in telling) else "true"
    return "true" if any(kind.is_foreign for kind in kinds) else None


def settle(
    bucket: Bucket,
    found: dict[int, Found],
    mode: Mode,
    prediction: Prediction,
    is_loading: bool = False,
) -> None:
    """Brings parameters into their group's mode; those from outside become the true weights."""
    foreign = [kind is not None and kind.is_foreign for kind in map(found.get, _all(bucket))]
    if bucket.tensors.weight is not None:
        for i in itertools.compress(_all(bucket), foreign):
            bucket.tensors.weight[i].copy_(bucket.tensors.params[i])
    if mode == "predicted":
        unmade = [not record.made for record in bucket.columns.on_host().numbers().records]
        bucket.columns.record(prediction, unmade)
        bucket.columns.record(NULL_PREDICTION, foreign)
    bucket.finish_write([i in found for i in _all(bucket)])
    astray = any(not kind.is_foreign and not kind.holds(mode) for kind in found.values())
    # What went through another dtype has been rounded there.
    if bucket.has_backup and (astray or is_loading or bucket.former_dtypes):
        bucket.move(mode, prediction)


def _all(bucket: Bucket) -> range:
    return range(len(bucket.params))
