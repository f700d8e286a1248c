"""How an optimizer follows the mode of a model. `wpadamw.attach` has the calls that lead here."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wpadamw.checks import Mode
from wpadamw.compat import (
    at_end_of_backward,
    disable_dynamo,
    has_saved_tensor_hooks,
    is_in_backward,
    is_in_transform,
)
from wpadamw.flat_state import are_same
from wpadamw.layout import is_dtensor
from wpadamw.optimizer import WeightPrediction

UPDATED = (
    "a forward is computed again for a backward pass (activation checkpointing, save_on_cpu), but "
    "the optimizer has updated the weights since: call backward() before step()"
)
REPLICA = (
    "the replicas of nn.DataParallel hold other weights than this forward needs: attach the "
    "nn.DataParallel itself"
)


class Follower:
    """Takes one optimizer to the mode of one model.

    Args:
        outer: the module that was attached.
        optimizer: which follows.
        link: has a module of the model tell this of its calls.
    """

    def __init__(
        self,
        outer: nn.Module,
        optimizer: WeightPrediction,
        link: Callable[[nn.Module, Follower, bool], None],
    ) -> None:
        self.outer = weakref.ref(outer)
        self.model = weakref.ref(unwrapped(outer))  # whose mode counts
        self.optimizer, self.link = optimizer, link
        self.clients = optimizer._clients
        self.clients.followers.add(self)
        self.under_way: list[Follower] = self.clients.under_way
        self.parts: list[weakref.ref[nn.Module]] = []  # of the model at the last look
        self.linked: list[weakref.ref[nn.Module]] = []
        self.resumed: _Forward | None = None  # whose backward pass is under way

    def is_settled(self) -> bool:
        """Whether the optimizer is in the model's mode. Dynamo traces this, and guards on it."""
        if (model := self.model()) is None:  # only a part of it is left, whose mode does not count
            return True
        if self.optimizer._keeping.copies is not None:  # all weights are true
            return True
        plans = self.optimizer._plans
        if plans.loaded != "no" or plans.is_interrupted:
            return False
        mode = "predicted" if model.training and not self.clients.is_held_true else "true"
        for group in self.optimizer.param_groups:  # noqa: SIM110 - a generator costs a microsecond
            if group["weights_are"] != mode:
                return False
        return True

    def is_due(self, is_root: bool) -> bool:
        """Whether a call of the model (or of a part) is one that decides the mode.

        Inside a forward only the model itself does: its parts may be in another mode, frozen.
        """
        return not self.under_way or (is_root and self.under_way[-1] is self)

    @disable_dynamo
    def settle_if_due(self) -> None:
        """For a mode call of the model, which may come inside a forward."""
        if self.is_due(is_root=True):
            self.settle()

    @disable_dynamo
    def settle(self) -> None:
        """Takes the optimizer to the model's mode."""
        if is_in_backward():
            if self.resumed is not None:
                # Part of a forward is computed again, by now the model may be in another mode.
                self.resumed.check()
                return
        else:
            self.resumed = None
        if (model := self.model()) is not None:
            if not self.is_settled() and self.serves(model):
                self._move(model.training and not self.clients.is_held_true)
            elif model.training and torch.is_grad_enabled():  # else nothing is trained here
                self.optimizer._follow_freezing()

    def _move(self, to_predicted: bool) -> None:
        if to_predicted:
            self.optimizer.predict()
        else:
            self.optimizer.restore()

    def show_true(self) -> None:
        """For readers, who get averages inside averaged_weights()."""
        if not self.clients.shows_averages:
            self.optimizer.restore()

    def serves(self, model: nn.Module) -> bool:
        """Whether the model holds parameters of the optimizer, not others for a functional call."""
        own = self.params()
        if any(map(is_dtensor, own.values())):  # FSDP puts gathered ones in their place
            return True
        return any(id(param) in own for param in model.parameters())

    def params(self) -> dict[int, Tensor]:
        """The optimizer's parameters, by id."""
        return {id(param): param for param in self.optimizer._params()}

    @disable_dynamo
    def follow_parts(self, anew: bool = False) -> None:
        """Takes in the parts of the model that have come since the last look, or all ``anew``."""
        outer, model = self.outer(), self.model()
        modules = [] if outer is None else list(outer.modules())
        if anew or not are_same(modules, [part() for part in self.parts]):
            own = self.params()
            for module in modules:
                is_root = module is outer or module is model
                if is_root or any(id(param) in own for param in module.parameters()):
                    self.link(module, self, is_root)
            self.parts = list(map(weakref.ref, modules))

    @disable_dynamo
    def check_replica(self) -> None:
        """Raises RuntimeError where weights were replicated before they could be moved."""
        if not self.is_settled():
            raise RuntimeError(REPLICA)

    @disable_dynamo
    def watch(self, outputs: Any) -> None:
        """Has the backward pass of a forward begin with the weights of that forward."""
        if torch.is_grad_enabled() and not (is_in_backward() or is_in_transform()):
            forward = None
            for tensor in tensors_in(outputs):
                if (node := tensor.grad_fn) is not None:
                    forward = forward or _Forward(self)
                    node.register_prehook(forward)


class _Forward:
    """A forward's modes, and a hook on its outputs: what is computed again needs them again."""

    def __init__(self, follower: Follower) -> None:
        self.follower, self.optimizer = follower, follower.optimizer
        self.modes = self.optimizer._modes()
        model = follower.model()
        self.in_training = model is None or model.training
        self.plans = self.optimizer._plans
        self.updates = self.plans.updates
        self.is_packed = has_saved_tensor_hooks()

    def __call__(self, grads: tuple[Tensor | None, ...]) -> None:
        self.follower.resumed = self
        self.follower.clients.note_gradients(self.in_training)
        if self._is_outdated():
            # Autograd notices by itself what was not packed, and other outputs may be unaffected.
            if self.is_packed:
                self.check()
        elif (former := self.optimizer._modes()) != self.modes:
            self.optimizer._return_to(self.modes)
            at_end_of_backward(lambda: self._leave(former))

    def check(self) -> None:
        """Raises RuntimeError if the weights of the forward are gone."""
        if self._is_outdated():
            raise RuntimeError(UPDATED)

    def _is_outdated(self) -> bool:
        plans = self.optimizer._plans
        return plans is not self.plans or plans.updates != self.updates

    def _leave(self, former: list[Mode]) -> None:
        if not self._is_outdated() and self.optimizer._modes() == self.modes:
            self.optimizer._return_to(former)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module in what torch.compile and torch's wrappers made of it.

    That is the one whose mode is set: a wrapper's mode calls go on to it, and not the other way.
    """
    inner = dict(model.named_children()).get("_orig_mod")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    return model if inner is None else unwrapped(inner)


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """The tensors in what a forward returned."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        yield from tensors_in(list(outputs.values()))
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from tensors_in(output)
    elif dataclasses.is_dataclass(outputs):
        yield from tensors_in(vars(outputs))
