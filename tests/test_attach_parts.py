"""Which forwards and readers of an attached model see which weights: parts, modes, costs."""

from __future__ import annotations

import copy
import gc
import pickle
import timeit

import pytest
import torch
from attached import Net, attached
from models import HYPER, equal, held, network, randn, through_file
from torch import nn

import wpadamw

# Parts.

PARTS = {
    "container": lambda model: model.net(randn(4, 3)),
    "leaf": lambda model: model.net[0](randn(4, 3)),
    "slice": lambda model: model.net[:2](randn(4, 3)),
    "norm": lambda model: model.norm(randn(4, 2)),
}


@pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])
@pytest.mark.parametrize("call", PARTS.values(), ids=PARTS)
def test_forward_of_a_part_sees_the_weights_of_the_models_mode(call, in_step):
    model, opt, _ = attached(predict_in_step=in_step)
    opt.eval()
    true = held(model)
    call(model)
    assert opt.weights_are == "predicted"
    assert not equal(held(model), true)
    model.eval()
    assert equal(held(model), true)
    call(model)
    assert equal(held(model), true)
    model.train()
    call(model)
    assert opt.weights_are == "predicted"


def test_part_whose_model_is_gone_is_left_alone():
    model, opt, _ = attached()
    part = model.net
    del model
    gc.collect()
    opt.eval()
    part(randn(4, 3))
    assert opt.weights_are == "true"
    opt.train()
    part.eval()(randn(4, 3))
    assert opt.weights_are == "predicted"


def test_frozen_part_inside_a_training_forward_moves_nothing():
    model, _, _ = attached()
    before = held(model)
    model.norm.eval()
    model(randn(4, 3))
    model.norm(randn(4, 2))
    assert equal(held(model), before)
    model.eval()
    true = held(model)
    model.norm.train()
    model(randn(4, 3))
    assert equal(held(model), true)


def test_part_that_holds_nothing_of_the_optimizer_is_left_alone():
    model = Net()
    for param in model.norm.parameters():
        param.requires_grad_(False)
    opt = wpadamw.WPAdamW(model.net.parameters(), **HYPER)
    wpadamw.attach(model, opt)
    assert type(model.norm) is nn.BatchNorm1d
    assert type(model.net[1]) is nn.Tanh
    assert type(model.net[0]) is not nn.Linear


READERS = {
    "parameters": held,
    "deepcopy": lambda model: held(copy.deepcopy(model)),
    "pickle": lambda model: held(pickle.loads(pickle.dumps(model))),
    "vector": lambda model: [nn.utils.parameters_to_vector(model.parameters()).detach().clone()],
    "forward": lambda model: [model.forward(randn(4, 3)).detach()],
    "file": lambda model: list(through_file(dict(model.named_parameters())).values()),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_from_eval_on_every_reader_reads_true_weights(read):
    model, opt, _ = attached()
    model.eval()
    found = read(model)
    assert opt.weights_are == "true"
    model.train()
    model(randn(4, 3))
    opt.restore()
    model.eval()
    assert equal(held(model), [opt.state[param]["weight"] for param in model.parameters()])
    if read is not READERS["forward"]:
        assert equal(found, read(model))


def test_teacher_forward_inside_a_training_forward():
    class Distilled(Net):
        def forward(self, inputs):
            if not self.training:
                return super().forward(inputs)
            self.eval()
            with torch.no_grad():
                self.seen = [held(self), self(inputs)]
            self.train()
            self.seen.append(held(self))
            return super().forward(inputs)

    model, opt, _ = attached(Distilled)
    true = [opt.state[param]["weight"].clone() for param in model.parameters()]
    before = held(model)
    model(randn(4, 3))
    assert equal(model.seen[0], true)
    assert equal(model.seen[2], before)
    assert opt.weights_are == "predicted"


def test_error_in_a_forward_leaves_the_next_one_right():
    model, opt, _ = attached()
    with pytest.raises(RuntimeError):
        model(randn(4, 7))
    opt.eval()
    model.net(randn(4, 3))
    assert opt.weights_are == "predicted"


def test_calls_cost_next_to_nothing_when_nothing_changes():
    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, inputs):
            return inputs

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(Same() for _ in range(200))

        def forward(self, inputs):
            for part in self.parts:
                inputs = part(inputs)
            return inputs

    model, plain = Chain(), Chain()
    wpadamw.attach(model, wpadamw.WPAdamW(model.parameters()))
    # Short stretches by turns: what else runs on the machine disturbs neither's best.
    rounds = [
        [timeit.timeit(lambda m=m: m(1), number=1) for m in (model, plain)] for _ in range(400)
    ]
    ours, theirs = map(min, zip(*rounds, strict=True))
    assert ours / 200 < theirs / 200 + 1e-6


# Autocast.

WRITES = {
    "eval": lambda model, opt, handle: model.eval(),
    "step": lambda model, opt, handle: opt.step(),
    "mode-call": lambda model, opt, handle: (handle.remove(), opt.restore()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_autocast_casts_anew_what_was_written_inside_its_region(write):
    model, opt, handle = attached(network)
    for group in opt.param_groups:
        group["lr"] = 0.5
    opt.step()
    with torch.autocast("cpu", torch.bfloat16):
        first = model(randn(4, 3)).detach()
        write(model, opt, handle)
        second = model(randn(4, 3)).detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert equal(second, model(randn(4, 3)).detach())
    assert not equal(second, first)
