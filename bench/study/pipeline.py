"""Ways to train a pipeline of stages, on the simulation of one: tasks and trainings.

The asynchronous ways differ in whether stages predict and in the weights of their backwards; their
stages make an update after every backward and never drain. The synchronous ones have no delays.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import wpadamw

from ..registry import PIPELINED, entrants
from ..report.markup import rounded
from .comparison import (
    cross_entropy,
    mean_cross_entropy,
    parameter_groups,
    to_device,
    warmup_cosine,
)
from .gpt import GPT, in_stages
from .simulated_pipeline import Backward, Orders, SimulatedStage, simulate
from .tasks import Problem, Scale, Task, pose_text
from .text import Batch
from .trainings import DIGITS, MAX_NORM, Job, Training, posed

NUM_EVALUATIONS = 16
FlushAfter = Literal["1", "D", None]  # micro-batches, of D stages; None: never
Weights = list[dict[str, Tensor]]  # of the stages

# Tasks.

SMALL = Scale(layers=8, width=48, heads=4, hidden=0, context=64, batch_size=8)
QUICK = Scale(layers=8, width=8, heads=2, hidden=0, context=8, batch_size=2, max_steps=16)
NUM_STAGES = {"pipeline-4": 4, "pipeline-8": 8}


def _pose(num_stages: int, scale: Scale) -> Problem:
    def build_model() -> nn.Module:
        # The first and the last stage cannot have weights in common.
        gpt = GPT(scale.context, scale.layers, scale.width, scale.heads, is_tied=False)
        return in_stages(gpt, num_stages)

    return pose_text(scale, build_model)


TASKS = {
    name: Task(
        name=name,
        title=f"GPT in {num_stages} stages on the bytes of Python's standard library",
        num_steps=384,  # micro-batches
        weight_decay=0.1,
        learning_rate=4e-3,
        pose=partial(_pose, num_stages),
        scale=SMALL,
        quick_scale=QUICK,
        num_rates=5,
    )
    for name, num_stages in NUM_STAGES.items()
}

# Ways to train.


class Pipeline:
    """Stages with their optimizers, and how they are trained.

    Args:
        stages: the output of one is the input of the next.
        lr: the highest of the schedule.
        weight_decay: of the matrices.
        num_microbatches: of the training.
        predicts: whether a stage predicts as many steps as it has stages behind it.
        backward: see `simulate`.
        flush_after: how many micro-batches a synchronous pipeline makes an update with, after which
            it drains; None: an asynchronous one.
        options: of `WPAdamW`.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        lr: float,
        weight_decay: float,
        num_microbatches: int,
        predicts: bool = False,
        backward: Backward = "forward",
        flush_after: FlushAfter = None,
        **options: Any,
    ) -> None:
        self.backward: Backward = backward
        self.per_update = microbatches_per_update(flush_after, len(stages))
        self.is_asynchronous = flush_after is None
        factor = partial(warmup_cosine, num_steps=num_microbatches // self.per_update)
        self.stages = []
        for rank, stage in enumerate(stages):
            steps = len(stages) - 1 - rank if predicts else 0
            groups = parameter_groups(stage, weight_decay)
            optimizer = wpadamw.WPAdamW(groups, lr=lr, prediction_steps=steps, **options)
            schedule = LambdaLR(optimizer, factor)
            self.stages.append(SimulatedStage(stage, optimizer, MAX_NORM, schedule))

    def train(self, microbatches: Sequence[Batch], after: Collection[int]) -> dict[int, Weights]:
        """Train; return the true weights that the stages had ``after`` so many micro-batches."""
        kept: dict[int, Weights] = {number: [{} for _ in self.stages] for number in after}

        def keep(rank: int, number: int) -> None:
            num_seen = (number + 1) * self.per_update
            if num_seen in kept:
                kept[num_seen][rank] = true_weights(self.stages[rank])

        batches = list(joined(microbatches, self.per_update))
        orders = None if self.is_asynchronous else one_at_a_time(len(self.stages), len(batches))
        simulate(
            self.stages,
            batches,
            cross_entropy,
            backward=self.backward,
            orders=orders,
            after_update=keep,
        )
        return kept


def microbatches_per_update(flush_after: FlushAfter, num_stages: int) -> int:
    """How many micro-batches an update is made with."""
    return num_stages if flush_after == "D" else 1


def busy_share(flush_after: FlushAfter, num_stages: int) -> float:
    """The share of slots in which a stage computes, where all actions take one slot."""
    if flush_after is None:
        return 1.0
    number = microbatches_per_update(flush_after, num_stages)
    return number / (number + num_stages - 1)


def one_at_a_time(num_stages: int, num_microbatches: int) -> Orders:
    """Orders without delays: a micro-batch enters when the one before has left."""
    return [
        [(kind, number) for number in range(num_microbatches) for kind in "FB"]
        for _ in range(num_stages)
    ]


def joined(microbatches: Sequence[Batch], number: int) -> Iterator[Batch]:
    """Join so many micro-batches to one: its gradient is the mean of theirs."""
    for i in range(0, len(microbatches), number):
        inputs, targets = zip(*microbatches[i : i + number], strict=True)
        yield torch.cat(inputs), torch.cat(targets)


def true_weights(stage: SimulatedStage) -> dict[str, Tensor]:
    """Copy what a stage is evaluated with."""
    optimizer: Any = stage.optimizer
    with optimizer.true_weights():
        return {name: value.clone() for name, value in stage.module.state_dict().items()}


# One training.


def follow(training: Training, job: Job) -> None:
    """Train, and record the validation losses after as many micro-batches on every stage."""
    problem, device = posed(TASKS[job.task], job.scale), torch.device(job.device)
    torch.manual_seed(job.seed)
    model = problem.build_model().to(device)
    pipeline = entrants(*PIPELINED)[job.optimizer].build(
        model,
        lr=job.lr,
        weight_decay=TASKS[job.task].weight_decay,
        num_microbatches=job.num_steps,
    )
    generator = torch.Generator().manual_seed(job.seed)
    batches = [to_device(problem.draw_batch(generator), device) for _ in range(job.num_steps)]
    kept = pipeline.train(batches, evaluated_after(job.num_steps, len(pipeline.stages)))
    validation = [to_device(batch, device) for batch in problem.validation]
    for number, weights in kept.items():
        loss = validation_loss(model, weights, validation)
        if not math.isfinite(loss):
            training["why"] = f"diverged before micro-batch {number}"
            return
        training["evaluated_steps"].append(number)
        training["validation_losses"].append(rounded(loss, DIGITS))


def evaluated_after(num_microbatches: int, num_stages: int) -> list[int]:
    """After how many micro-batches: at the end too, and after whole updates of every way."""
    num_updates = num_microbatches // num_stages
    parts = range(1, NUM_EVALUATIONS + 1)
    return sorted({num_stages * math.ceil(num_updates * i / NUM_EVALUATIONS) for i in parts})


@torch.no_grad()
def validation_loss(model: nn.Module, weights: Weights, batches: Sequence[Batch]) -> float:
    """The mean loss of a model with other weights."""
    changed = copy.deepcopy(model)
    for stage, values in zip(changed.children(), weights, strict=True):
        stage.load_state_dict(values)
    changed.eval()
    return statistics.fmean(mean_cross_entropy(changed, batch).item() for batch in batches)


def facts() -> dict[str, Any]:
    """What is computed: busy shares by task and way to train."""
    ways = entrants(*PIPELINED)
    return {
        "busy_shares": {
            task: {
                name: rounded(busy_share(way.options.get("flush_after"), num_stages))
                for name, way in ways.items()
            }
            for task, num_stages in NUM_STAGES.items()
        }
    }
