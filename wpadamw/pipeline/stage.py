"""A pipeline stage that updates its weights after every micro-batch."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.optim.lr_scheduler import LRScheduler

from wpadamw.compat import taken_by
from wpadamw.optimizer import WeightPrediction
from wpadamw.pipeline.agreement import Claim, agree
from wpadamw.pipeline.checks import StageArguments, why_no_stage
from wpadamw.pipeline.in_flight import InFlight
from wpadamw.pipeline.saved_weights import Backward, SavedWeights

_SIGNATURE = inspect.signature(PipelineStage)
_living: weakref.WeakSet[AsyncStage] = weakref.WeakSet()


class AsyncStage(PipelineStage):
    """A stage of `torch.distributed.pipelining` that makes torch's schedules asynchronous.

    Whatever schedule runs it, the stage updates its weights after the backward pass of every
    micro-batch. A forward sees the weights that the optimizer predicts: with ``prediction_steps``
    equal to the number of updates before its backward pass (`delays`), those that this one will
    find. That is PipeOptim (Guan et al. 2023, arXiv 2312.00839); two choices give four methods:

    ==============================  ======================  ================================
    ``prediction_steps``            ``backward="current"``  ``backward="forward"``
    ==============================  ======================  ================================
    0                               stale gradients         PipeDream (weight stashing)
    ``num_stages-1-stage_index``    PipeOptim               predicted weights in both passes
    ==============================  ======================  ================================

    All ranks of a pipeline construct their stages at the same time. Gradients are those of single
    micro-batches: a schedule's ``scale_grads`` finds nothing to scale.

    Args:
        submodule: the stage's part of the model; may be wrapped in `DistributedDataParallel`.
        stage_index: of this stage, from 0.
        num_stages: of the pipeline.
        device: of the stage.
        *args: further arguments of torch's `PipelineStage`.
        optimizer: one of this package over the stage's parameters, and no others.
        max_norm: clip the norm of the stage's gradients before each update. (That of the whole
            model is known when all stages have been waited for.)
        backward: whether gradients are computed at the ``"current"`` true weights, or at those of
            the ``"forward"``. Of these are copied what autograd has saved and an update changes.
        lr_scheduler: its ``step`` is called after each update of the stage.
        **kwargs: further arguments of torch's `PipelineStage`, ``group`` for example.

    Raises:
        ValueError: on all ranks, if the arguments of one do not fit.
    """

    def __init__(
        self,
        submodule: nn.Module,
        stage_index: int,
        num_stages: int,
        device: torch.device,
        *args: Any,
        optimizer: WeightPrediction,
        max_norm: float | None = None,
        backward: Backward = "current",
        lr_scheduler: LRScheduler | None = None,
        **kwargs: Any,
    ) -> None:
        bound = _SIGNATURE.bind(submodule, stage_index, num_stages, device, *args, **kwargs)
        group = bound.arguments.get("group")
        given = StageArguments(
            submodule, stage_index, num_stages, optimizer, max_norm, backward, lr_scheduler
        )
        why_not = why_no_stage(given, dist.get_world_size(group), _living)
        shared, own = {"num_stages": num_stages}, {"stage_index": stage_index}
        claim = Claim("a stage", shared, own, why_not)
        agree(claim, group, torch.device(device))
        super().__init__(*bound.args, **bound.kwargs)
        self.optimizer, self.max_norm, self.lr_scheduler = optimizer, max_norm, lr_scheduler
        self.weights = SavedWeights(submodule, backward)
        self.is_moved = True  # predicted weights may be others than the true ones
        self.in_flight = InFlight(submodule, optimizer)
        for earlier in _living:
            if earlier.submod is submodule:
                earlier.in_flight.end()
        _living.add(self)

    # What schedules call.

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        """The forward of a micro-batch: at predicted weights, or at true ones to evaluate."""
        if not self.has_backward:
            self.optimizer.restore()
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        with self._working():
            self._predict()
            with self.weights.recorded(fwd_chunk_id):
                return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Tensor | None = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        """The backward pass of a micro-batch and, if this is all of it, an update."""
        self.compute_gradients(bwd_chunk_id, loss, full_backward)
        if full_backward:
            self.update()

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """The other half of a backward pass, and an update."""
        if not self.has_backward:
            return
        given = taken_by(super().backward_weight_one_chunk, last_backward=True)
        with self._going_back(bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, **given)
        self.update()

    def clear_runtime_states(self) -> None:
        """To be called before a step. What is in flight stays."""
        kept = dict(self.fwd_cache) if self.in_flight.reason else {}
        super().clear_runtime_states()
        self.fwd_cache.update(kept)

    # The parts of a backward pass with an update.

    def compute_gradients(
        self, bwd_chunk_id: int, loss: Tensor | None = None, full_backward: bool = True
    ) -> None:
        """The backward pass of a micro-batch, or the half of it that the stage before waits for."""
        if not self.has_backward:
            return
        # Replicas exchange the gradients of every micro-batch: each may be the last of an update.
        given = {"loss": loss, "full_backward": full_backward, "last_backward": True}
        with self._going_back(bwd_chunk_id):
            super().backward_one_chunk(
                bwd_chunk_id, **taken_by(super().backward_one_chunk, **given)
            )

    def update(self) -> None:
        """An update of the stage's weights, after the backward pass of a micro-batch."""
        if not self.has_backward:
            return
        with self._working():
            if self.max_norm is not None:
                self.optimizer.clip_grad_norm_(self.max_norm)
            self.weights.keep()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.is_moved = self._predicts()
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()

    def _working(self) -> AbstractContextManager[None]:
        self.in_flight.check("a pass of another schedule")
        return self.in_flight.working()

    def _predicts(self) -> bool:
        return any(group["prediction_steps"] != 0 for group in self.optimizer.param_groups)

    def _predict(self) -> None:
        self.is_moved |= self._predicts() or self.optimizer.weights_are == "true"
        self.optimizer.predict(look=not self.fwd_cache)  # others may have written in between

    @contextmanager
    def _going_back(self, chunk: int) -> Iterator[None]:
        """For a backward pass of a micro-batch, or a half of one."""
        with self._working(), self.weights.used(chunk):
            # Parameters themselves, not what autograd has saved of them alone: checkpointed parts
            # of the module are computed again, and functions of users may read what they kept.
            if self.weights.backward == "current" and self.is_moved:
                self.optimizer.restore(look=False)  # nobody else writes to them
            yield
