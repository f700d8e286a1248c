"""What small formats hold, move and take: a row each, beside torch's fused AdamW."""

from __future__ import annotations

from collections.abc import Sequence

from ..registry import FUSED, Entrant, entrants
from .markup import NOT_MEASURED, Results, caption, machine, markdown, number

HEAD = ["bytes per parameter", "weight and state", "read and written in a step"]
NOTE = (
    "Weight and state: what parameter and optimizer hold between steps, as measured, without the "
    "gradient. Read and written: by the operations of a step, bfloat16 gradients where the weight "
    "is bfloat16. Time: over that of "
    f"{FUSED} on float32, one tensor of 64M parameters."
)
# Of the weight: what holds bfloat16 parameters makes them itself.
HALVED, WHOLE, HALF = ".steppers:Halved", 4.0, 2.0


def formats(all_results: Sequence[Results]) -> str:
    """A column of times for each machine that has them."""
    machines = [results for results in all_results if "large_small" in results["tables"]]
    head = HEAD + [f"time, {machine(results['facts'])}" for results in machines]
    rows = [_row(entrant, machines) for entrant in entrants("small").values()]
    return "\n\n".join([markdown(head, rows), NOTE, *map(caption, machines)])


def _row(entrant: Entrant, machines: Sequence[Results]) -> list[str]:
    held = next(filter(None, (_held(entrant, results) for results in machines)), None)
    times = [results["tables"]["large_small"]["rows"][entrant.name] for results in machines]
    return [
        entrant.name,
        NOT_MEASURED if held is None else number(held, ".2f"),
        number(entrant.bytes_per_parameter, ".2f"),
        *(number(row.get("ratio"), ".2f") for row in times),
    ]


def _held(entrant: Entrant, results: Results) -> float | None:
    """Bytes of the weight, and of the state as measured."""
    rows = results["tables"].get("memory", {"rows": {}})["rows"]
    state = rows.get(f"{entrant.name}, float32", {}).get("state_bytes")
    weight = HALF if entrant.factory == HALVED else WHOLE
    return None if state is None else weight + float(state)
