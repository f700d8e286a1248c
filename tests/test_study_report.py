"""The study's tables and plots say what the trainings show."""

from __future__ import annotations

import itertools

import pytest
from matplotlib.text import Text

from wpadamw.bench.report import (
    plots,
    study_comparisons,
    study_drawing,
    study_plots,
    study_predictions,
    study_rates,
    study_results,
    study_tables,
    styles,
)

SEEDS = range(6)
SEARCH = (1000, 1001)
STEPS = [10, 20, 30, 40]
NOISE = [0.0, 0.001, -0.001, 0.002, -0.002, 0.0]
BEST = 0.004
SETTING = {"device": "Example 9", "python": "3.12.1", "torch": "2.9.0", "wpadamw": "0.1.0"}
DIVERGED = "diverged before step 20"


def study(tasks=("gpt",), device="Example 9"):
    return {
        "quick": False,
        "reference": "AdamW",
        "tasks": {task: f"task {task}" for task in tasks},
        "setting": {**SETTING, "device": device},
        "minutes": 12.0,
        "left_out": {},
        **{"optimizers": [], "trials": [], "best": [], "runs": []},
    }


def trial(results, task, optimizer, lr, seed, loss):
    why = DIVERGED if loss is None else None
    about = {"task": task, "optimizer": optimizer, "lr": lr, "seed": seed}
    results["trials"].append({**about, "loss": loss, "why": why})
    if about["optimizer"] not in results["optimizers"]:
        results["optimizers"].append(about["optimizer"])
    return about


def add(results, optimizer, by=0.0, task="gpt", foresight=None, other_rates=(0.002, 0.008)):
    """Train: the reference ends at 1.00, 1.01, ..., and the optimizer so much above."""
    for lr in (BEST, *other_rates):
        for seed in SEARCH:
            trial(results, task, optimizer, lr, seed, 1.5 + by + (lr != BEST))
    for seed in SEEDS:
        end = 1 + seed / 100 + by + (NOISE[seed] if by else 0)
        about = trial(results, task, optimizer, BEST, seed, end)
        losses = [4.0, 3.0 + by, 1.06 + by, end]
        recorded = {"evaluated_steps": STEPS, "validation_losses": losses}
        recorded |= {"norm_ratios": [0.5, 0.4, 0.3, 0.2], "foresight": foresight or {}}
        results["runs"].append({**about, **recorded})
    results["best"].append({"task": task, "optimizer": optimizer, "lr": BEST})


def fail(results, optimizer, seed=1):
    """Let one of the compared trainings diverge."""
    for found in results["trials"]:
        if (found["optimizer"], found["seed"]) == (optimizer, seed):
            found |= {"loss": None, "why": DIVERGED}
    results["runs"] = [
        run for run in results["runs"] if (run["optimizer"], run["seed"]) != (optimizer, seed)
    ]


@pytest.fixture
def results():
    found = study()
    add(found, "AdamW")
    add(found, "WPAdamW, s = 1", -0.1)
    add(found, "WPAdamW, s = 2", +0.1)
    add(found, "Unheard of", 1e-9)
    return found


def line(text, name):
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


# Against the reference.


def test_tables_say_better_and_worse_only_where_the_seeds_tell(results):
    text = study_comparisons.complete([results])
    assert line(text, "WPAdamW, s = 1")[1] == "-0.1000 ± 0.0006, better"
    assert line(text, "WPAdamW, s = 2")[1] == "+0.1000 ± 0.0006, **worse**"
    assert line(text, "Unheard of")[1] == "+0.0000 ± 0.0006"
    assert "| AdamW |" not in text
    assert "Holm 1979" in text
    assert "Example 9, 6 seeds, 12 minutes of training in all" in text


def test_summary_is_a_short_list(results):
    add(results, "NAdamW")
    add(results, "WPAdamW, s = 1, averaged")
    text = study_comparisons.summary([results])
    names = ["WPAdamW, s = 1", "WPAdamW, s = 2", "NAdamW"]
    assert [name.split(" |")[0] for name in text.split("\n| ")[2:5]] == names
    assert line(text, "WPAdamW, s = 1, averaged")


def test_sentences_name_who_is_better_worse_and_neither(results):
    add(results, "NAdamW", 1e-9)
    add(results, "WPAdamW, s = 3", -0.1)
    better, worse, neither = study_comparisons.sentences([results]).splitlines()
    assert better == "- **Better than AdamW**: on gpt s = 1, s = 3."
    assert worse == "- **Worse than AdamW**: on gpt s = 2."
    assert neither.endswith("that the seeds can tell: on gpt NAdamW.")
    better, worse, neither = study_comparisons.prediction([results]).splitlines()
    assert better.endswith(": on gpt s = 1.") and worse.endswith(": on gpt s = 2.")
    assert neither.endswith(": none.")


def test_one_task_on_two_machines_is_two_columns(results):
    other = study(("gpt", "lstm"), device="Example G")
    for task in ("gpt", "lstm"):
        add(other, "AdamW", task=task)
        add(other, "New", 0.2, task=task)
    text = study_comparisons.complete([results, other])
    assert text.splitlines()[0].endswith("| gpt (Example 9) | gpt (Example G) | lstm |")
    assert line(text, "New")[1] == "not run"
    assert line(text, "New")[3] == "+0.2000 ± 0.0006, **worse**"
    assert "task gpt (Example G)" in study_tables.details([results, other])


def test_failed_and_missing_optimizers_are_rows_with_their_reason(results):
    fail(results, "WPAdamW, s = 1")
    results["left_out"] = {"Absent": "absent is not installed"}
    for text in (study_comparisons.complete([results]), study_tables.details([results])):
        reason = "WPAdamW, s = 1: 1 of 6 failed: diverged before step 20"
        assert line(text, "WPAdamW, s = 1")[1] == reason
        assert line(text, "Absent")[1] == "not run: absent is not installed"
        assert line(text, "Unheard of")
    assert "s = 1" not in study_comparisons.sentences([results])


def test_failed_reference_leaves_nothing_to_compare(results):
    fail(results, "AdamW")
    for text in (study_comparisons.complete([results]), study_tables.details([results])):
        assert "AdamW: 1 of 6 failed" in line(text, "Unheard of")[1]
    assert study_tables.report(results)


def test_left_out_task_is_a_column_with_its_reason(results):
    results["tasks"]["digits"] = "digits"
    results["left_out"] = {"digits": "sklearn is not installed"}
    text = study_comparisons.complete([results])
    assert line(text, "Unheard of")[2] == "not run: sklearn is not installed"
    assert study_tables.report(results)


# Within families, and rules for s.


def test_families_compare_prediction_with_none(results):
    add(results, "WPSGD, s = 0", 1.0)
    add(results, "WPSGD, s = 1", 0.9)
    add(results, "Alone, s = 0", 0.9)
    text = study_comparisons.families([results])
    assert line(text, "WPSGD, s = 1, minus s = 0")[1] == "-0.1000 ± 0.0000, better"
    assert "Alone" not in text
    assert "WPAdamW" not in text


def test_formats_are_compared_with_float32(results):
    add(results, "WPAdamW, s = 1", 0.5)
    add(results, "s = 1, int8 moments", 0.75)
    text = study_comparisons.formats([results])
    assert line(text, "s = 1, int8 moments")[1] == "+0.2500 ± 0.0000, **worse**"
    assert "int8" not in study_comparisons.rules([results])
    assert study_comparisons.formats([study(["gpt"])]) == "No small format was trained."


def with_rules(*tasks, by):
    found = study(tasks)
    for task in tasks:
        add(found, "WPAdamW, s = 1", task=task)
        add(found, "s = 2, warmed up", by, task=task)
        add(found, "s = 2, matrices only", 1e-9, task=task)
    return found


def test_rule_wins_that_is_better_on_three_tasks():
    text = study_comparisons.rules([with_rules("a", "b", "c", by=-0.1)])
    assert "s = 2, warmed up is better on 3, worse on 0" in text
    assert text.endswith("better than s = 1 on at least 3 tasks, is s = 2, warmed up.")


def test_no_rule_wins_on_two_tasks_on_several_machines():
    machines = [with_rules("a", "b", by=-0.1), with_rules("a", "b", by=-0.1)]
    machines[1]["setting"]["device"] = "Example G"
    text = study_comparisons.rules(machines)
    assert text.endswith("no rule wins: none is better than s = 1 on at least 3 tasks.")


def test_studies_without_rules_and_families_say_so(results):
    del results["trials"][14:], results["optimizers"][2:]
    assert study_comparisons.rules([results]) == "No rule for s was trained."
    assert "No optimizer" in study_comparisons.families([results])


# Task by task.


def test_details_show_steps_to_the_reference_and_those_saved(results):
    text = study_tables.details([results])
    found = line(text, "WPAdamW, s = 1")
    assert found[1:4] == ["0.004", "6", "0.9250 ± 0.0075"]
    assert found[5] == "< 0.0001"
    # With the reference 1.06 at step 30 was not enough; 0.96 is for all seeds.
    assert found[6:] == ["30 ± 0", "25.0 ± 0.0 %"]
    assert line(text, "WPAdamW, s = 2")[6:] == ["0 of 6", ""]
    assert line(text, "AdamW")[4:] == ["", "", "40 ± 0", ""]


def test_rates_show_means_numbers_of_seeds_and_failures(results):
    trial(results, "gpt", "Unheard of", 0.016, 1000, None)
    text = study_rates.rates([results])
    assert "|  | 0.002 | 0.004 | 0.008 | 0.016 |" in text
    found = line(text, "AdamW")
    assert found[1:5] == ["2.5000 (2)", "**1.1438** (8)", "2.5000 (2)", ""]
    assert found[5:] == ["x 1", "3, 12"]
    assert line(text, "Unheard of")[4] == "1 of 1 failed"
    assert line(text, "WPAdamW, s = 2")[5] == ""


def test_rates_of_an_optimizer_that_always_failed_carry_the_reason(results):
    trial(results, "gpt", "Hopeless", BEST, 1000, None)
    text = study_rates.rates([results])
    assert line(text, f"Hopeless: 1 of 1 failed: {DIVERGED}")[2] == "1 of 1 failed"


def test_good_range_ends_where_a_rate_is_worse_than_the_reference_at_its_best(results):
    add(results, "Robust", -0.1, other_rates=())
    for lr, loss in ((0.001, 1.4), (0.002, 1.6), (0.008, 1.4), (0.016, 1.5), (0.032, 1.51)):
        for seed in SEARCH:
            trial(results, "gpt", "Robust", lr, seed, loss)
    (column,) = study_results.columns([results])
    assert study_rates.good_range(column, "Robust") == pytest.approx(4)
    assert study_rates.good_range(column, "WPAdamW, s = 2") is None


def test_rates_that_differ_by_rounding_are_one():
    trials = [{"lr": 0.004 * 2**0.5 * 2**0.5}, {"lr": 0.008}]
    assert list(study_results.by_rate(trials)) == [0.008]
    assert [*map(study_results.rate_text, (0.00282843, 0.004, 1.0))] == ["0.0028", "0.004", "1"]


def test_foresight_shows_medians_of_first_and_last_quarter(results):
    seen = {"error": [0.9, 0.5, 0.5, None], "best_steps": [0.5, 1.0, 1.0, 2.0], "steps": [1.0] * 4}
    add(results, "Seer", foresight={"matrices": seen})
    text = study_predictions.foresight([results])
    assert line(text, "Seer")[1:] == ["1.00", "0.90 → -", "-", "0.50 → 2.00", "-"]
    assert "| AdamW |" not in text


def test_norm_ratios_show_start_quarters_and_smallest(results):
    text = study_predictions.norm_ratios([results])
    assert line(text, "task gpt")[1:] == ["0.50", "0.50", "0.20", "0.20"]


# Plots.


def test_steps_hold_savings_verdicts_and_who_did_not_get_there(results):
    fail(results, "WPAdamW, s = 2")
    add(results, "NAdamW", 0.1)
    (panel,) = study_plots.steps([results])
    rows = panel["rows"]
    assert rows["WPAdamW, s = 1"] == {"mean": 25.0, "error": 0.0, "is_decided": True}
    assert rows["WPAdamW, s = 2"] == {"note": "failed"}
    assert rows["NAdamW"] == {"note": "0 of 6 get there"}


def test_rates_hold_means_and_errors_of_search_and_evaluation(results):
    (panel,) = study_plots.rates([results])
    assert panel["losses"].keys() == {"AdamW", "WPAdamW, s = 1", "WPAdamW, s = 2"}
    found = panel["losses"]["AdamW"]
    assert found["x"] == [0.002, 0.004, 0.008]
    assert found["mean"] == pytest.approx([2.5, 1.1438, 2.5], abs=1e-4)
    assert found["error"] == pytest.approx([0.0, 0.0781, 0.0], abs=1e-3)


def test_differences_are_paired_by_seed(results):
    results["runs"].reverse()
    (panel,) = study_plots.differences([results])
    assert panel["differences"]["AdamW"]["mean"] == [0, 0, 0, 0]
    assert panel["differences"]["WPAdamW, s = 1"]["mean"][-1] == pytest.approx(-0.1)


def test_plots_draw_nothing_where_all_failed():
    failed = study()
    trial(failed, "gpt", "AdamW", BEST, 1000, None)
    for plot in study_plots.PLOTS.values():
        assert plot.draw(plot.source([failed])) is not None


def test_plots_draw_several_machines_and_predictions_with_gaps(results):
    seen = {"error": [None, 0.5, 0.5, 0.4], "best_steps": [None] * 4, "steps": [1.0] * 4}
    add(results, "WPAdamW, s = 3", foresight={"matrices": seen})
    other = {**results, "setting": {**SETTING, "device": "Example G"}}
    for plot in study_plots.PLOTS.values():
        assert len(plot.draw(plot.source([results, other])).axes) == 2
    (panel, _) = study_plots.foresight([results, other])
    assert panel["errors"]["WPAdamW, s = 3"]["x"] == [20, 30, 40]


@pytest.mark.parametrize(("number", "columns"), [(0, 1), (1, 1), (3, 3), (4, 2), (5, 3), (7, 3)])
def test_panels_fill_their_rows_evenly(number, columns):
    assert plots.columns_of_grid(number, 3) == columns
    assert len(plots.grid(number, 3, (1, 1))[1]) == number


def test_names_have_one_style_each_and_new_ones_a_stable_one():
    known = list(styles.STYLES)[:8]
    assert len({styles.style_of(name)[:2] for name in known}) == len(known)
    assert styles.style_of("Unheard of") == styles.style_of("Unheard of")
    assert styles.style_of("Unheard of").color in styles.OTHERS


@pytest.mark.parametrize(
    "wanted", [[0.5, 0.5, 0.5], [0.99, 1.0, 0.98], [0.0, 0.0, 0.01], [-3.0, 7.0, 0.2]]
)
def test_labels_keep_a_gap_and_their_order_within_the_panel(wanted):
    placed = styles.spread(wanted, 0.1, 0.0, 1.0)
    ordered = [placed[i] for i in sorted(range(3), key=wanted.__getitem__)]
    assert all(b - a > 0.1 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert min(placed) >= 0
    assert max(placed) <= 1


def test_labels_at_line_ends_do_not_overlap(results):
    plot = study_plots.PLOTS["study-rates.png"]
    figure = plot.draw(plot.source([results]))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    # Of the words alone, without the lines to them.
    boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    assert len(boxes) == 3
    assert all(a.y1 < b.y0 for a, b in itertools.pairwise(boxes))


def test_ticks_are_the_rates_that_two_digits_tell():
    rates = [0.004 * 2 ** (i / 2) for i in range(-3, 6)]
    found = [study_results.rate_text(lr) for lr in study_drawing.ticks(rates)]
    assert found == ["0.002", "0.004", "0.008", "0.016"]
    assert study_drawing.ticks([0.01]) == [0.01]
    assert len(study_drawing.ticks([0.001 * 2**i for i in range(20)])) <= 7
