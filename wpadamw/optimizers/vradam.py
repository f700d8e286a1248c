"""VRAdam with weight prediction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.rule import Rule, Scope
from wpadamw.rules.vradam import VRAdam

_VRADAM = VRAdam()


class WPVRAdam(WeightPrediction):
    r"""VRAdam ("velocity-regularized Adam") with weight prediction.

    The learning rate falls where the momentum, not corrected for its bias, is large (arXiv
    2505.13196)::

        eta   = lr / (1 + min(beta3*|m|^2, lr_cutoff))
        w     = (1 - eta*weight_decay)*w - eta*u,   u = m_hat / (sqrt(v_hat) + eps)
        w_hat = w - eta*prediction_steps*(u + weight_decay*w)

    ``lr`` is the highest learning rate, which schedules drive; it falls to
    ``lr / (1 + lr_cutoff)``. The momentum is summed before any weight moves: one more read of it
    and of the gradient. The sum stays on its device; over shards it is added up.

    Args:
        params: parameters or parameter groups, of the dtypes of `WPAdamW`.
        lr: learning rate >= 0, a number or a tensor of one element.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled decay, >= 0.
        beta3: how much the squared norm counts, >= 0; with 0 this is `WPAdamW`.
        lr_cutoff: what it counts at most, >= 0.
        norm_scope: what the norm is of: ``"group"``, all parameters of a parameter group, as in the
            author's code; ``"global"``, those of all groups that say so; ``"tensor"``, each
            parameter. Parameters without a gradient do not count.
        maximize, foreach, capturable, differentiable, fused, prediction_steps, prediction,
            predict_decay, predict_in_step, backup, ema, moments, master, amp, backend,
            compute_dtype, track_prediction: as in `WPAdamW`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> opt = wpadamw.WPVRAdam(model.parameters(), lr=1e-3)
    """

    original = torch.optim.AdamW  # the author's has no package

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-5,
        beta3: float = 1.0,
        lr_cutoff: float = 10.0,
        norm_scope: Scope = "group",
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
        return _VRADAM
