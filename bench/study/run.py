"""``python -m wpadamw study``: AdamW against weight prediction and its relatives, several seeds."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import wpadamw

from ..registry import entrants, why_missing
from ..report.markup import rounded
from ..report.study_plots import PLOTS
from ..report.study_tables import report
from ..usage import UsageError, optional_module, output_directory, positive_int, usable_device
from . import tasks
from .tasks import TASKS, Scale
from .trainings import DIGITS, Job, Training, train_all

# The search for a learning rate: seeds of its own, trainings of half the length, steps by two.
SWEEP_SEEDS = (1000, 1001)
SWEEP_SHARE = 0.5
LR_FACTOR = 2.0
MAX_WIDENINGS = 4

# Of a task and an optimizer: trainings with several seeds by learning rate.
Search = dict[float, list[Training]]
Searches = dict[tuple[str, str], Search]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; defaults make a job of about an hour on two CPU cores."""
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("runs/study"), help="(%(default)s)")
    add("--device", type=usable_device, default="cpu", help="torch device (%(default)s)")
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="(all)")
    add(
        "--seeds",
        type=positive_int,
        metavar="N",
        default=8,
        help="trainings of each optimizer with its best learning rate (%(default)s)",
    )
    add(
        "--workers",
        type=positive_int,
        metavar="N",
        help="trainings at a time (one per core; one on a GPU)",
    )
    add("--quick", action="store_true", help="tiny models: does it run at all?")


def run(args: argparse.Namespace) -> int:
    """Search learning rates, train, write results, report and plots."""
    optional_module("matplotlib", "study")
    progress = optional_module("tqdm", "study").tqdm
    out = output_directory(args.out)
    kept = output_directory(out / "trainings")
    with progress(unit="training", total=0) as bar:
        study = Study(args, kept, bar)
        searches = study.search()
        runs = study.compare(searches)
    results = {
        **describe(args, study.scale),
        "left_out": study.left_out,
        "searches": [search_as_json(*entry, found) for entry, found in searches.items()],
        "runs": runs,
    }
    write(results, out)
    return 0


def write(results: dict[str, Any], out: Path) -> None:
    """Write results, tables and plots; print the tables."""
    (out / "study.json").write_text(json.dumps(results) + "\n")
    text = report(results)
    (out / "study.md").write_text(text + "\n", encoding="utf-8")
    for name, plot in PLOTS.items():
        plot.draw(plot.source([results])).savefig(out / name)
    print(f"{text}\n\nwritten: {out}/study.json, study.md, {', '.join(PLOTS)}")


class Study:
    """The trainings of one study.

    Args:
        args: of the command.
        folder: keeps each training, so that a study that was interrupted goes on.
        bar: shows progress.
    """

    def __init__(self, args: argparse.Namespace, folder: Path, bar: Any) -> None:
        self.args = args
        self.folder = folder
        self.bar = bar
        self.scale = scale_of(args)
        self.num_workers = args.workers or (1 if args.device.type == "cuda" else num_cores())
        self.left_out = _left_out(args.tasks)
        self.entries = [
            (task, optimizer)
            for task in args.tasks
            for optimizer in entrants("study")
            if self.left_out.keys().isdisjoint((task, optimizer))
        ]
        if not self.entries:
            raise UsageError(f"--tasks must name one that can run here, got {self.left_out}")

    def search(self) -> Searches:
        """Train around the best learning rate of each optimizer on each task.

        The search widens until the best lies between others.
        """
        searches: Searches = {entry: {} for entry in self.entries}
        wanted = {entry: list(TASKS[entry[0]].learning_rates) for entry in self.entries}
        for _ in range(1 if self.args.quick else 1 + MAX_WIDENINGS):
            jobs = [
                self._job(*entry, lr, seed, SWEEP_SHARE)
                for entry, lrs in wanted.items()
                for lr in lrs
                for seed in SWEEP_SEEDS
            ]
            for job, training in self._train(jobs):
                searches[job.task, job.optimizer].setdefault(job.lr, []).append(training)
            wanted = {entry: next_rates(found) for entry, found in searches.items()}
        return searches

    def compare(self, searches: Searches) -> list[dict[str, Any]]:
        """Train with the best learning rates and all seeds."""
        jobs = [
            self._job(*entry, best_rate(found), seed)
            for seed in range(self.args.seeds)
            for entry, found in searches.items()
        ]
        done = dict(self._train(jobs))
        return [run_as_json(job, done[job]) for job in jobs]

    def _train(self, jobs: Sequence[Job]) -> Iterable[tuple[Job, Training]]:
        self.bar.total += len(jobs)
        for job, training in train_all(jobs, self.folder, self.num_workers):
            self.bar.set_postfix_str(job.slug, refresh=False)
            self.bar.update()
            yield job, training

    def _job(self, task: str, optimizer: str, lr: float, seed: int, share: float = 1.0) -> Job:
        num_steps = round(share * TASKS[task].steps_at(self.scale))
        device = str(self.args.device)
        versions = (platform.python_version(), torch.__version__, wpadamw.__version__)
        return Job(task, optimizer, lr, seed, num_steps, self.scale, device, versions)


# Learning rates.


def mean_loss(trainings: Sequence[Training]) -> float:
    """Return the mean of the last validation losses, infinity if one training failed."""
    if any(training["why"] for training in trainings):
        return math.inf
    return statistics.fmean(training["validation_losses"][-1] for training in trainings)


def best_rate(found: Search) -> float:
    """Return the learning rate of the smallest loss, the smaller one of two equals."""
    return min(sorted(found), key=lambda lr: mean_loss(found[lr]))


def next_rates(found: Search) -> list[float]:
    """Return where to look next: beyond the best learning rate if that is the last of its side."""
    best = best_rate(found)
    if mean_loss(found[best]) == math.inf:
        return []
    if best == max(found):
        return [best * LR_FACTOR]
    return [best / LR_FACTOR] if best == min(found) else []


# The setting.


def scale_of(args: argparse.Namespace) -> Scale:
    """Return the sizes to train at."""
    if args.quick:
        return tasks.QUICK
    return tasks.GPU if args.device.type == "cuda" else tasks.CPU


def num_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(args: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """Gather what the results depend on."""
    return {
        "quick": args.quick,
        "tasks": {name: TASKS[name].title for name in args.tasks},
        "reference": next(iter(entrants("study"))),
        "seeds": args.seeds,
        "scale": asdict(scale),
        "device": str(args.device),
        "cores": num_cores(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "wpadamw": wpadamw.__version__,
    }


def _left_out(task_names: Iterable[str]) -> dict[str, str]:
    reasons = {name: why_missing(TASKS[name].package) for name in task_names}
    reasons |= {name: entrant.missing for name, entrant in entrants("study").items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def search_as_json(task: str, optimizer: str, found: Search) -> dict[str, Any]:
    """Keep of a search its learning rates and losses, None for those that failed."""
    rates = sorted(found)
    losses = [mean_loss(found[lr]) for lr in rates]
    seconds = sum(training["seconds"] for trainings in found.values() for training in trainings)
    return {
        "task": task,
        "optimizer": optimizer,
        "lr": rates,
        "losses": [rounded(loss, DIGITS) if loss < math.inf else None for loss in losses],
        "seconds": rounded(seconds, DIGITS),
    }


def run_as_json(job: Job, training: Training) -> dict[str, Any]:
    """Say of a training what it was."""
    about = {"task": job.task, "optimizer": job.optimizer, "lr": job.lr, "seed": job.seed}
    return {**about, "num_steps": job.num_steps, **training}
