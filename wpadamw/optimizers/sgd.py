"""SGD with weight prediction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.rule import Rule
from wpadamw.rules.sgd import SGD

_SGD = SGD()


class WPSGD(WeightPrediction):
    r"""SGD with momentum and weight prediction, a drop-in for ``torch.optim.SGD``.

    The prediction goes along the momentum buffer ``m`` (XGrad, arXiv 2305.18240, SGDM)::

        g     = gradient at w_hat + weight_decay*w
        m     = momentum*m + (1 - dampening)*g            (the first time m = g)
        w     = w - lr*m        nesterov: w - lr*(g + momentum*m)
        w_hat = w - lr*prediction_steps*m

    The decay is coupled: it reaches the prediction through ``m``. With ``prediction_steps`` equal
    to ``momentum``, no decay and no dampening, ``w_hat`` is the point that Nesterov momentum
    stores.

    Args:
        params: parameters or parameter groups, of the dtypes of `WPAdamW`.
        lr: learning rate >= 0, a number or a tensor of one element.
        momentum: factor of the momentum buffer, >= 0. With 0 the buffer holds the last gradient.
        dampening: how much of a gradient is kept from the momentum buffer.
        weight_decay: coupled (L2) decay, >= 0.
        nesterov: update along the Nesterov mix of gradient and momentum.
        predict_decay: without effect: the decay is part of the momentum.
        maximize, foreach, capturable, differentiable, fused, prediction_steps, prediction,
            predict_in_step, backup, ema, moments, master, amp, backend,
            compute_dtype, track_prediction: as in `WPAdamW`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> opt = wpadamw.WPSGD(model.parameters(), lr=0.1, momentum=0.9)
    """

    original = torch.optim.SGD

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        prediction_steps: float = 1.0,
        prediction: Literal["linear", "rollout"] = "linear",
        predict_decay: bool = True,
        predict_in_step: bool = True,
        backup: bool = True,
        ema: float | None = None,
        moments: Literal["float32", "bfloat16", "int8"] = "float32",
        master: Literal["float32", "split", "none"] = "float32",
        amp: bool = False,
        backend: str = "auto",
        compute_dtype: torch.dtype | None = None,
        track_prediction: bool = False,
    ) -> None:
        super().__init__(locals())

    def _rule(self, group: Group) -> Rule:
        return _SGD
