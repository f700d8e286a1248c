"""Runs the benchmarks and writes one JSON file: ``python bench/run.py [--quick] [--out DIR]``."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import contestants
import measure
import report
import speed_tables
import torch

BENCH = Path(__file__).parent
QUICK_OUT = measure.ROOT / "runs" / "bench"  # numbers without meaning stay out of the results


def main() -> int:
    """Measure, write, print."""
    args = parse_arguments()
    # Before the measurement: files that it writes are not changes to what is measured.
    facts = {**measure.facts(args.device), "left_out": contestants.left_out(args.device)}
    tables, has_failed = run_suites(args)
    path = results_path(args, facts, has_failed)
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {"facts": facts, "quick": args.quick, "tables": tables}
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{speed_tables.full([results])}\n\n{speed_tables.memory([results])}\n\nwritten: {path}")
    return int(has_failed)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--out", type=Path, help="directory (bench/results/MACHINE)")
    parser.add_argument("--device", type=torch.device, default="cpu", help="(%(default)s)")
    return parser.parse_args()


def results_path(args: argparse.Namespace, facts: dict[str, Any], has_failed: bool) -> Path:
    """One file per machine and type of device; the report does not see what failed."""
    default = QUICK_OUT if args.quick else report.RESULTS / measure.machine_slug(facts)
    return (args.out or default) / f"{args.device.type}{'.failed' * has_failed}.json"


def run_suites(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """The tables by name, and whether a benchmark failed."""
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "record.json"
        command = [sys.executable, "-m", "pytest", str(BENCH), f"--benchmark-json={record}"]
        # What pytest-benchmark prints are times of whole rounds.
        command += [f"--device={args.device}", "--benchmark-quiet", "--benchmark-columns=rounds"]
        done = subprocess.run(command + ["--quick"] * args.quick, cwd=measure.ROOT)
        return read_tables(record), done.returncode != 0


def read_tables(record: Path) -> dict[str, Any]:
    """Keep of pytest-benchmark's record what the benchmarks put there."""
    if not record.exists() or not (text := record.read_text()):
        return {}
    found = [benchmark["extra_info"] for benchmark in json.loads(text)["benchmarks"]]
    return {table.pop("table"): table for table in found if "table" in table}


if __name__ == "__main__":
    sys.exit(main())
