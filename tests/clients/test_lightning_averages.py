"""Averages of weights in Lightning: made of true weights, evaluated and saved, and nothing more."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import assert_same_training
from lightning.pytorch.callbacks import (
    Callback,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning_runs import (
    EPOCH,
    VALIDATION,
    Batches,
    ByHand,
    Module,
    data,
    fit,
    loss_at,
    loss_of,
    quiet,
    read,
    trainer,
    validation,
)
from models import equal, held, network, optimizer
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_avg_fn

from wpadamw.integrations.lightning import WeightPredictionCallback

pytestmark = quiet

ORDERS = pytest.mark.parametrize("is_first", [True, False], ids=["before", "after"])


def in_order(is_first, average, *others):
    own = WeightPredictionCallback()
    return [own, average, *others] if is_first else [average, own, *others]


def averages_of(weights, dtype=torch.float32, **options):
    """The average before any step, and after each."""
    net, average = network(dtype=dtype), AveragedModel(network(), **options)
    found = [held(net)]
    for each in weights[1:]:
        with torch.no_grad():
            for param, weight in zip(net.parameters(), each, strict=True):
                param.copy_(weight)
        average.update_parameters(net)
        found.append(held(average.module))
    return found


def ema_of(weights, **options):
    return averages_of(weights, avg_fn=get_ema_avg_fn(0.5), **options)


def ema():
    return EMAWeightAveraging(decay=0.5)


def true_weights(module, opt):
    return [opt.state[param]["weight"] for param in module.net.parameters()]


@pytest.mark.parametrize(
    ("make", "expected"), [(ema, ema_of), (WeightAveraging, averages_of)], ids=["ema", "mean"]
)
@ORDERS
def test_average_is_evaluated_and_saved(is_first, make, expected, tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    module = Module()
    own = trainer(tmp_path, *in_order(is_first, make(), saving), val_check_interval=2)
    own.fit(module, Batches(), validation())
    by_hand = ByHand(2 * EPOCH)
    averages = expected(by_hand.weights)
    assert equal(module.evaluated, [(k, loss_at(averages[k])) for k in range(0, 9, 2)])
    for step in range(1, 9):
        file = read(tmp_path / f"step={step}.ckpt")
        assert equal(list(file["state_dict"].values()), averages[step])
        assert equal(list(file["current_model_state"].values()), by_hand.weights[step])
    assert equal(held(module), averages[-1])
    assert equal(own.optimizers[0].state_dict()["state"], by_hand.opt.state_dict()["state"])
    assert equal(held(module), averages[-1])


@pytest.mark.parametrize("steps", [1, 4, 6, 8])
def test_resumed_training_continues_average_and_weights(steps, tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, ema(), saving)
    module, own = Module(), trainer(tmp_path, ema(), WeightPredictionCallback(), max_epochs=3)
    path = tmp_path / f"step={steps}.ckpt"
    own.fit(module, Batches(), validation(), ckpt_path=path, weights_only=True)
    by_hand = ByHand(3 * EPOCH)
    assert equal(own.optimizers[0].state_dict()["state"], by_hand.opt.state_dict()["state"])
    assert equal(held(module), ema_of(by_hand.weights)[-1])


def test_average_remains_after_the_training(tmp_path):
    module, own, _ = fit(tmp_path, ema(), ModelCheckpoint(tmp_path))
    averages = ema_of(ByHand(2 * EPOCH).weights)
    module.evaluated.clear()
    own.test(module, validation(), verbose=False)
    module.train()(data(0)[0])
    own.save_checkpoint(tmp_path / "end.ckpt", weights_only=False)
    assert equal(module.evaluated, [(8, loss_at(averages[-1]))])
    assert equal(held(module), averages[-1])
    own = trainer(tmp_path, WeightPredictionCallback(), ema(), max_epochs=3)
    path = tmp_path / "end.ckpt"
    own.fit(Module(), Batches(), validation(), ckpt_path=path, weights_only=True)
    expected = ByHand(3 * EPOCH).opt.state_dict()["state"]
    assert equal(own.optimizers[0].state_dict()["state"], expected)


def test_average_of_bf16_weights(tmp_path):
    module, _, opt = fit(tmp_path, ema(), precision="bf16-true", limit_val_batches=0)
    by_hand = ByHand(2 * EPOCH, dtype=torch.bfloat16)
    average = ema_of(by_hand.weights, dtype=torch.bfloat16)[-1]
    assert equal(held(module), [weight.bfloat16() for weight in average])
    assert equal(opt.state_dict()["state"], by_hand.opt.state_dict()["state"])


class DropsOut(Module):
    def validation_step(self, batch, batch_idx):
        self.train()
        super().validation_step(batch, batch_idx)


def test_average_is_evaluated_in_training_mode(tmp_path):
    module, _, opt = fit(tmp_path, ema(), module=DropsOut(), val_check_interval=2)
    by_hand = ByHand(2 * EPOCH)
    averages = ema_of(by_hand.weights)
    assert equal(module.evaluated, [(k, loss_at(averages[k])) for k in range(0, 9, 2)])
    assert equal(opt.state_dict()["state"], by_hand.opt.state_dict()["state"])


class LooksAtSamples(Module):
    """Leaves the epoch with predicted weights."""

    def on_train_epoch_end(self):
        self(data(0)[0])


@pytest.mark.parametrize(
    "make",
    [ema, lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)],
    ids=["ema", "swa"],
)
@ORDERS
def test_forwards_between_epochs_change_no_average(is_first, make, tmp_path):
    ends = []
    for module in (Module(), LooksAtSamples()):
        average = make()
        own = trainer(tmp_path, *in_order(is_first, average), max_epochs=3, limit_val_batches=0)
        own.fit(module, Batches(), validation())
        module.train()(data(0)[0])
        ends.append([*held(module), *true_weights(module, own.optimizers[0])])
    assert equal(*ends)


class Averaging(Callback):
    def on_fit_start(self, trainer, pl_module):
        self.average = AveragedModel(pl_module.net, avg_fn=get_ema_avg_fn(0.5))

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.average.update_parameters(pl_module.net)


class WithAverage(Module):
    def __init__(self):
        super().__init__()
        self.average = AveragedModel(self.net, avg_fn=get_ema_avg_fn(0.5))

    def on_train_batch_end(self, *args):
        self.average.update_parameters(self.net)

    def configure_optimizers(self):
        return optimizer(self.net)


def test_averaged_models_of_callbacks_and_modules_follow_true_weights(tmp_path):
    callback, module = Averaging(), WithAverage()
    _, _, opt = fit(tmp_path, callback, module=module)
    by_hand = ByHand(2 * EPOCH)
    for average in (callback.average, module.average):
        assert equal(held(average), ema_of(by_hand.weights)[-1])
    assert_same_training(opt, by_hand.opt)


# StochasticWeightAveraging.


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.norm = network(), nn.BatchNorm1d(2)

    def forward(self, inputs):
        return self.norm(self.net(inputs))


class SWAByHand:
    """Four epochs; the mean of the weights with which the last three begin."""

    def __init__(self, make):
        self.net = make()
        self.opt = optimizer(self.net)
        self.average, weights, schedule = copy.deepcopy(self.net), [], None
        for epoch in range(4):
            if epoch > 0:
                schedule = schedule or self.schedule()
                weights.append(held(self.net))
            for k in range(EPOCH):
                self.opt.train()
                self.opt.zero_grad()
                loss_of(self.net, data(k)).backward()
                self.opt.step()
            self.opt.eval()
            if schedule:
                schedule.step()
        self.set(weights)

    def schedule(self):
        for group in self.opt.param_groups:
            group["initial_lr"] = 0.05
        return SWALR(self.opt, 0.05, anneal_epochs=10, last_epoch=4)

    def set(self, weights):
        for i, param in enumerate(self.average.parameters()):
            mean, *others = [each[i] for each in weights]
            for n, weight in enumerate(others, 1):
                mean = mean + (weight - mean) / (n + 1)
            param.data.copy_(mean)

    def statistics(self):
        """Batch norm statistics at the average, over an epoch."""
        norm = self.average.norm
        norm.reset_running_stats()
        norm.momentum = None
        self.average.train()
        for k in range(EPOCH):
            self.average(data(k)[0])
        return norm.running_mean, norm.running_var


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("limit", [0, 1], ids=["no-validation", "validation"])
@pytest.mark.parametrize("make", [network, Normed], ids=["plain", "batch-norm"])
@ORDERS
def test_stochastic_weight_averaging(is_first, make, limit, tmp_path):
    averaging = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    saving = ModelCheckpoint(tmp_path, save_last=True)
    callbacks = in_order(is_first, averaging, saving)
    own = trainer(tmp_path, *callbacks, max_epochs=4, limit_val_batches=limit)
    own.fit(module := Module(make=make), Batches(), validation())
    own.save_checkpoint(tmp_path / "end.ckpt", weights_only=False)
    expected = SWAByHand(make)
    assert equal(held(module.net), held(expected.average))
    assert equal(true_weights(module, own.optimizers[0]), held(expected.net))
    for path in (tmp_path / "end.ckpt", tmp_path / "last.ckpt"):
        (saved,) = read(path)["optimizer_states"]
        assert equal(saved["state"], expected.opt.state_dict()["state"])
    evaluated = expected.net.eval()  # the average takes its place when the training has ended
    if make is Normed:
        norm, evaluated = module.net.norm, module.net.eval()
        assert equal((norm.running_mean, norm.running_var), expected.statistics())
    if limit:
        assert torch.equal(module.evaluated[-1][1], loss_of(evaluated, data(VALIDATION)))
    assert not {"transfer_weights", "optimizer_step"} & {*vars(averaging), *vars(module)}
