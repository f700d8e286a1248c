"""Verdicts rest on paired tests, corrected for their number."""

from __future__ import annotations

import pytest
from scipy import stats

from wpadamw.bench.report.study_statistics import compare, holm, p_value, verdicts

OURS = {0: 1.52, 1: 1.49, 2: 1.57, 3: 1.51, 4: 1.50}
THEIRS = {0: 1.55, 1: 1.51, 2: 1.58, 3: 1.55, 4: 1.51}


def shifted(by, num_seeds=5):
    """Comparisons of losses that differ by a little more and a little less than so much."""
    ours = {seed: 2.0 + by + 1e-3 * (-1) ** seed for seed in range(num_seeds)}
    return compare(ours, dict.fromkeys(range(num_seeds), 2.0))


def test_holm_equals_an_example_by_hand():
    # In order 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 they are 0.02, 0.03, 0.06, 0.04.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_value_is_that_of_a_paired_t_test():
    found = compare(OURS, THEIRS)
    expected = stats.ttest_rel([*OURS.values()], [*THEIRS.values()])
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx(-0.022)
    assert found.standard_error == pytest.approx(found.mean / expected.statistic)
    assert found.num_seeds == 5


def test_differences_are_paired_by_seed_not_by_place():
    backwards = dict(reversed(OURS.items()))
    assert compare(backwards, THEIRS) == compare(OURS, THEIRS)
    assert compare({**OURS, 9: 100.0}, THEIRS) == compare(OURS, THEIRS)
    assert compare({9: 1.0}, THEIRS) is None


@pytest.mark.parametrize(
    ("differences", "p"), [([0.5], 1.0), ([0.0, 0.0], 1.0), ([0.5, 0.5], 0.0), ([0.5, -0.5], 1.0)]
)
def test_p_value_where_a_t_test_divides_by_zero(differences, p):
    assert p_value(differences) == p


def test_verdict_needs_enough_seeds():
    assert verdicts({"four": shifted(-0.1, 4)}) == {"four": ""}
    assert verdicts({"five": shifted(-0.1)}) == {"five": "better"}
    assert verdicts({"five": shifted(+0.1)}) == {"five": "worse"}


def test_verdict_is_lost_among_many_comparisons():
    found = compare(OURS, THEIRS)
    assert 0.01 < found.p_value < 0.05
    assert verdicts({0: found}) == {0: "better"}
    many = {0: found, **dict.fromkeys(range(1, 10), shifted(0.0))}
    assert set(verdicts(many).values()) == {""}
