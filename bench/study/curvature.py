"""``python -m wpadamw.bench.study.curvature --out FILE``: how curved the loss is along trainings.

Trains tasks of the study with AdamW and with prediction, at the same learning rates, and looks at
the loss of a fixed batch at a few points of each training. What is looked at is a copy of the
model; the training goes on as if nobody looked. Each training is written to FILE when it is done,
and a command that was interrupted goes on after the last of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

import wpadamw

from ..registry import entrants
from ..report.markup import rounded
from ..usage import UsageError, optional_module, output_directory, positive_int
from . import tasks
from .comparison import Record, Trainee, build, parameter_groups, set_mode
from .landscape import DIGITS, Landscape, look
from .tasks import Problem
from .text import Batch

OPTIMIZERS = ("AdamW", "WPAdamW, s = 1", "WPAdamW, s = 2")
# AdamW's best in the study, and a factor of two beyond; of the GPT also one of four.
RATES = {"gpt": (4e-3, 8e-3, 16e-3), "digits": (32e-3, 64e-3), "signals": (32e-3, 64e-3)}
# Drawn together they are the batch that the loss is looked at with.
NUM_DRAWS = {"gpt": 2, "digits": 8, "signals": 8}
NUM_POINTS = 8
# Steps before a point over which weights swing: two memories of the first moment.
WINDOW = 20
BATCH_SEED = 12345
MAX_NORM = 1.0  # the study's


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


# One training.


@functools.cache
def posed(task: str, is_quick: bool) -> Problem:
    """Make a task's data once."""
    return tasks.TASKS[task].pose(tasks.QUICK if is_quick else tasks.CPU)


def start(problem: Problem, run: dict[str, Any]) -> Trainee:
    """Build what the study trains: the same initial weights and optimizers."""
    torch.manual_seed(run["seed"])
    model = problem.build_model()
    groups = parameter_groups(model, tasks.TASKS[run["task"]].weight_decay)
    entrant = entrants("study")[run["optimizer"]]
    optimizer, factor = build(entrant, groups, run["lr"], run["num_steps"])
    return Trainee(Record(run["optimizer"], run["seed"]), model, optimizer, factor, MAX_NORM)


def fixed_batch(problem: Problem, num_draws: int) -> Batch:
    """Draw the batch that the loss is looked at with: training data, larger than a batch."""
    generator = torch.Generator().manual_seed(BATCH_SEED)
    inputs, targets = zip(*(problem.draw_batch(generator) for _ in range(num_draws)), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def points(num_steps: int) -> list[int]:
    """Return the steps after which to look: evenly, at the end too, and not before two steps."""
    return sorted({max(num_steps * i // NUM_POINTS, 3) for i in range(1, NUM_POINTS + 1)})


def observe(run: dict[str, Any], problem: Problem) -> dict[str, Any]:
    """Train, and look; lists have an entry per point.

    Returns:
        ``run`` with ``steps``, ``lr_then`` (of the last step), the lists of `look`, and
        ``validation_loss`` at the end, None for a training that diverged.
    """
    trainee = start(problem, run)
    landscape = Landscape(trainee.model, fixed_batch(problem, NUM_DRAWS[run["task"]]))
    generator = torch.Generator().manual_seed(run["seed"])
    looks: list[dict[str, float]] = []
    path: list[Tensor] = []
    point, *later = points(run["num_steps"])
    for step in range(1, run["num_steps"] + 1):
        lr = trainee.optimizer.param_groups[0]["lr"]
        trainee.train_step(problem.draw_batch(generator))
        if step > point - WINDOW:
            path = [*path[1 - WINDOW :], weights_of(trainee, "eval")]
        if step == point:
            if not path[-1].isfinite().all():
                return {**run, **_lists(looks), "validation_loss": None}
            used = preconditioner_of(trainee.optimizer, [*trainee.model.parameters()])
            seen = look(landscape, path, weights_of(trainee, "train"), used)
            looks.append({"steps": step, "lr_then": rounded(lr, DIGITS), **seen})
            point, *later = later or [run["num_steps"]]
    trainee.evaluate(run["num_steps"], problem.validation)
    loss = rounded(trainee.record.validation_losses[-1], DIGITS + 1)
    return {**run, **_lists(looks), "validation_loss": loss}


def _lists(looks: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [seen[key] for seen in looks] for key in (looks[0] if looks else ())}


# All trainings.


def planned(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what is to be trained, seed by seed."""
    scale = tasks.QUICK if args.quick else tasks.CPU
    return [
        {
            **{"task": task, "optimizer": optimizer, "lr": lr, "seed": seed},
            "num_steps": tasks.TASKS[task].steps_at(scale),
        }
        for seed, task in product(range(args.seeds), args.tasks)
        for lr, optimizer in product(RATES[task], OPTIMIZERS)
    ]


def kept(path: Path, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """Read the trainings that are done; those of another setting do not count."""
    found = json.loads(path.read_text()) if path.exists() else {}
    same = {key: found.get(key) for key in setting} == setting
    return found["runs"] if same else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Observe what is missing in the file."""
    summary = "See how curved the loss is along trainings with and without prediction."
    parser = argparse.ArgumentParser("python -m wpadamw.bench.study.curvature", description=summary)
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", required=True)
    add("--tasks", nargs="+", choices=RATES, default=list(RATES), help="(all)")
    add("--seeds", type=positive_int, metavar="N", default=3, help="of each training (%(default)s)")
    add("--quick", action="store_true", help="tiny models: does it run at all?")
    args = parser.parse_args(arguments)
    try:
        _observe_all(args)
    except UsageError as error:
        parser.error(str(error))
    return 0


def _observe_all(args: argparse.Namespace) -> None:
    progress = optional_module("tqdm", "study").tqdm
    output_directory(args.out.parent)
    torch.set_num_threads(1)  # small models gain little from threads
    setting = {"quick": args.quick, "torch": torch.__version__, "wpadamw": wpadamw.__version__}
    setting |= {"python": platform.python_version()}
    runs = kept(args.out, setting)
    missing = [run for run in planned(args) if not any(run.items() <= old.items() for old in runs)]
    for run in progress(missing, unit="training"):
        runs.append(observe(run, posed(run["task"], args.quick)))
        written = args.out.with_suffix(".partial")
        written.write_text(json.dumps({**setting, "runs": runs}) + "\n")
        written.replace(args.out)


if __name__ == "__main__":
    raise SystemExit(main())
