"""What follows when prediction is switched on in the middle of a training.

A training without prediction is copied half-way, and its copies go on with and without, on the same
batches at the same learning rates. What differs at once is how weights swing; what differs more
and more is where they get to.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..report.markup import rounded
from .comparison import Trainee
from .landscape import DIGITS, Landscape, swing
from .observed import Run, fixed_batch, start, weights_of
from .tasks import Problem

SWITCHED_TO = (0.0, 1.0, 2.0)
NUM_WINDOWS = 10


def switch(run: Run, problem: Problem, window: int) -> Run:
    """Train half-way without prediction, then follow copies over windows of so many steps.

    Returns:
        ``run`` with ``middle_loss`` and ``swing`` of each window, lists by ``prediction_steps``.
    """
    trainee = start(problem, run)
    landscape = Landscape(trainee.model, fixed_batch(run["task"], problem))
    predict(trainee, 0.0)
    generator = torch.Generator().manual_seed(run["seed"])
    for _ in range(run["num_steps"] // 2):
        trainee.train_step(problem.draw_batch(generator))
    followed: dict[str, Any] = {}
    for prediction_steps in SWITCHED_TO:
        gone_on = copied(trainee, start(problem, run))
        predict(gone_on, prediction_steps)
        same = torch.Generator().set_state(generator.get_state())
        seen = [swing(landscape, walk(gone_on, problem, same, window)) for _ in range(NUM_WINDOWS)]
        followed[f"{prediction_steps:g}"] = {
            key: [rounded(each[key], DIGITS) for each in seen] for key in ("middle_loss", "swing")
        }
    return {**run, "window": window, "followed": followed}


def predict(trainee: Trainee, prediction_steps: float) -> None:
    """Predict so many steps from the next prediction on."""
    for group in trainee.optimizer.param_groups:
        group["prediction_steps"] = prediction_steps


def copied(old: Trainee, new: Trainee) -> Trainee:
    """Give ``new``, which is built alike, all that ``old`` holds."""
    new.model.load_state_dict(old.model.state_dict())
    new.optimizer.load_state_dict(copy.deepcopy(old.optimizer.state_dict()))
    new.schedule.load_state_dict(old.schedule.state_dict())
    return new


def walk(
    trainee: Trainee, problem: Problem, generator: torch.Generator, num_steps: int
) -> list[Tensor]:
    """Train for some steps; return the true weights after each, flat."""
    path = []
    for _ in range(num_steps):
        trainee.train_step(problem.draw_batch(generator))
        path.append(weights_of(trainee, "eval"))
    return path
