"""Attached models, for the tests of attach."""

from __future__ import annotations

from models import backward, network, optimizer, randn
from torch import nn

import wpadamw


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.norm = network(), nn.BatchNorm1d(2)

    def forward(self, inputs):
        return self.norm(self.net(inputs))


def attached(make=Net, steps=2, **options):
    model = make()
    opt = optimizer(model, **options)
    handle = wpadamw.attach(model, opt)
    for k in range(steps):
        backward(model, k)
        opt.step()
    return model, opt, handle


def is_inert(module, opt):
    """Whether calls and mode calls of a module leave the optimizer alone."""
    before = opt.weights_are
    for training in (False, True):
        module.train(training)
        module(randn(4, 3))
        module.state_dict()
    return opt.weights_are == before


def true(opt, model):
    """The true weights of a model's parameters, as the optimizer keeps them."""
    return [opt.state[param]["weight"].clone() for param in model.parameters()]
