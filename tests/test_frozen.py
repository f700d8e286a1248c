"""Frozen parameters hold true weights until they are trained again."""

from __future__ import annotations

import pytest
import torch
from attached import true
from models import HYPER, backward, equal, held, randn, train
from torch import nn

import wpadamw

FORMS = pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])


def freeze(layer):
    return layer.requires_grad_(False)


@pytest.mark.parametrize("options", [{}, {"backup": False}, {"prediction": "rollout"}])
@FORMS
def test_a_frozen_layer_loses_its_prediction_at_the_next_forward(in_step, options):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    opt = wpadamw.WPAdamW(model.parameters(), **HYPER, predict_in_step=in_step, **options)
    wpadamw.attach(model, opt)
    for k in range(3):
        backward(model, k)
        opt.step()
    frozen = held(freeze(model[0]))
    for k in range(3, 6):
        backward(model, k)
        if k == 3 and not options:
            frozen = [opt.state[param]["weight"] for param in model[0].parameters()]
        elif k == 3:
            assert in_step != equal(held(model[0]), frozen)
            frozen = held(model[0])
        assert equal(held(model[0]), frozen)
        if not options:
            assert not torch.equal(model[1].weight, opt.state[model[1].weight]["weight"])
        opt.step()
        assert equal(held(model[0]), frozen)
    model.eval()
    assert equal(held(model[0]), frozen)


def test_a_frozen_layer_loses_its_prediction_without_attach():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    opt = wpadamw.WPAdamW(net.parameters(), **HYPER)
    train(net, opt, range(3))
    freeze(net[0])
    train(net, opt, [3])
    assert torch.equal(net[0].weight, opt.state[net[0].weight]["weight"])
    opt.eval()
    opt.train()
    assert torch.equal(net[0].weight, opt.state[net[0].weight]["weight"])
    net[0].requires_grad_(True)
    train(net, opt, [4])
    assert not torch.equal(net[0].weight, opt.state[net[0].weight]["weight"])


def test_a_frozen_layer_of_old_gradients_follows_torch_and_has_no_prediction_in_forwards():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    opt = wpadamw.WPAdamW(net.parameters(), **HYPER)
    wpadamw.attach(net, opt)
    backward(net, 0)
    freeze(net[0])
    for _ in range(2):
        opt.step()  # its gradient is still there
        net(randn(4, 3))
        assert torch.equal(net[0].weight, opt.state[net[0].weight]["weight"])
    assert opt.state[net[0].weight]["step"] == 2


@FORMS
def test_a_prediction_comes_back_when_a_part_is_trained_again(in_step):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    opt = wpadamw.WPAdamW(net.parameters(), **HYPER, predict_in_step=in_step)
    wpadamw.attach(net, opt)
    for k in range(3):
        backward(net, k)
        opt.step()
    net(randn(4, 3))
    predicted = held(net)
    freeze(net[0])
    with torch.no_grad():
        net(randn(4, 3))  # as with peft's adapters, disabled for a moment
    assert equal(held(net), predicted)
    net(randn(4, 3))  # as with two parts in turns
    assert equal(held(net[0]), true(opt, net[0]))
    net[0].requires_grad_(True)
    net(randn(4, 3))
    assert equal(held(net), predicted)
