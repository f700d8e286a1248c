"""Runs the benchmarks: ``python bench/run.py [--quick] [--device D] [--out DIR]``.

Leaves ``DEVICE.json``, which is what bench/report.py reads, ``report.md`` and ``roofline.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import machine
import markup
import peers
import plots
import report
import roofline
import speed_tables
from progress import progress_bar, watch

from wpadamw.cli.checks import UsageError, output_directory, usable_device

BENCH = Path(__file__).resolve().parent
# Each in a process of its own, as peers change theirs; last what matters least.
SUITES = ("bench_step.py", "bench_small_tensors.py", "bench_model.py", "bench_memory.py")
SUITES += ("bench_peers.py",)
QUICK_OUT = machine.ROOT / "runs" / "bench"  # numbers without meaning stay out of the results


def main() -> int:
    """Measure, write, print."""
    args = parse_arguments()
    # Before the measurement: files that it writes are not changes to what is measured.
    facts = {**machine.facts(args.device), "peers": peers.versions()}
    results = {"facts": facts, "quick": args.quick, "tables": {}}
    path, unfinished = result_paths(args, facts)
    output_directory(path.parent)
    unfinished.unlink(missing_ok=True)
    has_failed = False
    with progress_bar(len(SUITES)) as bar:
        for suite in SUITES:
            tables, is_good = run_suite(suite, args, bar)
            results["tables"] |= tables
            has_failed |= not is_good
            # Whoever ends this early has those; the report does not see them.
            unfinished.write_text(json.dumps(results, indent=1) + "\n")
    written = [unfinished if has_failed else unfinished.replace(path)]
    written += write_report(results, path.parent)
    print("\n\n".join([show(results), f"written: {', '.join(map(str, written))}"]))
    return int(has_failed)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time a step of WPAdamW and of other optimizers.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    parser.add_argument("--out", type=Path, help="directory (bench/results/MACHINE)")
    parser.add_argument("--device", type=usable_device, default="cpu", help="(%(default)s)")
    return parser.parse_args()


def result_paths(args: argparse.Namespace, facts: dict[str, Any]) -> tuple[Path, Path]:
    """One file per machine and type of device, and one for a run that failed or goes on."""
    default = QUICK_OUT if args.quick else report.RESULTS / machine.machine_slug(facts)
    out = args.out or default
    return out / f"{args.device.type}.json", out / f"{args.device.type}.failed.json"


def run_suite(suite: str, args: argparse.Namespace, bar: Any) -> tuple[dict[str, Any], bool]:
    """The tables of a file by name, and whether all of it went well."""
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "record.json"
        command = [sys.executable, "-m", "pytest", str(BENCH / suite)]
        command += ["-c", str(BENCH / "pytest.ini"), f"--rootdir={BENCH}", "-p", "no:cacheprovider"]
        # What pytest-benchmark prints are times of whole rounds.
        command += [f"--benchmark-json={record}", f"--benchmark-storage={directory}"]
        command += ["--benchmark-quiet"]
        command += [f"--device={args.device}", *["--quick"] * args.quick]
        code, output = watch(command, bar, suite)
        if code != 0:
            print(output, file=sys.stderr)
        return read_tables(record), code == 0


def read_tables(record: Path) -> dict[str, Any]:
    """Keep of pytest-benchmark's record what the benchmarks put there."""
    if not record.exists() or not (text := record.read_text()):
        return {}
    found = [benchmark["extra_info"] for benchmark in json.loads(text)["benchmarks"]]
    return {table.pop("table"): table for table in found if "table" in table}


def show(results: markup.Results) -> str:
    """All tables; the figures with targets are not those of --quick's sizes."""
    makers = [speed_tables.full, speed_tables.memory]
    if not results["quick"]:
        makers.insert(0, speed_tables.speed)
    return "\n\n".join(filter(None, (make([results]) for make in makers)))


def write_report(results: markup.Results, out: Path) -> list[Path]:
    """The tables as Markdown, with the roofline where matplotlib is installed."""
    page, plot, image = out / "report.md", out / "roofline.png", ""
    try:
        source = roofline.source([results])
        plots.save(roofline.draw(source), plot, source)
        image = f"![time of a step over the bytes it moves]({plot.name})\n\n"
    except ImportError as error:
        print(f"no {plot.name}: {error}", file=sys.stderr)
    page.write_text(f"# Benchmarks\n\n{image}{show(results)}\n", encoding="utf-8")
    return [page, *[plot] * bool(image)]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"bench/run.py: error: {error}")
