"""Lightning's trainers, compared with loops that are written out and say every mode themselves."""

from __future__ import annotations

import signal

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from helpers import assert_same_training
from lightning.pytorch.callbacks import (
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning_runs import (
    EPOCH,
    VALIDATION,
    Batches,
    ByHand,
    Module,
    Steps,
    data,
    fit,
    loss_at,
    quiet,
    read,
    trainer,
    validation,
)
from models import equal, held

from wpadamw.integrations.lightning import WeightPredictionCallback

pytestmark = quiet


@pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])
@pytest.mark.parametrize("call", ["root", "part", "forward", "no-call"])
def test_training_and_evaluation_are_those_of_a_loop_by_hand(call, in_step, tmp_path):
    options = {"predict_in_step": in_step}
    module, _, opt = fit(tmp_path, module=Module(call, **options), val_check_interval=2)
    expected = ByHand(2 * EPOCH, **options)
    assert_same_training(opt, expected.opt)
    assert equal(module.evaluated, expected.losses([0, 2, 4, 6, 8]))
    plain = ByHand(2 * EPOCH, prediction_steps=0.0)
    assert not equal(held(module), held(plain.net))


@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=lambda each: each.__name__)
def test_callback_serves_trainers_of_both_packages(package, tmp_path):
    module = type("Module", (Steps, package.LightningModule), {})()
    assert isinstance(WeightPredictionCallback(), package.Callback)
    own = trainer(tmp_path, WeightPredictionCallback(), package=package)
    own.validate(module, validation(), verbose=False)
    own.fit(module, Batches(), validation())
    expected = ByHand(2 * EPOCH)
    assert_same_training(own.optimizers[0], expected.opt)
    assert equal(module.evaluated, expected.losses([0, 0, 4, 8]))


@pytest.mark.filterwarnings("error")
def test_trainer_without_the_callback_is_loud(tmp_path):
    own = trainer(tmp_path)
    with pytest.raises(UserWarning, match=r"integrations\.lightning\.WeightPredictionCallback"):
        own.fit(Module(), Batches(), validation())


BF16 = torch.bfloat16


@pytest.mark.parametrize("call", ["root", "part", "forward", "no-call"])
@pytest.mark.parametrize(
    ("options", "steps", "by_hand"),
    [
        ({"accumulate_grad_batches": 2, "val_check_interval": 1}, 4, {"accumulate": 2}),
        ({"gradient_clip_val": 0.1}, 8, {"clip": 0.1}),
        ({"precision": "bf16-true"}, 8, {"dtype": BF16}),
        ({"precision": "bf16-mixed"}, 8, {"mixed": True}),
        ({"strategy": "ddp"}, 8, {}),
        ({"limit_val_batches": 0}, 8, {}),
        ({"max_steps": 5}, 5, {}),
    ],
    ids=["accumulate", "clip", "bf16-true", "bf16-mixed", "ddp", "no-validation", "max-steps"],
)
def test_options_of_the_trainer_leave_the_bits_alone(options, steps, by_hand, call, tmp_path):
    module, _, opt = fit(tmp_path, module=Module(call), **options)
    assert_same_training(opt, ByHand(steps, **by_hand).opt)
    assert equal(held(module), [opt.state[p]["weight"].to(p.dtype) for p in module.parameters()])


@pytest.mark.parametrize("weights_only", [False, True], ids=["full", "weights-only"])
def test_checkpoints_in_mid_epoch_hold_true_weights(weights_only, tmp_path):
    saving = ModelCheckpoint(
        tmp_path,
        "{step}",
        every_n_train_steps=1,
        save_top_k=-1,
        save_weights_only=weights_only,
    )
    _, own, opt = fit(tmp_path, saving)
    expected = ByHand(2 * EPOCH)
    assert_same_training(opt, expected.opt)
    own.save_checkpoint(tmp_path / "step=8.ckpt", weights_only=weights_only)
    for step in range(1, 9):
        file = read(tmp_path / f"step={step}.ckpt")
        assert equal(list(file["state_dict"].values()), expected.weights[step])
        for state in file.get("optimizer_states", []):
            assert {group["weights_are"] for group in state["param_groups"]} == {"true"}


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8])
def test_resumed_training_ends_with_the_same_bits(steps, tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    fit(tmp_path, saving)
    module, path = Module(), tmp_path / f"step={steps}.ckpt"
    own = trainer(tmp_path, WeightPredictionCallback(), max_epochs=3, val_check_interval=2)
    own.fit(module, Batches(), validation(), ckpt_path=path, weights_only=True)
    expected = ByHand(3 * EPOCH)
    assert_same_training(own.optimizers[0], expected.opt)
    ends = [step for step, _ in module.evaluated]
    assert equal(module.evaluated, expected.losses(ends))
    assert ends[-1] == 12


def test_best_and_last_weights_are_tested_after_the_training(tmp_path):
    saving = ModelCheckpoint(tmp_path, "{step}", monitor="loss", mode="max")
    module, own, _ = fit(tmp_path, saving, max_epochs=3)
    expected = ByHand(3 * EPOCH)
    assert saving.best_model_path.endswith("step=4.ckpt")
    for path, step in [(None, 12), ("best", 4), (None, 4)]:
        module.evaluated.clear()
        own.test(module, validation(), path, verbose=False, weights_only=True)
        module.train()
        assert equal(module.evaluated[0][1], loss_at(expected.weights[step]))
        predicted = own.predict(module, validation(), ckpt_path=path, weights_only=True)
        assert equal(held(module), expected.weights[step])
        assert torch.equal(predicted[0], module.net(data(VALIDATION)[0]))


class Broken(Module):
    """Raises once; says before what it does."""

    where, error = "training_step", ValueError

    def _raise(self, where):
        if where == self.where and self.trainer.global_step == 6:
            raise self.error("as the test wants it")

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self._raise("training_step")
        return loss

    def on_train_batch_end(self, *args):
        self._raise("on_train_batch_end")

    def validation_step(self, batch, batch_idx):
        self._raise("validation_step")
        super().validation_step(batch, batch_idx)


class KeepingItsFile(OnExceptionCheckpoint):
    def teardown(self, *args, **kwargs):
        pass


@pytest.fixture
def sigint():
    """Lightning ignores the signal after an interrupt."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["training_step", "on_train_batch_end", "validation_step"])
@pytest.mark.usefixtures("sigint")
def test_true_weights_remain_after_an_exception(where, error, tmp_path):
    module, saving = Broken(), KeepingItsFile(tmp_path)
    module.where, module.error = where, error
    with pytest.raises((ValueError, SystemExit)):
        fit(tmp_path, saving, module=module, val_check_interval=2)
    expected = ByHand(3 * EPOCH)
    assert equal(list(read(saving.ckpt_path)["state_dict"].values()), expected.weights[6])
    module.train()(data(0)[0])
    assert equal(held(module), expected.weights[6])


@pytest.mark.parametrize("where", ["on_train_batch_end", "validation_step"])
def test_training_resumes_from_the_file_that_an_exception_left(where, tmp_path):
    module, saving = Broken(), KeepingItsFile(tmp_path)
    module.where = where
    with pytest.raises(ValueError, match="as the test wants it"):
        fit(tmp_path, saving, module=module, val_check_interval=2)
    own = trainer(tmp_path, WeightPredictionCallback(), max_epochs=2)
    own.fit(Module(), Batches(), validation(), ckpt_path=saving.ckpt_path, weights_only=True)
    assert_same_training(own.optimizers[0], ByHand(2 * EPOCH).opt)


class WithOneOptimizer(Module):
    opt = None

    def configure_optimizers(self):
        if self.opt is None:
            self.opt = super().configure_optimizers()
        return self.opt


def test_second_fit_goes_on_from_true_weights(tmp_path):
    module, own, _ = fit(tmp_path, module=WithOneOptimizer(), max_epochs=1)
    module.train()(data(0)[0])
    assert equal(held(module), ByHand(EPOCH).weights[-1])
    own.validate(module, validation(), verbose=False)
    _, _, opt = fit(tmp_path, module=module, max_epochs=1)
    assert_same_training(opt, ByHand(2 * EPOCH).opt)


def test_fit_without_anything_to_do_changes_nothing(tmp_path):
    module, own, _ = fit(tmp_path)
    own.fit(module, Batches(), validation())
    assert equal(held(module), ByHand(2 * EPOCH).weights[-1])
    assert type(module) is Module
