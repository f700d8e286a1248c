"""The documents show what was measured, and nothing that was not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from wpadamw.bench import registry
from wpadamw.bench.report import bars, documents, markup, plots, speed_tables, training

# Tables.


def timed(median_ms, share=None):
    row = {"median_ms": median_ms, "iqr_ms": 0.5, "n": 9, "ratio": median_ms / 100}
    speed = None if share is None else 20 * share
    return {**row, "bytes_moved": 28, "gb_per_s": speed, "share_of_copy": share}


MEASURED = {
    "facts": {
        **{"date": "2030-01-31", "device": "cpu", "cpu": "Example 9", "cores": 4, "threads": 4},
        **{"memory_gib": 15.6, "system": "Linux x86_64", "python": "3.12.1", "torch": "2.9.0"},
        **{"wpadamw": "0.1.0", "backend": "cpp", "commit": "0123456789abcdef", "dirty": False},
        "left_out": {registry.DEEPSPEED: "deepspeed is not installed"},
    },
    "quick": False,
    "tables": {
        "large_fp32": {
            "title": "64 float32 parameters",
            "rows": {registry.FUSED: timed(100.0, 0.9), registry.OURS: timed(1084.0, 0.975)},
        },
        "host": {
            "title": "Host time",
            "rows": {registry.OURS: {"us_per_tensor": 0.5, "us_per_step": 50.0, "n": 9}},
        },
        "memory": {
            "title": "Bytes per parameter",
            "rows": {registry.OURS: {"state_bytes": 12.0, "peak_extra_bytes": None}},
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
        for optimizer, final in ((registry.FUSED, 2.0), (registry.OURS, 1.75))
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
    lines = speed_tables.speed([MEASURED]).splitlines()
    assert lines[0] == (
        "| step with prediction | CPU target | Example 9, 4 cores | GPU target | GPU |"
    )
    assert lines[2].endswith("| ≤ 1.15 | **10.840** | ≤ 1.10 | not measured |")
    assert "| ≥ 0.9 | 0.975 | ≥ 0.92 | not measured |" in lines[7]
    assert lines[12].endswith("| ≤ 1.0 | not measured | - | not measured |")


GPU_FACTS = {
    **MEASURED["facts"],
    **{"device": "cuda", "gpu": "Example G", "gpu_memory_gib": 79.2, "backend": "cuda"},
    **{"cuda": "13.0", "triton": None, "driver_and_clock": "580.1, 1980 MHz", "left_out": {}},
}
GPU_MEASURED = {
    "facts": GPU_FACTS,
    "quick": False,
    "tables": {
        "large_fp32": {
            "title": "64M float32 parameters",
            "rows": {
                registry.FUSED: timed(100.0, 0.9),
                registry.OURS: timed(104.0, 0.95),
                registry.TRITON: timed(105.0, 0.94),
            },
        },
        "model_fp32": {"title": "GPT-2", "rows": {registry.OURS: timed(90.0, 0.93)}},
    },
}


def test_speed_shows_a_gpu_where_one_was_measured():
    head, _, *rows = speed_tables.speed([MEASURED, GPU_MEASURED]).splitlines()
    assert head.endswith("| CPU target | Example 9, 4 cores | GPU target | Example G |")
    assert rows[0].endswith("| ≤ 1.15 | **10.840** | ≤ 1.10 | 1.040 |")
    assert rows[5].endswith("| ≥ 0.9 | 0.975 | ≥ 0.92 | 0.950 |")
    unmeasured = [row.endswith("| not measured |") for row in rows[: len(speed_tables.FIGURES)]]
    assert unmeasured == [i not in (0, 5) for i in range(len(speed_tables.FIGURES))]


def test_full_shows_the_tables_and_the_versions_of_a_gpu():
    text = speed_tables.full([MEASURED, GPU_MEASURED])
    assert "**GPT-2**" in text
    assert f"| {registry.TRITON} | 105 | 0.50 | 18.8 | 0.94 | 1.050 |" in text
    assert (
        "Example G, 79 GiB, driver and highest clock 580.1, 1980 MHz, CUDA 13.0, Triton missing"
    ) in text


def test_report_fills_documents_from_a_gpu_without_table_of_memory(project):
    machine = project / "bench" / "results" / "example-g"
    machine.mkdir()
    (machine / "cuda.json").write_text(json.dumps(GPU_MEASURED))
    (project / "docs" / "memory.md").write_text(PAGE.format("memory"))
    assert documents.main([], project) == 0
    assert "| 1.040 |" in (project / "README.md").read_text()
    assert "Example G" not in (project / "docs" / "memory.md").read_text()


def test_full_shows_all_timed_tables_and_the_machine():
    text = speed_tables.full([MEASURED])
    assert f"| {registry.OURS} | 1,084 | 0.50 | 19.5 | 0.97 | 10.840 |" in text
    assert f"| {registry.OURS} | 0.50 | 50.0 |" in text
    assert "Bytes per parameter" not in text
    assert "Example 9, 4 cores, 16 GiB, 4 threads" in text
    assert "wpadamw 0.1.0 at 0123456789ab, backend cpp; 2030-01-31." in text
    assert "Without DeepSpeedCPUAdam: deepspeed is not installed." in text


def test_a_row_that_was_not_measured_shows_why_and_yields_no_figure():
    changed = json.loads(json.dumps(MEASURED))
    changed["tables"]["large_fp32"]["rows"][registry.FUSED] = {"why": "no a|b " + 40 * "long "}
    text = speed_tables.full([changed])
    assert f"| {registry.FUSED}: no a\\|b long long" in text
    assert "[...] | - | - | - | - | - |" in text
    assert "| ≤ 1.15 | not measured |" in speed_tables.speed([changed])


def test_caption_tells_of_uncommitted_changes():
    facts = {**MEASURED["facts"], "dirty": True}
    assert "0123456789ab with uncommitted changes" in markup.caption({"facts": facts})


def test_memory_shows_a_dash_for_what_is_unknown():
    assert f"| {registry.OURS} | 12.00 | - |" in speed_tables.memory([MEASURED])


def test_training_shows_losses_at_equal_steps():
    lines = training.training([TRAINED]).splitlines()
    assert lines[0].endswith("| step 50 | step 100 | step 150 | step 200 |")
    assert lines[2].startswith(f"| {registry.FUSED} | 4.0000 ± 0.0000 |")
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
    assert markup.number(value, spec) == text


def test_report_writes_between_markers_and_check_then_passes(project, capsys):
    assert documents.main(["--check"], project) == 1
    assert "out of date: README.md" in capsys.readouterr().out
    assert documents.main([], project) == 0
    text = (project / "README.md").read_text()
    assert text.startswith("before\n<!-- bench:begin speed -->\n\n| step with prediction |")
    assert text.endswith("\n\n<!-- bench:end speed -->\nafter\n")
    assert documents.main(["--check"], project) == 0


def test_check_fails_when_a_number_was_edited(project):
    documents.main([], project)
    page = project / "docs" / "measured.md"
    edited = page.read_text().replace("1,084", "0,984")
    page.write_text(edited)
    assert documents.main(["--check"], project) == 1
    assert page.read_text() == edited


def test_check_fails_without_results(project, capsys):
    (project / "bench" / "results" / "example" / "cpu.json").unlink()
    assert documents.main(["--check"], project) == 1
    assert "must hold cpu.json or cuda.json, got no such file" in capsys.readouterr().err


def test_check_fails_on_results_of_a_quick_run(project, capsys):
    path = project / "bench" / "results" / "example" / "cpu.json"
    path.write_text(json.dumps({**MEASURED, "quick": True}))
    assert documents.main(["--check"], project) == 1
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
    assert documents.main(["--check"], project) == 1
    assert reason in capsys.readouterr().err


# Plots.


@pytest.fixture
def project_with_plot(project):
    page = project / "docs" / "measured.md"
    page.write_text(page.read_text() + "![time over bytes](images/step-times.png)\n")
    return project


def test_report_draws_the_plots_that_documents_show(project_with_plot, capsys):
    assert documents.main([], project_with_plot) == 0
    assert "written: docs/images/step-times.png" in capsys.readouterr().out
    assert documents.main(["--check"], project_with_plot) == 0


def test_report_draws_no_plot_that_no_document_shows(project):
    assert documents.main([], project) == 0
    assert not (project / "docs" / "images").exists()


def test_check_fails_when_a_plot_is_not_that_of_the_results(project_with_plot, capsys):
    documents.main([], project_with_plot)
    changed = with_copy(Peer=timed(1.0))
    results = project_with_plot / "bench" / "results" / "example" / "cpu.json"
    results.write_text(json.dumps({**MEASURED, "tables": MEASURED["tables"] | changed["tables"]}))
    capsys.readouterr()
    assert documents.main(["--check"], project_with_plot) == 1
    assert "out of date: docs/images/step-times.png" in capsys.readouterr().out


def test_check_fails_on_an_image_that_is_not_drawn_from_results(project, capsys):
    page = project / "docs" / "measured.md"
    page.write_text(page.read_text() + "![drawn by hand](images/hand.png)\n")
    assert documents.main(["--check"], project) == 1
    assert "an image must be one of step-times.png" in capsys.readouterr().err


def test_a_plot_is_current_for_its_source_alone(tmp_path):
    path = tmp_path / "new" / "plot.png"
    assert not plots.is_current(path, {"a": 1, "b": [2]})
    plots.save(bars.draw(bars.source([MEASURED])), path, {"a": 1, "b": [2]})
    assert plots.is_current(path, {"b": [2], "a": 1})
    assert not plots.is_current(path, {"a": 1, "b": [3]})


@pytest.mark.parametrize("content", [b"no image", b""])
def test_a_file_that_is_no_plot_is_not_current(content, tmp_path):
    (tmp_path / "plot.png").write_bytes(content)
    assert not plots.is_current(tmp_path / "plot.png", {})


def with_copy(**others):
    rows = {**MEASURED["tables"]["large_fp32"]["rows"], registry.COPY: timed(50.0, 1.0), **others}
    return {**MEASURED, "tables": {"large_fp32": {"title": "64 parameters", "rows": rows}}}


def test_bars_hold_times_ratios_and_those_of_a_copy_of_as_many_bytes():
    unknown = {**timed(9.0), "bytes_moved": None}
    wider = {**timed(60.0), "bytes_moved": 42}
    others = {"Peer": unknown, "Wider": wider, "Absent": {"why": "no"}}
    (panel,) = bars.source([with_copy(**others, **{registry.IN_PLACE: timed(1.0)})])
    assert panel["title"] == "64 parameters\nExample 9, 4 cores"
    assert panel["bars"] == {
        registry.FUSED: {"ms": 100.0, "ratio": 1.0, "bound_ms": 50.0},
        registry.OURS: {"ms": 1084.0, "ratio": 10.84, "bound_ms": 50.0},
        "Peer": {"ms": 9.0, "ratio": 0.09, "bound_ms": None},
        "Wider": {"ms": 60.0, "ratio": 0.6, "bound_ms": 75.0},
    }


def test_bars_show_the_peers_where_they_were_measured_and_small_tensors_beside_them():
    results = with_copy()
    results["tables"]["peers_fp32"] = {"title": "peers", "rows": {"Peer": timed(9.0)}}
    results["tables"]["many_new"] = {"title": "small", "rows": {registry.OURS: timed(2.0)}}
    large, small = bars.source([results])
    assert large["bars"] == {"Peer": {"ms": 9.0, "ratio": 1.0, "bound_ms": None}}
    assert small["title"].startswith("small")


def test_bars_are_sorted_and_say_times_and_ratios():
    figure = bars.draw(bars.source([with_copy(Peer=timed(9.0))]))
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Peer", registry.FUSED, registry.OURS]
    texts = [text.get_text().split() for text in axes.texts]
    assert texts[0] == ["9.00", "ms", "x", "0.0900"]
    assert texts[2] == ["1,084", "ms", "x", "10.8"]


def test_bars_are_cut_off_only_where_a_few_are_far_longer():
    assert bars.longest_shown([1.0, 2.0, 3.0]) == 3.0
    assert bars.longest_shown([1.0] * 9 + [50.0]) == 1.0


def test_documents_show_the_committed_results():
    command = [sys.executable, "-m", "wpadamw.bench.report", "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_summary_shows_machines_on_which_all_of_it_was_measured():
    rows = dict.fromkeys([registry.FUSED, registry.FUSED_BF16], timed(100.0, 0.9))
    ours = dict.fromkeys([registry.OURS, registry.OURS_WITHOUT_BACKUP], timed(90.0, 0.9))
    table = {"title": "", "rows": {**rows, **ours}}
    tables = {"large_fp32": table, "large_bf16": table}
    lines = speed_tables.summary([MEASURED, {**GPU_MEASURED, "tables": tables}]).splitlines()
    assert lines[0] == "| step with prediction | Example G |"
    assert [line.rsplit("|", 2)[1].strip() for line in lines[2:]] == ["0.900", "0.900", "**0.900**"]
