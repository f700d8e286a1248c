"""A small GPT: pre-norm blocks, learned positions; whole, or cut into stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02


class Attention(nn.Module):
    """Causal self-attention with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, time, width]`` to the same shape."""
        batch, time, width = x.shape
        joint = self.query_key_value(x).view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = joint.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.project(mixed.transpose(1, 2).reshape(batch, time, width))
        return projected


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each added to its normalised input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[batch, time, width]`` to the same shape."""
        x = x + self.attention(self.attention_norm(x))
        out: Tensor = x + self.project(F.gelu(self.expand(self.mlp_norm(x))))
        return out


class GPT(nn.Module):
    """A decoder over a small vocabulary, by default the 256 bytes.

    Args:
        context: the longest input, in tokens.
        layers: number of blocks.
        width: size of the residual stream; a multiple of ``heads``.
        heads: attention heads per block.
        vocabulary: number of tokens.
        is_tied: whether the head's weights are those of the embedding.
    """

    def __init__(
        self,
        context: int,
        layers: int,
        width: int,
        heads: int,
        vocabulary: int = 256,
        is_tied: bool = True,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(_init_weights)
        for name, weight in self.named_parameters():
            # Each block adds twice to the residual stream: keep its variance at one block's.
            if name.endswith("project.weight"):
                nn.init.normal_(weight, std=INIT_STD / (2 * layers) ** 0.5)
        if is_tied:
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the next token, ``[batch, time, vocabulary]``, for int64 tokens."""
        hidden = self.blocks(embed(tokens, self.token, self.position))
        logits: Tensor = self.head(self.norm(hidden))
        return logits


def embed(tokens: Tensor, token: nn.Module, position: nn.Module) -> Tensor:
    """Add the embeddings of tokens and of their places, ``[batch, time, width]``."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    embedded: Tensor = token(tokens) + position(places)
    return embedded


class Embedding(nn.Module):
    """The first part of a GPT."""

    def __init__(self, token: nn.Module, position: nn.Module) -> None:
        super().__init__()
        self.token, self.position = token, position

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what the first block gets."""
        return embed(tokens, self.token, self.position)


def in_stages(model: GPT, num_stages: int) -> nn.Sequential:
    """Cut a GPT, one that is not tied, into stages with as many blocks each."""
    blocks = list(model.blocks)
    per_stage, rest = divmod(len(blocks), num_stages)
    if rest:
        raise ValueError(f"layers must be a multiple of {num_stages} stages, got {len(blocks)}")
    stages = [nn.Sequential(*blocks[i : i + per_stage]) for i in range(0, len(blocks), per_stage)]
    stages[0].insert(0, Embedding(model.token, model.position))
    stages[-1].extend([model.norm, model.head])
    return nn.Sequential(*stages)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
