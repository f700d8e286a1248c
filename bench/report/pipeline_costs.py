"""What asynchronous pipelines cost, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from .markup import Results, caption, markdown, number

BUSY = (
    "{stages} stages on as many processes whose forwards sleep {forward_ms:g} ms and whose "
    "backwards {backward_ms:g} ms; {microbatches} micro-batches after a first step, and a flush."
)
HELD = (
    "In units of a stage's float32 weights: weights, optimizer state and copies, as the tensors "
    "that are alive between two steps. Without the first stage's first layer, for whose input no "
    "gradient is needed, and of which autograd saves no weight."
)
CYCLES = (
    "The time of an update of {params:,} float32 parameters, with what makes their weights right "
    "for the backward pass before it, over that of torch's fused AdamW: median of the ratios of "
    "interleaved rounds, CPU. PipeDream's copies are whole: a graph that saves less needs less."
)


def busy(all_results: Sequence[Results]) -> str:
    """How much of the time stages compute."""
    return "\n\n".join(
        f"{_table('busy', results)}\n\n{BUSY.format(**results['setting'])} {caption(results)}"
        for results in all_results
    )


def held(all_results: Sequence[Results]) -> str:
    """What stages hold."""
    tables = []
    for results in all_results:
        stages = range(results["setting"]["stages"])
        rows = [[name, *(number(x, "3g") for x in row)] for name, row in results["held"].items()]
        tables.append(markdown(["", *(f"stage {i}" for i in stages)], rows))
    return "\n\n".join([*tables, HELD])


def cycles(all_results: Sequence[Results]) -> str:
    """What the optimizer takes for a micro-batch."""
    return "\n\n".join(
        f"{_table('cycles', results)}\n\n{CYCLES.format(**results['setting'])}"
        for results in all_results
    )


def _table(section: str, results: Results) -> str:
    head = {"busy": "share of the time busy", "cycles": "time"}[section]
    return markdown(["", head], [[name, f"{x:.2f}"] for name, x in results[section].items()])
