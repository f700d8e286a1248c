"""MARS-AdamW with weight prediction."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.adamw import AdamWOfRest
from wpadamw.rules.mars import MARS
from wpadamw.rules.rule import Rule


class _Rest(AdamWOfRest):
    lr_factor = "lr_1d_factor"
    options: ClassVar[dict[str, str]] = {"betas": "betas_1d", "weight_decay": "weight_decay_1d"}


_MARS, _REST = MARS(), _Rest()


class WPMARS(WeightPrediction):
    r"""MARS-AdamW with weight prediction, with the names of the authors' ``MARS``.

    The gradient's change since the last update reduces its variance; the norm of what comes out is
    clipped to 1, matrix by matrix (Yuan et al. 2024, arXiv 2411.10438, approximate form)::

        c     = g + gamma*beta1/(1 - beta1)*(g - last_g),   c = c / max(1, |c|)
        w     = (1 - lr*weight_decay)*w - lr*u,   u = m_hat / (sqrt(v_hat) + eps),   m, v of c
        w_hat = w - lr*prediction_steps*(u + weight_decay*w)

    Parameters that are no matrices are trained by `WPAdamW`, with the options of names in ``_1d``.
    The last gradient is a copy: whatever is done to ``.grad`` afterwards, it stays.

    Args:
        params: parameters or parameter groups, of the dtypes of `WPAdamW`.
        lr: learning rate >= 0, a number or a tensor of one element.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled decay, >= 0.
        gamma: how much the change counts; with 0 this is `WPAdamW` on clipped gradients.
        optimize_1d: whether all parameters are trained like matrices.
        lr_1d_factor: learning rate of parameters that are no matrices, over ``lr``, so that a
            schedule drives both; >= 0. (The authors' ``lr_1d`` is ``lr_1d_factor * lr``.)
        betas_1d: their decay rates, in [0, 1).
        weight_decay_1d: their decoupled decay, >= 0.
        maximize, foreach, capturable, differentiable, fused, prediction_steps, prediction,
            predict_decay, predict_in_step, backup, ema, moments, master, amp, backend,
            compute_dtype, track_prediction: as in `WPAdamW`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> opt = wpadamw.WPMARS(model.parameters(), lr=3e-3)
    """

    original = torch.optim.AdamW  # the authors' has no package

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 3e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.95, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma: float = 0.025,
        optimize_1d: bool = False,
        lr_1d_factor: float = 1.0,
        betas_1d: tuple[float | Tensor, float | Tensor] = (0.9, 0.95),
        weight_decay_1d: float = 0.1,
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
        return _MARS

    def _rule_of_rest(self, group: Group) -> Rule:
        return _MARS if group["optimize_1d"] else _REST
