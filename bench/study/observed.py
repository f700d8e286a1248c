"""Trainings of the study's tasks that can be looked at, and what their optimizers hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import tasks, trainings
from .comparison import Trainee, set_mode
from .tasks import Problem
from .text import Batch

# Drawn together they are the batch that the loss is looked at with.
NUM_DRAWS = {"gpt": 2, "digits": 8, "signals": 8}
BATCH_SEED = 12345

Run = dict[str, Any]  # task, optimizer, lr, seed, num_steps, and what is seen


def posed(task: str, is_quick: bool) -> Problem:
    """Make a task's data once."""
    return trainings.posed(tasks.TASKS[task], tasks.scale_of(tasks.TASKS[task], is_quick))


def start(problem: Problem, run: Run) -> Trainee:
    """Build what the study trains: the same initial weights and optimizers."""
    about = (run[key] for key in ("task", "optimizer", "lr", "seed", "num_steps"))
    return trainings.start(problem, *about)


def fixed_batch(task: str, problem: Problem) -> Batch:
    """Draw the batch that the loss is looked at with: training data, larger than a batch."""
    generator = torch.Generator().manual_seed(BATCH_SEED)
    inputs, targets = zip(
        *(problem.draw_batch(generator) for _ in range(NUM_DRAWS[task])), strict=True
    )
    return torch.cat(inputs), torch.cat(targets)


# What an optimizer holds, flat, in the order of the model's parameters.


def weights_of(trainee: Trainee, mode: str) -> Tensor:
    """Copy the true weights (mode "eval") or the predicted ones ("train"); the mode is left."""
    set_mode(trainee.optimizer, mode)
    return torch.cat([param.detach().flatten() for param in trainee.model.parameters()])


def preconditioner_of(optimizer: Optimizer, params: Sequence[Tensor]) -> Tensor:
    """Return ``sqrt(v_hat) + eps``, what the first moment was last divided by."""
    group = optimizer.param_groups[0]
    states = [optimizer.state[param] for param in params]
    return torch.cat(
        [
            (state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))).sqrt().flatten()
            for state in states
        ]
    ).add_(group["eps"])
