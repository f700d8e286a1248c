"""The benchmarks run, measure what they say, and the documents show what was measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
BENCH = ROOT / "bench"
sys.path.insert(0, str(BENCH))
contestants, measure, names, report = map(
    importlib.import_module, ("contestants", "measure", "names", "report")
)
CPU = torch.device("cpu")
TABLES = ("large_fp32", "large_bf16", "small_fp32", "many_new", "many_kept", "host", "memory")


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
    missing = {f.over for f in report.FIGURES if f.measured(quick_results) == report.NOT_MEASURED}
    assert missing == set(quick_results["facts"]["left_out"])


def test_quick_run_yields_a_report(quick_results):
    results = [quick_results]
    assert names.OURS in report.memory(results)
    for table in quick_results["tables"].values():
        assert table["title"] in report.full(results) + report.memory(results)


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
    params = contestants.Shape(2, 100, dtype, CPU).parameters()
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


def test_renewed_gradients_are_equal_and_elsewhere():
    params = contestants.Shape(2, 100, torch.float32, CPU).parameters()
    before = [param.grad for param in params]
    contestants.renew_gradients(params)
    for param, grad in zip(params, before, strict=True):
        assert torch.equal(param.grad, grad)
        assert param.grad.data_ptr() != grad.data_ptr()


def test_storage_bytes_count_shared_storage_once():
    flat = torch.zeros(10)
    assert contestants.storage_bytes({"a": [flat[:3], flat[5:]], "b": (torch.zeros(2), 1)}) == 48


# The report.


def timed(median_ms, share=None):
    row = {"median_ms": median_ms, "iqr_ms": 0.5, "n": 9, "ratio": median_ms / 100}
    speed = None if share is None else 20 * share
    return {**row, "bytes_moved": 28, "gb_per_s": speed, "share_of_copy": share}


MEASURED = {
    "facts": {
        **{"date": "2030-01-31", "device": "cpu", "cpu": "Example 9", "cores": 4, "threads": 4},
        **{"memory_gib": 15.6, "system": "Linux x86_64", "python": "3.12.1", "torch": "2.9.0"},
        **{"wpadamw": "0.1.0", "backend": "cpp", "commit": "0123456789abcdef", "dirty": False},
        "left_out": {names.DEEPSPEED: "deepspeed is not installed"},
    },
    "quick": False,
    "tables": {
        "large_fp32": {
            "title": "64 float32 parameters",
            "rows": {names.FUSED: timed(100.0, 0.9), names.OURS: timed(1084.0, 0.975)},
        },
        "host": {
            "title": "Host time",
            "rows": {names.OURS: {"us_per_tensor": 0.5, "us_per_step": 50.0, "n": 9}},
        },
        "memory": {
            "title": "Bytes per parameter",
            "rows": {names.OURS: {"state_bytes": 12.0, "peak_extra_bytes": None}},
        },
    },
}
TRAINED = {
    "setting": {
        "arguments": {
            **{"batch_size": 16, "context": 128, "lr": 0.002},
            **{"weight_decay": 0.1, "prediction_steps": 1.0},
        },
        "torch": "2.9.0",
    },
    "runs": [
        {
            **{"optimizer": optimizer, "seed": seed, "num_parameters": 1234},
            **{"evaluated_steps": [0, 50, 100, 150, 200]},
            "validation_losses": [5.5, 4.0, 3.0, 2.5, final + seed],
        }
        for seed in (0, 1)
        for optimizer, final in ((names.FUSED, 2.0), (names.OURS, 1.75))
    ],
}
PAGE = "before\n<!-- bench:begin {0} -->\nold\n<!-- bench:end {0} -->\nafter\n"


@pytest.fixture
def project(tmp_path):
    results = tmp_path / "bench" / "results" / "example"
    results.mkdir(parents=True)
    (results / "cpu.json").write_text(json.dumps(MEASURED))
    (results / "train.json").write_text(json.dumps(TRAINED))
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PAGE.format("speed"))
    (tmp_path / "docs" / "measured.md").write_text(PAGE.format("full") + PAGE.format("training"))
    return tmp_path


def test_speed_shows_targets_beside_what_was_measured():
    lines = report.speed([MEASURED]).splitlines()
    assert lines[0] == (
        "| step with prediction | CPU target | Example 9, 4 cores | GPU target | GPU |"
    )
    assert lines[2].endswith("| ≤ 1.15 | 10.840 | ≤ 1.10 | not measured |")
    assert "| ≥ 0.9 | 0.975 | ≥ 0.92 | not measured |" in lines[5]
    assert lines[9].endswith("| ≤ 1.0 | not measured | - | not measured |")


def test_speed_shows_a_gpu_where_one_was_measured():
    facts = {**MEASURED["facts"], "device": "cuda", "gpu": "Example G"}
    head, *_ = report.speed([MEASURED, {**MEASURED, "facts": facts}]).splitlines()
    assert head.endswith("| CPU target | Example 9, 4 cores | GPU target | Example G |")


def test_full_shows_all_timed_tables_and_the_machine():
    text = report.full([MEASURED])
    assert f"| {names.OURS} | 1,084 | 0.50 | 19.5 | 0.97 | 10.840 |" in text
    assert f"| {names.OURS} | 0.50 | 50.0 |" in text
    assert "Bytes per parameter" not in text
    assert "Example 9, 4 cores, 16 GiB, 4 threads" in text
    assert "wpadamw 0.1.0 at 0123456789ab, backend cpp; 2030-01-31." in text
    assert "Without DeepSpeedCPUAdam: deepspeed is not installed." in text


def test_caption_tells_of_uncommitted_changes():
    facts = {**MEASURED["facts"], "dirty": True}
    assert "0123456789ab with uncommitted changes" in report.caption({"facts": facts})


def test_memory_shows_a_dash_for_what_is_unknown():
    assert f"| {names.OURS} | 12.00 | - |" in report.memory([MEASURED])


def test_training_shows_losses_at_equal_steps():
    lines = report.training([TRAINED]).splitlines()
    assert lines[0].endswith("| step 50 | step 100 | step 150 | step 200 |")
    assert lines[2].startswith(f"| {names.FUSED} | 4.0000 ± 0.0000 |")
    assert lines[2].endswith("| 2.5000 ± 0.5000 |")
    assert lines[3].endswith("| 2.2500 ± 0.5000 |")
    assert lines[4].endswith("| -0.2500 ± 0.0000 |")
    assert "2 seeds" in lines[-1]


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        *((123456.0, "3g", "123,456"), (12.345, "3g", "12.3"), (0.00004, "2g", "0.000040")),
        *((0.0, "2g", "0.0"), (None, "3g", "-"), (1.0349, ".3f", "1.035")),
    ],
)
def test_number_has_no_exponent(value, spec, text):
    assert report.number(value, spec) == text


def test_report_writes_between_markers_and_check_then_passes(project, capsys):
    assert report.main(["--check"], project) == 1
    assert "out of date: README.md" in capsys.readouterr().out
    assert report.main([], project) == 0
    text = (project / "README.md").read_text()
    assert text.startswith("before\n<!-- bench:begin speed -->\n\n| step with prediction |")
    assert text.endswith("\n\n<!-- bench:end speed -->\nafter\n")
    assert report.main(["--check"], project) == 0


def test_check_fails_when_a_number_was_edited(project):
    report.main([], project)
    page = project / "docs" / "measured.md"
    page.write_text(page.read_text().replace("1,084", "0,984"))
    assert report.main(["--check"], project) == 1


def test_check_fails_without_results(project, capsys):
    (project / "bench" / "results" / "example" / "cpu.json").unlink()
    assert report.main(["--check"], project) == 1
    assert "must hold cpu.json or cuda.json, got no such file" in capsys.readouterr().err


def test_check_fails_on_results_of_a_quick_run(project, capsys):
    path = project / "bench" / "results" / "example" / "cpu.json"
    path.write_text(json.dumps({**MEASURED, "quick": True}))
    assert report.main(["--check"], project) == 1
    assert "must come from a full run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no marker at all", "must have a bench:begin marker"),
        (PAGE.format("nothing"), "a marker must name one of"),
        (PAGE.format("speed") + "<!-- bench:begin full -->", "must have its bench:end"),
    ],
)
def test_check_fails_on_markers_that_cannot_be_filled(project, capsys, text, reason):
    (project / "docs" / "measured.md").unlink()
    (project / "README.md").write_text(text)
    assert report.main(["--check"], project) == 1
    assert reason in capsys.readouterr().err


def test_documents_show_the_committed_results():
    done = run_script("report.py", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
