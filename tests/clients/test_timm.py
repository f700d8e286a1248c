"""timm: its registry of optimizers, schedules, averages and checkpoints."""

from __future__ import annotations

import copy
import pickle

import pytest
import timm
import torch
from models import equal, held, randn, snapshot
from test_averages import outcome, true
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV2, ModelEmaV3, NativeScaler

import wpadamw
from wpadamw import optimizers
from wpadamw.integrations.timm import register

register()

SEEN = {}


def note(model, inputs):
    SEEN.setdefault(id(model), []).append(held(model))


def network(seed=0, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model("test_resnet", num_classes=3)  # with batch norm
    model.register_forward_pre_hook(note)
    return model.to(dtype)


class Run:
    """A training as timm's train.py has it."""

    def __init__(self, steps=0, ema=None, dtype=torch.float32, seed=0, saves=None, **options):
        options = {"opt": "wpadamw", "lr": 1e-2, "weight_decay": 0.1, **options}
        self.model = network(seed, dtype)
        self.opt = create_optimizer_v2(self.model, **options)
        wpadamw.attach(self.model, self.opt)
        self.schedule, _ = create_scheduler_v2(
            self.opt, sched="cosine", num_epochs=6, warmup_epochs=2, warmup_lr=1e-3
        )
        self.ema = ema and ema(self.model)
        self.saver = saves and CheckpointSaver(
            self.model, self.opt, model_ema=self.ema, checkpoint_dir=saves, recovery_dir=saves
        )
        self.epoch = 0
        self.train(steps)

    def train(self, steps):
        """One step an epoch, so that the schedule moves."""
        for _ in range(steps):
            self.step()
            if self.ema is not None:
                self.ema.update(self.model, step=self.epoch)
            self.epoch += 1
            self.schedule.step(self.epoch)

    def step(self):
        self.opt.zero_grad()
        self.forward(self.epoch).backward()
        if self.opt.state and self.opt.param_groups[0]["backup"]:
            assert not equal(SEEN[id(self.model)][-1], self.true())
        self.opt.step()

    def forward(self, k):
        dtype = next(self.model.parameters()).dtype
        return self.model(randn(4, 3, 32, 32, seed=k, dtype=dtype)).square().mean()

    def true(self):
        return true(self.opt, self.model)

    def outcome(self):
        return outcome(self.opt)


def evaluate(model):
    model.eval()
    with torch.no_grad():
        model(randn(4, 3, 32, 32, seed=77))
    return SEEN[id(model)][-1]


# The registry.


def test_all_optimizers_have_their_names_and_a_second_call_is_silent(caplog):
    register()
    names = [name.lower() for name in optimizers.__all__]
    assert sorted(timm.optim.list_optimizers("wp*")) == sorted(names)
    assert caplog.records == []
    for class_name in optimizers.__all__:
        opt = create_optimizer_v2(network(), class_name.lower(), lr=0.1, weight_decay=0.1)
        assert type(opt) is getattr(optimizers, class_name)
        group = opt.param_groups[0]
        options = {"momentum": group["momentum"]} if "momentum" in group else {}
        make = timm.optim.get_optimizer_class(class_name.lower())
        assert type(make(group["params"], **options)) is type(opt)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layer_decay": 0.7},
        {"filter_bias_and_bn": False},
        {"betas": (0.8, 0.9), "eps": 1e-6, "momentum": 0.8},
        {"foreach": False},
    ],
    ids=["default", "layer-decay", "no-filter", "moments", "foreach"],
)
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_options_are_those_that_the_original_gets(name, options):
    model, options = network(), {"lr": 0.05, "weight_decay": 0.1, **options}
    theirs = create_optimizer_v2(model, name, **options)
    ours = create_optimizer_v2(model, f"wp{name}", **options)
    for group, original in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in original["params"]]
        for key in original.keys() - {"params", "decoupled_weight_decay"}:
            assert group[key] == original[key], key


def test_options_of_prediction_are_passed_on():
    opt = create_optimizer_v2(network(), "wpadamw", lr=0.1, prediction_steps=2.0, backup=False)
    assert (opt.param_groups[0]["prediction_steps"], opt.param_groups[0]["backup"]) == (2.0, False)


def test_lookahead_is_refused_when_the_optimizer_is_created():
    with pytest.raises(ValueError, match=r"timm's Lookahead .* would average predicted weights"):
        create_optimizer_v2(network(), "lookahead_wpadamw", lr=0.1)
    opt = create_optimizer_v2(network(), "wpadamw", lr=0.1)
    before = snapshot(opt)
    with pytest.raises(ValueError, match="Lookahead"):
        timm.optim.Lookahead(opt)
    assert equal(snapshot(opt), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_of_the_optimizer_know_nothing_of_timm(duplicate):
    opt = Run(2).opt
    twin = duplicate(opt)
    assert type(twin.defaults) is dict
    assert twin.defaults == opt.defaults
    assert equal(snapshot(twin), snapshot(opt))
    twin.defaults.update(other=1)
    opt.defaults.update(other=1)


# Training.


@pytest.mark.parametrize("opt", ["wpadamw", "wpsgd"])
def test_training_sees_predicted_and_evaluation_true_weights(opt):
    run = Run(3, opt=opt)
    assert equal(evaluate(run.model), run.true())
    run.model.train()
    run.train(2)
    assert equal(run.outcome(), Run(5, opt=opt).outcome())


@pytest.mark.parametrize("clip_mode", ["norm", "value", "agc"])
def test_scaler_of_timm_accumulates_and_clips(clip_mode):
    outcomes = []
    for make in (NativeScaler, None):
        run = Run(layer_decay=0.8)
        scaler = make and make(device="cpu")
        for k in range(6):
            needs_update = k % 2 == 1
            SEEN.clear()
            loss = run.forward(k)
            if scaler:
                arguments = {"clip_grad": 0.1, "clip_mode": clip_mode}
                arguments["parameters"] = list(run.model.parameters())
                scaler(loss, run.opt, need_update=needs_update, **arguments)
            else:
                (loss * 65536.0).backward()
                if needs_update:
                    for param in run.model.parameters():
                        param.grad.mul_(1 / 65536.0)
                    parameters = run.model.parameters()
                    timm.utils.dispatch_clip_grad(parameters, 0.1, mode=clip_mode)
                    run.opt.step()
            if needs_update:
                run.opt.zero_grad()
            else:
                evaluate(run.model)
                run.model.train()
        outcomes.append(run.outcome())
    assert equal(*outcomes)


# Averages.


class V2(ModelEmaV2):
    """V2 in a loop that tells it the step."""

    def update(self, model, step=None):
        super().update(model)


def v2(model):
    return V2(model, decay=0.75)


def v3(**options):
    return lambda model: ModelEmaV3(model, decay=0.75, **options)


AVERAGES = {
    "v2": v2,
    "v3": v3(),
    "v3-warmup": v3(use_warmup=True, update_after_step=1),
    "v3-one-by-one": v3(foreach=False, device=torch.device("cpu")),
    "v3-no-buffers": v3(exclude_buffers=True),
    "v3-no-buffers-warmup": v3(exclude_buffers=True, use_warmup=True),
    "v3-no-buffers-one-by-one": v3(exclude_buffers=True, foreach=False),
}


def check_average(run, make):
    """Trains on, beside an average of a model that has never held anything but true weights."""
    source = network(dtype=next(run.model.parameters()).dtype)
    reference = make(source)
    for _ in range(5):
        run.train(1)
        for param, weight in zip(source.parameters(), run.true(), strict=True):
            param.data = weight.to(param.dtype)
        for buffer, value in zip(source.buffers(), run.model.buffers(), strict=True):
            buffer.copy_(value)
        reference.update(source, step=run.epoch - 1)
    assert equal(held(run.ema), held(reference))
    assert equal(list(run.ema.buffers()), list(reference.buffers()))


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_are_those_of_true_weights(name):
    run = Run(ema=AVERAGES[name])
    check_average(run, AVERAGES[name])
    assert equal(run.outcome(), Run(5).outcome())


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float32}, {"foreach": False}])
@pytest.mark.parametrize("exclude_buffers", [False, True])
def test_averages_of_bfloat16_models_round_true_weights(options, exclude_buffers):
    make = v3(exclude_buffers=exclude_buffers, **options)
    run = Run(dtype=torch.bfloat16)
    run.ema = make(run.model)
    check_average(run, make)


@pytest.mark.parametrize("make", [v2, v3(), v3(exclude_buffers=True), v3(dtype=torch.float64)])
def test_averages_made_in_training_begin_with_true_weights_and_are_plain(make):
    run = Run(3)
    assert run.opt.weights_are == "predicted"
    ema = make(run.model)
    dtype = next(ema.parameters()).dtype
    assert equal(held(ema), [weight.to(dtype) for weight in run.true()])
    run.opt.predict()
    ema.train()
    ema(randn(4, 3, 32, 32, dtype=dtype))
    ema.eval()
    ema.state_dict()
    assert run.opt.weights_are == "predicted"
    assert type(ema.module) is type(network())


def test_lookahead_around_an_optimizer_that_timm_did_not_create_is_refused_at_the_first_step():
    model = network()
    opt = timm.optim.Lookahead(wpadamw.WPAdamW(model.parameters(), lr=0.1))
    model(randn(4, 3, 32, 32)).square().mean().backward()
    before = held(model)
    with pytest.raises(RuntimeError, match="Lookahead keeps weights of its own"):
        opt.step()
    assert equal(held(model), before)


def test_averages_are_set_to_true_weights():
    run = Run(3, ema=v3())
    run.train(1)
    run.opt.predict()
    run.ema.set(run.model)
    assert equal(held(run.ema), run.true())


def test_average_is_evaluated_in_the_middle_of_the_training():
    run = Run()
    run.ema = v3(exclude_buffers=True)(run.model)
    for _ in range(4):
        run.train(1)
        average = held(run.ema)
        assert equal(evaluate(run.ema.module), average)
        assert equal(evaluate(run.model), run.true())
        run.model.train()
    assert equal(run.outcome(), Run(4).outcome())


# Checkpoints.


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["last", "recovery", "best"])
def test_saved_model_and_average_hold_true_weights(mode, kind, tmp_path):
    run = Run(3, ema=v3(), saves=tmp_path)
    getattr(run.model, mode)()
    weights, average = run.true(), held(run.ema)
    if kind == "recovery":
        run.saver.save_recovery(epoch=2, batch_idx=1)
        path = run.saver.find_recovery()
    else:
        run.saver.save_checkpoint(epoch=2, metric=0.5)
        path = tmp_path / ("last.pth.tar" if kind == "last" else "model_best.pth.tar")
    model = network(seed=1)
    load_checkpoint(model, path, use_ema=False)
    assert equal(held(model), weights)
    load_checkpoint(model, path, use_ema=True)
    assert equal(held(model), average)
    run.model.train()
    run.train(2)
    assert equal(run.outcome(), Run(5).outcome())


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("resumed_steps", [0, 2], ids=["fresh", "trained"])
@pytest.mark.parametrize("name", ["wpadamw", "wpsgd", "wpadabelief"])
def test_resumed_run_ends_with_the_same_bits(mode, resumed_steps, name, tmp_path):
    first = Run(3, saves=tmp_path, opt=name)
    getattr(first.model, mode)()
    first.saver.save_checkpoint(epoch=2)
    resumed = Run(resumed_steps, seed=1, opt=name)
    for _ in range(2):  # resuming twice is resuming once
        resumed.epoch = resume_checkpoint(resumed.model, tmp_path / "last.pth.tar", resumed.opt)
    assert resumed.epoch == 3
    resumed.schedule.step(resumed.epoch)
    resumed.train(3)
    assert equal(resumed.outcome(), Run(6, opt=name).outcome())
    buffers = [list(run.model.buffers()) for run in (resumed, Run(6, opt=name))]
    assert equal(*buffers)


def test_average_resumes_with_the_same_bits(tmp_path):
    make = v3(exclude_buffers=True)

    def started(steps, **options):
        run = Run(**options)
        run.ema = make(run.model)
        if run.saver:
            run.saver.model_ema = run.ema
        run.train(steps)
        return run

    started(3, saves=tmp_path).saver.save_checkpoint(epoch=2)
    resumed = started(0, seed=1)
    path = tmp_path / "last.pth.tar"
    resumed.epoch = resume_checkpoint(resumed.model, path, resumed.opt)
    load_checkpoint(resumed.ema.module, path, use_ema=True)
    resumed.schedule.step(resumed.epoch)
    resumed.train(3)
    assert equal(resumed.ema.state_dict(), started(6).ema.state_dict())


def test_without_a_copy_of_the_true_weights_files_are_of_one_mode(tmp_path):
    """The saver packs the optimizer first, and its mode has to tell what the model file holds."""
    first = Run(3, saves=tmp_path, backup=False)
    first.saver.save_checkpoint(epoch=2)
    weights = held(first.model)
    resumed = Run(seed=1, backup=False)
    resume_checkpoint(resumed.model, tmp_path / "last.pth.tar", resumed.opt)
    assert first.opt.weights_are == resumed.opt.weights_are == "true"
    assert equal(held(resumed.model), weights)
