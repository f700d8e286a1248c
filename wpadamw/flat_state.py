"""The state of a bucket's parameters in flat buffers, and as ``opt.state`` shows it.

One buffer per kind of state; what users see are views of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import operator
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor

from wpadamw import formats, layout
from wpadamw._backends.interface import BucketTensors
from wpadamw.device_ledger import DeviceLedger
from wpadamw.ledger import Ledger
from wpadamw.rules.rule import Rule, all_rules
from wpadamw.rules.stored import decoded, formats_of

# Each parameter starts at a multiple of this many elements of the flat buffers: whole cache lines
# and whole 16-byte accesses for every dtype, whole blocks of codes.
PADDING = formats.BLOCK_NUMEL


StateDict = dict[str, Any]

_CODES = [form.dtype for form in formats.FORMATS if form.most]

# What any rule's state may have beside the rule's own tensors.
COMMON_NAMES = {"average", "prediction", "remainder", "step", "weight"}


def scale_of(name: str) -> str:
    """The name of the scales that belong to the codes of a tensor."""
    return f"{name}_scale"


def own_names() -> set[str]:
    """Every name that this package may put into the state of a parameter."""
    of_rules = {name for rule in all_rules() for name in rule.state_names}
    return of_rules | {*map(scale_of, of_rules)} | COMMON_NAMES


def all_same(left: Iterable[object], right: Iterable[object]) -> bool:
    """Whether two equally long iterables hold the same objects."""
    return all(map(operator.is_, left, right))


def holds(dicts: list[dict[Any, Any]], values: list[Any]) -> bool:
    """Whether the values of the dicts are, in order, these very objects."""
    found = itertools.chain.from_iterable(map(dict.values, dicts))
    return sum(map(len, dicts)) == len(values) and all_same(found, values)


def are_same(left: list[Any], right: list[Any]) -> bool:
    """Whether two lists hold the same objects."""
    return len(left) == len(right) and all_same(left, right)


# Asked of every parameter in every step: the extension's twins take a tenth of the time.
with contextlib.suppress(ImportError):
    from wpadamw._C import are_same, holds  # noqa: F401


def allocate(
    dense: list[Tensor],
    rule: Rule,
    has_backup: bool,
    dtype: torch.dtype,
    num_looks: int = 1,
    has_rest: bool = False,
) -> BucketTensors:
    """Flat buffers of zeros for dense tensors, which are to be the parameters."""
    offsets = [0, *itertools.accumulate(map(padded, map(Tensor.numel, dense)))]
    total, device = offsets.pop(), dense[0].device

    def flat(dtype: torch.dtype, numel: int = total) -> Tensor:
        return torch.zeros(numel, dtype=dtype, device=device)

    def views(buffer: Tensor) -> list[Tensor]:
        return [layout.view_like(buffer, o, t) for o, t in zip(offsets, dense, strict=True)]

    def views_of_scales(buffer: Tensor | None) -> list[Tensor]:
        if buffer is None:
            return []
        pairs = zip(offsets, dense, strict=True)
        places = [(o // PADDING, formats.num_blocks(t.numel())) for o, t in pairs]
        return [layout.with_own_storage(buffer[o : o + n]) for o, n in places]

    of_state = formats_of(rule)
    weight_flat = flat(dtype) if has_backup else None
    rest_flat = flat(torch.int16) if has_rest else None
    state_flat = [flat(form.dtype or dtype) for form in of_state]
    scales_flat = [flat(torch.float32, total // PADDING) if f.most else None for f in of_state]
    return BucketTensors(
        rule=rule,
        params=dense,
        offsets=offsets,
        weight_flat=weight_flat,
        state_flat=state_flat,
        weight=None if weight_flat is None else views(weight_flat),
        state=[views(buffer) for buffer in state_flat],
        num_looks=num_looks,
        scales_flat=scales_flat,
        scales=[views_of_scales(buffer) for buffer in scales_flat],
        rest_flat=rest_flat,
        rest=None if rest_flat is None else views(rest_flat),
    )


def padded(numel: int) -> int:
    """The place that a parameter takes in the buffers."""
    return -(-numel // PADDING) * PADDING


def as_it_came(
    states: list[StateDict], tensors: BucketTensors, is_split: bool
) -> BucketTensors | None:
    """The numbers of states that are about to be stored in another way; None if none is.

    Parameters may hold what was predicted from these.

    Args:
        states: of the parameters, before they are absorbed.
        tensors: of the bucket that absorbs them.
        is_split: whether parameters take the true weights of states, as there is no backup.
    """
    takes_weights = is_split and any("weight" in state for state in states)
    if not (takes_weights or any(_changes(state, tensors.rule) for state in states)):
        return None
    dtype = torch.promote_types(tensors.params[0].dtype, torch.float32)
    found = allocate(tensors.params, decoded(tensors.rule), takes_weights, dtype, tensors.num_looks)
    if not takes_weights:
        shared = ("weight", "weight_flat", "rest", "rest_flat", "has_noisy_params")
        found = dataclasses.replace(found, **{name: getattr(tensors, name) for name in shared})
    for i, state in enumerate(states):
        _begin_weight(i, state, found)
        if takes_weights and "weight" in state:
            cast(list[Tensor], found.weight)[i].copy_(_dense(state["weight"]))
        for kind, name in enumerate(tensors.rule.state_names):
            if name in state:
                found.state[kind][i].copy_(_dense(_numbers(state, name)))
    return found


def _changes(state: StateDict, rule: Rule) -> bool:
    """Whether other numbers are stored of a state than it has."""
    pairs = zip(rule.state_names, formats_of(rule), strict=True)
    return any(form.dtype not in (None, state[n].dtype) for n, form in pairs if n in state)


def _numbers(state: StateDict, name: str) -> Tensor:
    return formats.numbers([state[name], state.get(scale_of(name))])


def _dense(exposed: Tensor) -> Tensor:
    return layout.as_real(layout.local(exposed))


def take_weight(i: int, tensors: BucketTensors, came: BucketTensors) -> None:
    """Gives parameter i, and what it lacks, the true weight that came with its state."""
    for target, part in zip(*tensors.parts(i, cast(list[Tensor], came.weight)[i]), strict=True):
        target.copy_(part)


def absorb(
    views: list[StateDict],
    states: list[StateDict],
    tensors: BucketTensors,
    ledger: Ledger | DeviceLedger,
) -> list[Any]:
    """Copies what state there is into the buffers and puts views in its place: returns these."""
    for i, state in enumerate(states):
        _begin_weight(i, state, tensors)
        for name in {"weight", "remainder"} & views[i].keys() & state.keys():
            views[i][name].copy_(state[name])
        for kind, name in enumerate(tensors.rule.state_names):
            if name in state:
                _keep(views[i][name], state, tensors, kind, i)
        if lacks(state, tensors.rule):
            begin(i, tensors)
        step, prediction = map(layout.with_own_storage, (ledger.steps[i], ledger.predictions[i]))
        _replace(state, {"step": step, **views[i], "prediction": prediction})
    return [value for state in states for value in state.values()]


def _begin_weight(i: int, state: StateDict, tensors: BucketTensors) -> None:
    """Has the true weight of parameter i where it lies, if its state has it elsewhere."""
    if tensors.weight_flat is not None and "weight" not in state:
        held = tensors.params[i]
        if "remainder" in state:  # it was split
            held = formats.join(held, layout.local(state["remainder"]))
        cast(list[Tensor], tensors.weight)[i].copy_(held)


def _keep(view: Tensor, state: StateDict, tensors: BucketTensors, kind: int, i: int) -> None:
    """Stores numbers of a state in the bucket's format; those that come in it stay the same."""
    name, form = tensors.rule.state_names[kind], formats_of(tensors.rule)[kind]
    numbers = _numbers(state, name)
    if not form.most:
        view.copy_(numbers)
        return
    memory = tensors.stored(kind, i)
    stored = form.store(numbers.to(memory[0].device, torch.float32).contiguous())
    for target, source in zip(memory, stored, strict=True):
        target.copy_(source)


def lacks(state: StateDict, rule: Rule) -> bool:
    """Whether a state is without what begins as the true weight."""
    return not state.keys() >= {*rule.from_weight}


def begin(i: int, tensors: BucketTensors) -> None:
    """Has that begin as what is known of parameter i's true weight."""
    weight = tensors.held(i) if tensors.weight is None else tensors.weight[i]
    for name, values in zip(tensors.rule.state_names, tensors.state, strict=True):
        if name in tensors.rule.from_weight:
            values[i].copy_(weight)


def _replace(state: StateDict, own: StateDict) -> None:
    # In one call: there is no moment at which the state has lost an entry.
    state.update(own)
    for name in own_names() - own.keys():
        state.pop(name, None)


def check_shapes(views: list[StateDict], states: list[StateDict], rule: Rule) -> None:
    """Raises RuntimeError for a state of another shape than its parameter, or without scales."""
    for i, state in enumerate(states):
        for name in views[i].keys() & state.keys():
            _check_shape(f"state of params[{i}]: {name}", state[name], views[i][name])
        for name in state.keys() & {*rule.state_names}:
            if state[name].dtype in _CODES and scale_of(name) not in state:
                raise RuntimeError(f"state of params[{i}] must have {scale_of(name)!r}")


def _check_shape(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape:
        raise RuntimeError(
            f"{name} must have shape {tuple(expected.shape)} like the parameter, "
            f"got {tuple(found.shape)}"
        )


def views_of(i: int, param: Tensor, tensors: BucketTensors) -> StateDict:
    """The state of parameter i in the buffers, as users see it."""
    kinds = dict(zip(tensors.rule.state_names, tensors.state, strict=True))
    if tensors.weight_flat is not None:
        kinds["weight"] = cast(list[Tensor], tensors.weight)
    if tensors.rest is not None:
        kinds["remainder"] = tensors.rest
    views = {name: _exposed(param, kind[i]) for name, kind in kinds.items()}
    scales = zip(tensors.rule.state_names, tensors.scales, strict=False)
    return views | {scale_of(name): of_kind[i] for name, of_kind in scales if of_kind}


def _exposed(param: Tensor, view: Tensor) -> Tensor:
    """A view as users see it: complex, or DTensor, like the parameter."""
    if param.is_complex():
        view = torch.view_as_complex(view)
    return layout.sharded_like(param, view)
