"""The optimizers that are compared: their names, how they are built, what they move and hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import names
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW

import wpadamw
from wpadamw import WPAdamW

LR, BETAS, EPS, WEIGHT_DECAY, PREDICTION_STEPS = 1e-3, (0.9, 0.999), 1e-8, 1e-2, 1.0
OPTIONS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}

# What a fused AdamW step over fp32 reads (weight, gradient, both moments) and writes, per
# parameter. Copies move as much.
STEP_BYTES = 28


class Stepper(Protocol):
    """What a race needs of an optimizer."""

    state: Any

    def step(self) -> Any:
        """Do all that belongs to one step of training beside forward and backward."""


class Kind(NamedTuple):
    """An entry of a table.

    Args:
        name: in the tables.
        build: makes the optimizer over parameters.
        bytes_per_parameter: that a step reads and writes, every operation counted; None where
            it depends on the version of another package.
        held_bytes: per parameter at most: weight, gradient, moments, copies of the weight.
        temporary_bytes: per parameter at most, for a while during a step.
        why_not: why it does not take part here.
    """

    name: str
    build: Callable[[list[Parameter]], Stepper]
    bytes_per_parameter: int | None
    held_bytes: int = 20
    temporary_bytes: int = 0
    why_not: str | None = None


class PlainPrediction:
    """Weight prediction as published, around torch's fused step.

    Written as tightly as eager operations allow. Bytes: 8 for the copy, 8 each for sqrt, div, add
    and mul, 16 for addcdiv, 8 for the way back, 28 for the step.
    """

    bytes_per_parameter = 92

    def __init__(self, params: list[Parameter]) -> None:
        self.params = params
        self.optimizer = AdamW(params, fused=True, **OPTIONS)
        self.state = self.optimizer.state
        self.num_steps = 0

    def step(self) -> None:
        """Predict and, as forward and backward are not timed, go back and step at once."""
        backups = self.predict()
        self.restore(backups)
        self.optimizer.step()
        self.num_steps += 1

    @torch.no_grad()
    def predict(self) -> list[Tensor]:
        """p = w - lr*s*(m_hat/(sqrt(v_hat) + eps) + weight_decay*w); returns the true weights."""
        if self.num_steps == 0:
            return []
        backups = [param.clone() for param in self.params]
        bias_correction1, bias_correction2 = (1 - beta**self.num_steps for beta in BETAS)
        size = LR * PREDICTION_STEPS
        for param in self.params:
            state = self.state[param]
            denominator = state["exp_avg_sq"].sqrt().div_(bias_correction2**0.5).add_(EPS)
            param.mul_(1 - size * WEIGHT_DECAY)
            param.addcdiv_(state["exp_avg"], denominator, value=-size / bias_correction1)
        return backups

    @torch.no_grad()
    def restore(self, backups: list[Tensor]) -> None:
        """Put the true weights back."""
        for param, backup in zip(self.params, backups, strict=False):
            param.copy_(backup)


class MasterWeights:
    """Torch's fused step on fp32 copies of bf16 parameters, and the casts to and fro.

    Bytes: 6 for the gradient's cast, 28 for the step, 6 for the weight's cast.
    """

    bytes_per_parameter = 40

    def __init__(self, params: list[Parameter]) -> None:
        self.params = params
        self.masters = [Parameter(param.detach().float()) for param in params]
        for master in self.masters:
            master.grad = torch.empty_like(master)
        self.grads = [master.grad for master in self.masters]
        self.optimizer = AdamW(self.masters, fused=True, **OPTIONS)
        self.state = [self.masters, self.grads, self.optimizer.state]

    @torch.no_grad()
    def step(self) -> None:
        """Cast the gradients, step, cast the weights."""
        torch._foreach_copy_(self.grads, [param.grad for param in self.params])
        self.optimizer.step()
        torch._foreach_copy_(self.params, self.masters)


class Compiled:
    """A step of torch's AdamW as Inductor compiles it."""

    def __init__(self, params: list[Parameter]) -> None:
        optimizer = AdamW(params, foreach=True, **OPTIONS)
        self.state, self.step = optimizer.state, torch.compile(optimizer.step)


class Scaled:
    """A step as after a gradient scaler: scale and overflow flag are on the device."""

    def __init__(self, params: list[Parameter]) -> None:
        optimizer: Any = WPAdamW(params, prediction_steps=PREDICTION_STEPS, amp=True, **OPTIONS)
        optimizer.grad_scale = torch.ones((), device=params[0].device)
        optimizer.found_inf = torch.zeros((), device=params[0].device)
        self.state, self.step = optimizer.state, optimizer.step


class Replayed:
    """A step that a CUDA graph repeats."""

    def __init__(self, params: list[Parameter]) -> None:
        optimizer = WPAdamW(params, prediction_steps=PREDICTION_STEPS, capturable=True, **OPTIONS)
        optimizer.step()
        self.state, self.graph = optimizer.state, torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            optimizer.step()
        # The graph reads these, also when the parameters have others.
        self.kept = [optimizer, *(param.grad for param in params)]
        self.step = self.graph.replay


_torch = partial(partial, AdamW, **OPTIONS)
_ours = partial(partial, WPAdamW, prediction_steps=PREDICTION_STEPS, **OPTIONS)

FP32 = [
    Kind(names.FUSED, _torch(fused=True), STEP_BYTES),
    Kind(names.OURS, _ours(), STEP_BYTES + 4),
    Kind(names.OURS_WITHOUT_BACKUP, _ours(backup=False), STEP_BYTES),
    Kind(names.PLAIN, PlainPrediction, PlainPrediction.bytes_per_parameter, temporary_bytes=12),
]
FOREACH = Kind(names.FOREACH, _torch(foreach=True), None, temporary_bytes=16)
FOR_LOOP = Kind(names.FOR_LOOP, _torch(foreach=False), None, temporary_bytes=8)
COMPILED = Kind(names.COMPILED, Compiled, None, temporary_bytes=16)
BF16 = [
    Kind(names.FUSED_BF16, MasterWeights, MasterWeights.bytes_per_parameter),
    Kind(names.OURS, _ours(), STEP_BYTES, held_bytes=16),
]
TRITON = [
    Kind(names.TRITON, _ours(backend="triton"), STEP_BYTES + 4),
    Kind(names.TRITON_WITHOUT_BACKUP, _ours(backend="triton", backup=False), STEP_BYTES),
]
TRITON_BF16 = [Kind(names.TRITON, _ours(backend="triton"), STEP_BYTES, held_bytes=16)]
DEVICE_SIDE = [
    Kind(names.SCALED, Scaled, STEP_BYTES + 4),
    Kind(names.REPLAYED, Replayed, STEP_BYTES + 4),
]


def _where_triton_is(kinds: list[Kind]) -> list[Kind]:
    why_not = wpadamw.backends()["cuda"].get("triton", "there is no such backend")
    return [kind._replace(why_not=why_not) for kind in kinds]


def fp32_kinds(device: torch.device) -> list[Kind]:
    """What is compared over fp32 parameters."""
    on_gpu = [*_where_triton_is(TRITON), *DEVICE_SIDE] if device.type == "cuda" else []
    return [*FP32, FOREACH, *on_gpu]


def bf16_kinds(device: torch.device) -> list[Kind]:
    """What is compared over bf16 parameters."""
    return [*BF16, *(_where_triton_is(TRITON_BF16) if device.type == "cuda" else [])]


# What an optimizer holds.


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(map(tensors_in, value))


def storage_bytes(value: object) -> int:
    """The bytes behind all tensors in nested containers, each storage counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors_in(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
