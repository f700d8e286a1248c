"""The sums that rules which reduce need before any weight of a step may move."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from wpadamw import layout, sums
from wpadamw.bucket import Bucket
from wpadamw.rules.rule import Scope
from wpadamw.step import GroupStep


class _Part(NamedTuple):
    """A bucket whose rule reduces, and the sums of its parameters' terms."""

    group: int  # position of its group
    bucket: Bucket
    scope: Scope
    each: Tensor  # float64, [num_terms, parameters]


def with_sums(steps: Sequence[GroupStep]) -> list[GroupStep]:
    """The steps, told what their rules' terms sum up to: of a tensor, a group, or all groups."""
    parts = [part for number, step in enumerate(steps) for part in _parts(number, step)]
    found: dict[int, Tensor] = {}
    for scope, number in dict.fromkeys((part.scope, _whole(part)) for part in parts):
        chosen = [part for part in parts if (part.scope, _whole(part)) == (scope, number)]
        found |= _of_tensors(chosen) if scope == "tensor" else _together(steps, chosen)
    return [
        step._replace(sums=[found.get(id(bucket)) for bucket in step.plan.buckets])
        for step in steps
    ]


def _whole(part: _Part) -> int:
    """What is summed together beside its scope: one group, or all."""
    return part.group if part.scope == "group" else -1


def _parts(number: int, step: GroupStep) -> list[_Part]:
    group, found = step.plan.group, []
    for bucket, grads in zip(step.plan.buckets, step.grads, strict=True):
        if bucket.rule.num_terms and grads:
            each = bucket.sums(grads, step.call(bucket))
            part = _Part(number, bucket, bucket.rule.scope(group), each)
            found.append(part._replace(each=layout.sum_of_shards(bucket.params, each)))
    return found


def _of_tensors(parts: list[_Part]) -> dict[int, Tensor]:
    return {id(part.bucket): part.each for part in parts}


def _together(steps: Sequence[GroupStep], parts: list[_Part]) -> dict[int, Tensor]:
    """The sum over all parameters, in the order in which groups have them."""
    params = itertools.chain.from_iterable(step.plan.group["params"] for step in steps)
    each = sums.of_parameters([(part.bucket.params, part.each) for part in parts], params)
    whole = sums.total(parts[0].bucket.kernels, each).unsqueeze(1)
    return {
        id(part.bucket): whole.to(part.each.device).expand_as(part.each).contiguous()
        for part in parts
    }
