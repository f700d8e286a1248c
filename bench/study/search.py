"""Which trainings a study makes: the search for learning rates, and the evaluation of the best.

Knows nothing of processes and files.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ..registry import Entrant
from ..report.study_results import FIRST_SEARCH_SEED
from .tasks import Task
from .trainings import Training

# Seeds of the search and of the evaluation are apart: a best of many looks better than it is.
SEARCH_SEEDS = (FIRST_SEARCH_SEED, FIRST_SEARCH_SEED + 1)
NUM_NEIGHBOUR_SEEDS = 3
RATES_PER_DOUBLING = 2
MAX_WIDENINGS = 6
AVERAGED = ", averaged"


@dataclass(frozen=True, eq=False)
class Entry:
    """What is compared on a task: an optimizer, or an average of the weights that it leads to."""

    task: Task
    entrant: Entrant
    is_averaged: bool = False

    @property
    def name(self) -> str:
        """In tables."""
        return self.entrant.name + AVERAGED * self.is_averaged

    def loss(self, training: Training) -> float:
        """The last validation loss, infinity of a training that failed."""
        losses = training["averaged_losses" if self.is_averaged else "validation_losses"]
        return math.inf if training["why"] or not losses else float(losses[-1])

    def rate(self, place: int) -> float:
        """The learning rate at a place: 0 is the middle, two places are a factor of two."""
        middle = self.task.learning_rate * self.entrant.lr_scale
        return float(f"{middle * 2 ** (place / RATES_PER_DOUBLING):.3g}")


class Wish(NamedTuple):
    """A training that is wanted; averages want those of their optimizer."""

    task: str
    optimizer: str
    lr: float
    seed: int


Rate = TypeVar("Rate", int, float)  # a place, or the rate itself
Train = Callable[[Iterable[Wish]], dict[Wish, Training]]


def entries_of(tasks: Iterable[Task], entrants: Sequence[Entrant]) -> list[Entry]:
    """Every entrant on every task, and the averages of some."""
    return [
        Entry(task, entrant, is_averaged)
        for task in tasks
        for entrant in entrants
        for is_averaged in (False, True)[: 1 + entrant.is_averaged]
    ]


def wish(entry: Entry, place: int, seed: int) -> Wish:
    """A training of an entry."""
    return Wish(entry.task.name, entry.entrant.name, entry.rate(place), seed)


# Search.

Best = dict[Entry, int]


def search(entries: Sequence[Entry], train: Train, num_widenings: int = MAX_WIDENINGS) -> Best:
    """Train around the best learning rate of each entry; widen until it lies between others.

    Returns:
        The place of each entry's best; not of one all of whose trainings failed.
    """
    own = [entry for entry in entries if entry.entrant.lr_of is None]
    found: dict[Entry, dict[int, float]] = {entry: {} for entry in own}
    wanted = {entry: first_places(entry.task) for entry in own}
    for _ in range(1 + num_widenings):
        pairs = [(entry, place) for entry, places in wanted.items() for place in places]
        done = train(wish(*pair, seed) for pair in pairs for seed in SEARCH_SEEDS)
        for entry, place in pairs:
            losses = [entry.loss(done[wish(entry, place, seed)]) for seed in SEARCH_SEEDS]
            found[entry][place] = statistics.fmean(losses)
        wanted = {entry: next_places(losses) for entry, losses in found.items()}
    places = {entry: best_of(losses) for entry, losses in found.items()}
    best = {entry: place for entry, place in places.items() if place is not None}
    return best | rates_of_others(entries, best)


def rates_of_others(entries: Iterable[Entry], best: Mapping[Entry, Rate]) -> dict[Entry, Rate]:
    """The best ones of others, of entries that take these."""
    by_name = {(entry.task.name, entry.name): rate for entry, rate in best.items()}
    keys = {entry: (entry.task.name, entry.entrant.lr_of) for entry in entries}
    return {entry: by_name[key] for entry, key in keys.items() if key in by_name}


def first_places(task: Task) -> list[int]:
    """Where a search begins: the same number of rates for every entrant."""
    reach = task.num_rates // 2
    return [*range(-reach, reach + 1)]


def best_of(losses: dict[Rate, float]) -> Rate | None:
    """Where the smallest loss is, the lower rate of two equals; None if all failed."""
    best = min(sorted(losses), key=losses.__getitem__, default=None)
    return best if best is not None and losses[best] < math.inf else None


def next_places(losses: dict[int, float]) -> list[int]:
    """Where to look next: beyond the best place if that is the last of its side."""
    best = best_of(losses)
    if best is None:
        return [min(losses) - 1]
    return [beyond for beyond in (best - 1, best + 1) if beyond not in losses]


# Evaluation.


def evaluation(
    best: Best, num_seeds: int, num_neighbour_seeds: int = NUM_NEIGHBOUR_SEEDS
) -> list[Wish]:
    """All seeds at the best rates, and some beside it: most wanted seeds come first."""
    return [
        wish(entry, place + beside, seed)
        for seed in range(num_seeds)
        for entry, place in best.items()
        for beside in (0, -1, 1)
        if beside == 0 or (seed < num_neighbour_seeds and entry.entrant.lr_of is None)
    ]
