"""Optimizers of other packages. In a process of its own: importing them changes the process."""

from __future__ import annotations

import peers
import torch
from shapes import Shape


def bench_peers_large(race, scale, device, is_quick):
    shape = Shape.equal(1, scale.peers, torch.float32, device)
    title = f"{shape.total:,} float32 parameters in one tensor, other packages"
    without = peers.COMPILED_AT_ALL if is_quick else ()
    kinds = peers.kinds(without, "takes longer to compile than --quick may")
    race("peers_fp32", title, kinds, shape, scale.peers_rounds, max_s=scale.peers_s)


def bench_peers_many(race, scale, device, is_quick):
    shape = Shape.equal(scale.num_tensors, scale.tensor, torch.float32, device)
    title = f"{scale.num_tensors:,} float32 tensors of {scale.tensor:,} elements, other packages"
    without = peers.COMPILED_AT_ALL if is_quick else peers.COMPILED_AS_A_WHOLE
    kinds = peers.kinds(without, "takes minutes to compile")
    race("peers_many", title, kinds, shape, scale.peers_rounds, max_s=scale.peers_s)
