"""The loss of one batch around weights: slopes, curvatures, how far weights swing.

Knows models and flat weights; knows nothing of optimizers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..report.markup import rounded
from ..usage import optional_module
from .comparison import mean_cross_entropy
from .text import Batch

DIGITS = 4
# Of the largest eigenvalue, relative, and the vectors that are kept to find it.
TOLERANCE, NUM_LANCZOS = 2e-2, 12


class Landscape:
    """The mean loss of a batch as a function of flat weights, float32.

    Args:
        model: gives the function; it is copied.
        batch: stays the same.
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self.model = copy.deepcopy(model)
        self.batch = batch
        params = dict(self.model.named_parameters())
        self.shapes = {name: param.shape for name, param in params.items()}

    def _loss(self, weights: Tensor) -> Tensor:
        parts = torch.split(weights, [shape.numel() for shape in self.shapes.values()])
        named = zip(self.shapes.items(), parts, strict=True)
        params = {name: part.view(shape) for (name, shape), part in named}
        return mean_cross_entropy(partial(functional_call, self.model, params), self.batch)

    @torch.no_grad()
    def loss(self, weights: Tensor) -> float:
        """Return the loss at ``weights``."""
        return self._loss(weights).item()

    def gradient(self, weights: Tensor) -> Slope:
        """Return the gradient at ``weights``."""
        weights = weights.detach().requires_grad_()
        # The fused kernels of attention have no second derivative.
        with sdpa_kernel(SDPBackend.MATH):
            (gradient,) = torch.autograd.grad(self._loss(weights), weights, create_graph=True)
        return Slope(weights, gradient)


class Slope(NamedTuple):
    """A gradient that can be differentiated again, and where it was taken."""

    weights: Tensor
    gradient: Tensor

    def times_hessian(self, vector: Tensor) -> Tensor:
        """Return the Hessian times ``vector``."""
        return torch.autograd.grad(self.gradient, self.weights, vector, retain_graph=True)[0]

    def sharpness(self, preconditioner: Tensor) -> float:
        """Return the largest eigenvalue of ``P^-1/2 H P^-1/2``, by the method of Lanczos."""
        linalg = optional_module("scipy.sparse.linalg", "study")
        scale = preconditioner.rsqrt()

        def multiply(vector: Any) -> Any:
            x = torch.from_numpy(vector).float().flatten()
            return (scale * self.times_hessian(scale * x)).double().numpy()

        operator = linalg.LinearOperator((len(scale), len(scale)), multiply, dtype="float64")
        start = torch.randn(len(scale), generator=torch.Generator().manual_seed(0)).double()
        options = {"v0": start.numpy(), "tol": TOLERANCE, "ncv": min(NUM_LANCZOS, len(scale))}
        found = linalg.eigsh(operator, 1, which="LA", return_eigenvectors=False, **options)
        return float(found[0])


# What is seen at a point.


def look(
    landscape: Landscape, path: Sequence[Tensor], predicted: Tensor, preconditioner: Tensor
) -> dict[str, float]:
    """Look at the loss around the last of the true weights on ``path``.

    Returns:
        ``sharpness``; ``loss`` and ``gradient_norm`` at the true weights, ``predicted_loss`` and
        ``predicted_gradient_norm`` at the predicted ones, and what `along_step` and `swing` return.
    """
    slope = landscape.gradient(path[-1])
    seen = {
        "sharpness": slope.sharpness(preconditioner),
        **along_step(slope, path[-1] - path[-2], preconditioner),
        **swing(landscape, path),
        "loss": landscape.loss(path[-1]),
        "predicted_loss": landscape.loss(predicted),
        "gradient_norm": slope.gradient.norm().item(),
        "predicted_gradient_norm": landscape.gradient(predicted).gradient.norm().item(),
    }
    return {key: rounded(value, DIGITS) for key, value in seen.items()}


def along_step(slope: Slope, step: Tensor, preconditioner: Tensor) -> dict[str, float]:
    """Follow the parabola of the loss along the last step ``u``, from where it ended.

    Returns:
        ``slope``, ``g^T u``: positive if the step went too far; ``bend``, ``u^T H u``; and
        ``step_curvature``, ``u^T H u / u^T P u``, at most the sharpness.
    """
    bend = step.dot(slope.times_hessian(step)).item()
    return {
        "slope": step.dot(slope.gradient).item(),
        "bend": bend,
        "step_curvature": bend / step.dot(preconditioner * step).item(),
    }


def swing(landscape: Landscape, path: Sequence[Tensor]) -> dict[str, float]:
    """See how far weights swing around the middle of their path.

    Returns:
        ``cosine`` of successive steps, their mean; ``middle_loss``, that of the mean of the
        weights, and ``swing``, what the mean of their losses has above it: on a quadratic half the
        trace of the Hessian times their covariance.
    """
    steps = [after - before for before, after in pairwise(path)]
    cosines = [torch.cosine_similarity(a, b, dim=0).item() for a, b in pairwise(steps)]
    middle = landscape.loss(torch.stack([*path]).mean(dim=0))
    losses = [landscape.loss(weights) for weights in path]
    return {
        "cosine": sum(cosines) / len(cosines),
        "middle_loss": middle,
        "swing": sum(losses) / len(losses) - middle,
    }
