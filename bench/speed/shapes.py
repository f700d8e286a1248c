"""Lists of parameters: vectors of one length, and those of known models."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import Parameter

Sizes = tuple[tuple[int, ...], ...]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of the parts of the registry
# Also with copies in bfloat16, and with small formats.
PARTS = {**DTYPES, "cast": torch.float32, "small": torch.float32}


class Shape(NamedTuple):
    """The parameters of a table."""

    sizes: Sizes
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


def gpt2_sizes(width: int, num_layers: int, vocabulary: int, context: int) -> Sizes:
    """The parameters of GPT-2 in their order."""
    norm = ((width,), (width,))
    attention = (*_linear(width, 3 * width), *_linear(width, width))
    perceptron = (*_linear(width, 4 * width), *_linear(4 * width, width))
    layer = (*norm, *attention, *norm, *perceptron)
    return ((vocabulary, width), (context, width), *layer * num_layers, *norm)


def _linear(fan_in: int, fan_out: int) -> Sizes:
    return ((fan_in, fan_out), (fan_out,))  # as GPT-2's Conv1D has it


def vit_sizes(width: int, num_layers: int, image: int, patch: int, num_classes: int) -> Sizes:
    """The parameters of a vision transformer (ViT-B: 768, 12, 224, 16, 1000)."""
    norm = ((width,), (width,))
    patches = (image // patch) ** 2
    embedding = ((1, 1, width), (1, patches + 1, width), (width, 3, patch, patch), (width,))
    attention = (*_dense(width, 3 * width), *_dense(width, width))
    perceptron = (*_dense(width, 4 * width), *_dense(4 * width, width))
    layer = (*norm, *attention, *norm, *perceptron)
    return (*embedding, *layer * num_layers, *norm, *_dense(width, num_classes))


def _dense(fan_in: int, fan_out: int) -> Sizes:
    return ((fan_out, fan_in), (fan_out,))


def llama_sizes(width: int, num_layers: int, hidden: int, keys: int, vocabulary: int) -> Sizes:
    """The parameters of a Llama whose embedding is its head too; ``keys``: width of k and v."""
    attention = ((width, width), (keys, width), (keys, width), (width, width))
    perceptron = ((hidden, width), (hidden, width), (width, hidden))
    layer = (*attention, *perceptron, (width,), (width,))
    return ((vocabulary, width), *layer * num_layers, (width,))
