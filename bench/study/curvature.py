"""``python -m wpadamw.bench.study.curvature --out FILE``: how curved the loss is along trainings.

Trains tasks of the study with AdamW and with prediction, at the same learning rates, and looks at
the loss of a fixed batch at a few points of each training. What is looked at is a copy of the
model; the training goes on as if nobody looked. Each training is written to FILE when it is done,
and a command that was interrupted goes on after the last of them.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import wpadamw

from ..report.markup import rounded
from ..usage import UsageError, optional_module, output_directory, positive_int
from . import tasks
from .landscape import DIGITS, Landscape, look
from .observed import Run, fixed_batch, posed, preconditioner_of, start, weights_of
from .switching import switch
from .tasks import Problem

OPTIMIZERS = ("AdamW", "WPAdamW, s = 1", "WPAdamW, s = 2")
# Where AdamW is good or past its best, and a factor of two beyond; of the GPT also one of four.
RATES = {"gpt": (4e-3, 8e-3, 16e-3), "digits": (32e-3, 64e-3), "signals": (32e-3, 64e-3)}
# Where prediction is switched on half-way, at AdamW's best rate; on digits the loss is then gone.
SWITCHED, SWITCHABLE = ("gpt", "signals"), "WPAdamW, s = 1"
NUM_POINTS = 8
# Steps before a point over which weights swing: two memories of the first moment.
WINDOW = 20


# One training.


def points(num_steps: int) -> list[int]:
    """Return the steps after which to look: evenly, at the end too, and not before two steps."""
    return sorted({max(num_steps * i // NUM_POINTS, 3) for i in range(1, NUM_POINTS + 1)})


def observe(run: Run, problem: Problem) -> Run:
    """Train, and look; lists have an entry per point.

    Returns:
        ``run`` with ``steps``, ``lr_then`` (of the last step), the lists of `look`, and
        ``validation_loss`` at the end, None for a training that diverged.
    """
    trainee = start(problem, run)
    landscape = Landscape(trainee.model, fixed_batch(run["task"], problem))
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


def planned(args: argparse.Namespace) -> list[tuple[str, Run]]:
    """Return what is to be trained, and among what to keep it: seed by seed."""
    trainings = []
    for seed, task in product(range(args.seeds), args.tasks):
        scale = tasks.scale_of(tasks.TASKS[task], args.quick)
        about = {"task": task, "seed": seed, "num_steps": tasks.TASKS[task].steps_at(scale)}
        trainings += [
            ("runs", {**about, "lr": lr, "optimizer": optimizer})
            for lr, optimizer in product(RATES[task], OPTIMIZERS)
        ]
        if task in SWITCHED:
            lr = RATES[task][0]
            trainings.append(("switches", {**about, "lr": lr, "optimizer": SWITCHABLE}))
    return trainings


def train(part: str, run: Run, is_quick: bool) -> Run:
    """Train for a part of the file."""
    problem = posed(run["task"], is_quick)
    return observe(run, problem) if part == "runs" else switch(run, problem, WINDOW)


def kept(path: Path, setting: dict[str, Any]) -> dict[str, list[Run]]:
    """Read the trainings that are done; those of another setting do not count."""
    found = json.loads(path.read_text()) if path.exists() else {}
    same = {key: found.get(key) for key in setting} == setting
    return {part: found.get(part, []) if same else [] for part in ("runs", "switches")}


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
        _train_all(args)
    except UsageError as error:
        parser.error(str(error))
    return 0


def _train_all(args: argparse.Namespace) -> None:
    progress = optional_module("tqdm", "study").tqdm
    output_directory(args.out.parent)
    torch.set_num_threads(1)  # small models gain little from threads
    setting = {"quick": args.quick, "torch": torch.__version__, "wpadamw": wpadamw.__version__}
    setting |= {"python": platform.python_version()}
    done = kept(args.out, setting)
    missing = [
        (part, run)
        for part, run in planned(args)
        if not any(run.items() <= old.items() for old in done[part])
    ]
    for part, run in progress(missing, unit="training"):
        done[part].append(train(part, run, args.quick))
        _write(args.out, {**setting, **done})


def _write(path: Path, results: dict[str, Any]) -> None:
    # Whoever is interrupted while writing leaves no half file behind.
    written = path.with_suffix(".partial")
    written.write_text(json.dumps(results) + "\n")
    written.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
