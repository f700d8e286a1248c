"""Sharded training in which the prediction lives in the weights that `fully_shard` gathers.

With `hand_over` shards answer to FSDP2 with the copies that a step has written.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from wpadamw.attach import own_optimizer
from wpadamw.checks import check_in_step
from wpadamw.compat import (
    backward_pass,
    disable_dynamo,
    forget,
    fsdp_groups,
    fsdp_states,
    is_in_backward,
    unwatch_forwards,
    watch_forwards,
)
from wpadamw.copies import Copies
from wpadamw.follow import tensors_in, unwrapped
from wpadamw.integrations.fsdp_shards import Gather, Group, Weights
from wpadamw.optimizer import WeightPrediction

UPDATED = (
    "a backward pass needs the weights of its forward, but the optimizer has updated them since: "
    "call backward() before step()"
)
REPLACED = (
    "the optimizer must hold the parameters of the model that was handed over, got a model with "
    "others, as after load_state_dict(assign=True): load without assign, or call remove() and "
    "construct another optimizer"
)
MIXED = (
    "a backward pass needs true and predicted weights: call backward() once for the forwards in "
    "training mode, and once for the others"
)


def hand_over(model: nn.Module, optimizer: WeightPrediction) -> HandOver:
    """Let the weights that FSDP2 gathers for training be the predicted ones; shards stay true.

    A step writes the prediction in the dtype that the model computes in (``param_dtype`` of its
    `MixedPrecisionPolicy`, else float32) beside the true weights: with bfloat16 it moves 30 bytes
    per parameter, where AdamW and the cast of its weights take 34, and keeps 2 bytes for the copy
    and no backup. Forwards while ``model.training`` gather it, others gather the cast true weights;
    so does a forward of a part of the model, and what is said when a forward begins holds for all
    of it. Nothing but `step` writes to a shard: state dicts, checkpoints, averages and norms see
    true weights at any time, and ``opt.train()`` and ``opt.eval()`` have nothing to do. Inside
    ``opt.true_weights()`` no forward predicts.

    A backward pass gathers what its forward has; it raises RuntimeError after a further `step`, and
    for forwards of both kinds at once. Predictions follow writes to shards and to their states.
    Those that go through ``.data`` or ``torch._foreach_*`` leave no trace on a DTensor: the next
    `step` takes them into account, and so does ``opt.predict()`` at once.

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
        self._states = fsdp_states(model)
        self._groups = [Group(self, group) for of in self._states for group in fsdp_groups(of)]
        self._gathers = [gather for group in self._groups for gather in group.gathers]
        self._copies = Copies(kinds={id(g.param): g.kind for g in self._gathers})
        self._check()
        optimizer.restore()
        optimizer._keep_copies(self._copies)
        # Of the last forward, and of backward passes, which may lie in each other.
        self._weights, self._resumed = self._present(), dict[int, Weights]()
        self._is_under_way, self._trained = False, self._in_groups()
        self._arm()
        self._follow(is_new=True)
        self._hooks = [
            model.register_forward_pre_hook(self._enter, prepend=True),
            model.register_forward_hook(self._exit, always_call=True),
        ]
        for state in self._states:
            watch_forwards(state, self._enter_part, self._watch)
        model.train = functools.partial(_train, self)  # type: ignore[method-assign]

    def remove(self) -> None:
        """Gather the shards themselves again; the optimizer goes on with a backup."""
        for hook in self._hooks:
            hook.remove()
        for state in self._states:
            unwatch_forwards(state)
        vars(self._model).pop("train", None)
        for gather in self._gathers:
            gather.disarm()
        self._optimizer._keep_copies(None)
        self._follow(is_new=True)

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
        params = self._optimizer._params()
        if others := sum(id(param) not in own for param in params):
            raise ValueError(
                "optimizer must hold shards of the model and nothing else, got "
                f"{others} of {len(params)} parameters that are none: construct it after "
                "fully_shard, with the parameters of this model"
            )
        for param in params:
            self._copies.kind_of(param)
        for group in self._optimizer.param_groups:
            check_in_step(group)

    def _in_groups(self) -> set[int]:
        """The optimizer's parameters, by id: groups may be taken away."""
        return set(map(id, self._optimizer._params()))

    def _arm(self) -> None:
        for gather in self._gathers:
            gather.arm()

    # Which weights are gathered.

    def _present(self) -> Weights:
        """Those of a forward that begins now."""
        plans, is_held_true = self._optimizer._plans, self._optimizer._clients.is_held_true
        is_predicted = unwrapped(self._model).training and not is_held_true
        return Weights(is_predicted, plans, plans.updates)

    def asked(self) -> Weights:
        """Those that are to be gathered now: one forward, and its backward pass, have the same."""
        if self._is_under_way and not is_in_backward():
            return self._weights
        # None where a forward without autograd is computed again (checkpoints with use_reentrant).
        return self._resumed.get(backward_pass()) or self._present()

    @disable_dynamo
    def _enter(self, *_: Any) -> None:
        """Before a forward of the model."""
        if not is_in_backward():  # else a part of it, or all, is computed again
            self._begin()
            self._is_under_way = True

    @disable_dynamo
    def _exit(self, *_: Any) -> None:
        """After it."""
        self._is_under_way = self._is_under_way and is_in_backward()

    def _enter_part(self) -> None:
        """Before a forward that FSDP takes for a whole one, which may be that of a part alone."""
        if not (self._is_under_way or is_in_backward()):
            self._begin()

    def _begin(self) -> None:
        self._arm()
        self._resumed.clear()
        self._trained = self._in_groups()
        self._weights = self._present()
        self._follow(is_new=self._refresh(self._weights))

    def gather_begins(self, weights: Weights) -> None:
        """Before shards are gathered together, in a forward or not."""
        if not (self._is_under_way or is_in_backward()):
            self._refresh(weights)

    def _refresh(self, weights: Weights) -> bool:
        """Brings copies up to date if they are wanted; whether there was something to do."""
        is_wanted = weights.is_predicted or self._optimizer._plans.loaded != "no"
        return is_wanted and self._optimizer._refresh_copies()

    def _follow(self, is_new: bool = False) -> None:
        """Has modules forget what they have gathered of other weights; all if there are new."""
        asked = self.asked()
        for group in self._groups:
            if is_new or group.weights != asked:
                forget(group.fsdp)

    def _watch(self, outputs: Any) -> None:
        """Has the backward pass of a forward, or of a part of it, gather the weights of both."""
        if torch.is_grad_enabled():
            resume = functools.partial(self._resume, self.asked())
            for tensor in tensors_in(outputs):
                if tensor.requires_grad:
                    tensor.register_hook(resume)  # type: ignore[no-untyped-call]

    def _resume(self, weights: Weights, _: Tensor) -> None:
        known = self._resumed.setdefault(backward_pass(), weights)
        if known.is_predicted != weights.is_predicted:
            raise RuntimeError(MIXED)
        if known is weights:
            if weights[1:] != self._present()[1:]:
                raise RuntimeError(UPDATED)
            self._follow()

    def prediction_of(self, gather: Gather) -> Tensor | None:
        """The predicted shard, padded; None where the true one is to be gathered."""
        is_trained = id(gather.param) in self._trained and self._optimizer.state.get(gather.param)
        if not (self.asked().is_predicted and is_trained):
            return None
        if gather.is_replaced():
            raise RuntimeError(REPLACED)
        if not self._copies.is_seen(gather.param, gather.local):
            self._optimizer._renew_copies()
        return self._copies.memory_of(gather.param)


def _train(handed: HandOver, mode: bool = True) -> nn.Module:
    """The model's ``train``, which its ``eval`` calls."""
    model = handed._model
    type(model).train(model, mode)
    handed._follow()
    return model
