"""Optimizers of other packages. In a process of its own: importing them changes the process."""

from __future__ import annotations

import torch

from wpadamw.bench.registry import COMPILED, HEAVYBALL, TORCHAO, entrants
from wpadamw.bench.speed.shapes import Shape

# These take a graph of all tensors together to Inductor: minutes for a thousand.
COMPILED_AS_A_WHOLE = (COMPILED, HEAVYBALL)
COMPILED_AT_ALL = (*COMPILED_AS_A_WHOLE, TORCHAO)


def _peers(without, reason):
    everyone = entrants("peers").values()
    return [each._replace(why_not=reason if each.name in without else None) for each in everyone]


def bench_peers_large(race, scale, device, is_quick):
    shape = Shape.equal(1, scale.peers, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor, other packages"
    without = COMPILED_AT_ALL if is_quick else ()
    those = _peers(without, "takes longer to compile than --quick may")
    race("peers_fp32", title, those, shape, scale.peers_rounds, max_s=scale.peers_s)


def bench_peers_many(race, scale, device, is_quick):
    shape = Shape.equal(scale.num_tensors, scale.tensor, torch.float32, device)
    title = f"{scale.num_tensors:,} float32 tensors of {scale.tensor:,} elements, other packages"
    without = COMPILED_AT_ALL if is_quick else COMPILED_AS_A_WHOLE
    those = _peers(without, "takes minutes to compile")
    race("peers_many", title, those, shape, scale.peers_rounds, max_s=scale.peers_s)
