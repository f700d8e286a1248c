"""The study in tables: what the trainings of each task showed, and all tables of one study."""

from __future__ import annotations

from collections.abc import Sequence

from .markup import Results, format_losses, markdown
from .study_comparisons import complete, difference_text, families, rules, sentences, summary
from .study_predictions import foresight, norm_ratios
from .study_rates import rates
from .study_results import Column, columns, rate_text
from .study_statistics import compare
from .study_steps import reach

SMALLEST_P = 0.0001  # that is shown in digits
LEGEND = (
    "*Loss*: the final validation loss (cross-entropy, nats per target) at the true weights, mean "
    "± standard error over seeds. *p*: of a paired t-test of the difference, not corrected. *Steps "
    "to {reference}'s loss*: the first evaluation at which the loss was as low as {reference}'s "
    "last one with the same seed, over the seeds that got there. *Saved*: how much earlier than "
    "{reference} that was, in percent of all steps, where all seeds got there."
)


def report(results: Results) -> str:
    """All tables of one study."""
    tables = (summary, sentences, complete, rules, families, details, rates, foresight, norm_ratios)
    return "\n\n".join(table([results]) for table in tables)


def details(all_results: Sequence[Results]) -> str:
    """Learning rates, losses, and steps to the reference's loss, a table a task."""
    legend = LEGEND.format(reference=all_results[0]["reference"])
    return "\n\n".join([legend, *map(_detail, columns(all_results))])


def _detail(column: Column) -> str:
    reference = column.reference
    head = ["", "lr", "seeds", "loss", f"minus {reference}'s", "p"]
    head += [f"steps to {reference}'s loss", "saved"]
    rows = [_row(column, name) for name in column.optimizers()]
    return f"**{column.title}**\n\n{markdown(head, rows)}"


def _row(column: Column, optimizer: str) -> list[str]:
    if (why := column.why_not(optimizer, column.reference)) is not None:
        return [optimizer, why, *[""] * 6]
    reached = reach(column, optimizer)
    return [
        *(optimizer, *loss_cells(column, optimizer)),
        *_against_reference(column, optimizer),
        *(reached.text, "" if optimizer == column.reference else reached.saved_text),
    ]


def loss_cells(column: Column, optimizer: str) -> tuple[str, str, str]:
    """The learning rate, the number of seeds and the loss."""
    losses = list(column.losses(optimizer).values())
    rate = rate_text(column.best_rate(optimizer) or 0.0)
    return rate, str(len(losses)), format_losses(losses)


def _against_reference(column: Column, optimizer: str) -> tuple[str, str]:
    """The difference from the reference and its p-value."""
    if optimizer == column.reference:
        return "", ""
    found = compare(column.losses(optimizer), column.losses(column.reference))
    return ("", "") if found is None else (difference_text(found), p_text(found.p_value))


def p_text(p: float) -> str:
    """A p-value without an exponent."""
    return f"{p:.4f}" if p >= SMALLEST_P else f"< {SMALLEST_P}"
