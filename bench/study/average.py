"""A moving average of a training's true weights, evaluated along the way."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .comparison import Trainee, mean_cross_entropy, set_mode
from .text import Batch

AVERAGE_WEIGHT = 0.03  # of the newest weights: an average over about 33 steps


class WeightAverage:
    """The exponential moving average of a model's weights; buffers are those of the model."""

    def __init__(self, trainee: Trainee) -> None:
        self.trainee = trainee
        average: Any = get_ema_multi_avg_fn(1 - AVERAGE_WEIGHT)  # type: ignore[no-untyped-call]
        self.model = AveragedModel(trainee.model, multi_avg_fn=average)

    def update(self) -> None:
        """Take the weights after a step into the average."""
        set_mode(self.trainee.optimizer, "eval")
        self.model.update_parameters(self.trainee.model)

    @torch.no_grad()
    def loss(self, batches: Sequence[Batch]) -> float:
        """The mean loss of the averaged model."""
        self.model.eval()
        return statistics.fmean(mean_cross_entropy(self.model, batch).item() for batch in batches)
