"""Whether somebody else moved the parameters of a bucket, or wrote to them."""

from __future__ import annotations

import itertools
import operator
from typing import cast

from torch import Tensor

from wpadamw import layout
from wpadamw.compat import increment_version
from wpadamw.tensors import Versions, layouts, versions


def _is_part(tensor: Tensor) -> bool:
    """Whether others may share the tensor's memory, and so its version counter."""
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


class Watch:
    """The layouts of parameters at construction, and their versions at the last own write."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.locals = [layout.local(param) for param in params]
        self.are_sharded = any(map(operator.is_not, self.locals, params))
        self.layouts = layouts(self.locals)
        self.versions: Versions | None = None  # None: an own write was interrupted
        self.are_whole = not any(map(_is_part, self.locals))
        self.own()

    def is_in_place(self) -> bool:
        """Whether parameters lie where and as they did at construction."""
        if self.are_sharded:
            self.locals = [layout.local(param) for param in self.params]
        try:
            return self.layouts.are_of(self.locals)
        except RuntimeError:  # a tensor without memory; a new bucket will say so
            return False

    def own(self) -> None:
        """Takes the present values of the parameters for the optimizer's own."""
        self.versions = versions(self._counted())

    def _counted(self) -> list[Tensor]:
        """Whose versions tell of writes: those to a DTensor do not raise that of its shard."""
        return [*self.locals, *self.params] if self.are_sharded else self.locals

    def doubt(self, where: list[bool]) -> None:
        """Has parameters looked at as if just written to."""
        if self.versions is None:
            self.own()
            where = [True] * len(where)
        for i in itertools.compress(range(len(where)), where):
            cast(Versions, self.versions).doubt(i)

    def is_untouched(self) -> bool:
        """Whether nobody has moved parameters, or written to them, since the last own write."""
        if self.versions is None or self.are_sharded:
            return False
        return self.layouts.are_of(self.locals) and self.versions.are_of(self.locals)

    def written(self, without_trace: bool) -> list[int]:
        """Indices of parameters that others wrote to since the last own write.

        After an interrupt nobody knows: all of them, or none ``without_trace``.
        """
        if self.versions is None:
            return [] if without_trace else list(range(len(self.locals)))
        differing = self.versions.differing(self._counted())
        return sorted({i % len(self.params) for i in differing}) if differing else []

    def note_write(self, where: list[bool] | None, are_raised: bool) -> None:
        """To be called after own writes to parameters (None: all): autograd hears of them.

        Args:
            where: the parameters that were written.
            are_raised: whether writing has raised their versions already.
        """
        before, self.versions = self.versions, None
        increment_version(list(itertools.compress(self.locals, where)) if where else self.locals)
        # Where nobody else raises the counters they need not be read again.
        is_one_each = self.are_whole and not self.are_sharded
        if before is None or where is not None or are_raised or not is_one_each:
            self.own()
        else:
            before.raise_all()
            self.versions = before
