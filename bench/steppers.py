"""Entrants that are no plain class of an optimizer: what stands around one is part of a step."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import AdamW

from wpadamw import WPAdamW


class PlainPrediction:
    """Weight prediction as published, around torch's fused step.

    Written as tightly as eager operations allow. Bytes: 8 for the copy, 8 each for sqrt, div, add
    and mul, 16 for addcdiv, 8 for the way back, 28 for the step.
    """

    def __init__(self, params: list[Parameter], **options: Any) -> None:
        self.params, self.options = params, options
        self.optimizer = AdamW(params, fused=True, **options)
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
        """P = w - lr*(m_hat/(sqrt(v_hat) + eps) + weight_decay*w); returns the true weights."""
        if self.num_steps == 0:
            return []
        backups = [param.clone() for param in self.params]
        betas, eps, lr = (self.options[name] for name in ("betas", "eps", "lr"))
        bias_correction1, bias_correction2 = (1 - beta**self.num_steps for beta in betas)
        for param in self.params:
            state = self.state[param]
            denominator = state["exp_avg_sq"].sqrt().div_(bias_correction2**0.5).add_(eps)
            param.mul_(1 - lr * self.options["weight_decay"])
            param.addcdiv_(state["exp_avg"], denominator, value=-lr / bias_correction1)
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

    def __init__(self, params: list[Parameter], **options: Any) -> None:
        self.params: list[Tensor] = [*params]
        self.masters: list[Tensor] = [Parameter(param.detach().float()) for param in params]
        for master in self.masters:
            master.grad = torch.empty_like(master)
        self.grads = [_gradient(master) for master in self.masters]
        self.optimizer = AdamW(self.masters, fused=True, **options)
        self.state = [self.masters, self.grads, self.optimizer.state]

    @torch.no_grad()
    def step(self) -> None:
        """Cast the gradients, step, cast the weights."""
        torch._foreach_copy_(self.grads, [_gradient(param) for param in self.params])
        self.optimizer.step()
        torch._foreach_copy_(self.params, self.masters)


def _gradient(param: Tensor) -> Tensor:
    assert param.grad is not None
    return param.grad


class Casting:
    """Torch's fused step, and the weights cast to bfloat16: as often as layers are gathered.

    Bytes: 28 for the step, 6 for a cast.
    """

    def __init__(self, params: list[Parameter], num_casts: int = 1, **options: Any) -> None:
        self.params: list[Tensor] = [*params]
        self.copies = [torch.empty_like(param, dtype=torch.bfloat16) for param in params]
        self.num_casts, self.optimizer = num_casts, AdamW(params, fused=True, **options)
        self.state = [self.copies, self.optimizer.state]

    @torch.no_grad()
    def step(self) -> None:
        """Step and cast."""
        self.optimizer.step()
        for _ in range(self.num_casts):
            torch._foreach_copy_(self.copies, self.params)


class Copying:
    """A step that writes the prediction in bfloat16.

    Bytes: 28 for the step, 2 for the copy.
    """

    def __init__(self, params: list[Parameter], **options: Any) -> None:
        optimizer = WPAdamW(params, compute_dtype=torch.bfloat16, **options)
        self.state = [optimizer.state, list(map(optimizer.compute_copy, params))]
        self.step = optimizer.step


class Halved:
    """A step over bfloat16 parameters, with what float32 weights have beyond that in the state.

    Bytes: 8 for both halves, 2 for the gradient, and the moments.
    """

    def __init__(self, params: list[Parameter], **options: Any) -> None:
        self.params = [Parameter(param.detach().bfloat16()) for param in params]
        for own, param in zip(self.params, params, strict=True):
            own.grad = _gradient(param).bfloat16()
        optimizer = WPAdamW(self.params, master="split", backup=False, **options)
        self.state, self.step = optimizer.state, optimizer.step


class Compiled:
    """A step of torch's AdamW as Inductor compiles it."""

    def __init__(self, params: list[Parameter], **options: Any) -> None:
        optimizer = AdamW(params, foreach=True, **options)
        self.state, self.step = optimizer.state, torch.compile(optimizer.step)


class Scaled:
    """A step as after a gradient scaler: scale and overflow flag are on the device."""

    def __init__(self, params: list[Parameter], **options: Any) -> None:
        optimizer: Any = WPAdamW(params, amp=True, **options)
        optimizer.grad_scale = torch.ones((), device=params[0].device)
        optimizer.found_inf = torch.zeros((), device=params[0].device)
        self.state, self.step = optimizer.state, optimizer.step


class Replayed:
    """A step that a CUDA graph repeats."""

    def __init__(self, params: list[Parameter], **options: Any) -> None:
        optimizer = WPAdamW(params, capturable=True, **options)
        optimizer.step()
        self.state, self.graph = optimizer.state, torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            optimizer.step()
        # The graph reads and writes their memory, also when the parameters have other gradients.
        self.kept = [optimizer, *(param.grad for param in params)]

    def step(self) -> None:
        """Replay. A method, so that whoever holds it holds what the graph needs."""
        self.graph.replay()


def schedule_free(params: Any, **options: Any) -> Any:
    """AdamW without a schedule, in the mode of training."""
    optimizer = importlib.import_module("schedulefree").AdamWScheduleFree(params, **options)
    optimizer.train()
    return optimizer


def adabelief(params: Any, **options: Any) -> Any:
    """The authors' AdaBelief as in their paper, without what it prints."""
    kind = importlib.import_module("adabelief_pytorch").AdaBelief
    with contextlib.redirect_stdout(io.StringIO()):
        return kind(params, rectify=False, print_change_log=False, **options)
