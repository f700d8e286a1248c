"""The losses of ``python -m wpadamw train`` as a table."""

from __future__ import annotations

from collections.abc import Sequence

from markup import Results, markdown

from wpadamw.cli.report import format_losses
from wpadamw.cli.study_tables import quarters


def training(all_results: Sequence[Results]) -> str:
    """Validation losses of both optimizers at the same steps."""
    return "\n\n".join(map(_training_table, all_results))


def _training_table(results: Results) -> str:
    steps = quarters(results["runs"], parts=(1, 2, 3, 4))
    losses: dict[str, list[list[float]]] = {}
    for run in results["runs"]:
        at = dict(zip(run["evaluated_steps"], run["validation_losses"], strict=True))
        losses.setdefault(run["optimizer"], []).append([at[step] for step in steps])
    first, second = losses.values()
    differences = [
        [b - a for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)
    ]
    rows = [[name, *_mean_losses(seeds, ".4f")] for name, seeds in losses.items()]
    rows.append(["difference, seed by seed", *_mean_losses(differences, "+.4f")])
    head = ["validation loss, nats per byte", *(f"step {step:,}" for step in steps)]
    return f"{markdown(head, rows)}\n\n{_training_caption(results)}"


def _mean_losses(seeds: Sequence[Sequence[float]], spec: str) -> list[str]:
    return [format_losses(values, spec) for values in zip(*seeds, strict=True)]


def _training_caption(results: Results) -> str:
    setting, run = results["setting"], results["runs"][0]
    arguments = setting["arguments"]
    num_seeds = len({run["seed"] for run in results["runs"]})
    seeds = "1 seed" if num_seeds == 1 else f"mean ± standard error of {num_seeds} seeds"
    return (
        f"GPT with {run['num_parameters']:,} parameters, {arguments['batch_size']} x "
        f"{arguments['context']} bytes a step, lr {arguments['lr']:g}, weight decay "
        f"{arguments['weight_decay']:g}, prediction_steps {arguments['prediction_steps']:g}; "
        f"losses at the true weights, {seeds}; torch {setting['torch']}."
    )
