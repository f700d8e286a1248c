"""What a training shows beside its loss: how good predictions were, how flat gradients are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .comparison import set_mode


class Foresight(NamedTuple):
    """How well a group's predicted weights foresaw the next step.

    Args:
        error: distance of the predicted weights from those that the step produced, in lengths of
            that step. Without prediction it is 1.
        best_steps: the ``prediction_steps`` with which it would have been smallest.
        steps: those that were used.
    """

    error: float
    best_steps: float
    steps: float


class PredictionProbe:
    """Follows one step of an optimizer with prediction.

    Going to true weights and back is exact, so the training does not notice.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.steps: list[float] = [group["prediction_steps"] for group in optimizer.param_groups]
        set_mode(optimizer, "eval")
        self.true = _weights(optimizer)
        set_mode(optimizer, "train")
        self.predicted = _weights(optimizer)

    def after_step(self) -> list[Foresight | None]:
        """Compare, once the step is made; None for a group that did not move or predict."""
        set_mode(self.optimizer, "eval")
        reached = _weights(self.optimizer)
        return [
            foresight(predicted - true, after - true, steps)
            for steps, true, predicted, after in zip(
                self.steps, self.true, self.predicted, reached, strict=True
            )
        ]


def foresight(predicted: Tensor, real: Tensor, prediction_steps: float) -> Foresight | None:
    """Compare a predicted with a real move, both flat: see the class of that name."""
    length, predicted_length = real.norm().item(), predicted.norm().item()
    if not (length > 0 and predicted_length > 0):
        return None
    # The multiple of the predicted move that comes nearest to the real one.
    nearest = torch.dot(predicted, real).item() / predicted_length**2
    error = (predicted - real).norm().item() / length
    return Foresight(error, prediction_steps * nearest, prediction_steps)


def _weights(optimizer: Optimizer) -> list[Tensor]:
    """Copy the parameters of each group, float64, flat."""
    return [
        torch.cat([param.detach().double().flatten() for param in group["params"]])
        for group in optimizer.param_groups
    ]


def norm_ratio(gradients: Sequence[Tensor]) -> float:
    """Return ``||g||_1 / (sqrt(d) ||g||_2)``: 1 where all elements are equally large, else less.

    The convergence analysis of AdamW in the l1 norm (arXiv 2505.11840) rests on it.
    """
    joint = torch.cat([gradient.detach().double().flatten() for gradient in gradients])
    ratio: float = (joint.norm(1) / (math.sqrt(joint.numel()) * joint.norm())).item()
    return ratio
