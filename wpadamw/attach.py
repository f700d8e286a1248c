"""Models whose own modes decide which weights they hold, without mode calls."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from wpadamw.attached_class import make_link, remove_links
from wpadamw.clients import REFUSED
from wpadamw.follow import Follower
from wpadamw.links import links_of
from wpadamw.optimizer import WeightPrediction


class Attachment:
    """What `attach` returns."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower

    def remove(self) -> None:
        """Detach the model. The parameters keep the weights that they hold."""
        remove_links(self._follower)


def attach(model: nn.Module, optimizer: WeightPrediction) -> Attachment:
    """Let a model's own modes decide which weights it holds.

    A forward of ``model`` in training mode sees predicted weights, one in evaluation mode true
    weights. So does a forward of a part of it: the mode of ``model`` counts, whatever the mode of
    the part. From ``model.eval()`` on the parameters hold true weights, for every reader, until a
    training forward or a step. ``state_dict()`` of the model or of a part returns true weights; as
    in torch the tensors are the parameters' own, and the next training forward changes them.
    Inside `true_weights()` no forward predicts. Parts that the model gets later follow, too.

    A backward pass begins with the weights of its forward, so that what is computed again
    (activation checkpointing) is the same; it raises RuntimeError if they are gone.

    The modules get subclasses of their classes, so ``isinstance`` holds and ``type(module) is``
    does not. Copies, pickles and what TorchScript makes of a model are of the plain classes, hold
    true weights and follow nothing. Attaching again replaces what was attached for the same
    parameters. The weights of an optimizer move together: of several models under one optimizer the
    last call decides.

    Args:
        model: the module whose ``forward`` the training loop calls.
        optimizer: holds the model's parameters; may be in `LaPerm`, and in a wrapper of accelerate
            or Lightning.

    Returns:
        A handle; its ``remove()`` detaches the model.

    Raises:
        TypeError: if an argument is of another type, a wrapper with weights of its own for one.
        ValueError: if the model holds none of the optimizer's parameters.

    Example:
        >>> wpadamw.attach(model, opt)
        >>> model.eval(); evaluate(model)              # true weights
        >>> torch.save(model.state_dict(), "model.pt")  # true weights
        >>> model.train(); train(model)                # predicted weights
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    optimizer = own_optimizer(optimizer)
    follower = Follower(model, optimizer, make_link)
    if not follower.serves(model):
        raise ValueError(
            "model must hold parameters of the optimizer, got one that has none of its "
            f"{len(follower.params())}: attach what was given to the optimizer, after all wrappers "
            "and moves that make new parameters"
        )
    _detach(model, follower)
    follower.follow_parts()
    if model.training and not optimizer.state:
        optimizer.predict()  # moves nothing: the first forward has nothing to do, in a graph
    return Attachment(follower)


def own_optimizer(optimizer: Any) -> WeightPrediction:
    """The optimizer in a wrapper of accelerate or Lightning, and in `LaPerm`."""
    inner = getattr(optimizer, "optimizer", optimizer)
    own = getattr(inner, "optimizer", inner)
    if isinstance(own, WeightPrediction):
        return own
    found = type(inner if isinstance(inner, Optimizer) else optimizer).__name__
    if isinstance(getattr(optimizer, "optim", None), WeightPrediction):
        raise TypeError(REFUSED.format(name=found, instead="torch.distributed.fsdp.fully_shard"))
    raise TypeError(f"optimizer must be one of wpadamw's, got {found}")


def _detach(model: nn.Module, follower: Follower) -> None:
    """Undoes earlier attachments for the parameters that a new one follows."""
    own = follower.params().keys()
    for module in model.modules():
        for link in links_of(module):
            is_replaced = link.is_root and not own.isdisjoint(link.follower.params())
            if is_replaced and link.is_of(module):
                remove_links(link.follower)


def refresh_batch_norm(
    model: nn.Module, loader: Iterable[Any], device: torch.device | int | None = None
) -> None:
    """Let batch normalisation see the true weights, before these are evaluated or saved.

    In training it sees predicted weights, and so do its running statistics. This computes them anew
    as plain averages over ``loader``, with `torch.optim.swa_utils.update_bn` at true weights. What
    the parameters held comes back, as do the modes of the model.

    Args:
        model: attached to its optimizer.
        loader: yields inputs, or tuples and lists that begin with them.
        device: where inputs are moved to.

    Raises:
        ValueError: if neither the model nor a part of it is attached.
    """
    followers = [link.follower for module in model.modules() for link in links_of(module)]
    if not followers:
        raise ValueError(
            "model must be attached: call wpadamw.attach(model, optimizer), or "
            "torch.optim.swa_utils.update_bn inside optimizer.true_weights()"
        )
    with ExitStack() as stack:
        for optimizer in {id(each.optimizer): each.optimizer for each in followers}.values():
            stack.enter_context(optimizer.true_weights())
        update_bn(loader, model, device)
