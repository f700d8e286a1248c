"""Uneven inputs: what a rank of DistributedDataParallel missed after its last batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed

from wpadamw.optimizer import WeightPrediction


class JoinHook:
    """What a module does in `torch.distributed.algorithms.join.Join`, at true weights.

    In the end torch gives all ranks the parameters of a rank that went on to the last batch. These
    must be true weights, and the optimizers' states go with them: otherwise the ranks would predict
    differently, and update differently.

    Args:
        hook: the module's own join hook.
        module: a ``Joinable``, DistributedDataParallel for one.
        optimizers: which the module follows.
    """

    def __init__(self, hook: Any, module: Any, optimizers: Sequence[WeightPrediction]) -> None:
        self.hook, self.module, self.optimizers = hook, module, optimizers

    def main_hook(self) -> None:
        """Shadows the communication of ranks that have batches left."""
        self.hook.main_hook()

    def post_hook(self, is_last_joiner: bool) -> None:
        """Makes all ranks equal, after the last batch of the last rank."""
        for optimizer in self.optimizers:
            optimizer.restore()
        self.hook.post_hook(is_last_joiner)
        source = self._source(is_last_joiner)
        for optimizer in self.optimizers:
            self._take_over(optimizer, source)

    def _source(self, is_last_joiner: bool) -> int:
        """The rank, in the module's group, whose parameters all have: torch takes the largest."""
        group = self.module.join_process_group
        rank = distributed.get_rank(group) if is_last_joiner else -1
        largest = torch.tensor(rank, device=self.module.join_device)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=group)
        return int(largest)

    def _take_over(self, optimizer: WeightPrediction, source: int) -> None:
        group = self.module.join_process_group
        is_source = distributed.get_rank(group) == source
        states = [optimizer.state_dict() if is_source else None]
        distributed.broadcast_object_list(
            states,
            distributed.get_global_rank(group, source),
            group=group,
            device=self.module.join_device,
        )
        if not is_source:
            assert states[0] is not None
            optimizer.load_state_dict(states[0])
