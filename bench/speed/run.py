"""``python -m wpadamw bench``: time a step of WPAdamW, of torch's AdamW and of other packages.

Leaves ``DEVICE.json``, which `wpadamw.bench.report` reads, ``report.md`` and ``step-times.png``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from .. import RESULTS, machine, registry
from ..report import bars, plots, speed_tables
from ..report.markup import Results
from ..usage import UsageError, optional_module, output_directory, usable_device
from .progress import progress_bar, watch

SUITES_FOLDER = Path(__file__).resolve().parent
# Each in a process of its own, as peers change theirs; last what matters least.
SUITES = (
    *("bench_step.py", "bench_small_tensors.py", "bench_model.py", "bench_memory.py"),
    "bench_peers.py",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add = parser.add_argument
    add("--device", type=usable_device, default="cpu", help="torch device (%(default)s)")
    add("--quick", action="store_true", help="tiny sizes: numbers without meaning, in a minute")
    add("--out", type=Path, metavar="DIR", default=Path("runs/bench"), help="(%(default)s)")
    add("--keep", action="store_true", help="in bench/results/MACHINE, unless --quick")


def run(args: argparse.Namespace) -> int:
    """Measure, write, print."""
    for package in ("pytest", "pytest_benchmark"):
        optional_module(package, "bench")
    if args.keep and not RESULTS.is_dir():
        raise UsageError(f"--keep needs a checkout, whose {RESULTS} is a directory")
    # Before the measurement: files that it writes are not changes to what is measured.
    facts = {**machine.facts(args.device), "peers": peer_versions()}
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


def peer_versions() -> dict[str, str]:
    """Of the packages of peers that are installed."""
    peers = registry.entrants("peers").values()
    found = {peer.package: machine.version(peer.package) for peer in peers if peer.package}
    return {package: version for package, version in found.items() if version is not None}


def result_paths(args: argparse.Namespace, facts: dict[str, Any]) -> tuple[Path, Path]:
    """One file per machine and type of device, and one for a run that failed or goes on."""
    is_kept = args.keep and not args.quick  # numbers without meaning stay out of the results
    out = RESULTS / machine.machine_slug(facts) if is_kept else args.out
    return out / f"{args.device.type}.json", out / f"{args.device.type}.failed.json"


def run_suite(suite: str, args: argparse.Namespace, bar: Any) -> tuple[dict[str, Any], bool]:
    """The tables of a file by name, and whether all of it went well."""
    with tempfile.TemporaryDirectory() as directory:
        record = Path(directory) / "record.json"
        command = [sys.executable, "-m", "pytest", str(SUITES_FOLDER / suite)]
        command += [
            "-c",
            str(SUITES_FOLDER / "pytest.ini"),
            f"--rootdir={SUITES_FOLDER}",
            "-p",
            "no:cacheprovider",
        ]
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


def show(results: Results) -> str:
    """All tables; the figures with targets are not those of --quick's sizes."""
    makers = [speed_tables.full, speed_tables.memory]
    if not results["quick"]:
        makers.insert(0, speed_tables.speed)
    return "\n\n".join(filter(None, (make([results]) for make in makers)))


def write_report(results: Results, out: Path) -> list[Path]:
    """The tables as Markdown, with the bars where matplotlib is installed."""
    page, plot, image = out / "report.md", out / "step-times.png", ""
    try:
        source = bars.source([results])
        plots.save(bars.draw(source), plot, source)
        image = f"![times of a step, and of a device copy of as many bytes]({plot.name})\n\n"
    except ImportError as error:
        print(f"no {plot.name}: {error}", file=sys.stderr)
    page.write_text(f"# Benchmarks\n\n{image}{show(results)}\n", encoding="utf-8")
    return [page, *[plot] * bool(image)]
