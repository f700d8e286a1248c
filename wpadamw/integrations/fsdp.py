"""Sharded training in which the prediction lives in the weights that `fully_shard` gathers.

FSDP2 asks a local shard for what it shall gather, if the shard has ``fsdp_pre_all_gather`` and
``fsdp_post_all_gather``. With `hand_over` shards answer with the copies that a step has written.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from wpadamw.attach import own_optimizer
from wpadamw.compat import disable_dynamo, is_in_backward, reshard, shards_of
from wpadamw.copies import Copies, Kind
from wpadamw.follow import unwrapped
from wpadamw.optimizer import WeightPrediction

_PRE, _POST = "fsdp_pre_all_gather", "fsdp_post_all_gather"


def hand_over(model: nn.Module, optimizer: WeightPrediction) -> HandOver:
    """Let the weights that FSDP2 gathers for training be the predicted ones; shards stay true.

    A step writes the prediction in the dtype that the model computes in (``param_dtype`` of its
    `MixedPrecisionPolicy`, else float32) beside the true weights: with bfloat16 it moves 30 bytes
    per parameter, where AdamW and the cast of its weights take 34, and keeps 2 bytes for the copy
    and no backup. Forwards while ``model.training`` gather it, others gather the cast true weights;
    a backward pass gathers what its forward has. Nothing but `step` writes to a shard: state dicts,
    checkpoints, averages and norms see true weights at any time, and ``opt.train()`` and
    ``opt.eval()`` have nothing to do. Inside ``opt.true_weights()`` no forward predicts.

    Args:
        model: the root of the training's forward, after `fully_shard` of it or of its parts. The
            parameters that are trained must be float32 (or float64, computed in float64).
        optimizer: holds shards of the model and nothing else; may be in a wrapper of accelerate or
            Lightning. What it has trained so far stays.

    Returns:
        A handle; its ``remove()`` takes everything back.

    Raises:
        TypeError: if an argument is of another type, or for parameters of another dtype.
        ValueError: if the model is not sharded, has been handed over already, keeps shards on the
            CPU, or holds other parameters than the optimizer. Nothing has changed.

    Example:
        >>> for block in model.blocks:
        ...     fully_shard(block, mp_policy=policy)
        >>> fully_shard(model, mp_policy=policy)
        >>> opt = wpadamw.WPAdamW(model.parameters())
        >>> hand_over(model, opt)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return HandOver(model, own_optimizer(optimizer))


class HandOver:
    """What `hand_over` returns."""

    def __init__(self, model: nn.Module, optimizer: WeightPrediction) -> None:
        self._model, self._optimizer = model, optimizer
        self._gathers = [_Gather(self, shard) for shard in shards_of(model)]
        self._copies = Copies(kinds={id(g.param): g.kind for g in self._gathers})
        self._check()
        # Which weights the last forward has gathered, and which of them a backward pass needs.
        self._is_predicted = self._is_resumed_predicted = True
        optimizer.restore()
        optimizer._keep_copies(self._copies)
        self._arm()
        self._hook = model.register_forward_pre_hook(self._enter, prepend=True)
        model.train = functools.partial(_train, self)  # type: ignore[method-assign]
        reshard(model)

    def remove(self) -> None:
        """Gather the shards themselves again; the optimizer goes on with a backup."""
        self._hook.remove()
        vars(self._model).pop("train", None)
        for gather in self._gathers:
            gather.disarm()
        self._optimizer._keep_copies(None)
        reshard(self._model)

    def _check(self) -> None:
        if not self._gathers:
            raise ValueError("model must be sharded by fully_shard before, got one without shards")
        if self._optimizer._keeping.copies is not None:
            raise ValueError(
                "optimizer must keep no copies yet, got one that was handed over already, or was "
                "constructed with compute_dtype"
            )
        for gather in self._gathers:
            gather.check()
        own = {id(gather.param) for gather in self._gathers}
        params = [param for group in self._optimizer.param_groups for param in group["params"]]
        if others := sum(id(param) not in own for param in params):
            raise ValueError(
                "optimizer must hold shards of the model and nothing else, got "
                f"{others} of {len(params)} parameters that are none: construct it after "
                "fully_shard, with the parameters of this model"
            )
        for param in params:
            self._copies.kind_of(param)

    def _arm(self) -> None:
        for gather in self._gathers:
            gather.arm()

    # Which weights are gathered.

    def _wants_prediction(self) -> bool:
        if is_in_backward():
            return self._is_resumed_predicted
        is_held_true = self._optimizer._clients.is_held_true
        return unwrapped(self._model).training and not is_held_true

    @disable_dynamo
    def _enter(self, *_: Any) -> None:
        """Before a forward of the model."""
        self._follow()
        if torch.is_grad_enabled() and not is_in_backward():
            self._is_resumed_predicted = self._is_predicted
        if self._is_predicted:
            self._optimizer._refresh_copies()

    def _follow(self) -> None:
        """Has modules forget what they have gathered of the other weights."""
        self._arm()
        if self._is_predicted != (wants := self._wants_prediction()):
            self._is_predicted = wants
            reshard(self._model)

    def prediction_of(self, gather: _Gather) -> Tensor | None:
        """The predicted shard, padded; None where the true one is to be gathered."""
        self._is_predicted = self._wants_prediction()
        if not self._is_predicted or gather.param not in self._optimizer.state:
            return None
        if self._copies.seen.get(id(gather.param)) != gather.local._version:
            self._optimizer._renew_copies()
        return self._copies.memory_of(gather.param)


def _train(handed: HandOver, mode: bool = True) -> nn.Module:
    """The model's ``train``, which its ``eval`` calls."""
    model = handed._model
    type(model).train(model, mode)
    handed._follow()
    return model


class _Gather:
    """What a local shard answers to FSDP."""

    def __init__(self, handed: HandOver, shard: Any) -> None:
        self.handed, self.shard = handed, shard
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

    def arm(self) -> None:
        """Has the shard of this moment answer."""
        local, shard = self.local, self.shard
        if hasattr(local, _PRE) or not _can_ask(shard):
            return
        setattr(local, _PRE, self.before)
        setattr(local, _POST, self.after)
        shard._init_extensions()
        if shard.post_forward_mesh_info is not None:
            self._follow_smaller_mesh()

    def disarm(self) -> None:
        """Has it answer no more."""
        for name in ("to_sharded", "to_sharded_post_forward"):
            vars(self.shard).pop(name, None)
        self._be_silent()

    def _be_silent(self) -> None:
        for name in (_PRE, _POST):
            vars(self.local).pop(name, None)

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
        shard = self.handed.prediction_of(self)
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


def _can_ask(shard: Any) -> bool:
    """Whether FSDP's way to unflatten what it gathered works for a shard."""
    return bool(shard.padded_sharded_param_size.numel())
