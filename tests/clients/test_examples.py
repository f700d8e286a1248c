"""Every example runs, as a program of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import LARGE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def imported(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    return names


def examples():
    has_all = bool(os.environ.get("WPADAMW_CLIENTS"))
    return [path for path in sorted(EXAMPLES.glob("*.py")) if has_all or not imported(path) & {*LARGE}]


@pytest.mark.parametrize("path", examples(), ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
    result = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout
    assert "wpadamw" not in result.stderr  # no warning of ours


def test_examples_are_found():
    assert len(examples()) > 2
