"""What the study trains: models and data that need no download.

Knows nothing of optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..usage import optional_module
from .gpt import GPT
from .text import Batch, fixed_batches, load_corpus, random_batch

NUM_VALIDATION_BATCHES = 8


@dataclass(frozen=True)
class Scale:
    """Sizes of the language models and lengths of trainings.

    Args:
        layers: blocks of the GPT.
        width: its residual stream; twice the embedding of the LSTM is as wide as its state.
        heads: its attention heads per block.
        hidden: state of the LSTM.
        context: bytes per window, both language models.
        batch_size: windows per batch, both language models.
        max_steps: cuts a task's number of steps; None leaves it.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    context: int
    batch_size: int
    max_steps: int | None = None


SMALL = Scale(layers=2, width=96, heads=4, hidden=128, context=64, batch_size=16)
LARGE = Scale(layers=6, width=384, heads=6, hidden=512, context=64, batch_size=8)
QUICK = Scale(layers=1, width=8, heads=2, hidden=8, context=8, batch_size=2, max_steps=8)


@dataclass(frozen=True)
class Problem:
    """A model to build, batches to draw, batches to validate on.

    Args:
        build_model: a model initialised by torch's global generator.
        draw_batch: a training batch, on the host.
        validation: always the same batches, on the host.
    """

    build_model: Callable[[], nn.Module]
    draw_batch: Callable[[torch.Generator], Batch]
    validation: list[Batch]


@dataclass(frozen=True)
class Task:
    """An entry of the study.

    Args:
        name: short, for files and options.
        title: what is trained on what.
        num_steps: length of a training.
        weight_decay: of the matrices, for all optimizers.
        learning_rate: in the middle of where the search for the best one begins.
        pose: makes the problem.
        scale: what it is trained at, but for ``--quick``.
        quick_scale: for ``--quick``.
        num_rates: with which the search begins; odd.
        package: what its data come from, if that is an optional package.
    """

    name: str
    title: str
    num_steps: int
    weight_decay: float
    learning_rate: float
    pose: Callable[[Scale], Problem]
    scale: Scale = SMALL
    quick_scale: Scale = QUICK
    num_rates: int = 7
    package: str | None = None

    def steps_at(self, scale: Scale) -> int:
        """Return the length of a training at a scale."""
        return min(self.num_steps, scale.max_steps or self.num_steps)


# Language models over bytes.


class LSTM(nn.Module):
    """One LSTM layer between an embedding of bytes and a linear head."""

    def __init__(self, hidden: int, vocabulary: int = 256) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, hidden // 2)
        self.lstm = nn.LSTM(hidden // 2, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, ``[batch, time, vocabulary]``."""
        states, _ = self.lstm(self.token(tokens))
        logits: Tensor = self.head(states)
        return logits


def _pose_gpt(scale: Scale) -> Problem:
    return pose_text(scale, lambda: GPT(scale.context, scale.layers, scale.width, scale.heads))


def _pose_lstm(scale: Scale) -> Problem:
    return pose_text(scale, lambda: LSTM(scale.hidden))


def pose_text(scale: Scale, build_model: Callable[[], nn.Module]) -> Problem:
    """A language model over the bytes of Python's standard library."""
    corpus = load_corpus(None, scale.context)
    size, context = scale.batch_size, scale.context
    return Problem(
        build_model,
        lambda generator: random_batch(corpus.train, size, context, generator),
        fixed_batches(corpus.validation, NUM_VALIDATION_BATCHES, size, context),
    )


# Images.

DIGITS_BATCH_SIZE = 64
NUM_DIGITS_HELD_OUT = 500


def _pose_digits(scale: Scale) -> Problem:
    data = optional_module("sklearn.datasets", "study").load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, train = order[:NUM_DIGITS_HELD_OUT], order[NUM_DIGITS_HELD_OUT:]

    def draw_batch(generator: torch.Generator) -> Batch:
        chosen = train[torch.randint(len(train), (DIGITS_BATCH_SIZE,), generator=generator)]
        return images[chosen], labels[chosen]

    return Problem(_build_cnn, draw_batch, [(images[held_out], labels[held_out])])


def _build_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


# Signals: what tells the classes apart is a short bump, shifted, scaled and drowned in noise.

NUM_CLASSES, BUMP_LENGTH, SIGNAL_LENGTH = 10, 16, 40
SIGNALS_BATCH_SIZE = 128


def _pose_signals(scale: Scale) -> Problem:
    bumps = _smoothed(torch.randn(NUM_CLASSES, BUMP_LENGTH, generator=_seeded(0)))
    validation = [
        draw_signals(bumps, SIGNALS_BATCH_SIZE, _seeded(1 + i))
        for i in range(NUM_VALIDATION_BATCHES)
    ]
    return Problem(
        _build_mlp,
        lambda generator: draw_signals(bumps, SIGNALS_BATCH_SIZE, generator),
        validation,
    )


def draw_signals(bumps: Tensor, num_signals: int, generator: torch.Generator) -> Batch:
    """Draw labelled signals, float32 ``[num_signals, SIGNAL_LENGTH]``; none comes twice."""
    labels = torch.randint(NUM_CLASSES, (num_signals,), generator=generator)
    free = SIGNAL_LENGTH - BUMP_LENGTH + 1
    starts = torch.randint(free, (num_signals, 1), generator=generator)
    heights = 1 + 0.4 * torch.randn(num_signals, 1, generator=generator)
    signals = 0.5 * _smoothed(torch.randn(num_signals, SIGNAL_LENGTH, generator=generator))
    signals.scatter_add_(1, starts + torch.arange(BUMP_LENGTH), heights * bumps[labels])
    return signals + 0.05 * torch.randn(num_signals, SIGNAL_LENGTH, generator=generator), labels


def _smoothed(values: Tensor) -> Tensor:
    return F.avg_pool1d(values[:, None], kernel_size=5, stride=1, padding=2)[:, 0]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _build_mlp() -> nn.Module:
    width = 128
    return nn.Sequential(
        nn.Linear(SIGNAL_LENGTH, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, NUM_CLASSES),
    )


TASKS = {
    task.name: task
    for task in (
        Task(
            name="gpt",
            title="GPT on the bytes of Python's standard library",
            num_steps=1000,
            weight_decay=0.1,
            learning_rate=8e-3,
            pose=_pose_gpt,
        ),
        Task(
            name="lstm",
            title="LSTM on the same bytes",
            num_steps=1200,
            weight_decay=0.01,
            learning_rate=32e-3,
            pose=_pose_lstm,
        ),
        Task(
            name="digits",
            title="CNN on scikit-learn's digits",
            num_steps=600,
            weight_decay=0.01,
            learning_rate=16e-3,
            pose=_pose_digits,
            package="sklearn",
        ),
        Task(
            name="signals",
            title="MLP on shifted, noisy 1-D signals",
            num_steps=3000,
            weight_decay=0.01,
            learning_rate=32e-3,
            pose=_pose_signals,
        ),
        Task(
            name="gpt-10m",
            title="GPT with 10M parameters on the same bytes",
            num_steps=600,
            weight_decay=0.1,
            learning_rate=1e-3,
            pose=_pose_gpt,
            scale=LARGE,
            num_rates=5,
        ),
    )
}


def scale_of(task: Task, is_quick: bool) -> Scale:
    """The sizes that a task is trained at."""
    return task.quick_scale if is_quick else task.scale
