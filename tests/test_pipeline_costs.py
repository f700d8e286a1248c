"""What asynchronous pipelines cost: what is measured, and the tables of it."""

from __future__ import annotations

import json

import pytest
import torch

from wpadamw.bench.pipeline import __main__ as command
from wpadamw.bench.pipeline import cycles, processes
from wpadamw.bench.report import pipeline_costs, pipeline_slots
from wpadamw.bench.study.simulated_pipeline import one_forward_one_backward, slots

FACTS = {
    **{"cpu": "Abacus", "cores": 2, "memory_gib": 1, "threads": 1, "system": "none", "torch": "2"},
    **{"python": "3", "wpadamw": "0", "backend": "cpp", "date": "today", "commit": "", "dirty": 0},
}
RESULTS = {
    "facts": FACTS,
    "busy": {"1F1B, update every 4": 0.5, "Async1F1B, update every 1": 0.9},
    "held": {"PipeOptim": [4.0, 3.0]},
    "cycles": {"torch AdamW, fused": 1.0, "PipeOptim": 1.25},
    "setting": {
        **{"stages": 2, "forward_ms": 1, "backward_ms": 2, "microbatches": 64, "params": 1000}
    },
}


def test_slots_of_two_stages():
    found = {(stage, start): f"{kind}{n}" for stage, start, kind, n in slots(orders(2, 2))}
    assert found == {
        **{(0, 0): "F0", (0, 1): "F1", (0, 3): "B0", (0, 5): "B1"},
        **{(1, 1): "F0", (1, 2): "B0", (1, 3): "F1", (1, 4): "B1"},
    }


def orders(num_stages, num_microbatches):
    return one_forward_one_backward(num_stages, num_microbatches)


def test_without_a_drain_no_slot_is_idle_once_the_pipeline_is_full():
    drawn = command.idle_and_busy_slots()
    drained, endless = drawn.values()
    length = 1 + max(start for _, start, _, _ in drained)
    full = 2 * processes.NUM_STAGES
    for stage in range(processes.NUM_STAGES):
        busy = {start for s, start, _, _ in endless if s == stage}
        assert busy >= set(range(full, length))
        assert len({start for s, start, _, _ in drained if s == stage}) == 2 * 4 * 3
    assert pipeline_slots.draw(json.loads(json.dumps(drawn))).axes


def test_tables():
    assert "| Async1F1B, update every 1 | 0.90 |" in pipeline_costs.busy([RESULTS])
    assert "| PipeOptim | 4.00 | 3.00 |" in pipeline_costs.held([RESULTS])
    assert "| PipeOptim | 1.25 |" in pipeline_costs.cycles([RESULTS])


def test_cycles_of_every_method(monkeypatch):
    monkeypatch.setattr(cycles, "NUM_PARAMS", 64)
    found = cycles.cycles()
    assert list(found)[1:] == ["PipeOptim", "predicted for both", "PipeDream", "stale gradients"]
    assert found["torch AdamW, fused"] == 1.0


def test_live_bytes_count_memory_once():
    before = processes.live_bytes(2**20)
    whole = torch.ones(2**19)
    parts = whole.chunk(2)
    assert processes.live_bytes(2**20) - before == whole.nbytes
    assert len(parts) == 2


@pytest.mark.parametrize("name", processes.METHODS)
def test_stages_without_a_prediction_keep_no_backup(name):
    predicts = processes.METHODS[name].predicts
    opt = processes.optimizer([torch.nn.Parameter(torch.ones(2))], 3 * predicts)
    assert opt.defaults["backup"] == predicts
