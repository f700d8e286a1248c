"""The trainings of the study: one at a time, or many over processes, each kept in a file."""

from __future__ import annotations

import functools
import json
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import torch

from .. import machine
from ..registry import STUDIED, Entrant, entrants
from ..report.markup import rounded
from .average import WeightAverage
from .comparison import Record, Trainee, build, parameter_groups, to_device
from .foresight import Foresight, PredictionProbe, norm_ratio
from .lookahead import Lookahead
from .tasks import TASKS, Problem, Scale, Task

NUM_EVALUATIONS = 40
# Without clipping the short trainings of the language models hang on chance at high rates.
MAX_NORM = 1.0
DIGITS = 6  # files stay small, and seeds differ by far more
GROUPS = ("matrices", "vectors")  # of parameter_groups

Training = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A training to be made: all that its result depends on beside the machine."""

    task: str
    optimizer: str
    lr: float
    seed: int
    num_steps: int
    scale: Scale
    device: str
    versions: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The job as the name of a file."""
        words = f"{self.task} {self.optimizer} lr {self.lr:g} seed {self.seed} {self.num_steps}"
        return re.sub(r"[^a-z0-9.]+", "-", words.lower())


# One training of an optimizer.


def follow(training: Training, job: Job) -> None:
    """Train, and record an entry per evaluation.

    Beside the lists of `train` these are ``norm_ratios``, for some optimizers ``averaged_losses``
    (those of a moving average of the weights) and, for each group of an optimizer with prediction,
    ``foresight`` with ``error``, ``best_steps`` and ``steps``.
    """
    training |= {"norm_ratios": [], "averaged_losses": [], "foresight": {}}
    problem, entrant = posed(TASKS[job.task], job.scale), entrants(*STUDIED)[job.optimizer]
    about = job.task, job.optimizer, job.lr, job.seed, job.num_steps
    trainee = start(problem, *about, device=job.device)
    observer = _Observer(entrant, trainee, job, problem)
    generator = torch.Generator().manual_seed(job.seed)
    for step in range(1, job.num_steps + 1):
        observer.before(step)
        trainee.train_step(to_device(problem.draw_batch(generator), observer.device))
        if not observer.after(step, training):
            training["why"] = f"diverged before step {step}"
            return


class _Observer:
    """What is done around the steps of a training."""

    def __init__(self, entrant: Entrant, trainee: Trainee, job: Job, problem: Problem) -> None:
        self.trainee, self.device = trainee, torch.device(job.device)
        self.validation = [to_device(batch, self.device) for batch in problem.validation]
        self.evaluated = evaluated_steps(job.num_steps)
        # Without steps to predict there is nothing to compare.
        self.predicts = entrant.predicts and entrant.options.get("prediction_steps", 1) > 0
        self.lookahead = Lookahead(entrant.rule, trainee.optimizer, job.num_steps)
        self.average = WeightAverage(trainee) if entrant.is_averaged else None
        self.probe: PredictionProbe | None = None

    def before(self, step: int) -> None:
        """Watch the prediction of the step before; the rule says how far that of this one goes."""
        is_probed = self.predicts and step in self.evaluated
        self.probe = PredictionProbe(self.trainee.optimizer) if is_probed else None
        self.lookahead.set(step)

    def after(self, step: int, training: Training) -> bool:
        """Note what is to be noted; whether all is well."""
        if self.average is not None:
            self.average.update()
        if step not in self.evaluated:
            return True
        self.trainee.evaluate(step, self.validation)
        if not math.isfinite(self.trainee.record.validation_losses[-1]):
            return False
        seen = [] if self.probe is None else self.probe.after_step()
        self.lookahead.learn(seen)
        _note(training, step, self.trainee, seen)
        if self.average is not None:
            loss = rounded(self.average.loss(self.validation), DIGITS)
            training["averaged_losses"].append(loss)
        return True


@functools.cache
def posed(task: Task, scale: Scale) -> Problem:
    """Make a task's data once per process."""
    return task.pose(scale)


def start(
    problem: Problem,
    task: str,
    optimizer: str,
    lr: float,
    seed: int,
    num_steps: int,
    device: str = "cpu",
) -> Trainee:
    """Build what is trained: a seed gives all optimizers the same initial weights."""
    torch.manual_seed(seed)
    entrant = entrants(*STUDIED)[optimizer]
    model = problem.build_model().to(device)
    groups = parameter_groups(model, TASKS[task].weight_decay * entrant.decay_scale)
    built, factor = build(entrant, groups, lr, num_steps)
    return Trainee(Record(optimizer, seed), model, built, factor, MAX_NORM)


def evaluated_steps(num_steps: int) -> list[int]:
    """Return the steps after which losses are taken: the last one, and not the first.

    Nothing was predicted before the first.
    """
    parts = range(1, NUM_EVALUATIONS + 1)
    return sorted({math.ceil(num_steps * part / NUM_EVALUATIONS) for part in parts} - {1})


def _note(
    training: Training, step: int, trainee: Trainee, seen: Sequence[Foresight | None]
) -> None:
    gradients = [p.grad for p in trainee.model.parameters() if p.grad is not None]
    training["evaluated_steps"].append(step)
    training["validation_losses"].append(rounded(trainee.record.validation_losses[-1], DIGITS))
    training["norm_ratios"].append(rounded(norm_ratio(gradients), DIGITS))
    for name, found in zip(GROUPS, seen, strict=False):
        lists = training["foresight"].setdefault(name, {key: [] for key in Foresight._fields})
        for key, values in lists.items():
            values.append(None if found is None else rounded(getattr(found, key), DIGITS))


# One training of any kind.

Follow = Callable[[Training, Job], None]  # trains, and notes what is seen


def train(job: Job, how: Follow = follow) -> Training:
    """Train; a model that diverges or an optimizer that raises leaves the reason.

    Returns:
        A record whose lists have an entry per evaluation: ``evaluated_steps``,
        ``validation_losses``, and others that depend on how it was trained. ``why`` is None or says
        what went wrong; ``seconds`` is the time that all this took, ``machine`` where.
    """
    start = time.perf_counter()
    training: Training = {"evaluated_steps": [], "validation_losses": [], "why": None}
    training["machine"] = machine.name(torch.device(job.device))
    try:
        how(training, job)
    except Exception as error:  # anything a foreign optimizer may do
        first_line = next(iter(str(error).splitlines()), "")
        training["why"] = f"{type(error).__name__}: {first_line}"
    return training | {"seconds": rounded(time.perf_counter() - start, DIGITS)}


# Many trainings.


def train_all(
    jobs: Sequence[Job], folder: Path, num_workers: int, how: Follow = follow
) -> Iterator[tuple[Job, Training]]:
    """Train what ``folder`` does not hold yet, over processes; yield each as it is done.

    One process at a time per core, one thread each: small models gain little from threads.
    """
    missing = []
    for job in dict.fromkeys(jobs):
        found = read(job, folder)
        if found is None:
            missing.append(job)
        else:
            yield job, found
    if missing:
        yield from _train_missing(missing, folder, num_workers, how)


def _train_missing(
    jobs: Sequence[Job], folder: Path, num_workers: int, how: Follow
) -> Iterator[tuple[Job, Training]]:
    # Fresh interpreters: a forked one may hang in the threads of its parent.
    pool = ProcessPoolExecutor(num_workers, get_context("spawn"), _prepare_worker)
    try:
        pending = {pool.submit(train, job, how): job for job in jobs}
        for done in as_completed(pending):
            training = done.result()
            _write(pending[done], training, folder)
            yield pending[done], training
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    # The same study twice gives the same numbers.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("high")  # on a GPU; the same for all
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Workers of a pool would wait for jobs for ever after their parent was killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _path(job: Job, folder: Path) -> Path:
    return folder / f"{job.slug}.json"


def read(job: Job, folder: Path) -> Training | None:
    """The training that a folder holds of a job, if it does."""
    path = _path(job, folder)
    if not path.exists():
        return None
    kept = json.loads(path.read_text())
    return kept["training"] if kept["job"] == _as_json(job) else None


def _write(job: Job, training: Training, folder: Path) -> None:
    # Whoever is interrupted while writing leaves no half file behind.
    path = _path(job, folder)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"job": _as_json(job), "training": training}) + "\n")
    os.replace(partial, path)


def _as_json(job: Job) -> Any:
    return json.loads(json.dumps(asdict(job)))
