"""``python -m wpadamw study``: AdamW against weight prediction and its relatives, several seeds."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import wpadamw

from .. import machine
from ..registry import STUDIED, Entrant, entrants, why_missing
from ..report.markup import Results
from ..report.study_plots import PLOTS
from ..report.study_tables import report
from ..usage import UsageError, optional_module, output_directory, positive_int, usable_device
from . import results, tasks
from .search import MAX_WIDENINGS, Wish, entries_of, evaluation, search
from .tasks import TASKS
from .trainings import Job, Training, train_all

DEFAULT_TASKS = ("gpt", "lstm", "digits", "signals")
NUM_SEEDS, NUM_QUICK_SEEDS = 8, 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("runs/study"), help="(%(default)s)")
    add("--device", type=usable_device, default="cpu", help="torch device (%(default)s)")
    add("--tasks", nargs="+", choices=TASKS, default=[*DEFAULT_TASKS], help="(all but gpt-10m)")
    add(
        "--entrants",
        nargs="+",
        metavar="NAME",
        default=[*STUDIED],
        help=f"optimizers, or groups of them: {', '.join(STUDIED)} (all)",
    )
    add(
        "--seeds",
        type=positive_int,
        metavar="N",
        help=f"trainings of each optimizer with its best learning rate ({NUM_SEEDS})",
    )
    add("--workers", type=positive_int, metavar="N", help="trainings at a time (one per core)")
    add("--collect", action="store_true", help="train nothing: report what is there")
    add("--quick", action="store_true", help="tiny models: does it run at all?")


def run(args: argparse.Namespace) -> int:
    """Search learning rates, train, write results, report and plots."""
    optional_module("matplotlib", "study")
    progress = optional_module("tqdm", "study").tqdm
    out = output_directory(args.out)
    folder = output_directory(out / "trainings")
    study = Study(args, folder)
    if not args.collect:
        with progress(unit="training", total=0) as bar:
            study.train(bar)
    write(results.gather(folder, args.quick, study.left_out), out)
    return 0


def write(found: Results, out: Path) -> None:
    """Write results, tables and plots; print the tables."""
    results.write(found, out / "study.json")
    text = report(found)
    (out / "study.md").write_text(text + "\n", encoding="utf-8")
    for name, plot in PLOTS.items():
        plot.draw(plot.source([found])).savefig(out / name)
    print(f"{text}\n\nwritten: {out}/study.json, study.md, {', '.join(PLOTS)}")


class Study:
    """The trainings of one study.

    Args:
        args: of the command.
        folder: keeps each training, so that a study that was interrupted goes on.
    """

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.num_workers = args.workers or machine.num_cores()
        wanted = chosen_entrants(args.entrants)
        self.left_out = left_out(args.tasks, wanted)
        present = [entrant for entrant in wanted if entrant.name not in self.left_out]
        there = [TASKS[name] for name in args.tasks if name not in self.left_out]
        if args.quick:
            there = [replace(task, num_rates=1) for task in there]
        self.entries = entries_of(there, present)
        if not self.entries:
            raise UsageError(f"--tasks must name one that can run here, got {self.left_out}")

    def train(self, bar: Any) -> None:
        """Search, then evaluate; the bar shows progress."""

        def train(wishes: Iterable[Wish]) -> dict[Wish, Training]:
            jobs = {self._job(wish): wish for wish in dict.fromkeys(wishes)}
            bar.total += len(jobs)
            done = {}
            for job, training in train_all(list(jobs), self.folder, self.num_workers):
                bar.set_postfix_str(job.slug, refresh=False)
                bar.update()
                done[jobs[job]] = training
            return done

        best = search(self.entries, train, 0 if self.args.quick else MAX_WIDENINGS)
        few = NUM_QUICK_SEEDS if self.args.quick else NUM_SEEDS
        train(evaluation(best, self.args.seeds or few))

    def _job(self, wish: Wish) -> Job:
        task = TASKS[wish.task]
        scale = tasks.scale_of(task, self.args.quick)
        versions = (platform.python_version(), torch.__version__, wpadamw.__version__)
        device = str(self.args.device)
        return Job(*wish, task.steps_at(scale), scale, device, versions)


def chosen_entrants(names: Iterable[str]) -> list[Entrant]:
    """Those of the names and groups, and what all are compared with."""
    known, chosen = entrants(*STUDIED), set(names)
    if unknown := sorted(chosen.difference(known, STUDIED)):
        raise UsageError(
            f"--entrants must name some of {', '.join(known)} or groups of them, "
            f"{', '.join(STUDIED)}, got {', '.join(unknown)}"
        )
    reference, *others = known.values()
    return [reference, *(e for e in others if not chosen.isdisjoint((e.name, *e.parts)))]


def left_out(task_names: Iterable[str], those: Iterable[Entrant]) -> dict[str, str]:
    """Tasks and optimizers that cannot be here, with the reasons."""
    reasons = {name: why_missing(TASKS[name].package) for name in task_names}
    reasons |= {entrant.name: entrant.missing for entrant in those}
    return {name: reason for name, reason in reasons.items() if reason is not None}
