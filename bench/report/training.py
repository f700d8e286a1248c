"""What ``python -m wpadamw train`` found, as tables and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from . import plots
from .markup import Results, format_losses, markdown
from .study_results import Runs, loss_at, quarters

COLUMNS = (
    "loss @ N: validation loss at the true weights after N steps, nats per byte, {seeds}\n"
    "difference: the second optimizer's loss minus the first's, seed by seed\n"
    "step ms: median time of optimizer.step() alone; state: tensors in optimizer.state"
)


def by_optimizer(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """The runs of each optimizer, in order of first appearance."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["optimizer"], []).append(run)
    return groups


def table(runs: Runs, steps: Sequence[int]) -> str:
    """Losses at ``steps``, step times and state sizes of both optimizers."""
    groups = by_optimizer(runs)
    costs = [*map(_costs, groups.values()), ["", "", ""]]
    rows = [[*row, *cost] for row, cost in zip(_loss_rows(groups, steps), costs, strict=True)]
    head = ["optimizer", *(f"loss @ {step}" for step in steps)]
    head += ["step ms", "state B/param", "state bytes"]
    return f"{markdown(head, rows)}\n\n{COLUMNS.format(seeds=_seeds(runs))}"


def _loss_rows(groups: dict[str, list[dict[str, Any]]], steps: Sequence[int]) -> list[list[str]]:
    """The losses of both, and of the second minus those of the first with the same seed."""
    losses = {
        name: [[loss_at(run, step) for run in runs] for step in steps]
        for name, runs in groups.items()
    }
    first, second = losses.values()
    differences = [
        [b - a for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)
    ]
    rows = [[name, *map(format_losses, at_steps)] for name, at_steps in losses.items()]
    return [*rows, ["difference", *(format_losses(values, "+.4f") for values in differences)]]


def _costs(runs: Runs) -> list[str]:
    step_ms = statistics.median(time for run in runs for time in run["step_times_ms"])
    num_bytes = runs[0]["state_bytes"]
    return [f"{step_ms:.3f}", f"{num_bytes / runs[0]['num_parameters']:.2f}", f"{num_bytes:,}"]


def _seeds(runs: Runs) -> str:
    num_seeds = len({run["seed"] for run in runs})
    return "1 seed" if num_seeds == 1 else f"mean ± standard error of {num_seeds} seeds"


def draw(runs: Runs) -> Any:
    """Validation loss over steps: the mean of the seeds and its standard error."""
    figure, ((axes,),) = plots.panels(1, 1, inches=(8, 5))
    lines = {
        name: plots.mean_line(found[0]["evaluated_steps"], [r["validation_losses"] for r in found])
        for name, found in by_optimizer(runs).items()
    }
    plots.draw_lines(axes, lines)
    axes.set(xlabel="step", ylabel="validation loss, nats per byte")
    axes.legend()
    return figure


def training(all_results: Sequence[Results]) -> str:
    """Validation losses of both optimizers at the same steps."""
    return "\n\n".join(map(_training, all_results))


def _training(results: Results) -> str:
    steps = quarters(results["runs"], parts=(1, 2, 3, 4))
    rows = _loss_rows(by_optimizer(results["runs"]), steps)
    rows[-1][0] = "difference, seed by seed"
    head = ["validation loss, nats per byte", *(f"step {step:,}" for step in steps)]
    return f"{markdown(head, rows)}\n\n{_caption(results)}"


def _caption(results: Results) -> str:
    setting, run = results["setting"], results["runs"][0]
    arguments = setting["arguments"]
    return (
        f"GPT with {run['num_parameters']:,} parameters, {arguments['batch_size']} x "
        f"{arguments['context']} bytes a step, lr {arguments['lr']:g}, weight decay "
        f"{arguments['weight_decay']:g}, prediction_steps {arguments['prediction_steps']:g}; "
        f"losses at the true weights, {_seeds(results['runs'])}; torch {setting['torch']}."
    )
