"""AdaBelief and AdaM3 with weight prediction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.adabelief import AdaBelief
from wpadamw.rules.adabelief_amsgrad import AdaBeliefAMSGrad
from wpadamw.rules.adam3 import AdaM3
from wpadamw.rules.adam3_amsgrad import AdaM3AMSGrad
from wpadamw.rules.rule import Rule

_ADABELIEF, _ADABELIEF_AMSGRAD = AdaBelief(), AdaBeliefAMSGrad()
_ADAM3, _ADAM3_AMSGRAD = AdaM3(), AdaM3AMSGrad()


class WPAdaBelief(WeightPrediction):
    r"""AdaBelief with weight prediction, with the arguments of ``adabelief_pytorch.AdaBelief``.

    The second moment is that of what the momentum did not foretell (Zhuang et al. 2020, arXiv
    2010.07468, Algorithm 2); the prediction goes along the direction of the last update::

        m     = beta1*m + (1 - beta1)*g
        s     = beta2*s + (1 - beta2)*(g - m)^2 + eps
        w     = (1 - lr*weight_decay)*w - lr*u,   u = m_hat / (sqrt(s_hat) + eps)
        w_hat = w - lr*prediction_steps*(u + weight_decay*w)

    Args:
        params: parameters or parameter groups, of the dtypes of `WPAdamW`.
        lr: learning rate >= 0, a number or a tensor of one element.
        betas: decay rates of the moments, in [0, 1).
        eps: added where ``eps_mode`` says, >= 0.
        weight_decay: decay, >= 0.
        amsgrad: use the running maximum of the second moment, in rectified updates, too.
        weight_decouple: decouple the decay; if False it is added to gradients, times the weights.
        fixed_decay: a decoupled decay shrinks weights by ``1 - weight_decay``, whatever the lr.
        rectify: rectify the size of updates by how many gradients are in ``s`` (RAdam, Liu et al.
            2019, arXiv 1908.03265), as the package does by default and the paper does not.
        degenerated_to_sgd: go along ``m_hat`` while there are too few for that; if False only the
            decay acts until then.
        print_change_log: accepted for drop-in use, without effect.
        eps_mode: ``"accumulating"`` adds eps to ``s`` in each update and to the root, as Algorithm
            2 and the package do; ``"inside"`` to ``s_hat`` under the root; ``"outside"`` to the
            root alone, as Adam does.
        maximize, foreach, capturable, differentiable, fused, prediction_steps, prediction,
            predict_decay, predict_in_step, backup, ema, moments, master, amp, backend,
            compute_dtype, track_prediction: as in `WPAdamW`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> opt = wpadamw.WPAdaBelief(model.parameters(), lr=1e-3, weight_decay=0.01)
    """

    original = torch.optim.AdamW  # the package, which prints, may be missing

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0,
        amsgrad: bool = False,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        rectify: bool = False,
        degenerated_to_sgd: bool = True,
        print_change_log: bool = True,
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
        eps_mode: Literal["accumulating", "inside", "outside"] = "accumulating",
    ) -> None:
        super().__init__(locals())

    def _rule(self, group: Group) -> Rule:
        return _ADABELIEF_AMSGRAD if group["amsgrad"] else _ADABELIEF


class WPAdaM3(WeightPrediction):
    r"""AdaM3 (AdaMomentum) with weight prediction, with the arguments of its authors' ``AdaM3``.

    The second moment is that of the momentum (Wang et al. 2021, arXiv 2106.11514, Algorithm 1); the
    prediction goes along the direction of the last update::

        m     = beta1*m + (1 - beta1)*g
        s     = beta2*s + (1 - beta2)*m^2 + eps
        w     = (1 - lr*weight_decay)*w - lr*u,   u = m_hat / sqrt(s_hat)
        w_hat = w - lr*prediction_steps*(u + weight_decay*w)

    The first update moves a weight by ``lr/(1 - beta1)``, ten times as far as Adam, where eps does
    not count.

    Args:
        params: parameters or parameter groups, of the dtypes of `WPAdamW`.
        lr: learning rate >= 0, a number or a tensor of one element.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the second moment in each update, >= 0.
        weight_decay: decay, >= 0.
        amsgrad, weight_decouple, fixed_decay, rectify, degenerated_to_sgd: as in `WPAdaBelief`. A
            rectified update has eps beside the root, too.
        maximize, foreach, capturable, differentiable, fused, prediction_steps, prediction,
            predict_decay, predict_in_step, backup, ema, moments, master, amp, backend,
            compute_dtype, track_prediction: as in `WPAdamW`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> opt = wpadamw.WPAdaM3(model.parameters(), lr=1e-3, weight_decay=0.01)
    """

    original = torch.optim.AdamW  # the authors' code is no package

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0,
        amsgrad: bool = False,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        rectify: bool = False,
        degenerated_to_sgd: bool = True,
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
        return _ADAM3_AMSGRAD if group["amsgrad"] else _ADAM3
