"""Trains copies of one model with several optimizers, step by step on the same batches.

Knows models, optimizers and batches; knows nothing of arguments, files or tables.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..registry import Entrant
from .text import Batch

WARMUP_SHARE = 0.1
FINAL_LR_SHARE = 0.1


@dataclass
class Record:
    """What was measured of one optimizer with one seed."""

    optimizer: str
    seed: int
    num_parameters: int = 0
    state_bytes: int = 0
    evaluated_steps: list[int] = field(default_factory=list)
    validation_losses: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    step_times_ms: list[float] = field(default_factory=list)

    def validation_loss_at(self, step: int) -> float:
        """Return the validation loss measured after ``step`` updates."""
        return self.validation_losses[self.evaluated_steps.index(step)]


class Trainee:
    """A model with its optimizer and learning-rate schedule, and the record of their training.

    Args:
        record: receives what is measured.
        model: trained in place.
        optimizer: over the parameters of the model.
        lr_factor: of the learning rate, from the number of updates made.
        max_norm: what the norm of the gradients is clipped to.
    """

    def __init__(
        self,
        record: Record,
        model: nn.Module,
        optimizer: Optimizer,
        lr_factor: Callable[[int], float],
        max_norm: float = math.inf,
    ) -> None:
        self.record = record
        self.model = model
        self.optimizer = optimizer
        self.schedule = LambdaLR(optimizer, lr_factor)
        self.max_norm = max_norm

    def train_step(self, batch: Batch) -> None:
        """Make one update; the time recorded is that of ``optimizer.step()`` alone."""
        self.model.train()
        set_mode(self.optimizer, "train")
        self.optimizer.zero_grad()
        loss = mean_cross_entropy(self.model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.max_norm < math.inf:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.record.step_times_ms.append(timed_step_ms(self.optimizer, loss.device))
        self.schedule.step()
        self.record.train_losses.append(loss.item())

    @torch.no_grad()
    def evaluate(self, step: int, batches: Sequence[Batch]) -> None:
        """Record the mean loss over ``batches``, in eval mode: at the true weights."""
        self.model.eval()
        set_mode(self.optimizer, "eval")
        losses = [mean_cross_entropy(self.model, batch).item() for batch in batches]
        self.record.evaluated_steps.append(step)
        self.record.validation_losses.append(statistics.fmean(losses))

    def finish(self) -> Record:
        """Measure what the optimizer holds and return the record."""
        self.record.num_parameters = sum(param.numel() for param in self.model.parameters())
        self.record.state_bytes = optimizer_state_bytes(self.optimizer)
        return self.record


def train_side_by_side(
    trainees: Sequence[Trainee],
    batches: Iterable[Batch],
    validation: Sequence[Batch],
    evaluated_steps: Collection[int],
) -> Iterator[int]:
    """Give each batch to every trainee before the next; yield the number of each step done.

    Interleaved, so that a machine that slows down slows all of them.
    """
    for trainee in trainees:
        trainee.evaluate(0, validation)
    for step, batch in enumerate(batches, start=1):
        # The order alternates: who comes second finds the caches as the first left them.
        for trainee in trainees if step % 2 else reversed(trainees):
            trainee.train_step(batch)
            if step in evaluated_steps:
                trainee.evaluate(step, validation)
        yield step


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch to a device."""
    inputs, targets = batch
    return inputs.to(device), targets.to(device)


def set_mode(optimizer: Optimizer, mode: str) -> None:
    """Call ``optimizer.train()`` or ``optimizer.eval()`` where it has such modes."""
    if hasattr(optimizer, mode):
        getattr(optimizer, mode)()


def mean_cross_entropy(model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    """Return the mean cross-entropy in nats per target, for logits ``[..., classes]``."""
    inputs, targets = batch
    return cross_entropy(model(inputs), targets)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters in two groups: matrices decay, biases and norms do not."""
    params = list(model.parameters())
    return [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]


def warmup_cosine(step: int, num_steps: int) -> float:
    """Return the factor of the learning rate: a linear rise, then half a cosine."""
    warmup = math.ceil(WARMUP_SHARE * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    return FINAL_LR_SHARE + (1 - FINAL_LR_SHARE) * (1 + math.cos(math.pi * progress)) / 2


def build(
    entrant: Entrant, groups: list[dict[str, Any]], lr: float, num_steps: int, **options: Any
) -> tuple[Optimizer, Callable[[int], float]]:
    """Build an optimizer for so many steps, and the factor of its learning rate by step."""
    if entrant.is_scheduled:
        return entrant.build(groups, lr=lr, **options), partial(warmup_cosine, num_steps=num_steps)
    options["warmup_steps"] = round(WARMUP_SHARE * num_steps)
    return entrant.build(groups, lr=lr, **options), lambda step: 1.0


def timed_step_ms(optimizer: Optimizer, device: torch.device) -> float:
    """Make a step and return its wall-clock time, the device's work included."""
    _synchronize(device)
    start = time.perf_counter()
    optimizer.step()
    _synchronize(device)
    return 1e3 * (time.perf_counter() - start)


def optimizer_state_bytes(optimizer: Optimizer) -> int:
    """Add up the tensors of the state by their elements: they may be views of one buffer."""
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
