"""A whole study: what it searches and evaluates, and what its results are gathered from."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter

import pytest
import torch
from test_cli import refusal

from wpadamw.bench import registry
from wpadamw.bench.registry import STUDIED, entrants, why_missing
from wpadamw.bench.study import results, search, trainings
from wpadamw.bench.study import run as study
from wpadamw.bench.study.contests import STUDY
from wpadamw.bench.study.tasks import TASKS
from wpadamw.bench.study.trainings import train
from wpadamw.bench.usage import UsageError
from wpadamw.cli import main

ARGUMENTS = ("--quick", "--tasks", "signals", "--seeds", "4", "--workers", "2")
CHOSEN = ("AdamW", "WPAdamW, s = 1", "AdamWScheduleFree")
ENTRIES = ["AdamW", "AdamW, averaged", "WPAdamW, s = 1", "WPAdamW, s = 1, averaged", CHOSEN[-1]]


# Which trainings are made.


def entry(name="AdamW", task="signals", **options):
    return search.Entry(TASKS[task], entrants(*STUDIED)[name], **options)


def losses_by_rate(of_rate):
    """A training function whose final loss follows from the learning rate."""
    asked = []

    def train(wishes):
        wishes = list(wishes)
        asked.extend(wishes)
        return {wish: ended(of_rate(wish.lr)) for wish in wishes}

    return train, asked


def ended(loss, why=None):
    return {"why": why, "validation_losses": [9.0, loss], "averaged_losses": [8.0, loss + 1]}


def test_search_widens_until_the_best_lies_inside():
    one = entry()
    train, asked = losses_by_rate(lambda lr: abs(math.log(lr / one.rate(6))))
    assert search.search([one], train) == {one: 6}
    assert Counter(wish.lr for wish in asked) == {one.rate(place): 2 for place in range(-3, 8)}
    assert {wish.seed for wish in asked} == set(search.SEARCH_SEEDS)


def test_every_entrant_has_as_many_trials_to_begin_with():
    several = [entry(), entry("WPAdamW, s = 1"), entry("WPSGD, s = 1")]
    train, asked = losses_by_rate(lambda lr: 1.0)
    assert search.search(several, train, 0) == dict.fromkeys(several, -3)
    assert set(Counter(wish.optimizer for wish in asked).values()) == {14}


def test_failed_trainings_are_no_best():
    one = entry()
    failing = ended(0.0, why="diverged")
    assert search.search([one], lambda wishes: dict.fromkeys(wishes, failing)) == {}
    assert search.best_of({0: math.inf}) is search.best_of({}) is None
    assert search.best_of({1: 2.0, 0: 2.0, -1: math.inf}) == 0


def test_rates_are_a_factor_of_two_in_two_places():
    one, sgd = entry(), entry("WPSGD, s = 0")
    assert one.rate(2) / one.rate(0) == pytest.approx(2, rel=1e-2)
    assert one.rate(1) / one.rate(0) == pytest.approx(2**0.5, rel=1e-2)
    assert sgd.rate(0) == pytest.approx(32 * one.rate(0), rel=1e-2)


def test_an_average_has_losses_of_its_own_and_no_trainings_of_its_own():
    plain, averaged = search.entries_of([TASKS["signals"]], [entrants(*STUDIED)["AdamW"]])
    assert (plain.loss(ended(1.0)), averaged.loss(ended(1.0))) == (1.0, 2.0)
    assert search.wish(plain, 0, 1) == search.wish(averaged, 0, 1)


def test_evaluation_has_other_seeds_and_looks_beside_the_best():
    one = entry()
    wishes = search.evaluation({one: 4}, 5)
    assert {wish.seed for wish in wishes} == set(range(5))
    assert Counter(wish.lr for wish in wishes) == {
        one.rate(4): 5,
        one.rate(3): search.NUM_NEIGHBOUR_SEEDS,
        one.rate(5): search.NUM_NEIGHBOUR_SEEDS,
    }


def test_a_format_is_trained_at_the_best_rate_of_another_optimizer_alone():
    usual, small = entry("WPAdamW, s = 1"), entry("s = 1, int8 moments")
    train, asked = losses_by_rate(lambda lr: abs(math.log(lr / usual.rate(1))))
    best = search.search([usual, small], train)
    assert best == {usual: 1, small: 1}
    assert {wish.optimizer for wish in asked} == {"WPAdamW, s = 1"}
    of_small = [wish for wish in search.evaluation(best, 5) if wish.optimizer == small.name]
    assert {(wish.lr, wish.seed) for wish in of_small} == {(usual.rate(1), s) for s in range(5)}


# A whole study.


@pytest.fixture(scope="module")
def quick_study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    assert main(["study", "--out", str(out), *ARGUMENTS, "--entrants", *CHOSEN]) == 0
    return out


def results_of(out):
    return json.loads((out / "study.json").read_text())


def test_study_trains_every_entrant_with_every_seed_at_its_best_rate(quick_study):
    found = results_of(quick_study)
    assert found["quick"] is True
    assert found["setting"]["python"] == platform.python_version()
    assert [row["optimizer"] for row in found["best"]] == ENTRIES
    best = {row["optimizer"]: row["lr"] for row in found["best"]}
    runs = [(run["optimizer"], run["seed"], run["lr"]) for run in found["runs"]]
    assert runs == [(name, seed, best[name]) for name in ENTRIES for seed in range(4)]


def test_the_best_rate_is_that_of_the_search_alone(quick_study):
    found = results_of(quick_study)
    for row in found["best"]:
        means = {}
        for trial in found["trials"]:
            if trial["optimizer"] == row["optimizer"] and trial["seed"] >= 1000:
                means[trial["lr"]] = means.get(trial["lr"], 0.0) + trial["loss"] / 2
        assert row["lr"] == min(means, key=means.get)


def test_study_writes_report_and_plots(quick_study):
    text = (quick_study / "study.md").read_text()
    for name in ENTRIES:
        assert f"| {name} |" in text
    for name in STUDY.plots:
        assert (quick_study / name).read_bytes().startswith(b"\x89PNG")


def test_study_goes_on_where_it_was_interrupted(quick_study, monkeypatch):
    done = sorted((quick_study / "trainings").iterdir())
    done[0].unlink()
    (quick_study / "trainings" / "half.partial").write_text("{")
    made = []
    monkeypatch.setattr(
        trainings,
        "_train_missing",
        lambda jobs, folder, *_: [(one, made.append(one) or kept(one, folder)) for one in jobs],
    )
    before = results_of(quick_study)
    assert main(["study", "--out", str(quick_study), *ARGUMENTS, "--entrants", *CHOSEN]) == 0
    assert [f"{one.slug}.json" for one in made] == [done[0].name]
    after = results_of(quick_study)
    for key in ("trials", "best", "runs", "setting"):
        assert after[key] == before[key]


def kept(job, folder, how=trainings.follow):
    training = train(job, how)
    trainings._write(job, training, folder)
    return training


def test_results_can_be_gathered_without_any_training(quick_study, monkeypatch):
    monkeypatch.setattr(trainings, "_train_missing", None)
    before = results_of(quick_study)
    arguments = ["study", "--out", str(quick_study), "--quick", "--collect"]
    assert main(arguments) == 0
    assert results_of(quick_study) == before


def test_what_was_trained_elsewhere_is_not_left_out(tmp_path):
    kept_file(tmp_path, "one")
    reasons = {"AdamW": "not installed", "signals": "no data", "NAdamW": "not installed"}
    assert results.gather(STUDY, tmp_path, True, reasons)["left_out"] == {"NAdamW": "not installed"}


def test_files_of_other_tasks_and_machines_are_not_mixed(tmp_path):
    folder = tmp_path / "trainings"
    folder.mkdir()
    old = kept_file(folder, "old", num_steps=7)  # of a task as it was once
    with pytest.raises(UsageError, match="no training"):
        results.gather(STUDY, folder, True, {})
    kept_file(folder, "new")
    found = results.gather(STUDY, folder, True, {})
    assert (len(found["trials"]), old["job"]["num_steps"]) == (2, 7)
    kept_file(folder, "other", machine="another machine")
    with pytest.raises(UsageError, match=r"another machine.*here"):
        results.gather(STUDY, folder, True, {})


def kept_file(folder, name, num_steps=8, machine="here"):
    """A training's file; only what identifies it is true."""
    task = TASKS["signals"]
    scale = study.tasks.scale_of(task, True)
    versions = ("3", "2", "0")
    job = trainings.Job(task.name, "AdamW", 0.1, 1000, num_steps, scale, "cpu", versions)
    training = {**ended(1.0), "machine": machine, "seconds": 1.0}
    trainings._write(job, training, folder)
    (folder / f"{job.slug}.json").rename(folder / f"{name}.json")
    return json.loads((folder / f"{name}.json").read_text())


# What cannot be.


def miss_all_packages(monkeypatch):
    for module in (study, registry):
        monkeypatch.setattr(module, "why_missing", lambda package, *_: package and f"no {package}")


def test_missing_package_leaves_its_entries_out_by_name(monkeypatch):
    assert why_missing(None) is None
    assert why_missing("torch") is None
    assert why_missing("no_such_package") == "no_such_package is not installed"
    miss_all_packages(monkeypatch)
    everyone = entrants(*STUDIED).values()
    assert study.left_out([TASKS["gpt"], TASKS["digits"]], everyone) == {
        "digits": "no sklearn",
        "AdamWScheduleFree": "no schedulefree",
    }


def test_an_entrant_that_diverges_is_a_row_with_the_reason(tmp_path, monkeypatch):
    crash = registry.Entrant("Crash", "math:nothing", {}, ("core",))
    monkeypatch.setattr(registry, "ENTRANTS", [entrants(*STUDIED)["AdamW"], crash])
    monkeypatch.setattr(trainings, "_train_missing", in_this_process)
    monkeypatch.setattr(search, "SEARCH_SEEDS", (1000,))
    arguments = ["study", "--out", str(tmp_path), *ARGUMENTS, "--entrants", "core"]
    assert main(arguments) == 0
    assert "AttributeError" in (tmp_path / "study.md").read_text()


def in_this_process(jobs, folder, num_workers, how):
    for job in jobs:
        yield job, kept(job, folder, how)


def test_study_refuses_what_it_cannot_do(capsys, monkeypatch, tmp_path):
    out = ("--out", str(tmp_path))
    assert "--tasks" in refusal(capsys, "study", "--tasks", "nothing")
    assert "warp" in refusal(capsys, "study", "--device", "warp")
    assert "--seeds" in refusal(capsys, "study", "--seeds", "0")
    text = refusal(capsys, "study", *out, "--entrants", "core", "Nobody")
    assert "--entrants must name some of" in text and "got Nobody" in text
    text = refusal(capsys, "study", *out, "--collect")
    assert "must hold trainings of one machine and version, got no training" in text
    miss_all_packages(monkeypatch)
    text = refusal(capsys, "study", "--tasks", "digits", *out)
    assert "--tasks must name one that can run here" in text
    assert "no sklearn" in text


def test_workers_train_the_same_way_every_time():
    trainings._prepare_worker()
    try:
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")
