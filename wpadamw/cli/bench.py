"""``python -m wpadamw bench``: time a step of WPAdamW, of torch's AdamW and of other packages."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

from wpadamw.cli.checks import UsageError, optional_module, output_directory, usable_device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--device", type=usable_device, default="cpu", help="torch device (%(default)s)")
    add("--quick", action="store_true", help="tiny sizes: numbers without meaning, in a minute")
    add("--out", type=Path, metavar="DIR", default=Path("runs/bench"), help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the benchmarks in a process of their own: they print the tables and write the files."""
    for package in ("pytest", "pytest_benchmark", "matplotlib", "tqdm"):
        optional_module(package, "bench")
    script, out = benchmarks_directory() / "run.py", output_directory(args.out)
    command = [sys.executable, str(script), "--device", str(args.device), "--out", str(out)]
    return subprocess.run([*command, *["--quick"] * args.quick]).returncode


def benchmarks_directory() -> Path:
    """Find the benchmarks, which are installed as ``wpadamw.bench``."""
    spec = importlib.util.find_spec("wpadamw.bench")
    if spec is None or not spec.submodule_search_locations:
        raise UsageError("the benchmarks are not part of this installation: install wpadamw again")
    return Path(spec.submodule_search_locations[0])
