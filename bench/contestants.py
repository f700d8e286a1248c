"""The optimizers that are compared: what they are called, how they are built, what they move."""

from __future__ import annotations

import importlib.util
import itertools
import math
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

import wpadamw
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
    Kind(names.PLAIN, PlainPrediction, PlainPrediction.bytes_per_parameter),
    Kind(names.FOREACH, _torch(foreach=True), None),
]
BF16 = [
    Kind(names.FUSED_BF16, MasterWeights, MasterWeights.bytes_per_parameter),
    Kind(names.OURS, _ours(), 28),
]
DEEPSPEED = Kind(names.DEEPSPEED, _deepspeed, STEP_BYTES)
TRITON = Kind(names.TRITON, _ours(backend="triton"), STEP_BYTES + 4)
TRITON_WITHOUT_BACKUP = Kind(
    names.TRITON_WITHOUT_BACKUP, _ours(backend="triton", backup=False), STEP_BYTES
)
TRITON_BF16 = Kind(names.TRITON, _ours(backend="triton"), 28)
SCALED = Kind(names.SCALED, Scaled, STEP_BYTES + 4)
REPLAYED = Kind(names.REPLAYED, Replayed, STEP_BYTES + 4)


def left_out(device: torch.device) -> dict[str, str]:
    """Contestants that do not take part here, and why."""
    if device.type == "cuda":
        reason = _why_no_triton()
        return {} if reason is None else {names.TRITON: reason}
    return {} if HAS_DEEPSPEED else {names.DEEPSPEED: "deepspeed is not installed"}


def _why_no_triton() -> str | None:
    return wpadamw.backends()["cuda"].get("triton", "there is no such backend")


def fp32_kinds(device: torch.device) -> list[Kind]:
    """What is compared over fp32 parameters."""
    if device.type != "cuda":
        return [*FP32, DEEPSPEED] if HAS_DEEPSPEED else FP32
    triton = [TRITON, TRITON_WITHOUT_BACKUP] if _why_no_triton() is None else []
    return [*FP32, *triton, SCALED, REPLAYED]


def bf16_kinds(device: torch.device) -> list[Kind]:
    """What is compared over bf16 parameters."""
    has_triton = device.type == "cuda" and _why_no_triton() is None
    return [*BF16, TRITON_BF16] if has_triton else BF16


class Shape(NamedTuple):
    """The parameters of a table."""

    sizes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def equal(cls, num_tensors: int, numel: int, dtype: torch.dtype, device: torch.device) -> Shape:
        """Vectors of one length."""
        return cls(((numel,),) * num_tensors, dtype, device)

    @property
    def total(self) -> int:
        """Parameters in all tensors together."""
        return sum(map(math.prod, self.sizes))

    def parameters(self) -> list[Parameter]:
        """Fresh parameters with gradients."""
        return [self._parameter(size) for size in self.sizes]

    def _parameter(self, size: tuple[int, ...]) -> Parameter:
        param = Parameter(torch.randn(size, dtype=self.dtype, device=self.device))
        param.grad = torch.randn_like(param)
        return param


def gpt2_sizes(
    width: int, num_layers: int, vocabulary: int, context: int
) -> tuple[tuple[int, ...], ...]:
    """The parameters of GPT-2 in their order."""
    norm = ((width,), (width,))
    attention = (*_linear(width, 3 * width), *_linear(width, width))
    perceptron = (*_linear(width, 4 * width), *_linear(4 * width, width))
    layer = (*norm, *attention, *norm, *perceptron)
    return ((vocabulary, width), (context, width), *layer * num_layers, *norm)


def _linear(fan_in: int, fan_out: int) -> tuple[tuple[int, ...], ...]:
    return ((fan_in, fan_out), (fan_out,))


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


# At most what a contestant holds per parameter (weight, gradient, two moments, backup), and the
# largest temporaries of a step (prediction in plain PyTorch, foreach).
HELD_BYTES, TEMPORARY_BYTES = 20, 16


def bytes_needed(kinds: list[Kind], shape: Shape) -> int:
    """Memory for a race, the three tensors of the roofs included."""
    roofs = 3 * STEP_BYTES // 2
    return (HELD_BYTES * len(kinds) + TEMPORARY_BYTES + roofs) * shape.total


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
