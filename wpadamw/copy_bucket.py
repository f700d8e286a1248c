"""A bucket whose predictions go to copies of the parameters."""

from __future__ import annotations

from torch import Tensor

from wpadamw import layout
from wpadamw._backends.interface import Gradients
from wpadamw.bucket import Bucket, StepCall, Write
from wpadamw.checks import Mode
from wpadamw.compat import increment_version
from wpadamw.rules.rule import Settings
from wpadamw.tensors import versions


class CopyBucket(Bucket):
    """Parameters that hold true weights at all times; ``held`` tells what their copies hold.

    Copies follow from weights, states and records: whoever writes to one of these makes them stale,
    and they are computed anew before anything else is done.
    """

    is_fresh = False

    def refresh(self) -> None:
        """Takes note of what happened outside."""
        super().refresh()
        if not self.can_recreate() or self.watch.written(without_trace=False):
            self.is_fresh = False

    def written_outside(self) -> list[int]:
        """None: whatever parameters hold is true."""
        return []

    def holds_all(self, mode: Mode) -> bool:
        """Whether there is nothing to do: parameters follow no mode, copies must be fresh."""
        return self.is_fresh

    def move(self, mode: Mode, settings: Settings) -> None:
        """Computes the copies."""
        self.predict(settings)

    def begin(self) -> None:
        """Has averages begin as the true weights, which may be others until the next step."""
        to_begin = self.to_begin
        super().begin()
        self.to_begin = to_begin

    def step(self, grads: Gradients, call: StepCall) -> None:
        """Updates the parameters that have a gradient, and their copies."""
        super().begin()
        super().step(grads, call)
        self.is_fresh = self.is_fresh or grads.has_grad is None
        self._note_seen()

    def predict(self, settings: Settings) -> None:
        """Computes the copies; ``settings`` are for those that have no prediction yet."""
        super().predict(settings)
        self.is_fresh = True
        self._note_seen()

    def _note_seen(self) -> None:
        """Spares those who ask for single copies of shards a look at everything."""
        if self.watch.are_sharded and self.copies is not None and self.is_fresh:
            for param in self.params:
                self.copies.note_seen(param, layout.own_shard(param))

    def increment(self, params: list[Tensor]) -> None:
        """Tells autograd that kernels wrote to all parameters and copies."""
        increment_version([*params, *self.tensors.params])

    def finish(self, begun: Write) -> None:
        """To be called after an operation has written: a prediction has written to copies alone."""
        increment_version(self.tensors.params)
        if begun.resume is not None:
            self.finish_write(begun.where)
        else:
            self.state_versions = versions(self.flats)
            self.watch.own()
