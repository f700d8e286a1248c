"""Models whose own modes decide which weights they hold, without mode calls."""

from __future__ import annotations

import weakref

from torch import nn

from wpadamw.attached_class import LINKS, Link, Links, change_class, remove_links
from wpadamw.follow import Follower
from wpadamw.optimizer import WeightPrediction


class Attachment:
    """What `attach` returns."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._modules: list[weakref.ref[nn.Module]] = []

    def _add(self, module: nn.Module, is_root: bool) -> None:
        change_class(module, is_root)
        link = Link(weakref.ref(module), self._follower, is_root)
        vars(module)[LINKS] = Links((*vars(module).get(LINKS, ()), link))
        self._modules.append(link.module)

    def remove(self) -> None:
        """Detach the model. The parameters keep the weights that they hold."""
        for reference in self._modules:
            if (module := reference()) is not None:
                remove_links(module, self._follower)
        self._modules.clear()


def attach(model: nn.Module, optimizer: WeightPrediction) -> Attachment:
    """Let a model's own modes decide which weights it holds.

    A forward of ``model`` in training mode sees predicted weights, one in evaluation mode true
    weights. So does a forward of a part of it: the mode of ``model`` counts, whatever the mode of
    the part. From ``model.eval()`` on the parameters hold true weights, for every reader, until a
    training forward or a step. ``state_dict()`` of the model or of a part returns true weights; as
    in torch the tensors are the parameters' own, and the next training forward changes them.

    A backward pass begins with the weights of its forward, so that what is computed again
    (activation checkpointing) is the same; it raises RuntimeError if they are gone.

    The modules get subclasses of their classes, so ``isinstance`` holds and ``type(module) is``
    does not. Copies, pickles and what TorchScript makes of a model are of the plain classes and
    follow nothing. Attaching again replaces what was attached for the same parameters. The weights
    of an optimizer move together: of several models under one optimizer the last call decides.

    Args:
        model: the module whose ``forward`` the training loop calls.
        optimizer: holds the model's parameters.

    Returns:
        A handle; its ``remove()`` detaches the model.

    Raises:
        TypeError: if an argument is of another type.

    Example:
        >>> wpadamw.attach(model, opt)
        >>> model.eval(); evaluate(model)              # true weights
        >>> torch.save(model.state_dict(), "model.pt")  # true weights
        >>> model.train(); train(model)                # predicted weights
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    optimizer = getattr(optimizer, "optimizer", optimizer)  # a wrapper of accelerate
    if not isinstance(optimizer, WeightPrediction):
        raise TypeError(f"optimizer must be one of wpadamw's, got {type(optimizer).__name__}")
    own = {id(param) for group in optimizer.param_groups for param in group["params"]}
    _detach(model, own)
    inner = dict(model.named_children()).get("_orig_mod", model)  # of what torch.compile returned
    attachment = Attachment(Follower(inner, optimizer))
    for module in model.modules():
        is_root = module is model or module is inner
        if is_root or any(id(param) in own for param in module.parameters()):
            attachment._add(module, is_root)
    if model.training and not optimizer.state:
        optimizer.predict()  # moves nothing: the first forward has nothing to do, in a graph
    return attachment


def _detach(model: nn.Module, params: set[int]) -> None:
    """Undoes earlier attachments for these parameters: the model may have new parts since."""
    for link in vars(model).get(LINKS, ()):
        groups = link.follower.optimizer.param_groups
        is_replaced = any(id(param) in params for group in groups for param in group["params"])
        if link.is_root and link.is_of(model) and is_replaced:
            for module in model.modules():
                remove_links(module, link.follower)
