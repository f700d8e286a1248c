"""The results of a study, gathered from the files of its trainings: whoever trained them, and when.

Knows nothing of the arguments of a command.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..report.markup import Results, rounded
from ..report.study_results import FIRST_SEARCH_SEED
from ..usage import UsageError
from . import tasks
from .contests import Contest
from .search import Entry, best_of, rates_of_others
from .trainings import Training

CURVES = ("evaluated_steps", "validation_losses", "norm_ratios", "foresight")

Kept = dict[str, Any]  # a file: a job and its training
Trials = dict[tuple[float, int], Training]  # by learning rate and seed


def gather(contest: Contest, folder: Path, is_quick: bool, left_out: dict[str, str]) -> Results:
    """All that a folder holds of the tasks of a contest as they are now.

    Raises:
        UsageError: if there is nothing, or if the files of a task come from several machines.
    """
    kept = [file for file in read_all(folder) if is_current(contest, file["job"], is_quick)]
    tables = trials_by_entry(contest, kept)
    best = {entry: rate for entry, trials in tables.items() if (rate := best_rate(entry, trials))}
    best |= rates_of_others(tables, best)
    there = {file["job"][key] for file in kept for key in ("task", "optimizer")}
    return {
        "quick": is_quick,
        "reference": next(iter(contest.entrants())),
        "tasks": {entry.task.name: entry.task.title for entry in tables},
        "optimizers": in_order(contest, (entry.name for entry in tables)),
        "setting": setting(kept, folder),
        "minutes": rounded(sum(file["training"]["seconds"] for file in kept) / 60),
        # What was trained elsewhere need not be installed here.
        "left_out": {name: why for name, why in left_out.items() if name not in there},
        "trials": [trial for entry, trials in tables.items() for trial in _trials(entry, trials)],
        "best": [{**_about(entry), "lr": rate} for entry, rate in best.items()],
        "runs": [run for e, trials in tables.items() for run in _runs(e, trials, best.get(e))],
        **contest.facts(),
    }


def trials_by_entry(contest: Contest, kept: Iterable[Kept]) -> dict[Entry, Trials]:
    """The trainings of each optimizer on each task; an average has those of its optimizer."""
    found: dict[tuple[str, str], Trials] = defaultdict(dict)
    for file in kept:
        job = file["job"]
        found[job["task"], job["optimizer"]][job["lr"], job["seed"]] = file["training"]
    keys = {entry: (entry.task.name, entry.entrant.name) for entry in contest.entries()}
    return {entry: found[key] for entry, key in keys.items() if key in found}


def in_order(contest: Contest, names: Iterable[str]) -> list[str]:
    """Names of optimizers and averages in the order of the registry."""
    there = set(names)
    return [name for name in dict.fromkeys(e.name for e in contest.entries()) if name in there]


def read_all(folder: Path) -> list[Kept]:
    """Every training of a folder, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def is_current(contest: Contest, job: dict[str, Any], is_quick: bool) -> bool:
    """Whether a file is of a task, and of an optimizer, as they are now."""
    task = contest.tasks.get(job["task"])
    if task is None or job["optimizer"] not in contest.entrants():
        return False
    scale = tasks.scale_of(task, is_quick)
    return (job["scale"], job["num_steps"]) == (asdict(scale), task.steps_at(scale))


def setting(kept: Iterable[Kept], folder: Path) -> dict[str, str]:
    """The machine and the versions."""
    found = {(file["training"]["machine"], *file["job"]["versions"]) for file in kept}
    if len(found) != 1:
        several = "; ".join(map(", ".join, sorted(found))) or "no training"
        raise UsageError(f"{folder} must hold trainings of one machine and version, got {several}")
    return dict(zip(("device", "python", "torch", "wpadamw"), found.pop(), strict=True))


def best_rate(entry: Entry, trials: Trials) -> float | None:
    """The best learning rate by the seeds of the search; None if all trainings failed."""
    losses: dict[float, list[float]] = defaultdict(list)
    for (lr, seed), training in trials.items():
        if seed >= FIRST_SEARCH_SEED:
            losses[lr].append(entry.loss(training))
    return best_of({lr: statistics.fmean(values) for lr, values in losses.items()})


def _about(entry: Entry) -> dict[str, str]:
    return {"task": entry.task.name, "optimizer": entry.name}


def _trials(entry: Entry, trials: Trials) -> Iterator[dict[str, Any]]:
    for (lr, seed), training in sorted(trials.items(), key=lambda item: item[0]):
        loss = entry.loss(training)
        known = {"loss": loss if loss < math.inf else None, "why": training["why"]}
        yield {**_about(entry), "lr": lr, "seed": seed, **known}


def _runs(entry: Entry, trials: Trials, best: float | None) -> Iterator[dict[str, Any]]:
    """What the trainings at the best rate left: they went to their end."""
    for (lr, seed), training in sorted(trials.items(), key=lambda item: item[0]):
        if lr == best and seed < FIRST_SEARCH_SEED and not training["why"]:
            curves = {key: training[key] for key in CURVES if key in training}
            if entry.is_averaged:
                curves |= {"validation_losses": training["averaged_losses"], "foresight": {}}
            yield {**_about(entry), "lr": lr, "seed": seed, **curves}


def write(results: Results, path: Path, section: str | None = None) -> None:
    """As JSON, the whole file or a section of it alone."""
    text = as_json(results)
    if section is not None:
        text = f"{{\n{json.dumps(section)}: {text}\n}}"
    path.write_text(text + "\n")


def as_json(results: Results) -> str:
    """An entry of a list a line: files that grow can be compared."""
    lines = []
    for key, value in results.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}"
