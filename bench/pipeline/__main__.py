"""What asynchronous pipelines cost: busy stages, bytes held, and the time of the optimizer.

``python -m wpadamw.bench.pipeline``, in a checkout. The results go to section ``costs`` of
``bench/results/MACHINE/pipeline.json``, which `wpadamw.bench.report` makes tables of.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from .. import RESULTS, machine
from ..study.simulated_pipeline import one_forward_one_backward, slots
from . import processes
from .cycles import NUM_PARAMS, cycles
from .processes import BACKWARD_S, CPU, FORWARD_S, METHODS, NUM_MICROBATCHES, NUM_STAGES

DRAINED, DRAWN_STEPS = 4, 3


def idle_and_busy_slots() -> dict[str, list[Any]]:
    """The slots of several steps that drain, and of one as long that does not; computed."""
    step = slots(one_forward_one_backward(NUM_STAGES, DRAINED))
    length = 1 + max(start for _, start, _, _ in step)
    endless = slots(one_forward_one_backward(NUM_STAGES, DRAWN_STEPS * length))
    return {
        f"an update and a drain every {DRAINED} micro-batches": [
            (stage, start + i * length, kind, number + i * DRAINED)
            for i in range(DRAWN_STEPS)
            for stage, start, kind, number in step
        ],
        "an update with every backward, no drain": [
            slot for slot in endless if slot[1] < DRAWN_STEPS * length
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args(arguments)
    facts = machine.facts(CPU)
    by_rank = processes.on_ranks(processes.held_bytes)
    found = {
        "facts": facts,
        "busy": processes.busy(),
        "held": {name: [ranks[name] for ranks in by_rank] for name in METHODS},
        "cycles": cycles(),
        "slots": idle_and_busy_slots(),
        "setting": {
            "stages": NUM_STAGES,
            "forward_ms": 1e3 * FORWARD_S,
            "backward_ms": 1e3 * BACKWARD_S,
            "microbatches": NUM_MICROBATCHES,
            "params": NUM_PARAMS,
        },
    }
    path = RESULTS / machine.machine_slug(facts) / "pipeline.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**known, "costs": found}, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
