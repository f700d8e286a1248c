"""The optimizers that the study compares, and what each needs of a training loop."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.optim import AdamW, NAdam, Optimizer

from wpadamw.cli.comparison import WARMUP_SHARE, constant, warmup_cosine
from wpadamw.optimizers import WPAdamW

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Contender:
    """An entry of the study.

    Args:
        name: in tables.
        build: makes the optimizer from parameter groups, a learning rate and the number of steps.
        schedule: the learning rate's factor, from the step and the number of steps.
        package: what it comes from, if that is an optional package.
    """

    name: str
    build: Callable[[Groups, float, int], Optimizer]
    schedule: Callable[[int, int], float] = warmup_cosine
    package: str | None = None


def why_missing(package: str | None) -> str | None:
    """Return None where a package is installed, else the reason to leave out what needs it."""
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"{package} is not installed"


def _adamw(groups: Groups, lr: float, num_steps: int) -> Optimizer:
    return AdamW(groups, lr=lr, fused=True)


def _wpadamw(groups: Groups, lr: float, num_steps: int, **options: Any) -> Optimizer:
    return WPAdamW(groups, lr=lr, **options)


def _nadamw(groups: Groups, lr: float, num_steps: int) -> Optimizer:
    return NAdam(groups, lr=lr, decoupled_weight_decay=True)


def _schedule_free(groups: Groups, lr: float, num_steps: int) -> Optimizer:
    package = importlib.import_module("schedulefree")
    warmup_steps = round(WARMUP_SHARE * num_steps)
    optimizer: Optimizer = package.AdamWScheduleFree(groups, lr=lr, warmup_steps=warmup_steps)
    return optimizer


REFERENCE = "AdamW"
PREDICTION_STEPS = (0.5, 1.0, 2.0, 3.0)

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(REFERENCE, _adamw),
        *(
            Contender(f"WPAdamW, s = {steps:g}", partial(_wpadamw, prediction_steps=steps))
            for steps in PREDICTION_STEPS
        ),
        Contender("WPAdamW, s = 1, literal form", partial(_wpadamw, predict_in_step=False)),
        Contender("NAdamW", _nadamw),
        Contender("AdamWScheduleFree", _schedule_free, constant, "schedulefree"),
    )
}
