"""The tables of times and memory, and the figures that have targets."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import NamedTuple

from ..registry import (
    COPYING,
    DEEPSPEED,
    FUSED,
    FUSED_BF16,
    FUSED_CAST,
    FUSED_CASTS,
    OURS,
    OURS_WITHOUT_BACKUP,
    PLAIN,
    SPLIT_BFLOAT16,
    SPLIT_INT8,
)
from .markup import NOT_MEASURED, Results, caption, machine, markdown, number, titled


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
        row = rows.get(self.contestant, {})
        if self.over is None:
            value = row.get("share_of_copy")
        else:
            value = _over(row.get("median_ms"), rows.get(self.over, {}).get("median_ms"))
        return NOT_MEASURED if value is None else self._judged(value, results)

    def _judged(self, value: float, results: Results) -> str:
        """The number, in bold where it misses its target."""
        is_gpu = results["facts"]["device"] == "cuda"
        relation, _, target = (self.gpu_target if is_gpu else self.cpu_target).partition(" ")
        text = number(value, ".3f")
        if not target:
            return text
        return text if REACHES[relation](float(text), float(target)) else f"**{text}**"


def _over(time_ms: float | None, reference_ms: float | None) -> float | None:
    return None if time_ms is None or reference_ms is None else time_ms / reference_ms


SUMMARY = 3  # figures on large parameters
REACHES = {"≤": operator.le, "<": operator.lt, "≥": operator.ge}

# fmt: off
FIGURES = [
    Figure("64M float32 parameters, over torch's fused AdamW",
           "large_fp32", OURS, FUSED, "≤ 1.15", "≤ 1.10"),
    Figure("the same, `backup=False`",
           "large_fp32", OURS_WITHOUT_BACKUP, FUSED, "≤ 1.03", "≤ 1.00"),
    Figure("64M bfloat16 parameters with float32 masters, over fused AdamW and casts",
           "large_bf16", OURS, FUSED_BF16, "< 0.9", "< 0.9"),
    Figure("64M float32 parameters and their bfloat16 copy, over fused AdamW and a cast",
           "large_cast", COPYING, FUSED_CAST, "≤ 0.95", "≤ 0.95"),
    Figure("the same, over fused AdamW and two casts",
           "large_cast", COPYING, FUSED_CASTS, "-", "-"),
    Figure("speed over that of a device copy, 64M float32",
           "large_fp32", OURS, None, "≥ 0.9", "≥ 0.92"),
    Figure("1,000 tensors of 1,000 elements, over fused AdamW",
           "many_new", OURS, FUSED, "≤ 0.15", "≤ 0.25"),
    Figure("one tensor of 65,536 elements in the cache, over fused AdamW",
           "small_fp32", OURS, FUSED, "≤ 0.5", "≤ 0.5"),
    Figure("the same, inputs rotated past the cache",
           "small_fp32_rotated", OURS, FUSED, "-", "-"),
    Figure("64M float32, over prediction in plain PyTorch",
           "large_fp32", OURS, PLAIN, "≤ 0.3", "≤ 0.45"),
    Figure("64M float32, `backup=False`, over DeepSpeedCPUAdam",
           "large_fp32", OURS_WITHOUT_BACKUP, DEEPSPEED, "≤ 1.0", "-"),
    Figure("64M weights in two halves, bfloat16 moments, over fused AdamW on float32",
           "large_small", SPLIT_BFLOAT16, FUSED, "≤ 0.75", "≤ 0.75"),
    Figure("the same with int8 moments",
           "large_small", SPLIT_INT8, FUSED, "≤ 0.75", "≤ 0.6"),
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
    note = "Ratios of times, below 1 where the step is faster. Bold: the target is missed."
    return "\n\n".join([markdown(head, rows), note, *map(caption, all_results)])


def summary(all_results: Sequence[Results]) -> str:
    """The first figures, of the machines on which they were all measured."""
    columns = {
        machine(results["facts"]): [figure.measured(results) for figure in FIGURES[:SUMMARY]]
        for results in all_results
    }
    known = {name: column for name, column in columns.items() if NOT_MEASURED not in column}
    rows = zip([figure.name for figure in FIGURES[:SUMMARY]], *known.values(), strict=True)
    return markdown(["step with prediction", *known], [list(row) for row in rows])


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
