"""The shards of `fully_shard`, and what FSDP2 is told of them: private names of torch's are here.

FSDP2 asks a local shard for what it shall gather, if the shard has ``fsdp_pre_all_gather`` and
``fsdp_post_all_gather``. Shards answer here with the copies that a step has written.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from wpadamw.copies import Kind

_PRE, _POST = "fsdp_pre_all_gather", "fsdp_post_all_gather"


class Weights(NamedTuple):
    """Which weights are gathered: true or predicted ones, after how many updates."""

    is_predicted: bool
    plans: object
    updates: int


class Asked(Protocol):
    """Who tells which weights are to be gathered."""

    def asked(self) -> Weights:
        """Those of the forward, or of the backward pass, that is under way."""

    def gather_begins(self, weights: Weights) -> None:
        """Before shards are gathered together."""

    def prediction_of(self, gather: Gather) -> Tensor | None:
        """The predicted shard, padded; None where the true one is to be gathered."""


class Group:
    """Shards that are gathered together."""

    def __init__(self, handed: Asked, fsdp: Any) -> None:
        self.handed, self.fsdp = handed, fsdp
        self.gathers = [Gather(self, shard) for shard in fsdp.fsdp_params]
        self.weights: Weights | None = None  # that were gathered last

    def note(self, gather: Gather) -> None:
        """Before a shard is gathered."""
        self.weights = self.handed.asked()
        if gather is next(filter(Gather.can_ask, self.gathers)):
            self.handed.gather_begins(self.weights)


class Gather:
    """What a local shard answers to FSDP."""

    def __init__(self, group: Group, shard: Any) -> None:
        self.group, self.shard = group, shard
        self.param: nn.Parameter = shard.sharded_param
        self.dtype = self._dtype_of(shard.mp_policy)
        self.kind = Kind(self.dtype, shard.padded_sharded_param_size.numel())

    @property
    def local(self) -> Tensor:
        """The shard of this moment: loading and moves may replace it."""
        local: Tensor = self.shard._sharded_local_tensor
        return local

    def _dtype_of(self, policy: Any) -> torch.dtype:
        is_cast = self.param.is_floating_point() and policy.param_dtype is not None
        return policy.param_dtype if is_cast else self.param.dtype

    def check(self) -> None:
        """Raises ValueError where FSDP would not ask, or ask another one."""
        if self.shard.offload_to_cpu:
            raise ValueError(
                "model must keep its shards where it computes, got CPUOffloadPolicy: copies "
                "lie beside the shards"
            )
        if hasattr(self.local, _PRE):
            raise ValueError(
                "model must be handed over once, got shards that have fsdp_pre_all_gather already: "
                "call remove() before"
            )

    def is_replaced(self) -> bool:
        """Whether the model has another parameter by now."""
        return self.shard.sharded_param is not self.param

    def can_ask(self) -> bool:
        """Whether FSDP's way to unflatten what it gathered works for the shard."""
        return bool(self.shard.padded_sharded_param_size.numel())

    def arm(self) -> None:
        """Has the shard of this moment answer."""
        local, shard = self.local, self.shard
        is_kept = shard.sharded_state.name == "SHARDED_POST_FORWARD"
        if hasattr(local, _PRE) or is_kept or not self.can_ask():
            return
        before: Any = functools.partial(self.before)
        before.__signature__ = _SIGNATURE  # FSDP looks at it in every call
        vars(local).update({_PRE: before, _POST: self.after, **self._without_answers()})
        shard._init_extensions()
        if shard.post_forward_mesh_info is not None:
            self._follow_smaller_mesh()

    def disarm(self) -> None:
        """Has it answer no more."""
        for name in ("to_sharded", "to_sharded_post_forward"):
            vars(self.shard).pop(name, None)
        self._be_silent()

    def _be_silent(self) -> None:
        for name in (_PRE, _POST, *self._without_answers()):
            vars(self.local).pop(name, None)

    def _without_answers(self) -> dict[str, Any]:
        """What makes copies and pickles of the shard plain tensors, as they would be."""
        local = weakref.ref(self.local)

        def deepcopied(memo: dict[int, Any]) -> Tensor:
            return copy.deepcopy(cast(Tensor, local()).detach(), memo)

        return {"__deepcopy__": deepcopied, "__getstate__": dict}

    def _follow_smaller_mesh(self) -> None:
        """With ``reshard_after_forward=N`` FSDP keeps a part of what it gathered, and must not ask.

        It raises NotImplementedError where a shard would answer.
        """
        shard, kind = self.shard, type(self.shard)

        def to_sharded() -> None:
            kind.to_sharded(shard)
            self.arm()

        def to_sharded_post_forward() -> None:
            self._be_silent()
            kind.to_sharded_post_forward(shard)

        vars(shard).update(to_sharded=to_sharded, to_sharded_post_forward=to_sharded_post_forward)

    # What FSDP calls.

    def before(
        self,
        mesh: Any,
        outer_size: torch.Size,
        outer_stride: tuple[int, ...],
        module: nn.Module,
        mp_policy: Any,
    ) -> tuple[tuple[Tensor], None]:
        """What to gather of the shard: padded, in the dtype that is computed in."""
        if (found := self._dtype_of(mp_policy)) != self.dtype:
            raise RuntimeError(
                f"the mixed precision policy of a model that was handed over must keep param_dtype "
                f"{self.dtype}, got {found}: call remove() before it is changed, hand_over after"
            )
        self.group.note(self)
        shard = self.group.handed.prediction_of(self)
        if shard is None:
            shard = self.shard._sharded_param_data.to(self.dtype)
        return (shard.view(self.shard.padded_sharded_param_size),), None

    def after(
        self,
        all_gather_outputs: tuple[Tensor, ...],
        metadata: None,
        param_dtype: torch.dtype,
        *,
        out: Tensor | None = None,
    ) -> tuple[Tensor, tuple[()]] | None:
        """What was gathered is the weight; the second time it lies there already."""
        return None if out is not None else (all_gather_outputs[0], ())


_WITH_SELF = inspect.signature(Gather.before)
_SIGNATURE = _WITH_SELF.replace(parameters=list(_WITH_SELF.parameters.values())[1:])
