"""What the optimizer of a stage takes for a micro-batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..report.markup import rounded
from .processes import optimizer

NUM_PARAMS, NUM_TENSORS, NUM_ROUNDS, NUM_WARMUPS = 2**24, 16, 15, 3


class Cycle(NamedTuple):
    """Parameters, their optimizer, and what is done with the weights for one update."""

    params: list[nn.Parameter]
    opt: Any
    before: Callable[[Cycle], object]

    def seconds(self) -> float:
        """The time of one update, with whatever makes its weights right."""
        start = time.perf_counter()
        kept = self.before(self)
        self.opt.step()
        del kept
        return time.perf_counter() - start


def _restore(cycle: Cycle) -> None:
    cycle.opt.restore(look=False)


def _copy(cycle: Cycle) -> list[Tensor]:
    return [param.detach().clone() for param in cycle.params]


def _nothing(cycle: Cycle) -> None:
    pass


def cycle(steps: float | None, before: Callable[[Cycle], object] = _nothing) -> Cycle:
    """Parameters with gradients; without ``steps`` torch's fused AdamW."""
    params = [nn.Parameter(torch.randn(NUM_PARAMS // NUM_TENSORS)) for _ in range(NUM_TENSORS)]
    for param in params:
        param.grad = torch.randn_like(param)
    opt = torch.optim.AdamW(params, fused=True) if steps is None else optimizer(params, steps)
    return Cycle(params, opt, before)


def cycles() -> dict[str, float]:
    """The time of an update on a stage with updates in between, over torch's fused AdamW.

    Medians of ratios, from rounds in which all take turns.
    """
    makes: dict[str, Callable[[], Cycle]] = {
        "torch AdamW, fused": lambda: cycle(None),
        "PipeOptim": lambda: cycle(3, _restore),
        "predicted for both": lambda: cycle(3, _copy),
        "PipeDream": lambda: cycle(0, _copy),
        "stale gradients": lambda: cycle(0),
    }
    made = {name: make() for name, make in makes.items()}
    rounds = [
        {name: each.seconds() for name, each in made.items()}
        for _ in range(NUM_WARMUPS + NUM_ROUNDS)
    ]
    reference = next(iter(makes))
    return {
        name: rounded(
            statistics.median(times[name] / times[reference] for times in rounds[NUM_WARMUPS:])
        )
        for name in makes
    }
