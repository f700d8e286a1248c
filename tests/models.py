"""What the tests of semantics share: a small problem, snapshots, and the algorithm written out."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import torch
from torch import nn

import wpadamw

HYPER = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def parameter(*shape, seed=0, dtype=torch.float32):
    return nn.Parameter(randn(*shape, seed=seed, dtype=dtype))


def network(seed=0, dtype=torch.float32):
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)
    with torch.no_grad():
        for i, param in enumerate(net.parameters()):
            param.copy_(randn(*param.shape, seed=100 * seed + i))
    return net


def groups_of(net):
    """Matrices with decay, biases without and with a learning rate of their own."""
    params = list(net.parameters())
    biases = {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0, "lr": 3e-2}
    return [{"params": [p for p in params if p.ndim >= 2]}, biases]


def optimizer(net, kind=wpadamw.WPAdamW, **options):
    return kind(groups_of(net), **{**HYPER, **options})


def backward(net, k):
    """The gradient of batch k."""
    dtype = next(net.parameters()).dtype
    inputs, targets = randn(4, 3, seed=2 * k, dtype=dtype), randn(4, 2, seed=2 * k + 1, dtype=dtype)
    net.zero_grad()
    loss = (net(inputs) - targets).square().mean()
    loss.backward()
    return loss


def train(net, opt, steps):
    for k in steps:
        opt.train()
        backward(net, k)
        opt.step()


def started(steps=3, dtype=torch.float32, **options):
    """A network and its optimizer after a few steps."""
    net = network(dtype=dtype)
    opt = optimizer(net, **options)
    train(net, opt, range(steps))
    return net, opt


def set_grads(params, seed):
    for i, param in enumerate(params):
        param.grad = randn(*param.shape, seed=1000 * seed + i, dtype=param.dtype)


def held(params):
    """Copies of what the parameters of a list or a network hold."""
    params = params.parameters() if isinstance(params, nn.Module) else params
    return [param.detach().clone() for param in params]


def snapshot(opt):
    """Copies of everything that a failed or void call must leave as it was."""
    params = [param for group in opt.param_groups for param in group["params"]]
    return {
        "weights": held(params),
        "state": [copy.deepcopy(dict(opt.state[p])) if p in opt.state else None for p in params],
        "groups": [{**copy.deepcopy({**g, "params": len(g["params"])})} for g in opt.param_groups],
    }


def equal(a, b):
    """Whether two nested values are equal bit for bit (a NaN equals a NaN)."""
    if isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        return torch.equal(a, b) or (
            torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
            and torch.equal(a.isfinite(), b.isfinite())
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def through_file(value):
    """What comes back from a file, loaded the safe way."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def _sqrt(x):
    # NumPy's root is correctly rounded; torch's vector library is off by one ulp for some inputs.
    return torch.from_numpy(np.sqrt(x.flatten().numpy())).reshape(x.shape)


NOTHING = (0.0,) * 5 + (None,)


class Reference:
    """The algorithm for one parameter, written out in the dtype of the state."""

    def __init__(self, param, amsgrad=False):
        self.dtype, self.amsgrad = param.dtype, amsgrad
        real = torch.float64 if param.dtype == torch.float64 else torch.float32
        self.weight = param.detach().to(real, copy=True).contiguous()
        self.exp_avg, self.exp_avg_sq, self.max_exp_avg_sq = torch.zeros(3, *self.weight.shape).to(
            real
        )
        self.count = 0
        self.made = None  # the hyper-parameters of the last prediction
        self.set_aside = None  # those, while the parameter is frozen

    def update(self, grad, group):
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        grad = grad.to(self.weight.dtype) * (-1.0 if group["maximize"] else 1.0)
        self.count += 1
        self.made = self.set_aside = None
        self.exp_avg = self.exp_avg + (grad - self.exp_avg) * (1.0 - beta1)
        self.exp_avg_sq = self.exp_avg_sq * beta2 + (grad * grad) * (1.0 - beta2)
        self.max_exp_avg_sq = torch.maximum(self.max_exp_avg_sq, self.exp_avg_sq)
        step_size = lr / (1.0 - beta1**self.count)
        kept = self.weight * (1.0 - lr * group["weight_decay"])
        self.weight = kept - self._direction(beta2, group["eps"]) * step_size

    def _direction(self, beta2, eps):
        v = self.max_exp_avg_sq if self.amsgrad else self.exp_avg_sq
        return self.exp_avg / (_sqrt(v) * (1.0 / math.sqrt(1.0 - beta2**self.count)) + eps)

    def true(self):
        return self.weight.to(self.dtype)

    def predicted(self, group):
        """The prediction with the group's hyper-parameters, or the one that was made before."""
        if self.made is None:
            decay = group["weight_decay"] if group["predict_decay"] else 0.0
            s = group["prediction_steps"]
            self.made = (float(group["lr"]), *group["betas"], group["eps"], decay, s)
        lr, beta1, beta2, eps, decay, s = self.made
        if self.count == 0 or s is None:
            return self.true()
        size = s * lr / (1.0 - beta1**self.count)
        kept = self.weight * (1.0 - s * lr * decay)
        return (kept - self._direction(beta2, eps) * size).to(self.dtype)

    def adopt(self, values, mode):
        """Take values from outside as the true weights; a prediction of them moves nothing."""
        self.weight = values.detach().to(self.weight.dtype, copy=True).contiguous()
        if mode == "predicted":
            self.made, self.set_aside = NOTHING, None

    def follow_freezing(self, is_frozen):
        """A frozen parameter's prediction is its true weights."""
        if is_frozen and self.set_aside is None:
            self.made, self.set_aside = NOTHING, (self.made,)
        elif not is_frozen and self.set_aside is not None:
            (self.made,), self.set_aside = self.set_aside, None
