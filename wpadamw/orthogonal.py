"""The updates of Muon: momenta made orthogonal by Newton-Schulz iterations, in PyTorch.

The formulas and their order are those of ``torch.optim.Muon``; products of matrices have the bits
of their device. Nothing is written.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Updates(NamedTuple):
    """How the updates of matrices are computed."""

    momentum: float
    nesterov: bool
    coefficients: tuple[float, ...]
    eps: float
    steps: int
    adjustment: str | None

    def after(self, momentum: Tensor, grad: Tensor) -> Tensor:
        """The momentum after a gradient."""
        return torch.lerp(momentum, grad, 1.0 - self.momentum)

    def mix(self, momentum: Tensor, grad: Tensor) -> Tensor:
        """What is made orthogonal: the momentum after a gradient, with Nesterov mixed with it."""
        return torch.lerp(grad, momentum, self.momentum) if self.nesterov else momentum

    def all_orthogonal(self, matrices: list[Tensor]) -> list[Tensor]:
        """Matrices of one shape made orthogonal."""
        if matrices[0].is_cpu:  # a batch would save no launches there
            return list(map(self.orthogonal, matrices))
        return list(self.orthogonal(torch.stack(matrices)))

    def orthogonal(self, x: Tensor) -> Tensor:
        """A matrix, or a batch, with singular values of around 1.

        By steps of ``x = a*x + (b*y + c*y*y)*x, y = x*x^T``, where x has no more rows than columns.
        """
        (a, b, c), add_product = self.coefficients, torch.addmm if x.ndim == 2 else torch.baddbmm
        is_tall = x.size(-2) > x.size(-1)
        x = x.mT if is_tall else x
        x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=self.eps)
        for _ in range(self.steps):
            y = x @ x.mT
            x = add_product(x, add_product(y, y, y, beta=b, alpha=c), x, beta=a)
        return x.mT if is_tall else x

    def size(self, shape: torch.Size) -> float:
        """What the update of a matrix of this shape is multiplied by."""
        rows, columns = shape
        if self.adjustment == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, rows / max(1, columns)))
