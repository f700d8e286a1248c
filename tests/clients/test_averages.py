"""Averages of true weights: by torch's own helpers, and written by hand."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from models import equal, held, optimizer, randn, snapshot
from torch import nn
from torch.optim.swa_utils import (
    SWALR,
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
    update_bn,
)

import wpadamw

DECAY = 0.75


class Recorder(nn.Module):
    """A network with batch norm that notes the weights which its forwards see."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.body = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        self.seen = []

    def forward(self, inputs):
        self.seen.append(held(self))
        return self.body(inputs)


def true(opt, model):
    """Copies of the true weights, as the parameters would hold them."""
    return [opt.state[p]["weight"].to(p.dtype, copy=True) for p in model.parameters()]


def started(steps=0, seed=0, attach=True, **options):
    model = Recorder(seed)
    opt = optimizer(model, **options)
    if attach:
        wpadamw.attach(model, opt)
    for k in range(steps):
        train(model, opt, k)
    return model, opt


def train(model, opt, k):
    """One step; with a prediction that is on from the second one."""
    inputs, targets = randn(8, 3, seed=2 * k), randn(8, 2, seed=2 * k + 1)
    opt.zero_grad()
    (model(inputs) - targets).square().mean().backward()
    if model.training and opt.state:
        assert not equal(model.seen[-1], true(opt, model))
    opt.step()


def evaluate(model):
    """What a forward of an evaluation sees and returns."""
    model.eval()
    with torch.no_grad():
        loss = model(randn(8, 3, seed=77)).square().mean()
    model.train()
    return loss


def lerped(average, weights, decay=DECAY):
    return [a.lerp(w, 1 - decay) for a, w in zip(average, weights, strict=True)]


def outcome(opt):
    """All that a training left, at the predicted weights."""
    opt.predict()
    return snapshot(opt)


def without(steps, **options):
    """The outcome of the same training without averages."""
    return outcome(started(steps, **options)[1])


# The recipes, each with what updates an average of a kind.


def by_context(opt, update):
    def updated(*args):
        with opt.true_weights():
            update(*args)

    return updated


def by_decorator(opt, update):
    return opt.true_weights()(update)


def by_itself(opt, update):
    return update  # AveragedModel is known: an attached model goes to its true weights


RECIPES = pytest.mark.parametrize("recipe", [by_itself, by_context, by_decorator])
FORMS = pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])


# torch's AveragedModel.

AVERAGES = {
    "swa": ({}, None),
    "swa-multi": ({"multi_avg_fn": get_swa_multi_avg_fn()}, None),
    "ema": ({"avg_fn": get_ema_avg_fn(DECAY)}, DECAY),
    "ema-multi": ({"multi_avg_fn": get_ema_multi_avg_fn(DECAY)}, DECAY),
    "ema-multi-buffers": (
        {"multi_avg_fn": get_ema_multi_avg_fn(DECAY), "use_buffers": True},
        DECAY,
    ),
}


@pytest.mark.parametrize("name", AVERAGES)
@RECIPES
@FORMS
def test_averaged_model_is_that_of_true_weights(name, recipe, in_step):
    options, _ = AVERAGES[name]
    model, opt = started(2, predict_in_step=in_step)
    averaged = AveragedModel(model, **options)
    reference = AveragedModel(Recorder(), **options)  # fed with a model that holds true weights
    source = Recorder()
    update = recipe(opt, averaged.update_parameters)
    for k in range(2, 7):
        train(model, opt, k)
        update(model)
        for param, weight in zip(source.parameters(), true(opt, model), strict=True):
            param.data = weight
        for buffer, value in zip(source.buffers(), model.buffers(), strict=True):
            buffer.copy_(value)
        reference.update_parameters(source)
    assert equal(held(averaged), held(reference))
    assert equal(list(averaged.buffers()), list(reference.buffers()))
    assert equal(outcome(opt), without(7, predict_in_step=in_step))
    assert not any("wpadamw" in type(module).__module__ for module in averaged.modules())


def test_literal_form_needs_no_recipe():
    model, opt = started(2, predict_in_step=False)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    expected = None
    for k in range(2, 6):
        train(model, opt, k)
        averaged.update_parameters(model)
        weights = true(opt, model)
        expected = weights if expected is None else lerped(expected, weights)
    assert equal(held(averaged), expected)
    assert equal(outcome(opt), without(6, predict_in_step=False))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_averaged_model_is_evaluated_saved_and_loaded(mode):
    model, opt = started(2)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    averaged.update_parameters = opt.true_weights()(averaged.update_parameters)
    for k in range(2, 5):
        train(model, opt, k)
        averaged.update_parameters(model)
    before = held(averaged)
    getattr(model, mode)()
    evaluate(averaged)
    assert equal(averaged.module.seen[-1], before)
    file = io.BytesIO()
    torch.save(averaged.state_dict(), file)
    file.seek(0)
    other = AveragedModel(Recorder(seed=1))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert equal(held(other), before)
    model.train()
    train(model, opt, 5)
    assert equal(outcome(opt), without(6))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, AveragedModel])
def test_copies_of_the_model_taken_in_training_hold_true_weights_and_are_plain(duplicate):
    model, opt = started(3)
    assert opt.weights_are == "predicted"
    twin = duplicate(model)
    assert equal(held(twin), true(opt, model))
    opt.predict()
    twin.eval()
    twin(randn(8, 3))
    twin.state_dict()
    assert opt.weights_are == "predicted"
    assert equal(outcome(opt), without(3))


def batches():
    return [randn(8, 3, seed=100 + i) for i in range(3)]


def test_update_bn_of_an_average_leaves_the_training_alone():
    model, opt = started(2)
    averaged = AveragedModel(model)
    for k in range(2, 5):
        train(model, opt, k)
        with opt.true_weights():
            averaged.update_parameters(model)
    twin = copy.deepcopy(averaged)
    before = held(averaged)
    update_bn(batches(), averaged)
    opt.eval()  # the reference knows of no optimizer
    update_bn(batches(), twin)
    opt.train()
    assert equal(held(averaged), before)
    assert equal(list(averaged.buffers()), list(twin.buffers()))
    assert equal(outcome(opt), without(5))


def test_update_bn_of_the_model_sees_true_weights_inside_the_context():
    model, opt = started(3)
    weights = true(opt, model)
    with opt.true_weights():
        update_bn(batches(), model)
    assert all(equal(seen, weights) for seen in model.seen[-3:])
    plain = Recorder()
    for param, weight in zip(plain.parameters(), weights, strict=True):
        param.data = weight
    update_bn(batches(), plain)
    statistics = dict(plain.named_buffers())
    for name, buffer in model.named_buffers():
        assert equal(buffer, statistics[name])
    train(model, opt, 3)
    assert model.training
    assert equal(outcome(opt), without(4))


def test_swa_lr_moves_the_options_of_the_training_alone():
    runs = []
    for averages in (True, False):
        model, opt = started()
        schedule = SWALR(opt, swa_lr=[0.05, 0.01], anneal_epochs=3, anneal_strategy="linear")
        averaged = AveragedModel(model)
        for k in range(6):
            train(model, opt, k)
            if averages and k > 1:
                with opt.true_weights():
                    averaged.update_parameters(model)
            schedule.step()
        runs.append(snapshot(opt))
    assert [group["lr"] for group in opt.param_groups] == [0.05, 0.01]
    assert equal(*runs)


def test_training_with_swa_resumes_bit_for_bit(tmp_path):
    def parts():
        model, opt = started()
        averaged = AveragedModel(model)
        return {"model": model, "opt": opt, "swa": averaged, "lr": SWALR(opt, 0.05)}

    def run(parts, steps):
        for k in steps:
            train(parts["model"], parts["opt"], k)
            with parts["opt"].true_weights():
                parts["swa"].update_parameters(parts["model"])
            parts["lr"].step()

    through = parts()
    run(through, range(7))
    first = parts()
    run(first, range(4))
    torch.save({name: part.state_dict() for name, part in first.items()}, tmp_path / "all.pt")
    resumed = parts()
    for name, state in torch.load(tmp_path / "all.pt", weights_only=True).items():
        resumed[name].load_state_dict(state)
    run(resumed, range(4, 7))
    assert equal(snapshot(resumed["opt"]), snapshot(through["opt"]))
    assert equal(resumed["swa"].state_dict(), through["swa"].state_dict())


# Averages that are written by hand.


def test_hand_written_average_of_the_whole_loop():
    model, opt = started()
    average, expected = held(model), held(model)

    @opt.true_weights()
    def update():
        for e, p in zip(average, model.parameters(), strict=True):
            e.lerp_(p.detach(), 1 - DECAY)

    for k in range(6):
        train(model, opt, k)
        update()
        expected = lerped(expected, true(opt, model))
    assert equal(average, expected)
    assert equal(outcome(opt), without(6))


@FORMS
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_average_over_the_weights_that_the_optimizer_keeps_moves_nothing(in_step, mode):
    model, opt = started(predict_in_step=in_step)
    average, expected = held(model), held(model)
    for k in range(6):
        train(model, opt, k)
        if mode == "eval":
            evaluate(model)
        before = held(model)
        for e, p in zip(average, model.parameters(), strict=True):
            e.lerp_(opt.state[p]["weight"], 1 - DECAY)
        assert equal(held(model), before)
        with opt.true_weights():
            expected = lerped(expected, held(model))
    assert equal(average, expected)
    assert equal(outcome(opt), without(6, predict_in_step=in_step))


def test_average_over_state_dicts_needs_no_recipe():
    model, opt = started()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    names = [name for name, _ in model.named_parameters()]
    expected = held(model)
    for k in range(6):
        train(model, opt, k)
        for name, value in model.state_dict().items():
            average[name] = average[name].lerp(value, 1 - DECAY) if value.is_floating_point() else 0
        expected = lerped(expected, true(opt, model))
    assert equal([average[name] for name in names], expected)
    assert equal(outcome(opt), without(6))


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_evaluating_at_the_average_by_swapping_weights_leaves_the_training_alone(mode):
    """Swap in, evaluate in the model's own forwards, swap out: all of it at true weights."""
    model, opt = started(4)
    average = [weight + 1 for weight in held(model)]
    getattr(model, mode)()
    with opt.true_weights():
        stored = held(model)
        for p, e in zip(model.parameters(), average, strict=True):
            p.data.copy_(e)
        with torch.no_grad():
            model(randn(8, 3))
        saved = {name: value.clone() for name, value in model.state_dict().items()}
        for p, w in zip(model.parameters(), stored, strict=True):
            p.data.copy_(w)
    assert equal(model.seen[-1], average)
    assert equal([saved[name] for name, _ in model.named_parameters()], average)
    model.train()
    train(model, opt, 4)
    assert equal(outcome(opt), without(5))


def test_error_in_the_update_brings_the_predictions_back():
    _, opt = started(3)
    before = snapshot(opt)

    @opt.true_weights()
    def update():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update()
    assert equal(snapshot(opt), before)


@RECIPES
def test_average_of_bfloat16_parameters_is_that_of_the_rounded_masters(recipe):
    model = Recorder().to(torch.bfloat16)
    opt = optimizer(model)
    wpadamw.attach(model, opt)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    update, expected = recipe(opt, averaged.update_parameters), None
    for k in range(5):
        opt.zero_grad()
        model(randn(8, 3, seed=k, dtype=torch.bfloat16)).square().mean().backward()
        opt.step()
        update(model)
        weights = true(opt, model)
        expected = weights if expected is None else lerped(expected, weights)
    assert not equal(model.seen[-1], held(model))
    assert equal(held(averaged), expected)
