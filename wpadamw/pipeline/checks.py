"""Why a stage or a schedule cannot be built, as far as a rank can tell alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, get_args

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import ReduceLROnPlateau

from wpadamw import layout
from wpadamw.links import links_of
from wpadamw.optimizer import WeightPrediction
from wpadamw.pipeline.in_flight import IN_FLIGHT
from wpadamw.pipeline.saved_weights import Backward


class StageArguments(NamedTuple):
    """What is to be a stage."""

    submodule: Any
    stage_index: Any
    num_stages: Any
    optimizer: Any
    max_norm: Any
    backward: Any
    lr_scheduler: Any


def why_no_stage(given: StageArguments, world_size: int, others: Iterable[Any]) -> str | None:
    """The first thing that is wrong with a stage beside the other stages of this process."""
    return next(_stage_reasons(given, world_size, others), None)


def _stage_reasons(given: StageArguments, world_size: int, others: Iterable[Any]) -> Iterator[str]:
    num_stages, index = given.num_stages, given.stage_index
    if not isinstance(num_stages, int) or num_stages < world_size:
        yield f"num_stages must be at least the number of ranks, {world_size}, got {num_stages}"
    if index not in range(num_stages):
        yield f"stage_index must be from 0 to {num_stages - 1}, got {index}"
    if given.backward not in get_args(Backward):
        yield f'backward must be "current" or "forward", got {given.backward!r}'
    norm = given.max_norm
    if norm is not None and not (isinstance(norm, (int, float)) and 0 < norm < math.inf):
        yield f"max_norm must be a positive number or None, got {norm!r}"
    yield from _module_reasons(given)
    yield from _optimizer_reasons(given)
    for other in others:
        yield from _clashes(given, other)


def _module_reasons(given: StageArguments) -> Iterator[str]:
    module, name = given.submodule, f"the submodule of stage {given.stage_index}"
    if not isinstance(module, nn.Module):
        yield f"{name} must be a Module, got {type(module).__name__}"
    if not any(param.requires_grad for param in module.parameters()):
        yield f"{name} must have parameters to train, got none: join it to a neighbour"
    if any(isinstance(part, FSDPModule) for part in module.modules()):
        yield (
            f"{name} must not be sharded by fully_shard, which reduces gradients once a step: "
            "replicate it with DistributedDataParallel"
        )
    if any(map(links_of, module.modules())):
        yield f"{name} must not be attached to an optimizer: the stage moves it itself"
    if given.backward == "forward" and any(map(layout.is_dtensor, module.parameters())):
        yield f'{name} must have no DTensor parameters with backward="forward"'


def _optimizer_reasons(given: StageArguments) -> Iterator[str]:
    opt = given.optimizer
    if not isinstance(opt, WeightPrediction):
        yield f"optimizer must be one of wpadamw's, got {type(opt).__name__}"
    if opt.amp:
        yield "optimizer must not have amp=True: losses in flight would carry an older scale"
    if opt.releases_gradients:
        yield "optimizer must not release gradients: micro-batches accumulate them"
    if opt.compute_dtype is not None:
        yield "optimizer must not have a compute_dtype: the submodule computes with parameters"
    own = {id(param) for param in given.submodule.parameters()}
    held = {id(param) for group in opt.param_groups for param in group["params"]}
    if strange := len(held - own):
        yield f"optimizer must hold parameters of its stage only, got {strange} of others"
    for name, param in given.submodule.named_parameters():
        if param.requires_grad and id(param) not in held:
            yield f"optimizer must hold all parameters that are trained, got none for {name!r}"
    scheduler = given.lr_scheduler
    if scheduler is not None and getattr(scheduler, "optimizer", None) is not opt:
        yield "lr_scheduler must be one of the stage's optimizer"
    if isinstance(scheduler, ReduceLROnPlateau):
        yield "lr_scheduler must make steps without a metric, got ReduceLROnPlateau"


def _clashes(given: StageArguments, other: Any) -> Iterator[str]:
    """With another stage, or with an earlier one of the same module."""
    if other.submod is given.submodule and other.in_flight.reason is IN_FLIGHT:
        yield IN_FLIGHT.format(what=f"a new stage {given.stage_index}")
    if other.num_stages != given.num_stages or other.stage_index == given.stage_index:
        return
    own = {id(param): name for name, param in given.submodule.named_parameters()}
    for name in (own[id(param)] for param in other.submod.parameters() if id(param) in own):
        yield (
            f"stages must not share parameters, got {name!r} of stage {given.stage_index}, which "
            f"stage {other.stage_index} updates, too"
        )


def why_no_schedule(
    stage: Any, n_microbatches: Any, loss_fn: Callable[..., Any] | None
) -> str | None:
    """The first thing that is wrong with an `Async1F1B`; the stage is one."""
    num_stages = stage.num_stages
    if not isinstance(n_microbatches, int) or n_microbatches < num_stages:
        return f"n_microbatches must be at least the stages, {num_stages}, got {n_microbatches!r}"
    if not callable(loss_fn):
        return f"loss_fn must be given on all ranks, got {loss_fn!r}"
    if stage.group_size != num_stages:
        return f"stage must be one per rank, got {num_stages} stages on {stage.group_size} ranks"
    return None
