"""Writes measured tables into README.md and docs/*.md, between ``bench:begin`` and ``bench:end``.

``python bench/report.py`` rewrites them from ``bench/results``; ``--check`` only looks and exits
with 1 if a file would change, or if there is nothing to write. Needs no torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from names import DEEPSPEED, FUSED, FUSED_BF16, OURS, OURS_WITHOUT_BACKUP, PLAIN

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
NOT_MEASURED = "not measured"

Results = dict[str, Any]
Cells = Sequence[object]


class ReportError(Exception):
    """Nothing sound can be written."""


class Figure(NamedTuple):
    """A number that has a target: a contestant over another, or its share of the copy's speed."""

    name: str
    table: str
    contestant: str
    over: str | None
    cpu_target: str
    gpu_target: str

    def measured(self, results: Results) -> str:
        """The number, or that it was not measured."""
        rows = results["tables"].get(self.table, {"rows": {}})["rows"]
        if self.contestant not in rows or self.over not in (None, *rows):
            return NOT_MEASURED
        row = rows[self.contestant]
        if self.over is None:
            return number(row["share_of_copy"], ".3f")
        return number(row["median_ms"] / rows[self.over]["median_ms"], ".3f")


# fmt: off
FIGURES = [
    Figure("64M float32 parameters, over torch's fused AdamW",
           "large_fp32", OURS, FUSED, "≤ 1.15", "≤ 1.10"),
    Figure("the same, `backup=False`",
           "large_fp32", OURS_WITHOUT_BACKUP, FUSED, "≤ 1.03", "≤ 1.00"),
    Figure("64M bfloat16 parameters with float32 masters, over fused AdamW and casts",
           "large_bf16", OURS, FUSED_BF16, "< 0.9", "< 0.9"),
    Figure("speed over that of a device copy, 64M float32",
           "large_fp32", OURS, None, "≥ 0.9", "≥ 0.92"),
    Figure("1,000 tensors of 1,000 elements, over fused AdamW",
           "many_new", OURS, FUSED, "≤ 0.15", "≤ 0.25"),
    Figure("one tensor of 65,536 elements, over fused AdamW",
           "small_fp32", OURS, FUSED, "≤ 0.5", "≤ 0.5"),
    Figure("64M float32, over prediction in plain PyTorch",
           "large_fp32", OURS, PLAIN, "≤ 0.3", "≤ 0.45"),
    Figure("64M float32, `backup=False`, over DeepSpeedCPUAdam",
           "large_fp32", OURS_WITHOUT_BACKUP, DEEPSPEED, "≤ 1.0", "-"),
]
# fmt: on

# Column heads, and the keys of a row with their formats.
TIMED = {
    "ms": ("median_ms", "3g"),
    "IQR ms": ("iqr_ms", "2g"),
    "GB/s": ("gb_per_s", ".1f"),
    "share of copy": ("share_of_copy", ".2f"),
    "ratio": ("ratio", ".3f"),
}
HOST = {"µs per tensor": ("us_per_tensor", ".2f"), "µs per step": ("us_per_step", ".1f")}
HELD = {
    "optimizer holds": ("state_bytes", ".2f"),
    "more at the peak of a step": ("peak_extra_bytes", ".2f"),
}
LEGEND = (
    "Medians and inter-quartile ranges of rounds in which every line of a table runs once. Ratio: "
    "over the first line. GB/s: of what the operations of a step read and write. Share: of the "
    "device copy's GB/s; an ordinary copy on a CPU first reads the cache lines that it overwrites, "
    "what works in place does not, so shares above 1 are possible."
)


# Tables. Each takes the results of all machines.


def speed(all_results: Sequence[Results]) -> str:
    """Targets, and what was measured beside them."""
    cpu, gpu = (
        [r for r in all_results if (r["facts"]["device"] == "cuda") is is_cuda]
        for is_cuda in (False, True)
    )
    head = ["step with prediction", "CPU target", *_columns(cpu, "CPU")]
    head += ["GPU target", *_columns(gpu, "GPU")]
    rows = [
        [
            *(figure.name, figure.cpu_target, *_measured(figure, cpu)),
            *(figure.gpu_target, *_measured(figure, gpu)),
        ]
        for figure in FIGURES
    ]
    return "\n\n".join([markdown(head, rows), *map(caption, all_results)])


def _columns(all_results: Sequence[Results], default: str) -> list[str]:
    return [machine(results["facts"]) for results in all_results] or [default]


def _measured(figure: Figure, all_results: Sequence[Results]) -> list[str]:
    return [figure.measured(results) for results in all_results] or [NOT_MEASURED]


def full(all_results: Sequence[Results]) -> str:
    """Every timed table of every machine."""
    blocks = [[caption(results), *_timed_tables(results)] for results in all_results]
    return "\n\n".join([LEGEND, *itertools.chain.from_iterable(blocks)])


def _timed_tables(results: Results) -> list[str]:
    tables = {name: table for name, table in results["tables"].items() if name != "memory"}
    return [titled(table, HOST if name == "host" else TIMED) for name, table in tables.items()]


def memory(all_results: Sequence[Results]) -> str:
    """State and peak of every machine."""
    return "\n\n".join(
        f"{caption(results)}\n\n{titled(results['tables']['memory'], HELD)}"
        for results in all_results
        if "memory" in results["tables"]
    )


def training(all_results: Sequence[Results]) -> str:
    """Validation losses of both optimizers at the same steps."""
    return "\n\n".join(map(_training_table, all_results))


def _training_table(results: Results) -> str:
    steps = _quarters(results)
    losses: dict[str, list[list[float]]] = {}
    for run in results["runs"]:
        at = dict(zip(run["evaluated_steps"], run["validation_losses"], strict=True))
        losses.setdefault(run["optimizer"], []).append([at[step] for step in steps])
    first, second = losses.values()
    differences = [
        [b - a for a, b in zip(*pair, strict=True)] for pair in zip(first, second, strict=True)
    ]
    rows = [[name, *_mean_losses(seeds, ".4f")] for name, seeds in losses.items()]
    rows.append(["difference, seed by seed", *_mean_losses(differences, "+.4f")])
    head = ["validation loss, nats per byte", *(f"step {step:,}" for step in steps)]
    return f"{markdown(head, rows)}\n\n{_training_caption(results)}"


def _quarters(results: Results) -> list[int]:
    """The steps at which a quarter, half, three quarters and all of the training was done."""
    evaluated = results["runs"][0]["evaluated_steps"]
    wanted = [evaluated[-1] * part / 4 for part in (1, 2, 3, 4)]
    return sorted({next(step for step in evaluated if step >= want) for want in wanted})


def _mean_losses(seeds: Sequence[Sequence[float]], spec: str) -> list[str]:
    return [_mean_loss(values, spec) for values in zip(*seeds, strict=True)]


def _mean_loss(values: Sequence[float], spec: str) -> str:
    mean = format(statistics.fmean(values), spec)
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.4f}"


def _training_caption(results: Results) -> str:
    setting, run = results["setting"], results["runs"][0]
    arguments = setting["arguments"]
    num_seeds = len({run["seed"] for run in results["runs"]})
    seeds = "1 seed" if num_seeds == 1 else f"mean ± standard error of {num_seeds} seeds"
    return (
        f"GPT with {run['num_parameters']:,} parameters, {arguments['batch_size']} x "
        f"{arguments['context']} bytes a step, lr {arguments['lr']:g}, weight decay "
        f"{arguments['weight_decay']:g}, prediction_steps {arguments['prediction_steps']:g}; "
        f"losses at the true weights, {seeds}; torch {setting['torch']}."
    )


# Text.


def titled(table: Results, columns: dict[str, tuple[str, str]]) -> str:
    """A table of results under its title."""
    rows = [
        [name, *(number(row.get(key), spec) for key, spec in columns.values())]
        for name, row in table["rows"].items()
    ]
    return f"**{table['title']}**\n\n{markdown(['', *columns], rows)}"


def markdown(head: Cells, rows: Iterable[Cells]) -> str:
    """A table, all columns but the first aligned to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in (head, rule, *rows))


def number(value: float | None, spec: str) -> str:
    """A number as text, a dash for none; "3g" is three digits, but never an exponent."""
    if value is None:
        return "-"
    if not spec.endswith("g"):
        return format(value, spec)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(int(spec[:-1]) - 1 - magnitude, 0)}f}"


def caption(results: Results) -> str:
    """The machine, the versions and the day."""
    facts = results["facts"]
    changes = " with uncommitted changes" if facts["dirty"] else ""
    commit = f" at {facts['commit'][:12]}{changes}" if facts["commit"] else ""
    left_out = "".join(f" Without {peer}: {why}." for peer, why in facts["left_out"].items())
    return (
        f"{machine(facts)}, {_hardware(facts)}, {facts['system']}; "
        f"Python {facts['python']}, torch {facts['torch']}; wpadamw "
        f"{facts['wpadamw']}{commit}, backend {facts['backend']}; {facts['date']}.{left_out}"
    )


def _hardware(facts: dict[str, Any]) -> str:
    if "gpu" in facts:
        return (
            f"{facts['gpu_memory_gib']:.0f} GiB, driver and highest clock "
            f"{facts['driver_and_clock'] or 'unknown'}, CUDA {facts['cuda']}, "
            f"Triton {facts['triton'] or 'missing'}, {facts['cores']} CPU cores"
        )
    return f"{facts['memory_gib']:.0f} GiB, {facts['threads']} threads"


def machine(facts: dict[str, Any]) -> str:
    """The machine in a few words."""
    return facts.get("gpu") or f"{facts['cpu']}, {facts['cores']} cores"


# Files.


def load(names: Sequence[str], results_root: Path) -> list[Results]:
    """Read the results of all machines."""
    paths = [path for name in names for path in sorted(results_root.glob(f"*/{name}"))]
    if not paths:
        raise ReportError(f"{results_root}/*/ must hold {' or '.join(names)}, got no such file")
    found = [json.loads(path.read_text()) for path in paths]
    for path, results in zip(paths, found, strict=True):
        if results.get("quick"):
            raise ReportError(f"{path} must come from a full run, got one with --quick")
    return found


MEASURED, TRAINED = ("cpu.json", "cuda.json"), ("train.json",)
TABLES: dict[str, tuple[Callable[[Sequence[Results]], str], Sequence[str]]] = {
    "speed": (speed, MEASURED),
    "full": (full, MEASURED),
    "memory": (memory, MEASURED),
    "training": (training, TRAINED),
}
BLOCK = re.compile(r"<!-- bench:begin (\S+) -->\n.*?<!-- bench:end \1 -->", re.DOTALL)
MARKER = re.compile(r"<!-- bench:(?:begin|end) \S+ -->")


def fill(text: str, results_root: Path) -> str:
    """Replace what stands between markers."""
    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise ReportError("every bench:begin must have its bench:end")
    return BLOCK.sub(lambda block: _block(block[1], results_root), text)


def _block(name: str, results_root: Path) -> str:
    if name not in TABLES:
        raise ReportError(f"a marker must name one of {', '.join(TABLES)}, got {name}")
    make, names = TABLES[name]
    table = make(load(names, results_root))
    return f"<!-- bench:begin {name} -->\n\n{table}\n\n<!-- bench:end {name} -->"


def regenerate(root: Path) -> dict[Path, str]:
    """The files with tables that are out of date, and the text they should have."""
    paths = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths if path.exists()}
    if not any(map(BLOCK.search, texts.values())):
        raise ReportError(f"README.md or docs/*.md under {root} must have a bench:begin marker")
    filled = {path: fill(text, root / "bench" / "results") for path, text in texts.items()}
    return {path: text for path, text in filled.items() if text != texts[path]}


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Write or check; what is wrong goes to stderr."""
    parser = argparse.ArgumentParser(description="Write the measured tables into the docs.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if it would")
    is_check = parser.parse_args(arguments).check
    try:
        changed = regenerate(root)
    except ReportError as error:
        print(f"bench/report.py: {error}", file=sys.stderr)
        return 1
    for path, text in changed.items():
        print(f"{'out of date' if is_check else 'written'}: {path.relative_to(root)}")
        if not is_check:
            path.write_text(text, encoding="utf-8")
    return int(is_check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
