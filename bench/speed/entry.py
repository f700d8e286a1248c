"""Lets optimizers into a race: each over its own parameters, if it runs and fits into memory."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch.nn import Parameter

import wpadamw

from .. import machine
from ..registry import COPY, IN_PLACE, STEP_BYTES, Entrant, entrants
from .measure import Contestant, Race
from .shapes import Shape

# A copy of this size is as fast per byte as a longer one.
MAX_ROOF_NUMEL = 2**30
NUM_ROOF_TENSORS = 3


def entrants_on(device: torch.device, part: str) -> list[Entrant]:
    """Who takes part on a device; whose backend is not there stays out with the reason."""
    parts = (part, f"{part} {device.type}")
    return [_with_backend(entrant, device) for entrant in entrants(*parts).values()]


def _with_backend(entrant: Entrant, device: torch.device) -> Entrant:
    backend = entrant.options.get("backend")
    if backend is None:
        return entrant
    why_not = wpadamw.backends()[device.type].get(backend, "there is no such backend")
    return entrant._replace(why_not=why_not)


def num_copies(footprint: int, cache: int) -> int:
    """How many copies of all inputs a race should go through.

    One if a round of it leaves the cache behind by itself; else so many that twice the cache
    lies between two rounds on the same copy.
    """
    rounds_between = math.ceil(2 * cache / footprint)
    return 1 if rounds_between == 1 else 1 + rounds_between


def footprint_bytes(num_entrants: int, shape: Shape) -> int:
    """At least what a round of a race touches: weight, gradient and moments of each, and roofs."""
    least = 4 * shape.dtype.itemsize
    return least * num_entrants * shape.total + NUM_ROOF_TENSORS * 4 * _roof_numel(shape)


def renew_gradients(params: Iterable[Parameter]) -> None:
    """Give every parameter a gradient at a new place, as ``zero_grad`` and backward do."""
    for param in params:
        assert param.grad is not None
        param.grad = param.grad.clone()


class Inputs(Protocol):
    """What a step works on."""

    def prepare(self) -> None:
        """Get ready for a step, outside of the time taken."""

    def step(self) -> object:
        """What is timed."""


class Rotation:
    """Copies of the same inputs, used in turn."""

    def __init__(self, copies: Iterable[Inputs]) -> None:
        self.copies = itertools.cycle(list(copies))

    def prepare(self) -> None:
        """Take the next copy."""
        self.current = next(self.copies)
        self.current.prepare()

    def run(self) -> None:
        """Step on it."""
        self.current.step()


class Trained:
    """Parameters with gradients, and their optimizer.

    Args:
        entrant: the optimizer.
        shape: of the parameters.
        has_new_gradients: in each step, as after ``zero_grad``.
        is_warm: a step is made just before the one that is timed.
    """

    def __init__(
        self, entrant: Entrant, shape: Shape, has_new_gradients: bool = False, is_warm: bool = False
    ) -> None:
        self.params = shape.parameters()
        self.grads = [param.grad for param in self.params]
        self.has_new_gradients, self.is_warm = has_new_gradients, is_warm
        self.step = entrant.build(self.params).step

    def prepare(self) -> None:
        """Get ready for the step that is timed."""
        self._put_gradients()
        if self.is_warm:
            self.step()
            self._put_gradients()

    def _put_gradients(self) -> None:
        # Some optimizers drop them after a step.
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        if self.has_new_gradients:
            renew_gradients(self.params)
            self.grads = [param.grad for param in self.params]


class Copied:
    """A tensor that is copied."""

    def __init__(self, numel: int, device: torch.device) -> None:
        self.source, self.target = (torch.ones(numel, device=device) for _ in range(2))

    def prepare(self) -> None:
        """Nothing."""

    def step(self) -> None:
        """Copy."""
        self.target.copy_(self.source)


class Multiplied:
    """A tensor that is read and written in place.

    A processor reads the lines that an ordinary copy writes, so a step that writes what it has
    read can be faster per byte than the copy. This leaves no line to be fetched only to be
    overwritten.
    """

    def __init__(self, numel: int, device: torch.device) -> None:
        self.values = torch.ones(numel, device=device)

    def prepare(self) -> None:
        """Nothing."""

    def step(self) -> None:
        """Multiply."""
        self.values.mul_(1.0)


ROOFS: dict[str, Callable[[int, torch.device], Inputs]] = {
    COPY: Copied,
    IN_PLACE: Multiplied,
}


def enter(
    race: Race,
    those: Sequence[Entrant],
    shape: Shape,
    *,
    copies: int = 1,
    deadline: float = math.inf,
    **options: bool,
) -> None:
    """Let those that can be there, and the roofs, into a race; it notes why others are not.

    Args:
        race: gets new contestants.
        those: optimizers; what is in short supply the first ones get.
        shape: of the parameters.
        copies: of the inputs.
        deadline: of ``time.monotonic``, after which no optimizer is built any more.
        options: of `Trained`.
    """
    roofs = NUM_ROOF_TENSORS * 4 * _roof_numel(shape) * copies
    for i, entrant in enumerate(those):
        temporary = max(each.temporary_bytes for each in those[: i + 1])
        temporary += 4 * options.get("has_new_gradients", False)
        needed = (entrant.held_bytes * copies + temporary) * shape.total + roofs
        race.enter(
            entrant.name,
            partial(optimizer, entrant, shape, copies, **options),
            num_copies=copies,
            why_not=entrant.missing or _late(deadline) or too_large(needed, shape.device),
        )
    no_room = too_large(roofs, shape.device)
    for name, build in ROOFS.items():
        race.enter(name, partial(_roof, build, shape, copies), num_copies=copies, why_not=no_room)


def optimizer(entrant: Entrant, shape: Shape, copies: int = 1, **options: bool) -> Contestant:
    """An optimizer that steps on copies of its inputs in turn."""
    per_parameter = entrant.bytes_per_parameter
    moved = None if per_parameter is None else round(per_parameter * shape.total)
    inputs = Rotation(Trained(entrant, shape, **options) for _ in range(copies))
    return Contestant(inputs.run, moved, inputs.prepare)


def _roof(build: Callable[[int, torch.device], Inputs], shape: Shape, copies: int) -> Contestant:
    numel = _roof_numel(shape)
    inputs = Rotation(build(numel, shape.device) for _ in range(copies))
    return Contestant(inputs.run, 2 * 4 * numel, inputs.prepare)


def _roof_numel(shape: Shape) -> int:
    """So many float32 elements that reading and writing them moves what a fused step moves."""
    return min(STEP_BYTES // 2 * shape.total // 4, MAX_ROOF_NUMEL)


def _late(deadline: float) -> str | None:
    return "no time was left" if time.monotonic() > deadline else None


def too_large(needed: int, device: torch.device) -> str | None:
    """Why so many bytes cannot be had, or None."""
    free = machine.free_bytes(device)
    if free is None or needed <= free:
        return None
    return f"needs {needed / 2**30:.1f} GiB of memory, got {free / 2**30:.1f} GiB"
