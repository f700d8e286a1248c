"""Copies of the parameters in the dtype that forwards compute in: where the predictions live.

With them the parameters hold their true weights at all times: there is no backup, and there are no
modes. `wpadamw.copy_bucket` writes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wpadamw import layout

# Of parameters: the dtypes that their copies may have.
_COMPUTE_DTYPES: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float32: (torch.bfloat16, torch.float16, torch.float32),
    torch.float64: (torch.float64,),
}


class Kind(NamedTuple):
    """What the copy of a parameter is like."""

    dtype: torch.dtype
    room: int = 0  # elements of its memory, if more than those of the parameter


class Copies:
    """One copy for each parameter, made when it is first asked for, and then kept.

    Args:
        kind: that of every parameter's copy.
        kinds: those of some parameters, by id, in the place of it.
    """

    def __init__(self, kind: Kind | None = None, kinds: Mapping[int, Kind] | None = None) -> None:
        self.kind, self.kinds = kind, kinds or {}
        self.memory: dict[Tensor, Tensor] = {}  # by parameter
        # What parameters were at the last look that found their copies fresh, by id.
        self.seen: dict[int, tuple[Tensor, int]] = {}

    def kind_of(self, param: Tensor) -> Kind:
        """What the copy of a parameter is to be like.

        Raises:
            TypeError: for a parameter that can have no such copy.
        """
        kind = self.kinds.get(id(param), self.kind)
        if kind is None:
            raise TypeError("params must be shards of the model that was handed over, got another")
        if kind.dtype not in _COMPUTE_DTYPES.get(param.dtype, ()):
            raise TypeError(
                f"params must be float32 for compute_dtype={kind.dtype}, got {param.dtype}"
            )
        return kind

    def of(self, param: Tensor, dense: Tensor) -> Tensor:
        """The copy of a parameter, laid out like the dense real tensor behind it.

        Of a view with gaps, or at an odd address, kernels work on a contiguous one.
        """
        kind, flat = self.kind_of(param), self.memory.get(param)
        wanted = max(kind.room, dense.numel()), kind.dtype, dense.device
        if flat is None or (flat.numel(), flat.dtype, flat.device) != wanted:
            flat = self.memory[param] = torch.zeros(
                wanted[0], dtype=kind.dtype, device=dense.device
            )
        if not (layout.is_dense(dense) and layout.is_aligned(dense)):
            return flat[: dense.numel()].view(dense.shape)
        return flat.as_strided(dense.shape, dense.stride())

    def show_true(self, params: Iterable[Tensor]) -> None:
        """Has the copies of parameters without state hold what these hold."""
        for param in params:
            if param in self.memory:
                shard = layout.local(param).detach()
                self.of(param, shard).copy_(shard)

    def note_seen(self, param: Tensor, local: Tensor) -> None:
        """Notes that the copy of a parameter is fresh."""
        self.seen[id(param)] = (local, local._version + param._version)

    def is_seen(self, param: Tensor, local: Tensor) -> bool:
        """Whether nobody has replaced a parameter's shard, or written to it, since then."""
        shard, version = self.seen.get(id(param), (None, 0))
        return shard is local and version == local._version + param._version

    def memory_of(self, param: Tensor) -> Tensor:
        """All the memory of a parameter's copy, of which it fills the beginning."""
        return self.memory[param]


def check_compute_dtype(dtype: Any) -> None:
    """Raises ValueError for what is no dtype of copies."""
    known = tuple(dict.fromkeys(each for of in _COMPUTE_DTYPES.values() for each in of))
    if dtype is not None and dtype not in known:
        raise ValueError(f"compute_dtype must be None or one of {known}, got {dtype!r:.200}")


class Keeping:
    """Whether an optimizer keeps copies. Shared by reference, like its plans."""

    def __init__(self, copies: Copies | None = None) -> None:
        self.copies = copies

    def emptied(self) -> Keeping:
        """The same for a copy of the optimizer: what is kept can be computed again."""
        kind = self.copies and self.copies.kind
        return Keeping(Copies(kind) if kind else None)
