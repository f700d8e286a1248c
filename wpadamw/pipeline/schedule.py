"""The 1F1B schedule without a drain, and the delays of schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from wpadamw.compat import taken_by
from wpadamw.pipeline.agreement import Claim, agree
from wpadamw.pipeline.checks import why_no_schedule
from wpadamw.pipeline.in_flight import FAILED
from wpadamw.pipeline.stage import AsyncStage


def delays(schedule: Any, stage: PipelineStage | int) -> list[int]:
    """The number of updates that an `AsyncStage` makes between forward and backward passes.

    Args:
        schedule: one of torch's with a ``pipeline_order``.
        stage: of the pipeline, or its index.

    Returns:
        A delay per micro-batch, in their order. They grow from 0 while the pipeline fills; the
        greatest is the ``prediction_steps`` of PipeOptim.

    Raises:
        ValueError: for a schedule that does not tell its order, or not of this stage.
    """
    index = stage if isinstance(stage, int) else stage.stage_index
    updates, begun, found = 0, Counter[int](), dict[int, int]()
    for kind, micro_batch in _actions(schedule, index):
        if kind == "FORWARD":
            begun[micro_batch] = updates
        elif kind in ("FULL_BACKWARD", "BACKWARD_WEIGHT"):
            found[micro_batch] = updates - begun[micro_batch]
            updates += 1
    if not found:
        raise ValueError(f"schedule must have an order with stage {index}, got {schedule!r}")
    return [found[micro_batch] for micro_batch in sorted(found)]


def _actions(schedule: Any, index: int) -> Iterator[tuple[str, int]]:
    """What is done for a stage, kinds and micro-batches in order."""
    for actions in (getattr(schedule, "pipeline_order", None) or {}).values():
        for action in actions:
            for part in getattr(action, "sub_actions", None) or (action,):
                if part is not None and part.stage_index == index:
                    yield part.computation_type.name, part.microbatch_index


class Async1F1B(Schedule1F1B):
    """Torch's 1F1B schedule of `AsyncStage` objects that goes on from step to step.

    A call of ``step`` leaves the last micro-batches in flight, and the next one goes on with them:
    no stage ever waits for the pipeline to fill, but after construction, `flush` and `eval`. While
    micro-batches are in flight, stages have made different numbers of updates: evaluating, mode
    calls, state dicts and copies of the modules are refused until `flush`.

    The first step after construction or an evaluation is torch's own, which finds out shapes and
    drains. With fewer micro-batches than stages there would be less in flight than it takes.

    Args:
        stage: this rank's; as many as there are ranks.
        n_microbatches: per step, at least as many as there are stages.
        loss_fn: of output and target of a micro-batch; to be given on all ranks.
        **kwargs: further arguments of torch's `Schedule1F1B`.

    Raises:
        ValueError: on all ranks, if the arguments of one do not fit.

    Example:
        >>> steps = num_stages - 1 - rank
        >>> opt = wpadamw.WPAdamW(module.parameters(), prediction_steps=steps)
        >>> stage = AsyncStage(module, rank, num_stages, device, optimizer=opt)
        >>> schedule = Async1F1B(stage, n_microbatches=8, loss_fn=loss_fn)
        >>> schedule.step(x) if rank == 0 else schedule.step(target=y)  # and so on
        >>> schedule.flush()  # and now evaluate, and save
    """

    def __init__(
        self,
        stage: AsyncStage,
        n_microbatches: int,
        loss_fn: Callable[..., Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        is_one = isinstance(stage, AsyncStage)
        why_not = None if is_one else f"stage must be an AsyncStage, got {type(stage).__name__}"
        why_not = why_not or why_no_schedule(stage, n_microbatches, loss_fn)
        claim = Claim("a schedule", {"n_microbatches": n_microbatches}, {}, why_not)
        agree(claim, getattr(stage, "group", None), torch.device(getattr(stage, "device", "cpu")))
        assert loss_fn is not None
        super().__init__(stage, n_microbatches, loss_fn, **kwargs)
        self.stage, self.num_chunks, self.loss_fn = stage, n_microbatches, loss_fn
        self.delay = stage.num_stages - 1 - stage.stage_index
        self.is_prepared = False  # for training, by a step of torch's
        self.has_failed = False
        self.num_forwards = self.num_backwards = 0  # since the pipeline was empty
        self.sending: list[dist.Work] = []  # the last gradient

    def eval(self, *args: Any, **kwargs: Any) -> Any:
        """Torch's ``eval``: a forward of a batch at the true weights. Call `flush` before."""
        self.stage.in_flight.check("eval()")
        return super().eval(*args, **kwargs)

    def flush(self) -> None:
        """Finish the micro-batches in flight and go to the true weights: to evaluate and to save.

        To be called on all ranks. The next step goes to predicted weights by itself.
        """
        self._guarded(self._drain)

    # Torch's name for what a schedule does with the micro-batches of a step.
    def _step_microbatches(
        self,
        arg_mbs: list[Any] | None = None,
        kwarg_mbs: list[Any] | None = None,
        target_mbs: list[Any] | None = None,
        losses: list[Tensor] | None = None,
        return_outputs: bool = True,
        loss_kwargs: dict[str, Any] | None = None,
    ) -> None:
        if not (self.stage.has_backward and self.is_prepared):
            torchs = super()._step_microbatches
            options = taken_by(torchs, return_outputs=return_outputs, loss_kwargs=loss_kwargs)
            self._drained(partial(torchs, arg_mbs, kwarg_mbs, target_mbs, losses, **options))
            return
        none: list[Any] = [None] * self.num_chunks
        chunks = list(zip(arg_mbs or none, kwarg_mbs or none, target_mbs or none, strict=True))
        found: list[Tensor] = []
        self._guarded(lambda: self._run(chunks, return_outputs, loss_kwargs or {}, found))
        if losses is not None and self.stage.is_last:
            losses[:] = found

    def _drained(self, step: Callable[[], None]) -> None:
        """A step of torch's: one of training sets up what the next ones use."""
        self.is_prepared = False
        if self.stage.has_backward:
            self._guarded(step)
            self.is_prepared = True
        else:  # a failure leaves all weights as they are
            step()

    def _guarded(self, run: Callable[[], None]) -> None:
        """Whoever is interrupted has lost what was in flight, and the messages of the others."""
        if self.has_failed:
            raise RuntimeError(FAILED.format(what="step() or flush()"))
        self.has_failed = True
        with self.stage.in_flight.working():
            run()
        self.has_failed = False

    def _run(
        self,
        chunks: Sequence[tuple[Any, Any, Any]],
        return_outputs: bool,
        loss_kwargs: dict[str, Any],
        losses: list[Tensor],
    ) -> None:
        """A forward and, once the pipeline is full, the backward pass that is due, per micro-batch.

        Sends and receives that meet those of one neighbour are one batch: so neighbours never wait
        for each other crosswise, even where messages go out in order and wait to be received.
        """
        stage = self.stage
        if stage.num_stages > 1:
            stage.in_flight.begin()
        save = taken_by(PipelineStage.forward_one_chunk, save_forward_output=return_outputs)
        coming = self.sending + _start(stage.get_fwd_recv_ops(0))
        for i, (args, kwargs, target) in enumerate(chunks):
            _wait(coming)
            output = stage.forward_one_chunk(i, args or (), kwargs, **save)
            if stage.is_last:
                losses.append(self.loss_fn(output, target, **loss_kwargs))
            self.num_forwards += 1
            is_due = self.num_forwards - self.num_backwards > self.delay
            gradient = self._exchange(stage.get_fwd_send_ops(i), is_due, losses)
            is_last_chunk = i + 1 == self.num_chunks
            # The gradient leaves before the update, which takes its time.
            coming = _start(gradient + ([] if is_last_chunk else stage.get_fwd_recv_ops(i + 1)))
            if is_due:
                stage.update()
        self.sending = coming

    def _exchange(
        self, sends: list[dist.P2POp], is_due: bool, losses: Sequence[Tensor] = ()
    ) -> list[dist.P2POp]:
        """Sends an output, and makes the backward pass that is due; returns what to send of it."""
        if not is_due:
            _wait(_start(sends))
            return []
        stage, chunk = self.stage, self.num_backwards % self.num_chunks
        _wait(_start(sends + stage.get_bwd_recv_ops(chunk)))
        stage.compute_gradients(chunk, losses[-1] if losses else None)
        self.num_backwards += 1
        return stage.get_bwd_send_ops(chunk)

    def _drain(self) -> None:
        while self.num_backwards < self.num_forwards:
            self.sending += _start(self._exchange([], is_due=True))
            self.stage.update()
        _wait(self.sending)
        self.sending, self.num_forwards, self.num_backwards = [], 0, 0
        self.stage.optimizer.restore()
        self.stage.in_flight.end()


def _start(ops: list[dist.P2POp]) -> list[dist.Work]:
    return dist.batch_isend_irecv(ops) if ops else []


def _wait(works: Iterable[dist.Work]) -> None:
    for work in works:
        work.wait()
