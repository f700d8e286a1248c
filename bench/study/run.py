"""``python -m wpadamw study``: AdamW against weight prediction and its relatives, several seeds.

With ``--tasks pipeline`` ways to train asynchronous pipelines are compared instead.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import wpadamw

from .. import machine
from ..registry import Entrant, why_missing
from ..report.markup import Results
from ..usage import UsageError, optional_module, output_directory, positive_int, usable_device
from . import results, tasks
from .contests import CONTESTS, PIPELINES, STUDY, Contest
from .search import MAX_WIDENINGS, Wish, entries_of, evaluation, search
from .tasks import Task
from .trainings import Job, Training, train_all

DEFAULT_TASKS = ("gpt", "lstm", "digits", "signals")
TASKS = (*STUDY.tasks, PIPELINES.name, *PIPELINES.tasks)
NUM_QUICK_SEEDS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", default=Path("runs/study"), help="(%(default)s)")
    add("--device", type=usable_device, default="cpu", help="torch device (%(default)s)")
    add(
        "--tasks",
        nargs="+",
        choices=TASKS,
        metavar="NAME",
        default=[*DEFAULT_TASKS],
        help=f"some of {', '.join(STUDY.tasks)} (all but gpt-10m), or {PIPELINES.name}",
    )
    add(
        "--entrants",
        nargs="+",
        metavar="NAME",
        help=f"optimizers, or groups of them: {', '.join(STUDY.parts)} (all)",
    )
    add(
        "--seeds",
        type=positive_int,
        metavar="N",
        help="trainings of each optimizer with its best learning rate "
        f"({STUDY.num_seeds}; pipelines: {PIPELINES.num_seeds})",
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
    study = Study(args, chosen_contest(args.tasks), folder)
    if not args.collect:
        with progress(unit="training", total=0) as bar:
            study.train(bar)
    write(study.contest, results.gather(study.contest, folder, args.quick, study.left_out), out)
    return 0


def write(contest: Contest, found: Results, out: Path) -> None:
    """Write results, tables and plots; print the tables."""
    name, plots = contest.name, contest.plots
    results.write(found, out / f"{name}.json", contest.section)
    text = contest.tables(found)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    for file, plot in plots.items():
        plot.draw(plot.source([found])).savefig(out / file)
    print(f"{text}\n\nwritten: {out}/{name}.json, {name}.md, {', '.join(plots)}")


class Study:
    """The trainings of one study.

    Args:
        args: of the command.
        contest: of which some tasks and entrants take part.
        folder: keeps each training, so that a study that was interrupted goes on.
    """

    def __init__(self, args: argparse.Namespace, contest: Contest, folder: Path) -> None:
        self.args, self.contest, self.folder = args, contest, folder
        self.num_workers = args.workers or machine.num_cores()
        wanted = chosen_entrants(contest, args.entrants)
        chosen = contest.chosen(args.tasks)
        self.left_out = left_out(chosen, wanted)
        present = [entrant for entrant in wanted if entrant.name not in self.left_out]
        there = [task for task in chosen if task.name not in self.left_out]
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
            how = self.contest.how
            for job, training in train_all(list(jobs), self.folder, self.num_workers, how):
                bar.set_postfix_str(job.slug, refresh=False)
                bar.update()
                done[jobs[job]] = training
            return done

        best = search(self.entries, train, 0 if self.args.quick else MAX_WIDENINGS)
        few = NUM_QUICK_SEEDS if self.args.quick else self.contest.num_seeds
        train(evaluation(best, self.args.seeds or few, self.contest.num_neighbour_seeds))

    def _job(self, wish: Wish) -> Job:
        task = self.contest.tasks[wish.task]
        scale = tasks.scale_of(task, self.args.quick)
        versions = (platform.python_version(), torch.__version__, wpadamw.__version__)
        device = str(self.args.device)
        return Job(*wish, task.steps_at(scale), scale, device, versions)


def chosen_contest(task_names: Sequence[str]) -> Contest:
    """The one whose tasks are named."""
    chosen = [contest for contest in CONTESTS if contest.chosen(task_names)]
    if len(chosen) > 1:
        raise UsageError(
            f"--tasks must not mix those of {chosen[0].name} with those of {chosen[1].name}, "
            f"got {', '.join(task_names)}"
        )
    return chosen[0]


def chosen_entrants(contest: Contest, names: Iterable[str] | None) -> list[Entrant]:
    """Those of the names and groups (None: all), and what all are compared with."""
    known, parts = contest.entrants(), contest.parts
    chosen = set(parts if names is None else names)
    if unknown := sorted(chosen.difference(known, parts)):
        raise UsageError(
            f"--entrants must name some of {', '.join(known)} or groups of them, "
            f"{', '.join(parts)}, got {', '.join(unknown)}"
        )
    reference, *others = known.values()
    chosen |= {e.lr_of for e in others if not chosen.isdisjoint((e.name, *e.parts)) if e.lr_of}
    return [reference, *(e for e in others if not chosen.isdisjoint((e.name, *e.parts)))]


def left_out(chosen: Iterable[Task], wanted: Iterable[Entrant]) -> dict[str, str]:
    """Tasks and optimizers that cannot be here, with the reasons."""
    reasons = {task.name: why_missing(task.package) for task in chosen}
    reasons |= {entrant.name: entrant.missing for entrant in wanted}
    return {name: reason for name, reason in reasons.items() if reason is not None}
