"""What is promised is what was tested, and the tables say what became of it."""

from __future__ import annotations

import json
import re
import sys

import pytest

from wpadamw._backends import triton
from wpadamw.bench import RESULTS, ROOT, steps, versions
from wpadamw.bench.report import version_tables

VERSIONS = {"python": "3.10", "torch": "2.4.0", "triton": "3.4.0", "numpy": "1.26.4"}
CHOSEN = versions.Combination(**VERSIONS)
FACTS = {"cpu": "Example 9", "cores": 4, "system": "Linux x86_64", "wpadamw": "0.1.0"}
SOURCE = {"date": "2030-01-31", "commit": "0123456789abcdef", "dirty": False}


def row_of(outcomes, monkeypatch):
    """The row of a combination whose steps end like this; those that are not named pass."""

    def run(step, root, limit_s):
        verdict, output = outcomes.get(step.name, (steps.PASSED, "5 passed in 1.00s"))
        return steps.Outcome(step, verdict, 1.0, output)

    monkeypatch.setattr(versions, "run", run)
    monkeypatch.setattr(versions, "find_python", lambda version: sys.executable)
    return {**versions.row(CHOSEN), **SOURCE}


def table_of(*rows):
    return version_tables.versions([{"facts": FACTS, "rows": rows}]).splitlines()


def test_a_row_that_passed_shows_its_tests(monkeypatch):
    found = row_of({}, monkeypatch)
    assert version_tables.passed(found)
    head, _, line, _, caption = table_of(found)
    assert head.startswith("| Python | torch | Triton | NumPy | build |")
    assert line.startswith("| 3.10 | 2.4.0 | 3.4.0 | 1.26.4 | 5 passed | 5 passed |")
    assert caption.endswith("4 cores, Linux x86_64; wpadamw 0.1.0; 2030-01-31 at 0123456789ab.")


def test_tests_that_fail_are_shown_and_others_run(monkeypatch):
    output = "FAILED tests/test_a.py::test_b - no\n1 failed, 4 passed in 1.00s"
    found = row_of({"interpreter": ("failed with exit code 1", output)}, monkeypatch)
    assert not version_tables.passed(found)
    _, _, line, _, reason, *_ = table_of(found)
    assert line.endswith("| 5 passed | **1 failed, 4 passed** | 5 passed |")
    assert reason.endswith("exit code 1: `FAILED tests/test_a.py::test_b - no`")


def test_without_its_packages_a_row_is_built_only(monkeypatch):
    output = "WARNING: slow\nERROR: No matching distribution found for torch==2.4.0"
    found = row_of({"packages": ("failed with exit code 1", output)}, monkeypatch)
    _, _, line, _, reason, *_ = table_of(found)
    assert line.endswith("| 5 passed | not available | not run | not run | not run |")
    assert "ERROR: No matching distribution found for torch==2.4.0" in reason


def test_what_failed_fails_the_whole_and_what_is_not_available_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "RESULTS", tmp_path)
    for name, code in [("packages", 0), ("build", 1), ("code", 1)]:
        found = row_of({name: ("failed with exit code 1", "")}, monkeypatch)
        with monkeypatch.context() as patched:
            patched.setattr(versions, "row", lambda chosen, found=found: found)
            assert versions.main(["--only", CHOSEN.name]) == code


def test_a_missing_python_is_the_reason(monkeypatch):
    monkeypatch.setattr(versions, "find_python", lambda version: None)
    _, _, line, _, reason, *_ = table_of({**versions.row(CHOSEN), **SOURCE})
    assert line.endswith("| 1.26.4 | not run | not run | not run | not run | not run |")
    assert reason.endswith("NumPy 1.26.4: Python 3.10 is not installed.")


def test_only_what_passed_is_promised(monkeypatch):
    good = row_of({}, monkeypatch)
    newer = {**good, "python": "3.9", "torch": "2.10.0"}
    bad = {**good, "torch": "2.3.0", "steps": {}}
    lines = version_tables.promised([{"facts": FACTS, "rows": [newer, good, bad]}]).splitlines()
    assert lines[2:4] == ["| Python | 3.9 | 3.10 |", "| torch | 2.4.0 | 2.10.0 |"]


def test_some_combinations_run_again_and_the_others_stay(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "RESULTS", tmp_path)
    monkeypatch.setattr(versions, "row", lambda chosen: {**chosen._asdict(), "steps": {}})
    for only, number in [("python-3.10", 1), ("python-3.13", 2), ("python-3.10", 2)]:
        assert versions.main(["--only", only]) == 0
        (path,) = tmp_path.glob("*/versions.json")
        assert len(json.loads(path.read_text())["rows"]) == number


# Promises.


@pytest.fixture(scope="module")
def tested():
    """The oldest versions of which all tests passed."""
    paths = RESULTS.glob("*/versions.json")
    rows = [row for path in paths for row in json.loads(path.read_text())["rows"]]
    good = list(filter(version_tables.passed, rows))
    return {key: min((row[key] for row in good), key=version_tables.number) for key in VERSIONS}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("python", r'requires-python = ">=([\d.]+)"'),
        ("torch", r'dependencies = \["torch>=([\d.]+)"\]'),
        ("triton", r'"triton>=([\d.]+);'),
    ],
)
def test_the_oldest_that_is_promised_was_tested(name, pattern, tested):
    (promised,) = re.findall(pattern, (ROOT / "pyproject.toml").read_text())
    assert tested[name] == promised or tested[name] == f"{promised}.0"


def test_the_backend_refuses_what_was_not_tested(tested):
    assert version_tables.number(tested["triton"])[:2] == triton._OLDEST
