"""The values that weights keep under `LaPerm`: taken, put in the order of weights, saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wpadamw import layout, loading
from wpadamw.checks import Group
from wpadamw.saved_values import read_tensor

# In state dicts: an entry of each matrix, and one of each group.
VALUES, COUNT = "initial_values", "laperm_count"


class Read(NamedTuple):
    """A state dict in two parts."""

    rest: dict[str, Any]  # what the optimizer loads
    values: dict[Tensor, Tensor]  # by parameter: sorted rows
    updates: int  # since the last permutation


def missing(groups: list[Group], values: Mapping[Tensor, Tensor]) -> set[Tensor]:
    """The parameters of two dimensions or more that have no values yet.

    Raises:
        TypeError: for a complex one.
        ValueError: for a DTensor of which processes hold parts of rows, or terms of sums.
    """
    found = set()
    for group in groups:
        for param in group["params"]:
            if param.ndim >= 2 and param not in values:
                _check_permutable(param, loading.names(groups, [(group, [param])]))
                found.add(param)
    return found


def sorted_rows(param: Tensor, weight: Tensor) -> Tensor:
    """The values of each row of a true weight, in ascending order.

    A tensor of (rows, values in a row), float32, or float64 for float64 parameters.
    """
    return weight.to(layout.REAL_DTYPE[param.dtype]).flatten(1).sort(dim=1).values


def in_order_of(weight: Tensor, values: Tensor) -> Tensor:
    """The sorted values of each row, in the rank order of a weight's rows.

    Equal weights rank by their places, NaN above all. Of the weight's shape.
    """
    order = weight.flatten(1).argsort(dim=1, stable=True)
    return torch.empty_like(values).scatter_(1, order, values).view(weight.shape)


def add(
    saved: dict[str, Any], groups: list[Group], values: Mapping[Tensor, Tensor], updates: int
) -> dict[str, Any]:
    """A state dict of an optimizer with these groups, with values and count of updates in it."""
    state = dict(saved["state"])
    for key, param in _numbered(saved["param_groups"], groups):
        if param in values:
            shaped = layout.sharded_like(param, values[param].view(layout.local(param).shape))
            state[key] = {**state.get(key, {}), VALUES: shaped}
    saved_groups = [{**group, COUNT: updates} for group in saved["param_groups"]]
    return {**saved, "state": state, "param_groups": saved_groups}


def take_out(saved: Mapping[str, Any], groups: list[Group]) -> Read | None:
    """The same undone, for an optimizer with these groups; None for what it will refuse.

    Raises:
        ValueError: for values or a count that are missing or do not fit, by name.
    """
    state, saved_groups = saved.get("state"), saved.get("param_groups")
    if not (isinstance(state, Mapping) and isinstance(saved_groups, list)):
        return None
    if not all(isinstance(group, dict) for group in saved_groups):
        return None
    values = {}
    for key, param in _numbered(saved_groups, groups):
        if param.ndim >= 2 and (read := _read_values(key, state.get(key), param)) is not None:
            values[param] = read
    without = {key: _without(VALUES, entry) for key, entry in state.items()}
    plain_groups = [_without(COUNT, group) for group in saved_groups]
    rest = {**saved, "state": without, "param_groups": plain_groups}
    return Read(rest, values, _read_count(saved_groups))


def _check_permutable(param: Tensor, place: str) -> None:
    if param.is_complex():
        raise TypeError(f"params must be real for LaPerm, got {param.dtype} in {place}")
    placements = param.placements if layout.is_dtensor(param) else ()  # type: ignore[attr-defined]
    if not all(each.is_replicate() or each.is_shard(0) for each in placements):
        raise ValueError(
            f"params must be sharded along dimension 0 for LaPerm, got {placements} in {place}"
        )


def _numbered(saved: list[Group], groups: list[Group]) -> list[tuple[Any, Tensor]]:
    """The keys of a state dict with their parameters."""
    pairs = [(a.get("params", ()), b["params"]) for a, b in zip(saved, groups, strict=False)]
    return [pair for keys, params in pairs for pair in zip(keys, params, strict=False)]


def _without(name: str, entry: Any) -> Any:
    is_dict = isinstance(entry, Mapping)
    return {key: entry[key] for key in entry if key != name} if is_dict else entry


def _read_values(key: Any, entry: Any, param: Tensor) -> Tensor | None:
    """Saved initial values as rows; None where a frozen parameter has none."""
    where = f"state_dict['state'][{key!r}]"
    if not isinstance(entry, Mapping) or VALUES not in entry:
        if not param.requires_grad:  # torch.distributed.checkpoint leaves them out
            return None
        raise ValueError(f"{where} must have {VALUES!r}: load what has none before LaPerm")
    local = layout.local(param)
    values = layout.local(read_tensor(f"{where}[{VALUES!r}]", entry[VALUES], param))
    dtype = layout.REAL_DTYPE[param.dtype]
    return values.to(local.device, dtype, copy=True).reshape(local.shape).flatten(1)


def _read_count(saved_groups: list[Group]) -> int:
    count = saved_groups[0].get(COUNT) if saved_groups else 0
    if not isinstance(count, int) or count < 0:
        where = f"state_dict['param_groups'][0][{COUNT!r}]"
        raise ValueError(f"{where} must be a whole number >= 0, got {count!r:.200}")
    return count
