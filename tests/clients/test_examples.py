"""Every example runs, as a program of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import HAS_LARGE, LARGE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# As `python example.py` does, but for torchvision where torch has no CUDA.
RUN = (
    "import runpy, sys, torchvision_operators as operators; operators.declare();"
    "runpy.run_path(sys.argv[1], run_name='__main__')"
)


def imported(path):
    """The packages that a program imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names


def examples():
    paths = sorted(EXAMPLES.glob("*.py"))
    return [path for path in paths if HAS_LARGE or not imported(path) & {*LARGE}]


@pytest.mark.parametrize("path", examples(), ids=lambda path: path.stem)
def test_example_runs_and_hears_no_warning_of_ours(path, tmp_path):
    command = [sys.executable, "-c", RUN, str(path)]
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    result = subprocess.run(
        command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout
    assert "wpadamw" not in result.stderr


def test_small_packages_have_examples():
    assert len([path for path in EXAMPLES.glob("*.py") if not imported(path) & {*LARGE}]) >= 3
