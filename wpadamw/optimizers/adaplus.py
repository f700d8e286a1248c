"""AdaPlus with weight prediction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.adaplus import AdaPlus
from wpadamw.rules.adaplus_amsgrad import AdaPlusAMSGrad
from wpadamw.rules.rule import Rule

_ADAPLUS, _ADAPLUS_AMSGRAD = AdaPlus(), AdaPlusAMSGrad()


class WPAdaPlus(WeightPrediction):
    r"""AdaPlus with weight prediction, with the arguments of its author's ``AdaPlus``.

    The update takes the Nesterov mix over AdaBelief's second moment (Guan 2023, arXiv 2309.01966,
    Algorithm 1), the prediction the plain direction::

        m     = beta1*m + (1 - beta1)*g
        s     = beta2*s + (1 - beta2)*(g - m)^2 + eps
        n     = beta1*m + (1 - beta1)*g
        w     = (1 - lr*weight_decay)*w - lr*n_hat/(sqrt(s_hat) + eps)
        w_hat = w - lr*prediction_steps*(m_hat/(sqrt(s_hat) + eps) + weight_decay*w)

    Args:
        params: parameters or parameter groups, of the dtypes of `WPAdamW`.
        lr: learning rate >= 0, a number or a tensor of one element.
        betas: decay rates of the moments, in [0, 1).
        eps: added to ``s`` in each update and to the root, >= 0.
        weight_decay: decoupled decay, >= 0.
        amsgrad: use the running maximum of the second moment.
        outer_eps: add eps to the root, as the paper does. False: to ``s`` alone, as the released
            code does.
        maximize, foreach, capturable, differentiable, fused, prediction_steps, prediction,
            predict_decay, predict_in_step, backup, ema, moments, master, amp, backend,
            compute_dtype, track_prediction: as in `WPAdamW`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> opt = wpadamw.WPAdaPlus(model.parameters(), lr=1e-3)
    """

    original = torch.optim.AdamW  # the author's code is no package

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
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
        outer_eps: bool = True,
    ) -> None:
        super().__init__(locals())

    def _rule(self, group: Group) -> Rule:
        return _ADAPLUS_AMSGRAD if group["amsgrad"] else _ADAPLUS
