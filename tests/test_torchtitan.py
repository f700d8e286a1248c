"""torchtitan's containers: several parts of a model, each with an optimizer handed over to it."""

from __future__ import annotations

import functools

import handed
import pytest
import torch
import torch.distributed as dist
import torchtitan_stand_in as titan
from processes import needs_gloo, network, run

pytestmark = [needs_gloo, pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")]


class Training:
    """Two parts of a model, as a pipeline has on one rank, their optimizers and schedules."""

    def __init__(self, make, **options):
        self.parts = [handed.sharded(part, parts=[]) for part in split(network())]
        options = {"lr": 1e-2, **options}
        self.optimizers, self.schedules, wrapper = make(self.parts, lr_lambda, **options)
        self.optimizers.init_cache_state_dict()
        self.states = {
            "model": wrapper,
            "optimizer": self.optimizers,
            "lr_scheduler": self.schedules,
        }

    def forward(self, inputs):
        for part in self.parts:
            inputs = part(inputs)
        return inputs

    def train(self, steps):
        """Losses of this rank."""
        losses = []
        for step in steps:
            self.optimizers.zero_grad()
            loss = handed.loss_of(self.forward(handed.batch(step, dist.get_rank())))
            loss.backward()
            self.optimizers.step()
            self.schedules.step()
            losses.append(loss.item())
        return losses

    def weights(self):
        return [weight for opt in self.optimizers for weight in handed.weights_of(opt)]

    def moments(self):
        return [
            handed.whole(opt.state[param][name])
            for opt in self.optimizers
            for param in handed.params_of(opt)
            for name in ("step", "exp_avg", "exp_avg_sq")
        ]


def split(net):
    return net[:2], net[2:]


def lr_lambda(step):
    return 1 / (1 + step)


def check_trains_like_one_model(make):
    one, opt, _ = handed.handed()
    opt.param_groups[0]["initial_lr"] = 1e-2
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lr_lambda)
    losses = handed.train(one, opt, range(4), after=lambda step: schedule.step())
    training = Training(make)
    assert training.train(range(4)) == losses
    assert handed.are_equal(training.weights(), handed.weights_of(opt))


def check_hooks_see_true_weights(make):
    training, seen = Training(make), []
    training.optimizers.register_step_post_hook(lambda *_: seen.append(training.weights()))
    training.train(range(3))
    predicted = training.forward(handed.batch(0, 0)).detach()
    for part in training.parts:
        part.eval()
    assert not torch.equal(training.forward(handed.batch(0, 0)), predicted)
    assert len(seen) == 3
    assert handed.are_equal(seen[-1], training.weights())


def check_saves(make, folder):
    from torch.distributed import checkpoint

    training = Training(make)
    training.train(range(3))
    checkpoint.save(training.states, checkpoint_id=folder)
    expected = [training.train(range(3, 6)), training.weights(), training.moments()]
    torch.save(expected, f"{folder}/expected-{dist.get_rank()}.pt")


def check_resumes(make, folder):
    from torch.distributed import checkpoint

    training = Training(make)
    checkpoint.load(training.states, checkpoint_id=folder)
    losses, weights, moments = torch.load(f"{folder}/expected-{dist.get_rank()}.pt")
    assert training.train(range(3, 6)) == losses
    assert handed.are_equal(training.weights(), weights)
    assert handed.are_equal(training.moments(), moments)


@pytest.mark.parametrize("make", titan.MAKERS, ids=lambda make: make.__name__)
def test_parts_are_handed_over_each_with_its_optimizer(make, tmp_path):
    run(
        functools.partial(check_trains_like_one_model, make),
        functools.partial(check_hooks_see_true_weights, make),
        functools.partial(check_saves, make, tmp_path),
        functools.partial(check_resumes, make, tmp_path),
    )
