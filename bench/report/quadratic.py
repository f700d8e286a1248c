"""AdamW with prediction along one direction of a quadratic: a linear map of two numbers.

Along a direction of curvature ``lambda`` (of the Hessian preconditioned by ``sqrt(v_hat) + eps``,
which is held, without decay) the weight ``w`` and ``y = lr*m`` obey, with ``q = lr*lambda``::

    y' = beta*y + (1 - beta)*q*(w - s*y)
    w' = w - y'

Knows nothing of models.
"""

from __future__ import annotations

import math

BETA = 0.9


def step_matrix(q: float, s: float, beta: float = BETA) -> tuple[tuple[float, float], ...]:
    """Return what a step multiplies ``(w, y)`` by."""
    kept = determinant(q, s, beta)
    pull = (1 - beta) * q
    return (1 - pull, -kept), (pull, kept)


def determinant(q: float, s: float, beta: float = BETA) -> float:
    """Return ``beta - (1 - beta)*q*s``: what is kept of the last step."""
    return beta - (1 - beta) * q * s


def largest_stable(s: float, beta: float = BETA) -> float:
    """Return the ``lr*lambda`` from which on steps grow, by the trace and the determinant."""
    return (2 + 2 * beta) / ((1 - beta) * (1 + 2 * s))


def decay(q: float, s: float, beta: float = BETA) -> float:
    """Return what a step leaves of a deviation in the long run: the spectral radius."""
    product = determinant(q, s, beta)
    half_trace = (1 + product - (1 - beta) * q) / 2
    square = half_trace**2 - product
    return math.sqrt(product) if square < 0 else abs(half_trace) + math.sqrt(square)


def noise_loss(q: float, s: float, beta: float = BETA) -> float:
    """Return the loss that white noise in the gradients keeps up, over that for small ``q``.

    The weight is an autoregression of second order, whose variance is known. For small ``q`` half
    the curvature times that variance is ``lr/4`` times the (preconditioned) variance of the noise.
    """
    kept = 1 + determinant(q, s, beta)
    return 2 * kept / ((1 + q * s) * (2 * kept - (1 - beta) * q))


def best_prediction_steps(q: float, beta: float = BETA) -> float:
    """Return the ``s`` with the least `noise_loss`, to a hundredth."""
    most = ((2 + 2 * beta) / ((1 - beta) * q) - 1) / 2
    tried = [0.01 * i for i in range(math.ceil(100 * most)) if 0.01 * i < most]
    return min(tried, key=lambda s: noise_loss(q, s, beta))


def q_of_noise_ratio(ratio: float, s: float, beta: float = BETA) -> float | None:
    """Return the ``q`` at which noise costs ``ratio`` times what it costs without prediction.

    The ratio falls from 1 until ``q`` comes near to the threshold; None if it is beyond all that.
    """
    grid = [largest_stable(s, beta) * i / 1000 for i in range(1, 1000)]
    ratios = [noise_loss(q, s, beta) / noise_loss(q, 0.0, beta) for q in grid]
    found = (q for q, reached in zip(grid, ratios, strict=True) if reached <= ratio < 1)
    return next(found, None)
