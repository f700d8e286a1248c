"""The benchmarks run, and measure what they say."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

import wpadamw
from wpadamw.bench import RESULTS, registry
from wpadamw.bench.registry import FUSED, OURS, PLAIN
from wpadamw.bench.report import speed_tables
from wpadamw.bench.speed import entry, memory_probe, run, shapes
from wpadamw.cli import main

CPU = torch.device("cpu")
TABLES = (
    *("large_fp32", "large_bf16", "large_cast", "large_extras", "large_small", "huge_fp32"),
    *("small_fp32", "small_fp32_rotated"),
    *("model_fp32", "model_bf16", "vit_fp32", "llama_bf16", "peers_fp32", "peers_many"),
    *("many_new", "many_kept", "many_parts", "host", "memory"),
)


# The suites.


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "wpadamw", "bench", "--quick", "--out", str(out)]
    # One thread: where other tests run as well, threads that wait for each other take a minute.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done, out


@pytest.fixture(scope="module")
def quick_results(quick_run):
    return json.loads((quick_run[1] / "cpu.json").read_text())


def test_bench_prints_and_writes_tables_and_draws_bars(quick_run, quick_results):
    done, out = quick_run
    assert {path.name for path in out.iterdir()} == {"cpu.json", "report.md", "step-times.png"}
    page = (out / "report.md").read_text()
    assert "CPU target" not in page  # those are for other sizes
    assert "(step-times.png)" in page
    for table in quick_results["tables"].values():
        assert f"**{table['title']}**" in page
        assert f"**{table['title']}**" in done.stdout
    assert matplotlib.image.imread(out / "step-times.png").shape[0] > 300


def test_bench_shows_its_progress_on_stderr(quick_run):
    assert "bench_model.py" in quick_run[0].stderr
    assert "100%" in quick_run[0].stderr


def test_quick_run_fills_every_table(quick_results):
    assert sorted(quick_results["tables"]) == sorted(TABLES)
    assert quick_results["quick"] is True
    facts = quick_results["facts"]
    assert facts["torch"] == torch.__version__
    assert facts["cores"] >= 1
    assert facts["device"] == "cpu"
    assert facts["cache_mib"] > 0
    assert facts["peers"] == run.peer_versions()


@pytest.mark.parametrize(
    "name",
    ["large_fp32", "large_bf16", "small_fp32", "many_new", "vit_fp32", "peers_fp32"],
)
def test_quick_run_times_every_entrant(quick_results, name):
    rows = quick_results["tables"][name]["rows"]
    reference = next(iter(rows.values()))
    ours = registry.COPYING if name == "large_cast" else OURS
    assert {ours, registry.COPY, registry.IN_PLACE} < set(rows)
    assert reference["ratio"] == rows[registry.COPY]["share_of_copy"] == 1
    for row in rows.values():
        if "why" in row:
            continue
        assert row["n"] == 3
        assert 0 < row["median_ms"] < 1000
        assert row["ratio"] == pytest.approx(row["median_ms"] / reference["median_ms"], rel=2e-3)
        if row["bytes_moved"] is not None:
            speed = row["bytes_moved"] / row["median_ms"] / 1e6
            assert row["gb_per_s"] == pytest.approx(speed, rel=2e-3)


def test_quick_run_times_the_parts_of_a_step(quick_results):
    rows = quick_results["tables"]["many_parts"]["rows"]
    assert next(iter(rows)) == OURS
    assert len(rows) == 5
    assert all(row["n"] == 3 and row["median_ms"] > 0 for row in rows.values())


def test_quick_run_counts_bytes_of_state_and_peak(quick_results):
    rows = quick_results["tables"]["memory"]["rows"]
    state = {name: row["state_bytes"] for name, row in rows.items()}
    assert state[f"{FUSED}, float32"] == pytest.approx(8, abs=0.01)
    assert state[f"{registry.OURS_WITHOUT_BACKUP}, float32"] == pytest.approx(8, abs=0.01)
    for dtype in ("float32", "bfloat16"):
        assert state[f"{OURS}, {dtype}"] == pytest.approx(12, abs=0.01)
    peak = rows[f"{OURS}, float32"]["peak_extra_bytes"]
    assert peak is None or peak < 1 < rows[f"{PLAIN}, float32"]["peak_extra_bytes"]


def test_quick_run_measures_every_figure_that_has_a_target(quick_results):
    not_measured = speed_tables.NOT_MEASURED
    missing = {f.over for f in speed_tables.FIGURES if f.measured(quick_results) == not_measured}
    rows = quick_results["tables"]["large_fp32"]["rows"]
    assert missing == {name for name, row in rows.items() if "why" in row}


def test_quick_run_tells_of_every_peer_what_it_takes_or_why_not(quick_results):
    wanted = {*registry.entrants("peers")}
    for name in ("peers_fp32", "peers_many"):
        rows = quick_results["tables"][name]["rows"]
        assert wanted < set(rows)
        assert all(("why" in row) != ("median_ms" in row) for row in rows.values())
        assert rows[registry.COMPILED]["why"]
        assert rows[registry.FOR_LOOP]["median_ms"] > 0


def test_quick_run_rotates_small_inputs_unless_they_are_to_stay_in_the_cache(quick_results):
    copies = {name: table.get("copies") for name, table in quick_results["tables"].items()}
    assert copies["small_fp32"] == 1 < copies["small_fp32_rotated"]
    assert copies["large_fp32"] == 1


def test_quick_run_steps_over_models(quick_results):
    for name, start in {
        **{"model_fp32": "GPT-2, 28 tensors", "model_bf16": "GPT-2, 28 tensors"},
        **{"vit_fp32": "ViT-B/16, 32 tensors", "llama_bf16": "Llama 3.2 1B, 20 tensors"},
    }.items():
        assert quick_results["tables"][name]["title"].startswith(start)


def test_an_unknown_device_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--quick", "--device", "abacus"])
    assert stop.value.code == 2
    assert "--device: must be a device torch can use here, got 'abacus'" in capsys.readouterr().err


def test_only_a_checkout_keeps_results(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--quick", "--keep"])
    assert stop.value.code == 2
    assert "--keep needs a checkout" in capsys.readouterr().err


def test_bench_names_the_extra_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pytest_benchmark", None)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--quick", "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert "pip install 'wpadamw[bench]'" in capsys.readouterr().err


def test_models_have_their_known_numbers_of_tensors_and_parameters():
    gpt2 = shapes.gpt2_sizes(width=768, num_layers=12, vocabulary=50257, context=1024)
    vit = shapes.vit_sizes(width=768, num_layers=12, image=224, patch=16, num_classes=1000)
    llama = shapes.llama_sizes(width=2048, num_layers=16, hidden=8192, keys=512, vocabulary=128256)
    for sizes, num_tensors, total in (
        (gpt2, 148, 124_439_808),
        (vit, 152, 86_567_656),
        (llama, 146, 1_235_814_400),
    ):
        assert (len(sizes), shapes.Shape(sizes, torch.float32, CPU).total) == (num_tensors, total)
    assert gpt2[:2] == ((50257, 768), (1024, 768))


# Entrants.


def trained(part, name):
    torch.manual_seed(0)
    params = shapes.Shape.equal(2, 100, shapes.DTYPES[part], CPU).parameters()
    optimizer = registry.entrants(part, f"{part} cuda")[name].build(params)
    for _ in range(3):
        optimizer.step()
    return params, optimizer


def test_plain_prediction_predicts_what_wpadamw_predicts():
    plain, ours = (trained("fp32", name) for name in (PLAIN, OURS))
    assert ours[1].weights_are == "predicted"
    backups = plain[1].predict()
    torch.testing.assert_close(plain[0], ours[0])
    plain[1].restore(backups)
    ours[1].restore()
    torch.testing.assert_close(plain[0], ours[0])


def test_master_weights_train_like_wpadamw_on_bfloat16():
    masters, ours = (trained("bf16", name) for name in registry.entrants("bf16"))
    weights = [ours[1].state[param]["weight"] for param in ours[0]]
    torch.testing.assert_close([m.detach() for m in masters[1].masters], weights)
    ours[1].restore()
    torch.testing.assert_close(masters[0], ours[0])


def test_a_scaled_step_is_a_plain_one():
    scaled, ours = (trained("fp32", name) for name in (registry.SCALED, OURS))
    assert all(map(torch.equal, scaled[0], ours[0]))


def test_entrants_on_a_gpu_are_both_backends_with_and_without_backup(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(wpadamw, "backends", lambda: {"cuda": {"triton": None}})
    found = [entrant.name for entrant in entry.entrants_on(device, "fp32")]
    assert found[0] == FUSED
    ours = {OURS, registry.OURS_WITHOUT_BACKUP, registry.TRITON, registry.TRITON_WITHOUT_BACKUP}
    assert ours | {PLAIN, registry.FOREACH, registry.SCALED, registry.REPLAYED} < set(found)
    assert registry.TRITON in [entrant.name for entrant in entry.entrants_on(device, "bf16")]


@pytest.mark.parametrize("why_not", ["too old", None])
def test_without_triton_its_entrants_are_left_out_with_the_reason(why_not, monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(wpadamw, "backends", lambda: {"cuda": {"triton": why_not}})
    found = [entrant for part in shapes.DTYPES for entrant in entry.entrants_on(device, part)]
    reasons = {entrant.name: entrant.missing for entrant in found if entrant.missing}
    expected = (
        {registry.TRITON: why_not, registry.TRITON_WITHOUT_BACKUP: why_not} if why_not else {}
    )
    assert reasons == expected


@pytest.mark.parametrize("part", shapes.DTYPES)
def test_no_entrant_holds_more_memory_than_it_says(part):
    shape = shapes.Shape.equal(1, 1000, shapes.DTYPES[part], CPU)
    for entrant in registry.entrants(part).values():
        params = shape.parameters()
        optimizer = entrant.build(params)
        optimizer.step()
        held = memory_probe.storage_bytes([optimizer.state, params, [p.grad for p in params]])
        assert held <= entrant.held_bytes * shape.total * 1.1  # and padding


def test_every_optimizer_of_the_package_takes_part_everywhere():
    classes = set(wpadamw.optimizers.__all__)
    races = ("fp32", "extras")
    for parts in (races, ("train",), registry.STUDIED):
        factories = {entrant.factory for entrant in registry.entrants(*parts).values()}
        # Where weight decay helps, Adam's is the worse AdamW: there is nothing to study. Muon's
        # steps are products of matrices: no race over memory.
        left_out = {races: {"WPMuon"}, registry.STUDIED: {"WPAdam"}}.get(parts, set())
        assert {f"wpadamw:{name}" for name in classes - left_out} <= factories


def test_names_are_unique_within_a_part():
    for part in {part for entrant in registry.ENTRANTS for part in entrant.parts}:
        names = [entrant.name for entrant in registry.ENTRANTS if part in entrant.parts]
        assert len(names) == len(set(names))
        assert names == [*registry.entrants(part)]


def test_tables_survive_a_run_that_failed(tmp_path):
    record = tmp_path / "record.json"
    assert run.read_tables(record) == {}
    found = [{"extra_info": {"table": "host", "rows": {}}}, {"extra_info": {}}]
    record.write_text(json.dumps({"benchmarks": found}))
    assert run.read_tables(record) == {"host": {"rows": {}}}


def test_results_of_a_run_that_failed_have_a_name_of_their_own():
    options = {"quick": False, "keep": False, "out": Path("out"), "device": torch.device("cuda")}
    found = run.result_paths(argparse.Namespace(**options), {"gpu": "G"})
    assert found == (Path("out/cuda.json"), Path("out/cuda.failed.json"))


@pytest.mark.parametrize(
    ("is_quick", "folder"), [(False, RESULTS / "example-9"), (True, Path("out"))]
)
def test_results_of_a_full_run_alone_are_kept(is_quick, folder):
    options = {"quick": is_quick, "keep": True, "out": Path("out"), "device": CPU}
    assert run.result_paths(argparse.Namespace(**options), {"gpu": "Example 9"})[0].parent == folder


def test_renewed_gradients_are_equal_and_elsewhere():
    params = shapes.Shape.equal(2, 100, torch.float32, CPU).parameters()
    before = [param.grad for param in params]
    entry.renew_gradients(params)
    for param, grad in zip(params, before, strict=True):
        assert torch.equal(param.grad, grad)
        assert param.grad.data_ptr() != grad.data_ptr()


def test_storage_bytes_count_shared_storage_once():
    flat = torch.zeros(10)
    assert memory_probe.storage_bytes({"a": [flat[:3], flat[5:]], "b": (torch.zeros(2), 1)}) == 48
