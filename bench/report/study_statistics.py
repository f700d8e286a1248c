"""Whether losses are lower than others: paired tests, corrected for their number.

Knows numbers by seed, neither results nor tables.
"""

from __future__ import annotations

import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from ..usage import optional_module
from .markup import standard_error

SIGNIFICANCE = 0.05
MIN_SEEDS = 5
BETTER, WORSE, UNDECIDED = "better", "worse", ""

Key = TypeVar("Key", bound=Hashable)


class Comparison(NamedTuple):
    """Differences of losses seed by seed, below 0 where the first optimizer is better."""

    mean: float
    standard_error: float
    num_seeds: int
    p_value: float


def compare(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Comparison | None:
    """Compare losses of the same seeds; None where there are none."""
    differences = paired(ours, theirs)
    if not differences:
        return None
    mean, error = statistics.fmean(differences), standard_error(differences)
    return Comparison(mean, error, len(differences), p_value(differences))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Differences of the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def p_value(differences: Sequence[float]) -> float:
    """The two-sided p-value of a paired t-test; 1 for a single pair, which tells nothing."""
    mean, error = statistics.fmean(differences), standard_error(differences)
    if len(differences) < 2 or mean == 0:
        return 1.0
    if error == 0:
        return 0.0
    student = optional_module("scipy.stats", "study").t
    return float(2 * student.sf(abs(mean) / error, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number by Holm's step-down method (Holm 1979).

    The smallest of n is multiplied by n, the next by n - 1, and so on, and their order is kept.
    """
    corrected, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[i])
        corrected[i] = min(largest, 1.0)
    return corrected


def corrected(comparisons: Mapping[Key, Comparison]) -> dict[Key, float]:
    """Their p-values, corrected for their number."""
    p_values = holm([found.p_value for found in comparisons.values()])
    return dict(zip(comparisons, p_values, strict=True))


def verdicts(comparisons: Mapping[Key, Comparison]) -> dict[Key, str]:
    """Say which are better or worse, corrected over all; nothing where seeds do not tell."""
    p_values = corrected(comparisons)
    return {key: _verdict(found, p_values[key]) for key, found in comparisons.items()}


def _verdict(found: Comparison, corrected_p: float) -> str:
    if corrected_p >= SIGNIFICANCE or found.num_seeds < MIN_SEEDS:
        return UNDECIDED
    return BETTER if found.mean < 0 else WORSE
