"""Other trainings with Lightning: several optimizers, compiled, tuned, in unusual modes."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from helpers import assert_same_training
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateFinder
from lightning_runs import (
    EPOCH,
    Batches,
    ByHand,
    Module,
    data,
    fit,
    loss_at,
    quiet,
    trainer,
    validation,
)
from models import equal, held, network, optimizer
from torch import nn

import wpadamw
from wpadamw.integrations.lightning import WeightPredictionCallback

pytestmark = quiet


class Gan(pl.LightningModule):
    """Two optimizers; while one of them trains, the parameters of the other may be frozen."""

    def __init__(self, toggles=False, **options):
        super().__init__()
        self.automatic_optimization = False
        self.toggles, self.options = toggles, options
        self.generator, self.critic = network(seed=1), nn.Linear(2, 1)
        nn.init.constant_(self.critic.weight, 0.3)
        nn.init.constant_(self.critic.bias, 0.1)

    def loss(self, batch, sign):
        made = self.generator(batch[0])
        return sign * self.critic(made).mean() + (made - batch[1]).square().mean()

    def training_step(self, batch, batch_idx):
        for opt, sign in zip(self.optimizers(), (1, -1), strict=True):
            if self.toggles:
                self.toggle_optimizer(opt)
            opt.zero_grad()
            self.manual_backward(self.loss(batch, sign))
            opt.step()
            if self.toggles:
                self.untoggle_optimizer(opt)

    def validation_step(self, batch, batch_idx):
        self.loss(batch, 1)

    def configure_optimizers(self):
        critics = self.critic.parameters()
        return [
            optimizer(self.generator, **self.options),
            wpadamw.WPAdamW(critics, lr=1e-2, **self.options),
        ]


@pytest.mark.parametrize("toggles", [False, True], ids=["plain", "toggled"])
def test_two_optimizers_train_as_by_hand(toggles, tmp_path):
    _, own, _ = fit(tmp_path, module=Gan(toggles), val_check_interval=2)
    expected = Gan(toggles)
    opts = expected.configure_optimizers()
    for k in range(2 * EPOCH):
        for opt, sign in zip(opts, (1, -1), strict=True):
            for each, net in zip(opts, (expected.generator, expected.critic), strict=True):
                net.requires_grad_(each is opt or not toggles)
                each.eval()
                each.train()
            opt.zero_grad()
            expected.loss(data(k % EPOCH), sign).backward()
            opt.step()
    for opt, other in zip(own.optimizers, opts, strict=True):
        other.eval()
        assert_same_training(opt, other)


def test_networks_that_are_frozen_in_turns_predict(tmp_path):
    module, _, _ = fit(tmp_path, module=Gan(toggles=True))
    plain, _, _ = fit(tmp_path, module=Gan(toggles=True, prediction_steps=0.0))
    assert not equal(held(module), held(plain))


def compile_net(module):
    module.net = torch.compile(module.net, backend="eager", fullgraph=True)
    return module


def compile_net_in_place(module):
    module.net.compile(backend="eager")
    return module


def compile_module(module):
    return torch.compile(module, backend="eager")


class CompilesItself(Module):
    def configure_model(self):
        if not isinstance(self.net, torch._dynamo.OptimizedModule):
            compile_net(self)


@pytest.mark.parametrize(
    "prepare", [compile_net, compile_net_in_place, compile_module, lambda _: CompilesItself()]
)
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_modules_train_the_same(prepare, tmp_path):
    module = Module()
    own = trainer(tmp_path, WeightPredictionCallback(), val_check_interval=2)
    own.fit(prepared := prepare(module), Batches(), validation())
    expected = ByHand(2 * EPOCH)
    assert_same_training(own.optimizers[0], expected.opt)
    assert equal(prepared.evaluated, expected.losses([0, 2, 4, 6, 8]))


class StaysInTraining(Module):
    def on_validation_model_eval(self):
        pass


class DropsOut(Module):
    """As for Monte Carlo dropout."""

    def validation_step(self, batch, batch_idx):
        self.train()
        super().validation_step(batch, batch_idx)


class Reads(StaysInTraining):
    """Reads its parameters in hooks, as what logs their norms does."""

    def __init__(self):
        super().__init__()
        self.read = []

    def note(self):
        self.read.append((self.trainer.global_step, held(self)))

    on_train_epoch_end = on_validation_start = on_validation_end = on_fit_end = note


@pytest.mark.parametrize("limit", [0, 1], ids=["no-validation", "validation"])
def test_hooks_of_epochs_and_validation_read_true_weights(limit, tmp_path):
    options = {"val_check_interval": 2, "limit_val_batches": limit}
    module, _, _ = fit(tmp_path, module=Reads(), **options)
    weights = ByHand(2 * EPOCH).weights
    assert equal(module.read, [(step, weights[step]) for step, _ in module.read])
    assert len(module.read) == 3 + 2 * 5 * limit


@pytest.mark.parametrize("kind", [StaysInTraining, DropsOut])
def test_validation_in_training_mode_sees_true_weights(kind, tmp_path):
    module, _, opt = fit(tmp_path, module=kind(), val_check_interval=2)
    expected = ByHand(2 * EPOCH)
    assert_same_training(opt, expected.opt)
    assert equal(module.evaluated, expected.losses([0, 2, 4, 6, 8]))


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
def test_training_in_evaluation_mode_is_loud(tmp_path):
    with pytest.warns(UserWarning, match="training without prediction"):
        fit(tmp_path, module=Module().eval())


def test_optimizers_without_prediction_are_left_alone(tmp_path, monkeypatch):
    make = lambda module: torch.optim.AdamW(module.parameters())  # noqa: E731
    monkeypatch.setattr(Module, "configure_optimizers", make)
    _, _, opt = fit(tmp_path)
    assert type(opt) is torch.optim.AdamW


class Tuned(Module):
    lr = 1e-3

    def configure_optimizers(self):
        return wpadamw.WPAdamW(self.parameters(), lr=self.lr)


def test_learning_rate_finder_leaves_no_trace(tmp_path):
    finder = LearningRateFinder(num_training_steps=8 * EPOCH, early_stop_threshold=None)
    module, _, opt = fit(tmp_path, finder, module=Tuned(), max_epochs=10)
    other = Tuned()
    other.lr = module.lr
    _, _, expected = fit(tmp_path, module=other, max_epochs=10)
    assert module.lr != Tuned.lr
    assert_same_training(opt, expected)


class WithBackbone(Module):
    def __init__(self):
        super().__init__()
        self.backbone = self.net[0]

    def configure_optimizers(self):
        return wpadamw.WPAdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def test_groups_that_are_unfrozen_later_are_evaluated_at_true_weights(tmp_path):
    unfreezing = BackboneFinetuning(unfreeze_backbone_at_epoch=1)
    module, _, opt = fit(tmp_path, unfreezing, module=WithBackbone(), max_epochs=3)
    assert len(opt.param_groups) == 2
    weights = [opt.state[param]["weight"] for param in module.net.parameters()]
    assert equal(held(module.net), weights)
    assert equal(module.evaluated[-1], (12, loss_at(weights)))
