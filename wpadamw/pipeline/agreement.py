"""What the ranks of a pipeline must agree on, found out before anybody waits for another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from wpadamw.compat import device_guard


class Claim(NamedTuple):
    """What a rank is about to build, and what is wrong with it as far as it can tell alone."""

    what: str
    agreed: dict[str, Any]  # the same on all ranks
    own: dict[str, Any]  # different on all ranks
    why_not: str | None


def agree(claim: Claim, group: dist.ProcessGroup | None, device: torch.device) -> None:
    """Exchange claims; to be called by all ranks of a group.

    Raises:
        ValueError: on all ranks, if there is something wrong on one.
    """
    claims: list[Any] = [None] * dist.get_world_size(group)
    with device_guard(device):
        dist.all_gather_object(claims, claim, group)
    if reasons := list(_reasons(claims)):
        raise ValueError("; ".join(reasons))


def _reasons(claims: Sequence[Claim]) -> Iterator[str]:
    built = [claim.what for claim in claims]
    if len(set(built)) > 1:
        yield f"all ranks of a pipeline must build the same in turn, got {_listed(built)}"
        return
    for name in claims[0].agreed:
        values = [claim.agreed[name] for claim in claims]
        if any(value != values[0] for value in values):
            yield f"{name} must be the same on all ranks of the pipeline, got {_listed(values)}"
    for name in claims[0].own:
        values = [claim.own[name] for claim in claims]
        if len(set(values)) < len(values):
            yield f"{name} must be another on each rank of the pipeline, got {_listed(values)}"
    for reason in dict.fromkeys(claim.why_not for claim in claims if claim.why_not is not None):
        ranks = [rank for rank, claim in enumerate(claims) if claim.why_not == reason]
        yield reason if len(ranks) == len(claims) else f"rank {_listed(ranks)}: {reason}"


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
