"""diffusers: its average of weights, in loops like those of its training scripts."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from diffusers.utils import logging
from models import equal, held, optimizer, randn, snapshot
from test_averages import outcome, true

import wpadamw

logging.disable_progress_bar()

# Its own from_pretrained gives from_config a path.
LOADS_AVERAGES = pytest.mark.filterwarnings(
    "ignore:It is deprecated to pass a pretrained model name or path to `from_config`:FutureWarning"
)

SEEN = []
NOISE = DDPMScheduler(num_train_timesteps=10)


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8,),
            norm_num_groups=2,
            down_block_types=("DownBlock2D",),
            up_block_types=("UpBlock2D",),
            add_attention=False,
        )
    return model


class Run:
    """A training whose average is that of diffusers, if it has one."""

    def __init__(self, steps=0, seed=0, averages=True, recipe=True, foreach=False, in_step=True):
        self.model = network(seed)
        self.model.register_forward_pre_hook(lambda model, _: SEEN.append(held(model)))
        self.opt = optimizer(self.model, predict_in_step=in_step)
        wpadamw.attach(self.model, self.opt)
        self.ema = None
        if averages:
            config = {"model_cls": UNet2DModel, "model_config": self.model.config}
            self.ema = EMAModel(self.model.parameters(), foreach=foreach, **config)
            if recipe:
                self.ema.step = self.opt.true_weights()(self.ema.step)
        self.train(range(steps))

    def train(self, steps):
        for k in steps:
            clean, noise = randn(2, 1, 8, 8, seed=2 * k), randn(2, 1, 8, 8, seed=2 * k + 1)
            times = torch.tensor([k % 10, (k + 5) % 10])
            self.opt.zero_grad()
            output = self.model(NOISE.add_noise(clean, noise, times), times).sample
            (output - noise).square().mean().backward()
            if self.opt.state:
                assert not equal(SEEN[-1], self.true())
            self.opt.step()
            if self.ema:
                self.ema.step(self.model.parameters())

    def true(self):
        return true(self.opt, self.model)

    def outcome(self):
        return outcome(self.opt)

    def sample(self):
        """An evaluation that leaves the mode of the model alone, as pipelines do."""
        pipeline = DDPMPipeline(self.model, NOISE)
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipeline(1, generator, num_inference_steps=2, output_type="np").images


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])
def test_average_is_that_of_true_weights(foreach, in_step):
    run = Run(foreach=foreach, in_step=in_step)
    source = network()
    reference = EMAModel(source.parameters(), foreach=foreach)
    for k in range(6):
        run.train([k])
        for param, weight in zip(source.parameters(), run.true(), strict=True):
            param.data = weight
        reference.step(source.parameters())
    assert equal(run.ema.shadow_params, reference.shadow_params)
    assert equal(run.outcome(), Run(6, averages=False, in_step=in_step).outcome())


def test_average_without_the_recipe_is_one_of_predicted_weights():
    averages = [Run(5, recipe=recipe).ema.shadow_params for recipe in (True, False)]
    assert not equal(*averages)


def test_literal_form_needs_no_recipe():
    averages = [Run(5, recipe=r, in_step=False).ema.shadow_params for r in (True, False)]
    assert equal(*averages)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_average_is_evaluated_and_saved_in_the_middle_of_the_training(foreach, mode, tmp_path):
    run, plain = Run(4, foreach=foreach), Run(4, averages=False)
    average = [tensor.clone() for tensor in run.ema.shadow_params]
    getattr(run.model, mode)()
    SEEN.clear()
    with run.opt.true_weights():
        run.ema.store(run.model.parameters())
        run.ema.copy_to(run.model.parameters())
        images = run.sample()
        assert len(SEEN) == 2
        assert all(equal(seen, average) for seen in SEEN)
        DDPMPipeline(run.model, NOISE).save_pretrained(tmp_path)
        run.ema.restore(run.model.parameters())
    saved = DDPMPipeline.from_pretrained(tmp_path).unet
    assert equal(held(saved), average)
    run.model.train()
    run.train(range(4, 7))
    plain.train(range(4, 7))
    assert equal(run.outcome(), plain.outcome())
    assert images.shape == (1, 8, 8, 1)


def test_evaluation_mode_needs_no_context(tmp_path):
    run = Run(4)
    average = [tensor.clone() for tensor in run.ema.shadow_params]
    run.model.eval()
    run.ema.store(run.model.parameters())
    run.ema.copy_to(run.model.parameters())
    run.sample()
    assert equal(SEEN[-1], average)
    run.model.save_pretrained(tmp_path)
    assert equal(held(UNet2DModel.from_pretrained(tmp_path)), average)
    run.ema.restore(run.model.parameters())
    assert equal(held(run.model), run.true())
    run.model.train()
    run.train(range(4, 7))
    assert equal(run.outcome(), Run(7).outcome())


def test_error_in_the_evaluation_of_the_average_can_be_handled():
    run = Run(4)
    with pytest.raises(KeyboardInterrupt), run.opt.true_weights():
        run.ema.store(run.model.parameters())
        try:
            run.ema.copy_to(run.model.parameters())
            raise KeyboardInterrupt
        finally:
            run.ema.restore(run.model.parameters())
    run.train(range(4, 6))
    assert equal(run.outcome(), Run(6).outcome())


def test_swapping_in_training_without_the_context_is_told():
    run = Run(4)
    run.ema.store(run.model.parameters())
    run.ema.copy_to(run.model.parameters())
    with pytest.warns(UserWarning, match="written to from outside"):
        run.model.state_dict()


@LOADS_AVERAGES
def test_saved_model_and_average_hold_true_weights(tmp_path):
    run = Run(4)
    weights, average = run.true(), [tensor.clone() for tensor in run.ema.shadow_params]
    assert run.opt.weights_are == "predicted"
    run.model.save_pretrained(tmp_path / "model")
    run.ema.save_pretrained(tmp_path / "ema")
    assert equal(held(UNet2DModel.from_pretrained(tmp_path / "model")), weights)
    assert equal(held(UNet2DModel.from_pretrained(tmp_path / "ema")), average)
    loaded = EMAModel.from_pretrained(tmp_path / "ema", UNet2DModel)
    assert equal(loaded.shadow_params, average)
    assert loaded.optimization_step == 4
    run.train(range(4, 6))
    assert equal(run.outcome(), Run(6).outcome())


@LOADS_AVERAGES
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_resumed_run_ends_with_the_same_bits(mode, tmp_path):
    first = Run(3)
    getattr(first.model, mode)()
    first.model.save_pretrained(tmp_path / "model")
    first.ema.save_pretrained(tmp_path / "ema")
    torch.save(first.opt.state_dict(), tmp_path / "opt.pt")
    resumed = Run(0, seed=1)
    resumed.model.load_state_dict(UNet2DModel.from_pretrained(tmp_path / "model").state_dict())
    resumed.opt.load_state_dict(torch.load(tmp_path / "opt.pt", weights_only=True))
    loaded = EMAModel.from_pretrained(tmp_path / "ema", UNet2DModel)
    resumed.ema.load_state_dict(loaded.state_dict())
    resumed.train(range(3, 6))
    through = Run(6)
    assert equal(resumed.outcome(), through.outcome())
    assert equal(resumed.ema.shadow_params, through.ema.shadow_params)


def test_average_made_in_training_begins_with_true_weights_inside_the_context():
    run = Run(3, averages=False)
    with run.opt.true_weights():
        ema = EMAModel(run.model.parameters())
    assert equal(ema.shadow_params, run.true())
    assert equal(snapshot(run.opt), snapshot(Run(3, averages=False).opt))
