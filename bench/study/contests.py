"""What is compared with what: the optimizers of the study, and ways to train pipelines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ..registry import PIPELINED, STUDIED, Entrant, entrants
from ..report import pipeline_losses, study_plots, study_tables
from ..report.markup import Results
from ..report.study_plots import Plot
from . import pipeline, trainings
from .search import NUM_NEIGHBOUR_SEEDS, Entry, entries_of
from .tasks import TASKS, Task
from .trainings import Follow


class Contest(NamedTuple):
    """Tasks, those who compete on all of them, and what is written about it.

    Args:
        name: of the files that are written.
        tasks: by name.
        parts: of the registry.
        how: makes one of its trainings.
        tables: all tables of one study.
        plots: by the name of the file.
        num_seeds: trainings of each entry at its best learning rate.
        num_neighbour_seeds: trainings of each entry at the rates beside it.
        facts: what its results say beside what was trained.
        section: under which the file of results holds them; None: it holds nothing else.
    """

    name: str
    tasks: Mapping[str, Task]
    parts: tuple[str, ...]
    how: Follow
    tables: Callable[[Results], str]
    plots: Mapping[str, Plot]
    num_seeds: int
    num_neighbour_seeds: int = NUM_NEIGHBOUR_SEEDS
    facts: Callable[[], dict[str, Any]] = dict
    section: str | None = None

    def entrants(self) -> dict[str, Entrant]:
        """Who competes, by name; the first is what the others are compared with."""
        return entrants(*self.parts)

    def entries(self) -> list[Entry]:
        """Everyone on every task."""
        return entries_of(self.tasks.values(), list(self.entrants().values()))

    def chosen(self, names: Collection[str]) -> list[Task]:
        """Its tasks among some names; its own name stands for all of them."""
        return [t for name, t in self.tasks.items() if not {name, self.name}.isdisjoint(names)]


STUDY = Contest(
    name="study",
    tasks=TASKS,
    parts=STUDIED,
    how=trainings.follow,
    tables=study_tables.report,
    plots=study_plots.PLOTS,
    num_seeds=8,
)
PIPELINES = Contest(
    name="pipeline",
    tasks=pipeline.TASKS,
    parts=PIPELINED,
    how=pipeline.follow,
    tables=pipeline_losses.report,
    plots=pipeline_losses.PLOTS,
    num_seeds=5,
    num_neighbour_seeds=0,
    facts=pipeline.facts,
    section="study",
)
CONTESTS = (STUDY, PIPELINES)
