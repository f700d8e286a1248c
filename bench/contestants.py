"""The optimizers that are compared: what they are called, how they are built, what they move."""

from __future__ import annotations

import importlib.util
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol

import names
import torch
from measure import Contestant
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW

from wpadamw import WPAdamW

LR, BETAS, EPS, WEIGHT_DECAY, PREDICTION_STEPS = 1e-3, (0.9, 0.999), 1e-8, 1e-2, 1.0
OPTIONS: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None

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
    """

    name: str
    build: Callable[[list[Parameter]], Stepper]
    bytes_per_parameter: int | None


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


def _deepspeed(params: list[Parameter]) -> Stepper:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own affair, but errors in this test run
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(params, adamw_mode=True, **OPTIONS)


def left_out(device: torch.device) -> dict[str, str]:
    """Peers that are not compared here, and why."""
    if device.type == "cpu" and not HAS_DEEPSPEED:
        return {names.DEEPSPEED: "deepspeed is not installed"}
    return {}


_torch = partial(partial, AdamW, **OPTIONS)
_ours = partial(partial, WPAdamW, prediction_steps=PREDICTION_STEPS, **OPTIONS)

FP32 = [
    Kind(names.FUSED, _torch(fused=True), STEP_BYTES),
    Kind(names.OURS, _ours(), STEP_BYTES + 4),
    Kind(names.OURS_WITHOUT_BACKUP, _ours(backup=False), STEP_BYTES),
    Kind(names.PLAIN, PlainPrediction, PlainPrediction.bytes_per_parameter),
    Kind(names.FOREACH, _torch(foreach=True), None),
]
BF16 = [
    Kind(names.FUSED_BF16, MasterWeights, MasterWeights.bytes_per_parameter),
    Kind(names.OURS, _ours(), 28),
]


def fp32_kinds(device: torch.device) -> list[Kind]:
    """What is compared over fp32 parameters."""
    has_peer = device.type == "cpu" and HAS_DEEPSPEED
    return [*FP32, Kind(names.DEEPSPEED, _deepspeed, STEP_BYTES)] if has_peer else FP32


class Shape(NamedTuple):
    """The parameters of a table."""

    num_tensors: int
    numel: int
    dtype: torch.dtype
    device: torch.device

    @property
    def total(self) -> int:
        """Parameters in all tensors together."""
        return self.num_tensors * self.numel

    def parameters(self) -> list[Parameter]:
        """Fresh parameters with gradients."""
        return [self._parameter() for _ in range(self.num_tensors)]

    def _parameter(self) -> Parameter:
        param = Parameter(torch.randn(self.numel, dtype=self.dtype, device=self.device))
        param.grad = torch.randn_like(param)
        return param


def renew_gradients(params: Iterable[Parameter]) -> None:
    """Give every parameter a gradient at a new place, as ``zero_grad`` and backward do."""
    for param in params:
        param.grad = param.grad.clone()


def contestants(kinds: list[Kind], shape: Shape, has_new_gradients: bool) -> list[Contestant]:
    """Each optimizer over parameters of its own, and the copies that are the roof."""
    return [*(_contestant(kind, shape, has_new_gradients) for kind in kinds), *_roofs(shape)]


def _contestant(kind: Kind, shape: Shape, has_new_gradients: bool) -> Contestant:
    params = shape.parameters()
    moved = None if kind.bytes_per_parameter is None else kind.bytes_per_parameter * shape.total
    renewed = params if has_new_gradients else []
    return Contestant(kind.name, kind.build(params).step, moved, partial(renew_gradients, renewed))


def _roofs(shape: Shape) -> list[Contestant]:
    """A copy and, since it leaves no cache line to be fetched only to be overwritten, a pass.

    A processor reads the lines that an ordinary copy writes, so a step that writes what it has
    read can be faster per byte than the copy.
    """
    source, target, values = (
        torch.ones(STEP_BYTES // 2 * shape.total // 4, device=shape.device) for _ in range(3)
    )
    moved = 2 * source.numel() * source.element_size()
    return [
        Contestant(names.COPY, partial(target.copy_, source), moved),
        Contestant(names.IN_PLACE, partial(values.mul_, 1.0), moved),
    ]


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
