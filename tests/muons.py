"""What the tests of Muon share: parameters, gradients, and the original beside ours."""

from __future__ import annotations

import pytest
import torch

from wpadamw import WPMuon

SHAPES = ((8, 8), (16, 64), (64, 16), (1, 7), (7, 1), (33, 65), (65, 33), (65, 33), (0, 5), (5, 0))
OTHERS = ((5,), (2, 3, 4), ())

needs_original = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon is new in torch 2.9"
)


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [torch.nn.Parameter(value.to(dtype)) for value in values]


def twins(params):
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def set_grads(seed, *lists, scale=1.0):
    """The same random gradients for the parameters of each list."""
    generator = torch.Generator().manual_seed(1000 + seed)
    for same in zip(*lists, strict=True):
        grad = torch.randn(same[0].shape, generator=generator, dtype=torch.float64) * scale
        for param in same:
            param.grad = grad.to(param.dtype)


def trained(steps=3, shapes=((4, 6), (6, 4), (5,)), dtype=torch.float32, **options):
    """Parameters and their optimizer after a few steps, with gradients for the next."""
    params = parameters(shapes, dtype)
    opt = WPMuon(params, **{"lr": 0.02, **options})
    for k in range(steps):
        set_grads(k, params)
        opt.step()
    set_grads(steps, params)
    return params, opt
