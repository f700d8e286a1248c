"""That modules are parts of attached models: an attribute of each, which tells whom they follow."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn

from wpadamw.follow import Follower

LINKS = "_wpadamw_links"


class Link(NamedTuple):
    """That a module is part of an attached model."""

    module: weakref.ref[nn.Module]
    follower: Follower
    is_root: bool

    def is_of(self, module: nn.Module) -> bool:
        """False in what shares the module's attributes, like a replica of nn.DataParallel."""
        return self.module() is module


class Links(tuple[Link, ...]):
    """The links of a module; copies of it are empty."""

    def __init__(self, links: Iterable[Link]) -> None:
        # While this is not empty calls are parts of a forward and need not be looked at.
        self.forwards: Sequence[Follower] = ()
        # Whether the call that has come to __call__ is about to come to _call_impl.
        self.has_entered = False
        if len(self) == 1 and not self[0].is_root:
            self.forwards = self[0].follower.under_way

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, ()


def links_of(module: nn.Module) -> Sequence[Link]:
    """The links of a module; none if it is not attached."""
    links: Sequence[Link] = vars(module).get(LINKS, ())
    return links
