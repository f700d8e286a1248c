"""Steps after which nothing but gradients has changed, in two calls of the extension each.

Most steps are like that. Walked through in Python, what has to be asked and done for a bucket takes
longer than the update of small tensors. Everything else goes the long way, which does the same.
"""

from __future__ import annotations

from typing import Any

from wpadamw._backends import cpp
from wpadamw._backends.extension import dtype_code, extension
from wpadamw.bucket import Bucket
from wpadamw.compat import clear_autocast_cache
from wpadamw.ledger import Ledger
from wpadamw.rules.rule import Settings
from wpadamw.tensors import PythonLayouts


class Standing:
    """A bucket of the C++ loop whose parameters have all had the same updates."""

    def __init__(self, bucket: Bucket) -> None:
        assert isinstance(bucket.ledger, Ledger)
        self.bucket, self.ledger = bucket, bucket.ledger
        self.in_c: Any = extension().Standing(
            bucket.kernels.table,  # type: ignore[attr-defined]
            bucket.watch.layouts,
            bucket.params,
            bucket.flats,
            bucket.ledger.tensors,
            bucket.states,
            bucket.state_values,
            dtype_code(bucket.dtype),
            bucket.ledger.steps.data_ptr(),
            bucket.ledger.predictions.data_ptr(),
            bucket.increment,
        )
        self.count = -1
        operation = extension().Operation
        self.operations = {False: operation.step, True: operation.step_and_predict}

    @classmethod
    def of(cls, bucket: Bucket) -> Standing | None:
        """That of a bucket, or None where there is none of it."""
        rule = bucket.rule
        is_served = bucket.backend is cpp and not bucket.counts_on_device
        is_served = is_served and not (rule.num_terms or rule.is_of_matrices)
        is_plain = bucket.is_plain() and not isinstance(bucket.watch.layouts, PythonLayouts)
        return cls(bucket) if is_served and is_plain else None

    def look(self) -> bool:
        """Whether all is as the last own write has left it, and every parameter has a gradient."""
        bucket = self.bucket
        of_params, of_flats = bucket.watch.versions, bucket.state_versions
        if bucket.begun is not None or bucket.to_begin or of_params is None or of_flats is None:
            return False
        self.count = self.in_c.look(of_params, of_flats, self.ledger.versions)
        return bool(self.count >= 0)

    def step(self, settings: Settings, factor: float, predict_next: bool) -> None:
        """The step that follows a look; parameters hold afterwards what they held before."""
        step, looks = self.ledger.rule.row(settings, self.count + 1, self.ledger.num_looks)
        # An interrupt may come after any line: the call is the last thing that is done.
        self.ledger.forget()
        self.bucket.is_after_literal_step = not predict_next
        self.bucket.forget_aside(None)
        clear_autocast_cache()
        self.in_c.step(
            self.operations[predict_next],
            step + looks,
            predict_next,
            factor,
            cpp.num_threads(),
            self.bucket.watch.versions,
        )
