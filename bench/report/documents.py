"""Writes what was measured into README.md and docs: tables between markers, and plots.

``python -m wpadamw.bench.report`` fills what stands between ``bench:begin`` and ``bench:end`` and
draws the plots that the documents show, both from ``bench/results``. ``--check`` only looks: it
exits with 1 if a file would change, or if there is nothing to write.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import ROOT
from . import (
    bars,
    curvature_plot,
    curvature_report,
    format_tables,
    gpu_tables,
    pipeline_costs,
    pipeline_losses,
    pipeline_slots,
    plots,
    speed_tables,
    study_comparisons,
    study_plots,
    study_predictions,
    study_rates,
    study_tables,
    version_tables,
)
from .markup import NOT_MEASURED, Results
from .training import training


class ReportError(Exception):
    """Nothing sound can be written."""


class Table(NamedTuple):
    """What fills a block: Markdown from the results of all machines.

    Args:
        make: the Markdown.
        files: with the results.
        section: of each file that is read; such files, and sections of them, may be missing.
    """

    make: Callable[[Sequence[Results]], str]
    files: Sequence[str]
    section: str | None = None


class Plot(NamedTuple):
    """An image: what it shows of the results of all machines as a JSON value, and its drawing."""

    draw: Callable[[Any], Any]
    source: Callable[[Sequence[Results]], Any]
    files: Sequence[str]
    section: str | None = None


MEASURED, TRAINED, STUDIED = ("cpu.json", "cuda.json"), ("train.json",), ("study.json",)
TESTED, PROFILED, CURVED = ("versions.json",), ("gpu.json",), ("curvature.json",)
PIPELINED = ("pipeline.json",)
TABLES = {
    "speed-summary": Table(speed_tables.summary, MEASURED),
    "speed": Table(speed_tables.speed, MEASURED),
    "full": Table(speed_tables.full, MEASURED),
    "memory": Table(speed_tables.memory, MEASURED),
    "formats": Table(format_tables.formats, MEASURED),
    "kernels": Table(gpu_tables.kernels, PROFILED),
    "training": Table(training, TRAINED),
    "study": Table(study_comparisons.summary, STUDIED),
    "study-prediction": Table(study_comparisons.prediction, STUDIED),
    "study-verdicts": Table(study_comparisons.sentences, STUDIED),
    "study-complete": Table(study_comparisons.complete, STUDIED),
    "study-rules": Table(study_comparisons.rules, STUDIED),
    "study-families": Table(study_comparisons.families, STUDIED),
    "study-formats": Table(study_comparisons.formats, STUDIED),
    "study-details": Table(study_tables.details, STUDIED),
    "study-rates": Table(study_rates.rates, STUDIED),
    "study-foresight": Table(study_predictions.foresight, STUDIED),
    "study-norms": Table(study_predictions.norm_ratios, STUDIED),
    "pipeline-losses": Table(pipeline_losses.losses, PIPELINED, "study"),
    "pipeline-rates": Table(pipeline_losses.rates, PIPELINED, "study"),
    "pipeline-busy": Table(pipeline_costs.busy, PIPELINED, "costs"),
    "pipeline-held": Table(pipeline_costs.held, PIPELINED, "costs"),
    "pipeline-cycles": Table(pipeline_costs.cycles, PIPELINED, "costs"),
    "versions": Table(version_tables.versions, TESTED),
    "promised": Table(version_tables.promised, TESTED),
    "why-theory": Table(curvature_report.theory, CURVED),
    "why-sharpness": Table(curvature_report.sharpness, CURVED),
    "why-swings": Table(curvature_report.swings, CURVED),
    "why-fit": Table(curvature_report.fit, CURVED),
    "why-switches": Table(curvature_report.switches, CURVED),
    "why-steps": Table(curvature_report.steps, CURVED),
}
PLOTS = {
    "step-times.png": Plot(bars.draw, bars.source, MEASURED),
    "curvature.png": Plot(curvature_plot.draw, curvature_plot.source, CURVED),
    **{name: Plot(plot.draw, plot.source, STUDIED) for name, plot in study_plots.PLOTS.items()},
    **{
        name: Plot(plot.draw, plot.source, PIPELINED, "study")
        for name, plot in pipeline_losses.PLOTS.items()
    },
    "pipeline-slots.png": Plot(pipeline_slots.draw, pipeline_slots.source, PIPELINED, "costs"),
}
BLOCK = re.compile(r"<!-- bench:begin (\S+) -->\n.*?<!-- bench:end \1 -->", re.DOTALL)
MARKER = re.compile(r"<!-- bench:(?:begin|end) \S+ -->")
IMAGE = re.compile(r"!\[[^\]]*\]\((?:docs/)?images/([^)\s]+)")


def load(what: Table | Plot, results_root: Path) -> list[Results]:
    """Read the results of all machines, or a section of them where there is one."""
    paths = [path for name in what.files for path in sorted(results_root.glob(f"*/{name}"))]
    if not paths and what.section is None:
        raise ReportError(
            f"{results_root}/*/ must hold {' or '.join(what.files)}, got no such file"
        )
    found = {path: json.loads(path.read_text()) for path in paths}
    if what.section is not None:
        found = {path: r[what.section] for path, r in found.items() if what.section in r}
    for path, results in found.items():
        if results.get("quick"):
            raise ReportError(f"{path} must come from a full run, got one with --quick")
    return list(found.values())


# Tables.


def fill(text: str, results_root: Path) -> str:
    """Replace what stands between markers."""
    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise ReportError("every bench:begin must have its bench:end")
    return BLOCK.sub(lambda block: _block(block[1], results_root), text)


def _block(name: str, results_root: Path) -> str:
    if name not in TABLES:
        raise ReportError(f"a marker must name one of {', '.join(TABLES)}, got {name}")
    results = load(TABLES[name], results_root)
    table = TABLES[name].make(results) if results else NOT_MEASURED
    return f"<!-- bench:begin {name} -->\n\n{table}\n\n<!-- bench:end {name} -->"


def documents(root: Path) -> dict[Path, str]:
    """README.md and docs/*.md; one of them has a table to fill."""
    paths = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path.exists()}
    if not any(map(BLOCK.search, texts.values())):
        raise ReportError(f"README.md or docs/*.md under {root} must have a bench:begin marker")
    return texts


# What is out of date, as path and what writes it.


def stale_tables(root: Path) -> dict[Path, Callable[[], object]]:
    """The documents that would change."""
    texts = documents(root)
    filled = {path: fill(text, root / "bench" / "results") for path, text in texts.items()}
    return {path: _writer(path, text) for path, text in filled.items() if text != texts[path]}


def _writer(path: Path, text: str) -> Callable[[], object]:
    return lambda: path.write_text(text, encoding="utf-8")


def stale_plots(root: Path) -> dict[Path, Callable[[], object]]:
    """The plots that a document shows and that were not drawn from these results."""
    shown = {name for text in documents(root).values() for name in IMAGE.findall(text)}
    if unknown := shown - set(PLOTS):
        raise ReportError(f"an image must be one of {', '.join(PLOTS)}, got {min(unknown)}")
    stale = {}
    for name in sorted(shown):
        source = PLOTS[name].source(load(PLOTS[name], root / "bench" / "results"))
        path = root / "docs" / "images" / name
        if not plots.is_current(path, source):
            stale[path] = _drawer(PLOTS[name], path, source)
    return stale


def _drawer(plot: Plot, path: Path, source: object) -> Callable[[], object]:
    return lambda: plots.save(plot.draw(source), path, source)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write or check; what is wrong goes to stderr."""
    summary = "Write what was measured into the documents."
    parser = argparse.ArgumentParser("python -m wpadamw.bench.report", description=summary)
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if it would")
    is_check = parser.parse_args(arguments).check
    try:
        stale = {**stale_tables(root), **stale_plots(root)}
    except ReportError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for path, write in stale.items():
        print(f"{'out of date' if is_check else 'written'}: {path.relative_to(root)}")
        if not is_check:
            write()
    return int(is_check and bool(stale))
