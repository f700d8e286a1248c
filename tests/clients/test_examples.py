"""Every example runs, as a program of its own."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import needs_gloo
from programs import HAS_LARGE, LARGE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SEVERAL_PROCESSES = {"fsdp", "pipeline"}  # have a launcher
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
    paths = sorted(path for path in EXAMPLES.glob("*.py") if path.stem not in SEVERAL_PROCESSES)
    return [path for path in paths if HAS_LARGE or not imported(path) & {*LARGE}]


def start(*command, folder):
    """What a program prints."""
    paths = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, *map(str, command)]
    result = subprocess.run(
        command, cwd=folder, env=own, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "wpadamw" not in result.stderr
    return result.stdout


@pytest.mark.parametrize("path", examples(), ids=lambda path: path.stem)
def test_example_runs_and_hears_no_warning_of_ours(path, tmp_path):
    assert start("-c", RUN, path, folder=tmp_path)


def launch(num_processes, name, *options, folder):
    """What an example of several processes prints."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", num_processes]
    return start(*command, EXAMPLES / name, *options, folder=folder)


@needs_gloo
def test_a_pipeline_of_four_stages(tmp_path):
    sizes = ["--steps", 2, "--microbatches", 4, "--context", 8, "--width", 16, "--heads", 2]
    printed = launch(4, "pipeline.py", *sizes, folder=tmp_path)
    assert printed.startswith("pipeoptim, 4 stages on cpu, from step 0")
    assert "step 2: validation loss" in printed
    assert len(list(tmp_path.rglob("stage-*.pt"))) == 4


def start_sharded(num_processes, steps, folder):
    """The losses that examples/fsdp.py prints, by the words before them."""
    options = ["--folder", folder / "checkpoints", "--steps", steps]
    printed = launch(num_processes, "fsdp.py", *options, folder=folder)
    pairs = (line.rsplit(" ", 1) for line in printed.splitlines())
    return {words: float(loss) for words, loss in pairs}


@needs_gloo
def test_sharded_training_goes_on_with_any_number_of_processes(tmp_path):
    if not hasattr(importlib.import_module("torch.distributed.fsdp"), "fully_shard"):
        pytest.skip("before torch 2.6 FSDP2 is no public part of torch, and needs CUDA")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = start_sharded(2, 12, whole)
    first, last = start_sharded(2, 6, parts), start_sharded(1, 6, parts)
    resumed_at, *_ = last.values()
    assert resumed_at == pytest.approx(first["step 6: validation loss"], abs=0.002)
    for step in range(1, 7):
        assert first[f"step {step}: loss"] == expected[f"step {step}: loss"]
    for step in range(7, 13):
        same = pytest.approx(expected[f"step {step}: loss"], abs=0.01)  # sums in another order
        assert last[f"step {step}: loss"] == same
    assert last["step 12: validation loss"] < resumed_at - 0.3


def test_small_packages_have_examples():
    assert len([path for path in EXAMPLES.glob("*.py") if not imported(path) & {*LARGE}]) >= 3
