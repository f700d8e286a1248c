"""Ways to train a pipeline: what losses they reach, and how busy they keep its stages."""

from __future__ import annotations

from collections.abc import Sequence

from . import study_rates
from .markup import Results, markdown, number
from .study_comparisons import Comparisons, caption
from .study_drawing import draw_losses
from .study_plots import Plot, Source, lines_of
from .study_results import Column, Runs, columns
from .study_statistics import MIN_SEEDS, SIGNIFICANCE
from .study_tables import loss_cells, p_text

LEGEND = (
    "*Busy share, computed*: the share of slots in which a stage computes, if every forward and "
    "every backward takes a slot: M / (M + D - 1) where D stages drain after every M "
    "micro-batches, all of them where they never drain. *Loss*: the final validation loss "
    "(cross-entropy, nats per byte) at the true weights, mean ± standard error over seeds, each "
    "at the learning rate that a search with other seeds found best. *Minus {reference}*: seed by "
    "seed. *p*: of a paired t-test of this difference, corrected by Holm's method (Holm 1979) for "
    f"all {{number}} comparisons; *better* and *worse* are said where it is below {SIGNIFICANCE:g} "
    f"with {MIN_SEEDS} seeds or more."
)
RATES_LEGEND = (
    "Mean of the final validation losses at each learning rate, in parentheses the number of "
    "seeds, those of the search and those of the evaluation; bold: the best of the search. *Good "
    "range*: the largest over the smallest of the neighbouring rates, around the best one, that "
    "are on average at least as good as *{reference}* at the best rate of that, seed by seed; "
    "empty where the best one is not. Last: how many rates and trainings there were."
)


def losses(all_results: Sequence[Results]) -> str:
    """Busy shares, learning rates and final losses, a table a pipeline."""
    reference, shown = all_results[0]["reference"], columns(all_results)
    others = dict.fromkeys(
        name for column in shown for name in column.optimizers() if name != reference
    )
    found = Comparisons(shown, {name: (name, reference) for name in others})
    legend = LEGEND.format(reference=reference, number=len(found.found))
    return "\n\n".join([*(_table(c, found) for c in shown), legend, *map(caption, all_results)])


def _table(column: Column, found: Comparisons) -> str:
    head = ["", "busy share, computed", "lr", "seeds", "loss", f"minus {column.reference}", "p"]
    rows = [_row(column, name, found) for name in column.optimizers()]
    return f"**{column.title}**\n\n{markdown(head, rows)}"


def _row(column: Column, name: str, found: Comparisons) -> list[str]:
    busy = f"{number(100 * column.results['busy_shares'][column.task][name], '3g')} %"
    if (why := column.why_not(name)) is not None:
        return [name, busy, why, *[""] * 4]
    cells = [name, busy, *loss_cells(column, name)]
    if name == column.reference:
        return [*cells, "", ""]
    p = found.p_values.get((name, column.label))
    return [*cells, found.cell(name, column), "" if p is None else p_text(p)]


def rates(all_results: Sequence[Results]) -> str:
    """Losses at all learning rates, a table a pipeline."""
    return study_rates.rates(all_results, RATES_LEGEND)


def report(results: Results) -> str:
    """All tables of one study."""
    return "\n\n".join(table([results]) for table in (losses, rates))


# The plot.


def source(all_results: Sequence[Results]) -> Source:
    """Validation losses over the micro-batches of training, a panel a pipeline."""
    return [
        {"title": column.title, "losses": lines_of(column, _validation_losses, ())}
        for column in columns(all_results)
    ]


def _validation_losses(column: Column, runs: Runs) -> list[list[float]]:
    return [run["validation_losses"] for run in runs]


PLOTS = {"pipeline-losses.png": Plot(source, draw_losses)}
