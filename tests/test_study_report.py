"""The study's tables and plots say what the trainings show."""

from __future__ import annotations

import pytest

from wpadamw.bench.report import study_plots, study_tables

SEEDS = 5


def run(optimizer, seed, losses, why=None, task="gpt", prediction=None):
    steps = [10 * (i + 1) for i in range(len(losses))]
    lists = {"evaluated_steps": steps, "validation_losses": losses}
    lists["norm_ratios"] = [0.5 - 0.1 * i for i in range(len(losses))]
    about = {"task": task, "optimizer": optimizer, "seed": seed, "lr": 0.01, "why": why}
    return {**about, **lists, "foresight": prediction or {}, "seconds": 30.0}


def study(*runs, tasks=("gpt",), left_out=None):
    return {
        "reference": "AdamW",
        "tasks": {task: f"task {task}" for task in tasks},
        "runs": list(runs),
        "searches": [],
        "left_out": left_out or {},
        **{"seeds": SEEDS, "device": "cpu", "python": "3", "torch": "2", "wpadamw": "0"},
    }


@pytest.fixture
def results():
    """AdamW ends at 1.00, 1.01, ...; one optimizer is better by 0.1, one worse, one as good."""
    noise = [0.0, 0.001, -0.001, 0.002, -0.002]
    runs = []
    for seed in range(SEEDS):
        end = 1 + seed / 100
        runs.append(run("AdamW", seed, [4.0, 3.0, 2.0, end]))
        runs.append(run("Better", seed, [4.0, 2.0, end, end - 0.1 + noise[seed]]))
        runs.append(run("Worse", seed, [4.0, 3.5, 3.0, end + 0.1 + noise[seed]]))
        runs.append(run("Same", seed, [4.0, 3.0, 2.0, end + noise[seed]]))
    return study(*runs)


def line(text, optimizer):
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {optimizer} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_summary_says_better_and_worse_only_where_the_seeds_tell(results):
    text = study_tables.summary([results])
    assert line(text, "Better")[1] == "-0.1000 ± 0.0007, better"
    assert line(text, "Worse")[1] == "+0.1000 ± 0.0007, **worse**"
    assert line(text, "Same")[1] == "+0.0000 ± 0.0007"
    assert "| AdamW |" not in text
    assert "10 minutes of training" in text


def test_verdict_needs_enough_seeds():
    assert study_tables.verdict([-0.1, -0.1001, -0.1, -0.1001]) == ""
    assert study_tables.verdict([-0.1, -0.1001, -0.1, -0.1001, -0.1]) == ", better"
    assert study_tables.verdict([-0.3, 0.1, -0.2, 0.1, -0.1]) == ""


def test_details_show_losses_at_equal_steps_and_steps_to_the_reference(results):
    text = study_tables.details([results])
    assert "step 10 | step 20 | step 40" in text
    cells = line(text, "Better")
    assert cells[1] == "0.01"
    assert cells[2:5] == ["4.0000 ± 0.0000", "2.0000 ± 0.0000", "0.9200 ± 0.0069"]
    assert cells[-1] == "30, 5 of 5"
    assert line(text, "Worse")[-1] == "0 of 5"
    assert line(text, "AdamW")[-2:] == ["", "40, 5 of 5"]


def test_differences_are_paired_by_seed_not_by_place(results):
    results["runs"].reverse()
    assert study_tables.paired_differences(results, "gpt", "Better") == pytest.approx(
        [-0.102, -0.098, -0.101, -0.099, -0.1]
    )


def test_failed_and_missing_optimizers_are_rows_with_their_reason(results):
    results["runs"][1] |= {"why": "diverged before step 20", "validation_losses": [4.0]}
    results["left_out"] = {"Absent": "absent is not installed"}
    for text in (study_tables.summary([results]), study_tables.details([results])):
        assert "Better: 1 of 5 failed: diverged before step 20" in line(text, "Better")[1]
        assert "not run: absent is not installed" in line(text, "Absent")[1]
        assert line(text, "Same")


def test_failed_reference_leaves_nothing_to_compare(results):
    for found in results["runs"]:
        if found["optimizer"] == "AdamW":
            found["why"] = "diverged before step 2"
    for text in (study_tables.summary([results]), study_tables.details([results])):
        assert "AdamW: 5 of 5 failed" in line(text, "Same")[1]
    assert study_tables.report(results)


def test_left_out_task_is_a_column_with_its_reason(results):
    results["tasks"]["digits"] = "digits"
    results["left_out"] = {"digits": "sklearn is not installed"}
    text = study_tables.summary([results])
    assert line(text, "Same")[2] == "not run: sklearn is not installed"
    assert study_tables.report(results)


def test_searches_show_every_rate_and_every_failure(results):
    results["searches"] = [
        {"task": "gpt", "optimizer": "A", "lr": [1, 2], "losses": [0.5, None], "seconds": 60},
        {"task": "gpt", "optimizer": "B", "lr": [2, 4], "losses": [0.25, 0.125], "seconds": 60},
    ]
    text = study_tables.searches([results])
    assert line(text, "A") == ["A", "0.5000", "failed", ""]
    assert line(text, "B") == ["B", "", "0.2500", "0.1250"]


def test_foresight_shows_medians_of_first_and_last_quarter():
    errors = [0.9, 0.5, 0.5, None]
    seen = {"matrices": {"error": errors, "best_steps": [0.5, 1.0, 1.0, 2.0]}}
    text = study_tables.foresight(
        [study(run("AdamW", 0, [1.0] * 4), run("WPAdamW", 0, [1.0] * 4, prediction=seen))]
    )
    assert line(text, "WPAdamW")[1:] == ["matrices", "0.90", "-", "0.50", "2.00"]
    assert "| AdamW |" not in text


def test_norm_ratios_show_start_quarters_and_smallest(results):
    text = study_tables.norm_ratios([results])
    assert line(text, "AdamW")[1:] == ["task gpt", "0.50", "0.50", "0.20", "0.20"]


def test_curves_hold_means_errors_and_paired_differences(results):
    (panel,) = study_plots.curves([results])
    assert panel["losses"]["AdamW"]["x"] == [10, 20, 30, 40]
    assert panel["losses"]["AdamW"]["mean"][-1] == pytest.approx(1.02)
    assert panel["differences"]["AdamW"]["mean"] == [0, 0, 0, 0]
    better = panel["differences"]["Better"]
    assert better["mean"][-1] == pytest.approx(-0.1)
    assert better["error"][-1] == pytest.approx(0.0007, abs=1e-4)


def test_failed_trainings_are_not_drawn(results):
    results["runs"][1] |= {"why": "diverged before step 20", "validation_losses": [4.0]}
    (panel,) = study_plots.curves([results])
    assert panel["losses"]["Better"]["mean"][-1] == pytest.approx(0.925)


def test_plots_draw_nothing_where_all_failed():
    failed = study(run("AdamW", 0, [], why="diverged before step 2"))
    for plot in study_plots.PLOTS.values():
        assert plot.draw(plot.source([failed])).axes


def test_plots_draw_several_machines_and_optimizers_without_prediction(results):
    for plot in study_plots.PLOTS.values():
        assert plot.draw(plot.source([results, results])).axes
