"""Which weights does a parameter hold: its true ones, its predicted ones, or some from outside?

Asked after loading, after a write that was not the optimizer's own, and before a switch between
modes overwrites what is there: weights written through ``.data`` leave no other trace.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from wpadamw import layout
from wpadamw._backends.interface import Rows
from wpadamw.bucket import Bucket
from wpadamw.checks import Mode
from wpadamw.compare import Cast, differing
from wpadamw.rules.rule import Settings


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
    bucket: Bucket, indices: Iterable[int], settings: Settings, is_loading: bool = False
) -> dict[int, Found]:
    """Compares parameters of a bucket with their backups and the predictions from them.

    ``settings`` are the group's, for parameters whose last update has none on record: they may
    hold one all the same, made after the state was saved. While loading, values that went through a
    model of another dtype are known again, too.
    """
    bucket.stage()
    chosen = list(indices)
    rows = bucket.ledger.on_host().begin_predict(settings)
    casts = _casts(bucket, is_loading)
    true = _holding(bucket, chosen, None, casts)
    predicted = _holding(bucket, chosen, rows, casts)
    return {i: Found(i in true, i in predicted) for i in chosen}


def _casts(bucket: Bucket, is_loading: bool) -> list[Cast]:
    """How values may have come into a parameter: computed in one dtype, held in another."""
    own = (bucket.real_dtype, bucket.tensors.params[0].dtype)
    others = layout.REAL_DTYPE if is_loading else {}
    casts = [(layout.REAL_DTYPE[dtype], dtype) for dtype in others if not dtype.is_complex]
    return list(dict.fromkeys([own, *casts]))


def _holding(bucket: Bucket, indices: list[int], rows: Rows | None, casts: list[Cast]) -> set[int]:
    """Which parameters hold their predictions by ``rows`` (None: their true weights)."""
    holding: set[int] = set()
    if bucket.tensors.weight is not None:
        # Predictions that a file knows of were made from the state as it came.
        sources = [bucket.tensors] if bucket.came is None else [bucket.tensors, bucket.came]
        for source, cast in itertools.product(sources, casts):
            left = [i for i in indices if i not in holding]
            holding |= set(left) - differing(bucket, left, rows, cast, source=source)
    return holding


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
    if not telling:
        return None
    return "predicted" if all(kind.predicted for kind in telling) else "true"


def settle(
    bucket: Bucket,
    found: dict[int, Found],
    mode: Mode,
    settings: Settings,
    is_loading: bool = False,
) -> None:
    """Brings parameters into their group's mode; those from outside become the true weights."""
    foreign = [kind is not None and kind.is_foreign for kind in map(found.get, _all(bucket))]
    if bucket.tensors.weight is not None:
        for i in itertools.compress(_all(bucket), foreign):
            bucket.tensors.weight[i].copy_(bucket.tensors.params[i])
    if mode == "predicted":
        bucket.ledger.record_missing(settings)
        bucket.ledger.record_null(foreign)
        bucket.forget_aside(foreign)
    bucket.finish_write([i in found for i in _all(bucket)])
    astray = any(not kind.is_foreign and not kind.holds(mode) for kind in found.values())
    # What went through another dtype has been rounded there.
    if bucket.has_backup and (astray or is_loading):
        bucket.move(mode, settings)


def _all(bucket: Bucket) -> range:
    return range(len(bucket.params))
