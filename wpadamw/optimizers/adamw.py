"""AdamW with weight prediction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.adamw import AdamW
from wpadamw.rules.amsgrad import AMSGrad
from wpadamw.rules.rule import Rule

_ADAMW, _AMSGRAD = AdamW(), AMSGrad()


class WPAdamW(WeightPrediction):
    r"""AdamW with weight prediction, a drop-in for ``torch.optim.AdamW``.

    After each update of the true weights ``w`` the parameters receive the weights that the
    optimizer expects to have one update later (Guan 2023, arXiv 2302.00195; XGrad, arXiv
    2305.18240), and the next gradient is taken there::

        w     = (1 - lr*weight_decay)*w - lr*u,   u = m_hat / (sqrt(v_hat) + eps)
        w_hat = w - lr*prediction_steps*(u + weight_decay*w)

    Restore, update and prediction are one memory pass. Evaluate and save with true weights: call
    `eval` and `train`, use `true_weights`, or let `wpadamw.attach` do it.

    Args:
        params: parameters or parameter groups: float32, float64, bfloat16, float16, complex64 or
            complex128, of any shape and dense layout. float16 and bfloat16 have float32 state.
        lr: learning rate >= 0, a number or a tensor of one element.
        betas: decay rates of the moments, in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled decay, >= 0.
        amsgrad: use the running maximum of the second moment.
        maximize: maximize the objective.
        foreach: accepted for drop-in use, without effect.
        capturable: let CUDA graphs capture a step: step counts live on the device, an lr tensor
            there may be changed between replays. Without effect for CPU tensors.
        differentiable: must be False: the kernels cannot be differentiated.
        fused: accepted for drop-in use, without effect.
        prediction_steps: ``s``, how many updates to look ahead, >= 0. With 0 this is AdamW.
        prediction: ``"linear"``, along the last direction, or ``"rollout"``: where ``s`` updates
            with gradients of zero would lead, each along the momentum and with the bias
            corrections of its time, the second moment held. A fraction of ``s`` is a share of the
            last one.
        predict_decay: whether the prediction includes the decay.
        predict_in_step: predict at the end of `step`. If False, parameters hold true weights after
            `step`, and `predict` before the next forward uses the lr of that moment.
        backup: keep a copy of the true weights (4 bytes per float32 parameter). If False they are
            computed from the predicted ones, to a few ulp; float32, float64 and complex only, and
            bfloat16 with another ``master``.
        ema: keep the exponential average of the true weights, corrected for its beginning, in which
            a new weight has this share, in (0, 1]; 4 bytes per float32 parameter. None: do not. See
            `averaged_weights` and `switch_to_average`.
        moments: how moments are stored: ``"float32"`` (float64 of such parameters), ``"bfloat16"``
            or ``"int8"``, in blocks of 64 with a shared scale. The update goes by moments as they
            are computed, a prediction by what is stored of them. See docs/memory.md.
        master: where bfloat16 parameters have their float32 weights: ``"float32"``, in the backup,
            or ``"split"``: the parameter is the upper half of the predicted weight, the state has
            the lower one; ``"none"``: they have none, a step rounds them with noise. True weights
            are computed back from both (``backup=False``).
        amp: take part in the gradient scaler's protocol: the step unscales, and does nothing after
            an overflow; on CUDA devices the host does not wait to know.
        backend: ``"auto"`` or the name of a backend, see `wpadamw.backends`.
        compute_dtype: keep a copy of each float32 parameter in this dtype and write the prediction
            there; parameters stay true, without a backup. See `compute_copy`.
        track_prediction: measure in each step how good the prediction was, see `prediction_stats`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> model = torch.nn.Linear(4, 1)
        >>> opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2)
        >>> for x, y in batches:
        ...     torch.nn.functional.mse_loss(model(x), y).backward()
        ...     opt.step()
        ...     opt.zero_grad()
        >>> with opt.true_weights():
        ...     torch.save(model.state_dict(), "model.pt")
    """

    original = torch.optim.AdamW

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
    ) -> None:
        super().__init__(locals())

    def _rule(self, group: Group) -> Rule:
        return _AMSGRAD if group["amsgrad"] else _ADAMW
