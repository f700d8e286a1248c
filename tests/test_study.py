"""The study: what one training records, how learning rates are found, how a study goes on."""

from __future__ import annotations

import dataclasses
import json
import math
import platform

import pytest
import torch
from test_cli import refusal
from torch.nn import Parameter

from wpadamw import WPAdamW
from wpadamw.bench import registry
from wpadamw.bench.registry import Entrant, entrants, why_missing
from wpadamw.bench.study import run as study
from wpadamw.bench.study import tasks, trainings
from wpadamw.bench.study.foresight import PredictionProbe, foresight, norm_ratio
from wpadamw.bench.study.trainings import Job, evaluated_steps, train, train_all
from wpadamw.cli import main

REFERENCE, *OTHERS = ENTRANTS = [*entrants("study")]


def job(task="signals", optimizer="WPAdamW, s = 1", lr=0.01, seed=0, num_steps=6):
    return Job(task, optimizer, lr, seed, num_steps, tasks.QUICK, "cpu", (torch.__version__,))


# Tasks.


@pytest.mark.parametrize("name", tasks.TASKS)
def test_task_has_fixed_validation_and_batches_that_follow_their_seed(name):
    first, second = (tasks.TASKS[name].pose(tasks.QUICK) for _ in range(2))
    for problem in (first, second):
        torch.manual_seed(0)
        inputs, targets = problem.draw_batch(torch.Generator().manual_seed(1))
        assert problem.build_model()(inputs).shape[:-1] == targets.shape
    batches = [problem.draw_batch(torch.Generator().manual_seed(1)) for problem in (first, second)]
    pairs = zip([*first.validation, batches[0]], [*second.validation, batches[1]], strict=True)
    for ours, theirs in pairs:
        assert all(map(torch.equal, ours, theirs))


def test_signals_hold_the_bump_of_their_class():
    bumps = torch.zeros(tasks.NUM_CLASSES, tasks.BUMP_LENGTH)
    bumps[3, 0] = 100.0
    signals, labels = tasks.draw_signals(bumps, 200, torch.Generator().manual_seed(0))
    assert signals.shape == (200, tasks.SIGNAL_LENGTH)
    high = signals.abs().amax(dim=1) > 10
    assert torch.equal(high, labels == 3)
    assert 0 < high.sum() < 60
    peaks = signals[high].abs().argmax(dim=1)
    assert peaks.unique().numel() > 5


def test_language_model_has_about_ten_million_parameters_on_a_gpu():
    scale = dataclasses.replace(tasks.GPU, context=8)
    model = tasks.GPT(scale.context, scale.layers, scale.width, scale.heads)
    assert 10e6 < sum(p.numel() for p in model.parameters()) < 12e6


# One training.


def test_foresight_compares_a_predicted_with_a_real_move():
    seen = foresight(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 4.0]), prediction_steps=2.0)
    assert seen.error == pytest.approx(math.sqrt(1 + 16) / 5)
    assert seen.best_steps == pytest.approx(2 * 6 / 4)
    assert foresight(torch.zeros(2), torch.ones(2), 1.0) is None
    assert foresight(torch.ones(2), torch.zeros(2), 1.0) is None


def test_norm_ratio_is_1_for_equal_elements_and_small_for_a_spike():
    assert norm_ratio([torch.full((3, 4), -2.0), torch.full((4,), 2.0)]) == pytest.approx(1.0)
    assert norm_ratio([torch.eye(1, 100)]) == pytest.approx(0.1)


@pytest.mark.parametrize("is_literal", [False, True], ids=["resident", "literal"])
def test_probe_leaves_a_training_as_it_was(is_literal):
    def optimizer(param):
        return WPAdamW([param], lr=0.1, predict_in_step=not is_literal)

    watched, alone = (Parameter(torch.linspace(-1, 1, 70)) for _ in range(2))
    ours, theirs = optimizer(watched), optimizer(alone)
    for step in range(4):
        probe = PredictionProbe(ours)
        theirs.train()
        for param, opt in ((watched, ours), (alone, theirs)):
            param.grad = (param.detach() - 0.3) * (step + 1)
            opt.step()
        seen = probe.after_step()
        assert (seen == [None]) == (step == 0)
        ours.train(), theirs.train()
        assert torch.equal(watched, alone)


def test_probe_measures_against_the_weights_that_the_step_produced():
    param = Parameter(torch.ones(1))
    optimizer = WPAdamW([param], lr=0.1, weight_decay=0.0)
    for grad in (1.0, 1.0):
        param.grad = torch.full((1,), grad)
        optimizer.step()
    probe = PredictionProbe(optimizer)
    param.grad = torch.ones(1)
    optimizer.step()
    # A constant gradient: every step is as long as the one before, and s = 1 foresees it.
    (seen,) = probe.after_step()
    assert seen.error == pytest.approx(0, abs=1e-5)
    assert seen.best_steps == pytest.approx(1, abs=1e-5)


def test_losses_are_taken_evenly_at_the_end_and_never_after_the_first_step():
    assert evaluated_steps(400) == list(range(10, 401, 10))
    assert evaluated_steps(5) == [2, 3, 4, 5]


@pytest.mark.parametrize("optimizer", ENTRANTS)
def test_training_records_all_lists_at_the_evaluated_steps(optimizer):
    training = train(job(optimizer=optimizer))
    assert training["why"] is None
    assert training["evaluated_steps"] == [2, 3, 4, 5, 6]
    lists = [training["validation_losses"], training["norm_ratios"]]
    has_prediction = optimizer.startswith("WP")
    assert set(training["foresight"]) == ({"matrices", "vectors"} if has_prediction else set())
    for group in training["foresight"].values():
        lists += group.values()
    assert all(len(values) == 5 and all(map(math.isfinite, values)) for values in lists)


def test_training_is_repeatable_and_follows_its_seed():
    first, second, other = (train(job(seed=seed)) for seed in (1, 1, 2))
    assert first["validation_losses"] == second["validation_losses"] != other["validation_losses"]


def test_all_optimizers_start_from_the_same_weights_and_batches():
    # With a learning rate of 0 nothing but weights and batches can differ.
    for optimizer in (REFERENCE, "WPAdamW, s = 1", "NAdamW"):
        training = train(job(optimizer=optimizer, lr=0.0))
        assert training["validation_losses"] == train(job(lr=0.0))["validation_losses"]


def test_training_that_diverges_says_when():
    training = train(job(optimizer=REFERENCE, lr=1e30))
    assert training["why"].startswith("diverged before step ")
    assert len(training["evaluated_steps"]) == len(training["norm_ratios"]) < 5


def test_optimizer_that_raises_leaves_its_reason(monkeypatch):
    def crash(groups, **options):
        raise RuntimeError("no luck\nat all")

    monkeypatch.setattr(math, "crash", crash, raising=False)
    monkeypatch.setattr(registry, "ENTRANTS", [Entrant("Crash", "math:crash", {}, ("study",))])
    assert train(job(optimizer="Crash"))["why"] == "RuntimeError: no luck"


# Learning rates.


def found(**losses):
    """A search of two seeds: lr_2=0.5 is a loss of 0.5 at the rate 2, None a failure."""
    return {
        float(name.removeprefix("lr_")): [ended(8.0), ended(loss)] for name, loss in losses.items()
    }


def ended(loss):
    why = None if loss is not None else "diverged"
    return {"why": why, "validation_losses": [9.0, loss], "seconds": 1.0}


def test_search_widens_until_the_best_lies_inside():
    assert study.next_rates(found(lr_1=3.0, lr_2=2.0, lr_4=1.0)) == [8.0]
    assert study.next_rates(found(lr_1=1.0, lr_2=2.0, lr_4=3.0)) == [0.5]
    assert study.next_rates(found(lr_1=2.0, lr_2=1.0, lr_4=3.0)) == []
    assert study.next_rates(found(lr_1=2.0, lr_2=1.0, lr_4=None)) == []
    assert study.next_rates(found(lr_1=None, lr_2=None)) == []


def test_best_rate_is_that_of_the_smallest_final_loss():
    assert study.best_rate(found(lr_4=1.0, lr_1=2.0, lr_2=1.0)) == 2.0
    assert study.best_rate(found(lr_1=None, lr_2=7.0)) == 2.0


def test_search_keeps_failures_as_none():
    entry = study.search_as_json("gpt", REFERENCE, found(lr_2=None, lr_1=3.0))
    assert (entry["lr"], entry["losses"], entry["seconds"]) == ([1.0, 2.0], [5.5, None], 4.0)


# A whole study.


@pytest.fixture(scope="module")
def quick_study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    arguments = ("--quick", "--tasks", "signals", "--seeds", "2", "--workers", "2")
    assert main(["study", "--out", str(out), *arguments]) == 0
    return out


def results_of(out):
    return json.loads((out / "study.json").read_text())


def test_study_trains_every_optimizer_with_every_seed_at_its_best_rate(quick_study):
    results = results_of(quick_study)
    assert results["quick"] is True
    assert (results["python"], results["seeds"]) == (platform.python_version(), 2)
    runs = {(run["optimizer"], run["seed"]): run for run in results["runs"]}
    assert set(runs) == {(name, seed) for name in ENTRANTS for seed in (0, 1)}
    for search in results["searches"]:
        best = search["lr"][search["losses"].index(min(search["losses"]))]
        assert best == runs[search["optimizer"], 0]["lr"] == runs[search["optimizer"], 1]["lr"]


def test_study_writes_report_and_plots(quick_study):
    text = (quick_study / "study.md").read_text()
    for name in ENTRANTS:
        assert f"| {name} |" in text
    for name in ("study-losses.png", "study-foresight.png", "study-norms.png"):
        assert (quick_study / name).read_bytes().startswith(b"\x89PNG")


def test_study_goes_on_where_it_was_interrupted(quick_study, monkeypatch):
    done = sorted((quick_study / "trainings").iterdir())
    done[0].unlink()
    (quick_study / "trainings" / "half.partial").write_text("{")
    made = []
    monkeypatch.setattr(
        trainings,
        "_train_missing",
        lambda jobs, *_: [(one, made.append(one) or train(one)) for one in jobs],
    )
    before = results_of(quick_study)
    arguments = ("--quick", "--tasks", "signals", "--seeds", "2")
    assert main(["study", "--out", str(quick_study), *arguments]) == 0
    assert [f"{one.slug}.json" for one in made] == [done[0].name]

    def losses(results):
        return [run["validation_losses"] for run in results["runs"]]

    assert losses(results_of(quick_study)) == losses(before)


def test_training_is_made_anew_when_what_it_depends_on_has_changed(tmp_path):
    old = job(num_steps=3)
    assert len(list(train_all([old], tmp_path, 1))) == 1
    assert trainings._read(old, tmp_path) is not None
    assert trainings._read(dataclasses.replace(old, versions=("1",)), tmp_path) is None
    assert trainings._read(dataclasses.replace(old, scale=tasks.CPU), tmp_path) is None


def miss_all_packages(monkeypatch):
    for module in (study, registry):
        monkeypatch.setattr(module, "why_missing", lambda package, *_: package and f"no {package}")


def test_missing_package_leaves_its_entries_out_by_name(monkeypatch):
    assert why_missing(None) is None
    assert why_missing("torch") is None
    assert why_missing("no_such_package") == "no_such_package is not installed"
    miss_all_packages(monkeypatch)
    assert study._left_out(["gpt", "digits"]) == {
        "digits": "no sklearn",
        "AdamWScheduleFree": "no schedulefree",
        "AdaBelief (pytorch_optimizer)": "no pytorch_optimizer",
    }


def test_study_refuses_what_it_cannot_do(capsys, monkeypatch, tmp_path):
    assert "--tasks" in refusal(capsys, "study", "--tasks", "nothing")
    assert "warp" in refusal(capsys, "study", "--device", "warp")
    assert "--seeds" in refusal(capsys, "study", "--seeds", "0")
    miss_all_packages(monkeypatch)
    text = refusal(capsys, "study", "--tasks", "digits", "--out", str(tmp_path))
    assert "--tasks must name one that can run here" in text
    assert "no sklearn" in text
