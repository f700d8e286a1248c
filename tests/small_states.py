"""Ways of storing states in small formats, and what their tests share."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from models import held, optimizer
from torch import Tensor, nn

SPLIT = {"master": "split", "backup": False}
BACKUP: dict[str, Any] = {}


class Way(NamedTuple):
    """How weights and moments are stored."""

    dtype: torch.dtype
    options: dict[str, Any]


def _ways() -> dict[str, Way]:
    places = [
        ("float32", torch.float32, BACKUP),
        ("float32-no-backup", torch.float32, {"backup": False}),
        ("bfloat16", torch.bfloat16, BACKUP),
        ("split", torch.bfloat16, SPLIT),
        ("float16", torch.float16, BACKUP),
    ]
    return {
        f"{name}-{moments}": Way(dtype, {**options, "moments": moments})
        for name, dtype, options in places
        for moments in ("float32", "bfloat16", "int8")
        if moments != "float32" or name == "split"
    }


WAYS = _ways()
SPLITS = {name: way for name, way in WAYS.items() if name.startswith("split")}

# Around a block of codes and a piece of the loop, and enough for a second thread.
NUMELS = [0, 1, 63, 64, 65, 513, 40_000]


def network(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    """Parameters of several blocks, of parts of one, and of one number."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 45), nn.Tanh(), nn.Linear(45, 2), nn.Linear(2, 1)).to(dtype)


def set_grads(params: Any, seed: int) -> None:
    """Gradients of very different sizes, made by one thread."""
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        size = 10 ** (torch.rand(param.shape, generator=generator) * 4 - 3)
        param.grad = (torch.randn(param.shape, generator=generator) * size).to(param.dtype)


def steps(opt: Any, seeds: Any) -> None:
    for seed in seeds:
        set_grads([p for group in opt.param_groups for p in group["params"]], seed)
        opt.step()


def started(way: Way, count: int = 3, seed: int = 0, **options: Any) -> tuple[nn.Module, Any]:
    net = network(way.dtype, seed)
    opt = optimizer(net, **{**way.options, **options})
    steps(opt, range(count))
    return net, opt


def true(opt: Any) -> list[Tensor]:
    """The true weights as the optimizer knows them, float32; it is left alone."""
    found: list[Tensor] = []
    other = copy.deepcopy(opt)
    other.set_true_weights(lambda param, weight: found.append(weight.clone()))
    return found


def everything(opt: Any) -> list[Any]:
    """Copies of the parameters and of their state."""
    params = [param for group in opt.param_groups for param in group["params"]]
    return [held(params), [{k: v.clone() for k, v in opt.state[p].items()} for p in params]]
