"""The plan: which buckets serve a parameter group, and whether they still fit what they serve.

Rebuilt lazily whenever parameters, options or state tensors were replaced, so it is never saved.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from wpadamw import _backends, layout
from wpadamw.buckets import Bucket, StateDict, holds
from wpadamw.rules import AdamW
from wpadamw.scalars import Prediction, group_prediction

Group = dict[str, Any]
AllStates = dict[Tensor, StateDict]  # opt.state


class GroupPlan:
    """The buckets of one parameter group."""

    def __init__(self, group: Group, rule: AdamW, backend_name: str, amp: bool) -> None:
        self.group, self.rule, self.backend_name, self.amp = group, rule, backend_name, amp
        self.is_capturable: bool = group["capturable"]
        self.has_backup: bool = group["backup"]
        self.params: list[Tensor] = list(group["params"])
        self.buckets: list[Bucket] = []
        self.pending: list[Tensor] = list(self.params)  # parameters without state
        self.states: list[StateDict] = []  # the values of opt.state at the last look

    def fits(self, group: Group, rule: AdamW) -> bool:
        """Whether the plan was made for these parameters and this rule."""
        return (
            self.rule is rule
            and self.has_backup == group["backup"]
            and self.is_capturable == group["capturable"]
            and len(self.params) == len(group["params"])
            and all(map(operator.is_, self.params, group["params"]))
        )

    def refresh(self, state: AllStates) -> None:
        """Replaces buckets that no longer fit, and serves parameters that have state by now."""
        has_same_states = holds([state], self.states)
        stale = [
            bucket
            for bucket in self.buckets
            if not (bucket.is_intact() and (has_same_states or bucket.has_states_of(state)))
        ]
        for bucket in stale:
            self.buckets.remove(bucket)
            self.pending += bucket.params
        for bucket in self.buckets:
            bucket.columns.refresh()
        if self.pending and (stale or not has_same_states):
            self._adopt_again(stale, state)
        if not has_same_states:
            self.states = list(state.values())

    def _adopt_again(self, stale: list[Bucket], state: AllStates) -> None:
        """Serves parameters that have state, and has those of unknown values looked at."""
        found = [param for param in self.pending if state.get(param)]
        known = {id(param) for bucket in stale for param in bucket.params}
        doubted = {id(param) for bucket in stale for param in bucket.disturbed()}
        if self.has_backup:  # a copy of an optimizer: its model may be a copy of another moment
            doubted |= {id(param) for param in found if id(param) not in known}
        self.adopt(found, state)
        for bucket in self.buckets:
            bucket.doubt([id(param) in doubted for param in bucket.params])

    def prediction(self) -> Prediction:
        """The prediction that the group's hyper-parameters of this moment ask for.

        Its lr remains a tensor where the host must not wait for it.
        """
        lr = self.group["lr"]
        would_wait = isinstance(lr, Tensor) and layout.host_must_not_wait(lr.device)
        counts_on_device = all(bucket.counts_on_device for bucket in self.buckets)
        return group_prediction(self.group, lr_as_it_is=would_wait and counts_on_device)

    def starting(self) -> list[Tensor]:
        """Parameters that have their first gradient."""
        return [param for param in self.pending if param.grad is not None]

    def adopt(self, params: list[Tensor], state: AllStates) -> None:
        """Serves parameters from now on; creates state where there is none."""
        by_kind: dict[object, list[Tensor]] = {}
        for param in params:
            by_kind.setdefault((param.device, param.dtype), []).append(param)
        for same_kind in by_kind.values():
            self._adopt_kind(same_kind, state)

    def _adopt_kind(self, params: list[Tensor], state: AllStates) -> None:
        self.buckets.append(self._bucket(params, state))
        chosen = set(map(id, params))
        self.pending = [param for param in self.pending if id(param) not in chosen]
        self.states = list(state.values())

    def _bucket(self, params: list[Tensor], state: AllStates) -> Bucket:
        backend = _backends.choose(self.backend_name, params[0].device.type)
        # Defaultdict: asking for the state of a parameter creates it.
        states = [state[param] for param in params]
        # Overflow and captured steps: the host does not know what the device will have counted.
        on_device = (self.amp or self.is_capturable) and layout.host_must_not_wait(params[0].device)
        return Bucket(params, self.rule, self.has_backup, backend, states, on_device)


def check_dtype(param: Tensor) -> None:
    """Raises TypeError for parameters of a dtype that has no rule of rounding here."""
    if param.dtype not in layout.REAL_DTYPE:
        known = ", ".join(str(dtype) for dtype in layout.REAL_DTYPE)
        raise TypeError(f"params must have one of the dtypes {known}, got {param.dtype}")


def check_unique(params: list[Any]) -> None:
    """Raises ValueError for a parameter that is listed twice, alone or as (name, parameter)."""
    tensors = [item[1] if isinstance(item, tuple) else item for item in params]
    if len(set(map(id, tensors))) != len(tensors):
        raise ValueError(
            "optimizer contains a parameter group with duplicate parameters: params has "
            f"{len(tensors)} entries, {len(set(map(id, tensors)))} of them distinct"
        )


def check_recoverable(group: Group) -> None:
    """Raises ValueError where true weights cannot be computed from predicted ones."""
    if group["backup"]:
        return
    s, lr, weight_decay = group["prediction_steps"], group["lr"], group["weight_decay"]
    is_unknown = (
        isinstance(lr, Tensor) and group["capturable"] and layout.host_must_not_wait(lr.device)
    )
    if not is_unknown and group["predict_decay"] and s * float(lr) * weight_decay >= 1.0:
        raise ValueError(
            "backup=False needs prediction_steps * lr * weight_decay < 1, got "
            f"{s} * {float(lr)} * {weight_decay}"
        )
    narrow = [p.dtype for p in group["params"] if p.dtype in (torch.bfloat16, torch.float16)]
    if narrow:
        raise ValueError(f"backup=False needs float32 or float64 params, got {narrow[0]}")
