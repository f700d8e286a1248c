"""The benchmarks run, and measure what they say."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import wpadamw

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))
contestants, measure, names, run, speed_tables = map(
    importlib.import_module, ("contestants", "measure", "names", "run", "speed_tables")
)
CPU = torch.device("cpu")
TABLES = (
    *("large_fp32", "large_bf16", "huge_fp32", "small_fp32", "model_fp32", "model_bf16"),
    *("many_new", "many_kept", "host", "memory"),
)


def run_script(name, *arguments):
    command = [sys.executable, str(BENCH / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


# The suites.


@pytest.fixture(scope="module")
def quick_results(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    done = run_script("run.py", "--quick", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "cpu.json").read_text())


def test_quick_run_fills_every_table(quick_results):
    assert sorted(quick_results["tables"]) == sorted(TABLES)
    assert quick_results["quick"] is True
    facts = quick_results["facts"]
    assert facts["torch"] == torch.__version__
    assert facts["cores"] >= 1
    assert facts["device"] == "cpu"


@pytest.mark.parametrize("name", ["large_fp32", "large_bf16", "small_fp32", "many_new"])
def test_quick_run_times_every_contestant(quick_results, name):
    rows = quick_results["tables"][name]["rows"]
    reference = next(iter(rows.values()))
    assert {names.OURS, names.COPY, names.IN_PLACE} < set(rows)
    assert reference["ratio"] == rows[names.COPY]["share_of_copy"] == 1
    for row in rows.values():
        assert row["n"] == 3
        assert 0 < row["median_ms"] < 1000
        assert row["ratio"] == pytest.approx(row["median_ms"] / reference["median_ms"], rel=2e-3)
        if row["bytes_moved"] is not None:
            speed = row["bytes_moved"] / row["median_ms"] / 1e6
            assert row["gb_per_s"] == pytest.approx(speed, rel=2e-3)


def test_quick_run_counts_bytes_of_state_and_peak(quick_results):
    rows = quick_results["tables"]["memory"]["rows"]
    state = {name: row["state_bytes"] for name, row in rows.items()}
    assert state[f"{names.FUSED}, float32"] == pytest.approx(8, abs=0.01)
    assert state[f"{names.OURS_WITHOUT_BACKUP}, float32"] == pytest.approx(8, abs=0.01)
    for dtype in ("float32", "bfloat16"):
        assert state[f"{names.OURS}, {dtype}"] == pytest.approx(12, abs=0.01)
    peak = rows[f"{names.OURS}, float32"]["peak_extra_bytes"]
    assert peak is None or peak < 1 < rows[f"{names.PLAIN}, float32"]["peak_extra_bytes"]


def test_quick_run_measures_every_figure_that_has_a_target(quick_results):
    missing = {
        f.over
        for f in speed_tables.FIGURES
        if f.measured(quick_results) == speed_tables.NOT_MEASURED
    }
    assert missing == set(quick_results["facts"]["left_out"])


def test_quick_run_steps_over_a_language_model(quick_results):
    for name in ("model_fp32", "model_bf16"):
        assert "GPT-2, 28 tensors" in quick_results["tables"][name]["title"]


def test_gpt2_has_its_148_tensors():
    sizes = contestants.gpt2_sizes(width=768, num_layers=12, vocabulary=50257, context=1024)
    shape = contestants.Shape(sizes, torch.float32, CPU)
    assert (len(sizes), shape.total) == (148, 124_439_808)
    assert sizes[:2] == ((50257, 768), (1024, 768))


def test_quick_run_yields_a_report(quick_results):
    results = [quick_results]
    assert names.OURS in speed_tables.memory(results)
    for table in quick_results["tables"].values():
        assert table["title"] in speed_tables.full(results) + speed_tables.memory(results)


# Measuring.


def noted(log, name, event):
    return lambda: log.append((event, name))


def test_race_runs_each_contestant_once_a_round_from_every_place():
    log = []
    runners = [
        measure.Contestant(name, noted(log, name, "run"), prepare=noted(log, name, "prepare"))
        for name in "abc"
    ]
    race = measure.Race(runners, measure.host_time_ms)
    for _ in range(6):
        race()
    assert log[::2] == [("prepare", name) for _, name in log[1::2]]
    ran = [name for _, name in log[1::2]]
    rounds = ["".join(ran[i : i + 3]) for i in range(0, len(ran), 3)]
    assert rounds == ["abc", "cba", "bca", "acb", "cab", "bac"]


def test_race_does_not_count_its_warm_up():
    race = measure.Race([measure.Contestant("a", lambda: None)], measure.host_time_ms)
    race.warm_up()
    assert race.samples == {"a": []}


def test_table_rows_are_medians_ratios_and_shares():
    times = {"fused": [1.0, 2.0, 3.0, 2.0], "ours": [4.0, 4.0, 4.0, 9.0], "copy": [1.0] * 4}
    moved = {"fused": 28_000_000, "ours": None, "copy": 28_000_000}
    race = measure.Race([measure.Contestant(n, lambda: None, moved[n]) for n in times], None)
    race.samples = times
    rows = measure.table_rows(race, reference="fused", roof="copy")
    assert rows["ours"] == {
        **{"median_ms": 4.0, "iqr_ms": 1.25, "n": 4, "ratio": 2.0},
        **{"bytes_moved": None, "gb_per_s": None, "share_of_copy": None},
    }
    assert (rows["fused"]["gb_per_s"], rows["fused"]["share_of_copy"]) == (14.0, 0.5)


def test_machine_slug_is_a_directory_name():
    facts = {"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 4}
    assert measure.machine_slug(facts) == "intel-xeon-cpu-2-20ghz-4-cores"


def trained(kind, dtype=torch.float32):
    torch.manual_seed(0)
    params = contestants.Shape.equal(2, 100, dtype, CPU).parameters()
    optimizer = kind.build(params)
    for _ in range(3):
        optimizer.step()
    return params, optimizer


def test_plain_prediction_predicts_what_wpadamw_predicts():
    plain, ours = (
        trained(next(kind for kind in contestants.FP32 if kind.name == name))
        for name in (names.PLAIN, names.OURS)
    )
    assert ours[1].weights_are == "predicted"
    backups = plain[1].predict()
    torch.testing.assert_close(plain[0], ours[0])
    plain[1].restore(backups)
    ours[1].restore()
    torch.testing.assert_close(plain[0], ours[0])


def test_master_weights_train_like_wpadamw_on_bfloat16():
    masters, ours = (trained(kind, torch.bfloat16) for kind in contestants.BF16)
    weights = [ours[1].state[param]["weight"] for param in ours[0]]
    torch.testing.assert_close([m.detach() for m in masters[1].masters], weights)
    ours[1].restore()
    torch.testing.assert_close(masters[0], ours[0])


def test_a_scaled_step_is_a_plain_one():
    scaled, ours = (
        trained(contestants.Kind(name, build, None))
        for name, build in (("scaled", contestants.Scaled), ("ours", contestants.FP32[1].build))
    )
    assert all(map(torch.equal, scaled[0], ours[0]))


def test_contestants_on_a_gpu_are_both_backends_with_and_without_backup(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(wpadamw, "backends", lambda: {"cuda": {"triton": None}})
    kinds = [kind.name for kind in contestants.fp32_kinds(device)]
    assert kinds[0] == names.FUSED
    ours = {names.OURS, names.OURS_WITHOUT_BACKUP, names.TRITON, names.TRITON_WITHOUT_BACKUP}
    assert ours | {names.PLAIN, names.FOREACH, names.SCALED, names.REPLAYED} < set(kinds)
    assert names.TRITON in [kind.name for kind in contestants.bf16_kinds(device)]
    assert contestants.left_out(device) == {}


def test_without_triton_its_contestants_are_left_out_with_the_reason(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(wpadamw, "backends", lambda: {"cuda": {"triton": "too old"}})
    kinds = [*contestants.fp32_kinds(device), *contestants.bf16_kinds(device)]
    assert names.TRITON not in [kind.name for kind in kinds]
    assert contestants.left_out(device) == {names.TRITON: "too old"}


def test_a_race_needs_no_more_memory_than_it_says():
    shape = contestants.Shape.equal(1, 1000, torch.float32, CPU)
    needed = contestants.bytes_needed(contestants.FP32, shape)
    held = 0
    for kind in contestants.FP32:
        params = shape.parameters()
        optimizer = kind.build(params)
        optimizer.step()
        held += contestants.storage_bytes([optimizer.state, params, [p.grad for p in params]])
    roofs = 3 * 14 * shape.total
    assert held + roofs <= needed <= 1.3 * (held + roofs)


def test_tables_survive_a_run_that_failed(tmp_path):
    record = tmp_path / "record.json"
    assert run.read_tables(record) == {}
    found = [{"extra_info": {"table": "host", "rows": {}}}, {"extra_info": {}}]
    record.write_text(json.dumps({"benchmarks": found}))
    assert run.read_tables(record) == {"host": {"rows": {}}}


def test_results_of_a_run_that_failed_have_a_name_of_their_own():
    args = argparse.Namespace(quick=False, out=Path("out"), device=torch.device("cuda"))
    assert run.results_path(args, {"gpu": "G"}, has_failed=False) == Path("out/cuda.json")
    assert run.results_path(args, {"gpu": "G"}, has_failed=True) == Path("out/cuda.failed.json")


def test_renewed_gradients_are_equal_and_elsewhere():
    params = contestants.Shape.equal(2, 100, torch.float32, CPU).parameters()
    before = [param.grad for param in params]
    contestants.renew_gradients(params)
    for param, grad in zip(params, before, strict=True):
        assert torch.equal(param.grad, grad)
        assert param.grad.data_ptr() != grad.data_ptr()


def test_storage_bytes_count_shared_storage_once():
    flat = torch.zeros(10)
    assert contestants.storage_bytes({"a": [flat[:3], flat[5:]], "b": (torch.zeros(2), 1)}) == 48
