"""An asynchronous pipeline in one process: which weights each forward and each backward sees.

Every forward runs on a copy of its stage, so that it has a graph of its own. That is slow, needs no
hook, and is easy to check. Knows nothing of `wpadamw.pipeline`, of models and of methods.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# The kind and the number of the micro-batch. Kinds are "F" and "B", or for the two halves of "B":
# "I" for the gradients, of which the stage before waits for one, and "W" for the update.
Action = tuple[str, int]
Orders = list[list[Action]]  # of the stages
Batches = Sequence[tuple[Tensor, Tensor]]
LossFn = Callable[[Tensor, Tensor], Tensor]
Backward = Literal["current", "forward"]

# One stage.


class Pass(NamedTuple):
    """A micro-batch on a stage, between its forward and its backward.

    Args:
        module: the copy that the forward ran on.
        entered: the stage's input.
        left: its output, of the last stage the loss.
        num_updates: that the stage had made at the forward.
    """

    module: nn.Module
    entered: Tensor
    left: Tensor
    num_updates: int


@dataclass
class SimulatedStage:
    """A part of a model, and its optimizer.

    Args:
        module: maps one tensor to one tensor.
        optimizer: of this package, over the parameters of the module.
        max_norm: what the norm of the stage's gradients is clipped to; None leaves them.
        lr_scheduler: makes a step after each update.
        num_updates: that the stage has made.
        delays: how many of them lay between the forward and the backward, for every backward.
        under_way: by the number of the micro-batch.
    """

    module: nn.Module
    optimizer: Optimizer
    max_norm: float | None = None
    lr_scheduler: LRScheduler | None = None
    num_updates: int = field(default=0, init=False)
    delays: list[int] = field(default_factory=list, init=False)
    under_way: dict[int, Pass] = field(default_factory=dict, init=False, repr=False)

    def forward(
        self,
        number: int,
        entered: Tensor,
        then: Callable[[Tensor], Tensor] = lambda output: output,
    ) -> Tensor:
        """Run a copy of the module at the predicted weights, ``then`` what follows the last one."""
        _methods(self.optimizer).predict()
        copied = copy.deepcopy(self.module)
        left = then(copied(entered))
        with torch.no_grad():
            for buffer, new in zip(self.module.buffers(), copied.buffers(), strict=True):
                buffer.copy_(new)
        self.under_way[number] = Pass(copied, entered, left, self.num_updates)
        return left.detach()

    def backward(self, number: int, grad: Tensor | None, weights: Backward) -> Tensor | None:
        """Run the backward; return the gradient of what had entered."""
        done = self.under_way[number]
        pairs = zip(self.module.parameters(), done.module.parameters(), strict=True)
        if weights == "current":
            _methods(self.optimizer).restore()
            for param, copied in pairs:
                # Autograd refuses to go back through weights that were written to after the
                # forward. Here this is what is meant to happen; so they are written to unseen.
                copied.data.copy_(param)
        torch.autograd.backward(done.left, grad)
        return done.entered.grad

    def update(self, number: int) -> None:
        """Make an update with the gradients of the backward."""
        done = self.under_way.pop(number)
        pairs = zip(self.module.parameters(), done.module.parameters(), strict=True)
        for param, copied in pairs:
            param.grad = copied.grad
        self.delays.append(self.num_updates - done.num_updates)
        if self.max_norm is not None:
            _methods(self.optimizer).clip_grad_norm_(self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.num_updates += 1


def _methods(optimizer: Optimizer) -> Any:
    """The optimizer with what its base class does not have."""
    return optimizer


# Their orders.


def one_forward_one_backward(num_stages: int, num_microbatches: int) -> Orders:
    """What each stage does one after the other (1F1B, as torch's ``Schedule1F1B``).

    A stage runs as many forwards ahead as there are stages behind it, then alternates.
    """
    return [_alternating(num_stages - 1 - rank, num_microbatches) for rank in range(num_stages)]


def _alternating(num_ahead: int, num_microbatches: int) -> list[Action]:
    order: list[Action] = []
    for number in range(num_microbatches + num_ahead):
        if number < num_microbatches:
            order.append(("F", number))
        if num_ahead <= number:
            order.append(("B", number - num_ahead))
    return order


def in_dependency_order(orders: Orders) -> Iterator[tuple[int, Action]]:
    """Merge the orders of the stages: an action comes after those that it needs.

    Yields:
        The number of the stage, and the action.

    Raises:
        ValueError: if the stages wait for each other.
    """
    waiting = [deque(order) for order in orders]
    done: set[tuple[int, Action]] = set()
    while any(waiting):
        num_done = len(done)
        for rank, order in enumerate(waiting):
            if order and _needs(rank, order[0], len(orders)) <= done:
                kind, number = order[0]
                done.add((rank, ("B" if kind == "I" else kind, number)))
                yield rank, order.popleft()
        if len(done) == num_done:
            stuck = {rank: "{}{}".format(*order[0]) for rank, order in enumerate(waiting) if order}
            raise ValueError(f"orders must not wait for each other, got stages stuck at {stuck}")


def _needs(rank: int, action: Action, num_stages: int) -> set[tuple[int, Action]]:
    kind, number = action
    if kind == "F":
        return {(rank - 1, action)} if rank > 0 else set()
    if kind == "W":
        return {(rank, ("B", number))}
    behind = {(rank + 1, ("B", number))} if rank + 1 < num_stages else set()
    return {(rank, ("F", number))} | behind


def slots(orders: Orders) -> list[tuple[int, int, str, int]]:
    """When each stage does what, if every action takes a slot and begins as soon as it can.

    Returns:
        Stage, number of the slot, kind and number of the micro-batch, for every action.
    """
    ends: dict[tuple[int, Action], int] = {}
    free = [0] * len(orders)
    found = []
    for rank, action in in_dependency_order(orders):
        needed = (ends[each] for each in _needs(rank, action, len(orders)))
        start = max(free[rank], *needed, 0)
        free[rank] = ends[rank, action] = start + 1
        found.append((rank, start, *action))
    return found


def _check(orders: Orders, num_stages: int, num_microbatches: int) -> None:
    if len(orders) != num_stages:
        raise ValueError(f"orders must be one per stage, got {len(orders)} for {num_stages}")
    actions = [(kind, number) for number in range(num_microbatches) for kind in "FIW"]
    for rank, order in enumerate(orders):
        halves = [(half, n) for kind, n in order for half in ("IW" if kind == "B" else kind)]
        if sorted(halves) != sorted(actions):
            raise ValueError(
                f"orders must hold the forward and the backward of each of {num_microbatches} "
                f"micro-batches once, got for stage {rank} {order}"
            )


# The whole pipeline.


def simulate(
    stages: Sequence[SimulatedStage],
    batches: Batches,
    loss_fn: LossFn,
    *,
    backward: Backward = "current",
    orders: Orders | None = None,
    after_update: Callable[[int, int], object] = lambda rank, number: None,
) -> list[Tensor]:
    """Train: every stage makes an update after each of its backwards.

    Args:
        stages: the output of one is the input of the next.
        batches: an input of the first stage and a target for each micro-batch.
        loss_fn: the loss of an output of the last stage and a target.
        backward: at which weights a stage's backward runs: ``"current"``, the true ones of that
            time, or ``"forward"``, those of its forward.
        orders: what each stage does one after the other; None: `one_forward_one_backward`.
        after_update: called with the number of a stage and that of the micro-batch with which it
            made an update.

    Returns:
        The loss of each micro-batch, without a graph.

    Raises:
        ValueError: for orders that leave something out or that cannot be executed. Nothing ran.
    """
    if orders is None:
        orders = one_forward_one_backward(len(stages), len(batches))
    _check(orders, len(stages), len(batches))
    run = _Run(stages, batches, loss_fn, backward)
    for rank, (kind, number) in list(in_dependency_order(orders)):
        if kind == "F":
            run.forward(rank, number)
        if kind in "BI":
            run.backward(rank, number)
        if kind in "BW":
            stages[rank].update(number)
            after_update(rank, number)
    return [run.losses[number] for number in range(len(batches))]


@dataclass
class _Run:
    """What goes from stage to stage, by the stage that it goes to and the micro-batch."""

    stages: Sequence[SimulatedStage]
    batches: Batches
    loss_fn: LossFn
    weights: Backward
    activations: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    gradients: dict[tuple[int, int], Tensor | None] = field(default_factory=dict)
    losses: dict[int, Tensor] = field(default_factory=dict)

    def forward(self, rank: int, number: int) -> None:
        """Send on what leaves the stage, or keep the loss."""
        entered, target = self.batches[number]
        if rank > 0:
            entered = self.activations.pop((rank, number)).requires_grad_()
        if rank + 1 < len(self.stages):
            left = self.stages[rank].forward(number, entered)
            self.activations[rank + 1, number] = left
        else:
            self.losses[number] = self.stages[rank].forward(
                number, entered, lambda output: self.loss_fn(output, target)
            )

    def backward(self, rank: int, number: int) -> None:
        """Send back the gradient of what had entered the stage."""
        grad = self.gradients.pop((rank, number), None)
        entered = self.stages[rank].backward(number, grad, self.weights)
        if rank > 0:
            self.gradients[rank - 1, number] = entered
