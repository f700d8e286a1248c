"""Every number that a step or a prediction needs and no element changes, in float64.

Knows no tensor. Field order and names of `Scalars` are those of ``csrc/scalars.h``; the formulas
are written again in ``csrc/step_scalars.h``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

# Which weights parameters hold.
Mode = Literal["true", "predicted"]


class Scalars(NamedTuple):
    """What an operation on one parameter needs; backends round each field to the state's dtype."""

    grad_factor: float  # -1 for maximize, divided by the gradient scale of mixed precision
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    inv_sqrt_bc2: float  # 1 / sqrt(1 - beta2^k)
    eps: float
    decay: float  # 1 - lr*weight_decay
    step_size: float  # lr / (1 - beta1^k)
    predict_decay: float  # 1 - s*lr*weight_decay
    predict_size: float  # s*lr / (1 - beta1^k)


# The prediction that moves nothing: w_hat = w.
NEUTRAL = Scalars(1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0)


class Prediction(NamedTuple):
    """The hyper-parameters of a parameter's last prediction: the row ``prediction`` of its state.

    ``made`` is 0 as long as the last update has not been predicted from.
    """

    made: float
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float  # 0 where the prediction leaves the decay out
    prediction_steps: float


NO_PREDICTION = Prediction(*[0.0] * len(Prediction._fields))
# Made, and moved nothing: of parameters whose weights were replaced from outside.
NULL_PREDICTION = NO_PREDICTION._replace(made=1.0)


def group_prediction(group: dict[str, Any], lr_as_it_is: bool = False) -> Prediction:
    """The prediction that a parameter group's hyper-parameters of this moment ask for.

    With ``lr_as_it_is`` an lr that is a tensor remains one.
    """
    beta1, beta2 = group["betas"]
    weight_decay = group["weight_decay"] if group["predict_decay"] else 0.0
    return Prediction(
        1.0,
        group["lr"] if lr_as_it_is else float(group["lr"]),
        float(beta1),
        float(beta2),
        float(group["eps"]),
        float(weight_decay),
        float(group["prediction_steps"]),
    )


def prediction_scalars(prediction: Prediction, count: int) -> Scalars:
    """Scalars that re-create a recorded prediction after ``count`` updates."""
    if count == 0 or prediction in (NO_PREDICTION, NULL_PREDICTION):
        return NEUTRAL
    return step_scalars(prediction, 0.0, count, 1.0)


def step_scalars(
    prediction: Prediction,
    weight_decay: float,
    count: int,
    grad_factor: float,
    power: Callable[[Any, Any], Any] = operator.pow,
    sqrt: Callable[[Any], Any] = math.sqrt,
) -> Scalars:
    """Scalars of update number ``count`` and of the prediction from it.

    With a ``power`` and a ``sqrt`` of tensors the numbers may be tensors.
    """
    _, lr, beta1, beta2, eps, predicted_weight_decay, prediction_steps = prediction
    bias_correction1 = 1.0 - power(beta1, count)
    return Scalars(  # by position: twice as fast as by name
        grad_factor,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 / sqrt(1.0 - power(beta2, count)),
        eps,
        1.0 - lr * weight_decay,
        lr / bias_correction1,
        1.0 - prediction_steps * lr * predicted_weight_decay,
        prediction_steps * lr / bias_correction1,
    )
