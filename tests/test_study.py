"""The study: what one training records, how learning rates are found, how a study goes on."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import Parameter

from wpadamw import WPAdamW
from wpadamw.bench import registry
from wpadamw.bench.registry import STUDIED, Entrant, entrants
from wpadamw.bench.study import tasks, trainings
from wpadamw.bench.study.average import AVERAGE_WEIGHT
from wpadamw.bench.study.foresight import PredictionProbe, foresight, norm_ratio
from wpadamw.bench.study.lookahead import RULES, Lookahead, Moment
from wpadamw.bench.study.trainings import Job, evaluated_steps, train, train_all

REFERENCE, *OTHERS = ENTRANTS = [*entrants(*STUDIED)]


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


def test_the_large_language_model_has_about_ten_million_parameters():
    scale = dataclasses.replace(tasks.TASKS["gpt-10m"].scale, context=8)
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
    entrant = entrants(*STUDIED)[optimizer]
    predicts = entrant.predicts and not optimizer.endswith("s = 0")
    assert set(training["foresight"]) == ({"matrices", "vectors"} if predicts else set())
    assert len(training["averaged_losses"]) == 5 * entrant.is_averaged
    for group in training["foresight"].values():
        lists += group.values()
    assert all(len(values) == 5 for values in lists)
    # A group that is not predicted has nothing to be compared.
    assert all(math.isfinite(value) for values in lists for value in values if value is not None)


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
    monkeypatch.setattr(registry, "ENTRANTS", [Entrant("Crash", "math:crash", {}, ("core",))])
    assert train(job(optimizer="Crash"))["why"] == "RuntimeError: no luck"


# An average of the weights.


def test_the_average_is_that_of_the_true_weights(monkeypatch):
    seen = {}

    class Watched(trainings.WeightAverage):
        def update(self):
            super().update()
            param = next(iter(self.trainee.model.parameters()))
            seen.setdefault("true", []).append(param.detach().clone())
            seen["average"] = next(iter(self.model.module.parameters())).detach().clone()

    monkeypatch.setattr(trainings, "WeightAverage", Watched)
    watched = train(job(lr=0.05))
    first, *others = seen["true"]
    average = first.clone()
    for weights in others:
        average.lerp_(weights, AVERAGE_WEIGHT)
    torch.testing.assert_close(seen["average"], average)
    monkeypatch.setattr(trainings, "WeightAverage", None)
    alone = entrants(*STUDIED)["WPAdamW, s = 1"]._replace(is_averaged=False)
    monkeypatch.setattr(registry, "ENTRANTS", [alone])
    assert train(job(lr=0.05))["validation_losses"] == watched["validation_losses"]


# Rules for the number of steps to predict.


def test_rules_follow_what_their_names_say():
    start, middle, end = (Moment(step, 1000, (0.8, 0.5)) for step in (1, 150, 1000))
    assert RULES["2, matrices only"](middle) == (2.0, 0.0)
    assert [RULES["2, warmed up"](now)[0] for now in (start, middle, end)] == pytest.approx(
        [2 / 300, 1.0, 2.0]
    )
    assert RULES["2 x schedule"](start)[1] == pytest.approx(0.02)
    assert RULES["2 x schedule"](end)[1] == pytest.approx(0.2, rel=1e-3)
    assert RULES["best"](end) == (0.8, 0.5)
    assert RULES["2 x best"](end) == (1.6, 1.0)


def test_a_rule_sets_the_groups_and_learns_from_what_was_foreseen():
    params = [{"params": [Parameter(torch.ones(1))]} for _ in range(2)]
    optimizer = WPAdamW(params)
    follow = Lookahead("best", optimizer, 100)
    follow.learn([foresight(torch.ones(1), torch.ones(1), 3.0), None])
    follow.set(1)
    steps = [group["prediction_steps"] for group in optimizer.param_groups]
    assert steps == pytest.approx([1 + 0.2 * 2, 1.0])
    Lookahead(None, optimizer, 100).set(2)
    assert steps == [group["prediction_steps"] for group in optimizer.param_groups]


def test_trainings_with_a_rule_say_how_far_they_predicted():
    seen = train(job(optimizer="s = 2, matrices only"))["foresight"]
    assert seen["matrices"]["steps"] == [2.0] * 5
    assert seen["vectors"]["best_steps"] == [None] * 5


# Files.


def test_training_is_made_anew_when_what_it_depends_on_has_changed(tmp_path):
    old = job(num_steps=3)
    assert len(list(train_all([old], tmp_path, 1))) == 1
    assert trainings.read(old, tmp_path) is not None
    assert trainings.read(dataclasses.replace(old, versions=("1",)), tmp_path) is None
    assert trainings.read(dataclasses.replace(old, scale=tasks.SMALL), tmp_path) is None


def test_equal_jobs_are_trained_once(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        trainings,
        "_train_missing",
        lambda jobs, *_: [(one, made.append(one) or {}) for one in jobs],
    )
    assert len(list(train_all([job(), job(), job(seed=1)], tmp_path, 1))) == 2 == len(made)
