"""What a training run leaves: a table, a picture of the validation curves, a JSON file."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from wpadamw.cli.checks import optional_module
from wpadamw.cli.comparison import Record


def group_by_optimizer(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Gather the records of each optimizer, in order of first appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.optimizer, []).append(record)
    return groups


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; 0 for a single value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def format_losses(values: Sequence[float], spec: str = ".4f") -> str:
    """Format the mean, and where there are several values its standard error."""
    mean = format(statistics.fmean(values), spec)
    return mean if len(values) == 1 else f"{mean} ± {standard_error(values):.4f}"


def markdown(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Format a table in Markdown, all columns but the first aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (head, rule, *rows))


def format_table(records: Sequence[Record], steps: Sequence[int]) -> str:
    """Format losses at ``steps``, step times and state sizes, one optimizer a line.

    The last line is the loss of the second optimizer minus that of the first, seed by seed.
    """
    groups = group_by_optimizer(records)
    head = ["optimizer", *(f"loss @ {step}" for step in steps)]
    rows = [[*head, "step ms", "state B/param", "state bytes"]]
    losses = {
        name: [[record.validation_loss_at(step) for record in group] for step in steps]
        for name, group in groups.items()
    }
    for name, group in groups.items():
        rows.append([name, *map(format_losses, losses[name]), *_format_costs(group)])
    first, second = groups
    differences = [
        [b - a for a, b in zip(*pair, strict=True)]
        for pair in zip(losses[first], losses[second], strict=True)
    ]
    rows.append(["difference", *(format_losses(values, "+.4f") for values in differences)])
    return f"{_align(rows)}\n{_explain_columns(len(groups[first]))}"


def draw_curves(records: Sequence[Record], path: Path) -> None:
    """Draw validation loss over steps: the mean of the seeds and its standard error."""
    # A figure without pyplot draws with Agg and leaves the caller's matplotlib settings alone.
    figure = optional_module("matplotlib.figure", "train").Figure(figsize=(8, 5), dpi=120)
    axes = figure.subplots()
    for name, group in group_by_optimizer(records).items():
        steps = group[0].evaluated_steps
        losses = [[record.validation_loss_at(step) for record in group] for step in steps]
        means = [statistics.fmean(values) for values in losses]
        errors = [standard_error(values) for values in losses]
        axes.plot(steps, means, marker=".", label=name)
        if len(group) > 1:
            lower = [mean - error for mean, error in zip(means, errors, strict=True)]
            upper = [mean + error for mean, error in zip(means, errors, strict=True)]
            axes.fill_between(steps, lower, upper, alpha=0.25)
    axes.set(xlabel="step", ylabel="validation loss, nats per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def write_results(records: Sequence[Record], setting: dict[str, Any], path: Path) -> None:
    """Write all that was measured, and under which setting, as JSON."""
    runs = [asdict(record) for record in records]
    path.write_text(json.dumps({"setting": setting, "runs": runs}, indent=1) + "\n")


def _format_costs(group: Sequence[Record]) -> list[str]:
    step_time = statistics.median(time for record in group for time in record.step_times_ms)
    record = group[0]
    per_parameter = record.state_bytes / record.num_parameters
    return [f"{step_time:.3f}", f"{per_parameter:.2f}", f"{record.state_bytes:,}"]


def _align(rows: Sequence[Sequence[str]]) -> str:
    columns = [list(column) for column in zip_longest(*rows, fillvalue="")]
    for i, column in enumerate(columns):
        width = max(map(len, column))
        columns[i] = [cell.rjust(width) if i else cell.ljust(width) for cell in column]
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def _explain_columns(num_seeds: int) -> str:
    seeds = "1 seed" if num_seeds == 1 else f"mean ± standard error of {num_seeds} seeds"
    return (
        f"loss @ N: validation loss at the true weights after N steps, nats per byte, {seeds}\n"
        "difference: the second optimizer's loss minus the first's, seed by seed\n"
        "step ms: median time of optimizer.step() alone; state: tensors in optimizer.state"
    )
