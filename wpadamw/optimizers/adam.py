"""Adam with weight prediction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.adam import Adam
from wpadamw.rules.adam_amsgrad import AdamAMSGrad
from wpadamw.rules.adamw import AdamW
from wpadamw.rules.amsgrad import AMSGrad
from wpadamw.rules.rule import Rule

# By whether the decay is decoupled, and by amsgrad.
_RULES = {
    (False, False): Adam(),
    (False, True): AdamAMSGrad(),
    (True, False): AdamW(),
    (True, True): AMSGrad(),
}


class WPAdam(WeightPrediction):
    r"""Adam with weight prediction, a drop-in for ``torch.optim.Adam``.

    The prediction goes along the direction of the last update (Kingma & Ba 2015, arXiv 1412.6980;
    XGrad, arXiv 2305.18240)::

        g     = gradient at w_hat + weight_decay*w
        w     = w - lr*u,   u = m_hat / (sqrt(v_hat) + eps)
        w_hat = w - lr*prediction_steps*u

    The decay is coupled (L2): it reaches the prediction through the moments.

    Args:
        params: parameters or parameter groups, of the dtypes of `WPAdamW`.
        lr: learning rate >= 0, a number or a tensor of one element.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: coupled (L2) decay, >= 0.
        amsgrad: use the running maximum of the second moment.
        decoupled_weight_decay: decouple the decay: this is `WPAdamW` then, and loads what that
            saved.
        predict_decay: whether the prediction includes the decay, where that is decoupled.
        maximize, foreach, capturable, differentiable, fused, prediction_steps, prediction,
            predict_in_step, backup, ema, moments, master, amp, backend,
            compute_dtype, track_prediction: as in `WPAdamW`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> opt = wpadamw.WPAdam(model.parameters(), lr=1e-3)
    """

    original = torch.optim.Adam

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
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
        return _RULES[bool(group["decoupled_weight_decay"]), bool(group["amsgrad"])]
