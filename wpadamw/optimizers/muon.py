"""Muon with weight prediction."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from wpadamw.checks import Group
from wpadamw.optimizer import WeightPrediction
from wpadamw.rules.adamw import AdamWOfRest
from wpadamw.rules.muon import Muon
from wpadamw.rules.rule import Rule


class _Rest(AdamWOfRest):
    lr_factor = "adamw_lr_factor"
    options: ClassVar[dict[str, str]] = {
        name: f"adamw_{name}" for name in ("betas", "eps", "weight_decay")
    }


_MUON, _REST = Muon(), _Rest()


class _Original(torch.optim.Optimizer):
    """Refuses an lr as ``torch.optim.Muon``, which takes matrices alone and is new in torch 2.9."""

    def __init__(self, params: ParamsT, lr: float | Tensor = 1e-3) -> None:
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"Tensor lr must be 1-element, got {lr.numel()}")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        super().__init__(params, {"lr": lr})


class WPMuon(WeightPrediction):
    r"""Muon for matrices and AdamW for the rest, both with weight prediction.

    The momentum ``m`` of a matrix is made orthogonal by Newton-Schulz iterations (Jordan et al.
    2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, arXiv 2502.16982), as by
    ``torch.optim.Muon``, and the prediction goes along this update::

        m     = m + (1 - momentum)*(g - m)
        u     = orthogonal(g + momentum*(m - g))          without nesterov: of m
        w     = (1 - lr*weight_decay)*w - lr*size*u
        w_hat = w - lr*prediction_steps*(size*u + weight_decay*w)

    Parameters of other dimensions than two, and all of groups with ``use_muon=False`` (embeddings,
    heads), are trained like by `WPAdamW`. The iterations are computed in bfloat16; a step needs
    memory for three numbers per element of a group's matrices, and for the products of matrices of
    one shape, which are computed together. Sharded matrices are gathered in bfloat16 for it.

    Args:
        params: parameters or parameter groups, of the dtypes of `WPAdamW`; matrices must be real.
        lr: learning rate >= 0, a number or a tensor of one element.
        weight_decay: decoupled decay, >= 0.
        momentum: share of the former momentum in the new one, >= 0.
        nesterov: make the mix of gradient and momentum orthogonal.
        ns_coefficients: of the polynomial that an iteration applies to singular values.
        eps: the least norm that a matrix is divided by, >= 0.
        ns_steps: how many iterations, from 0 to 99.
        adjust_lr_fn: ``size`` by the shape of a matrix: None or ``"original"``, ``sqrt(max(1,
            rows/columns))``; ``"match_rms_adamw"``, ``0.2*sqrt(max(rows, columns))``.
        use_muon: if False AdamW trains the matrices, too. It cannot change once there is state.
        adamw_lr_factor: lr of AdamW over ``lr``, so that schedules drive both. A group with
            ``use_muon=False`` may as well have an ``lr`` of its own.
        adamw_betas: decay rates of AdamW's moments, in [0, 1).
        adamw_eps: added to AdamW's denominator, >= 0.
        adamw_weight_decay: AdamW's decoupled decay, >= 0; None: ``weight_decay``.
        prediction: ``"linear"`` or ``"rollout"``, in which each matrix takes the last update again
            for every one ahead: the orthogonal matrix of a momentum that shrinks remains the same.
        maximize, foreach, capturable, differentiable, fused, prediction_steps, predict_decay,
            predict_in_step, backup, ema, moments, master, amp, backend,
            compute_dtype, track_prediction: as in `WPAdamW`.

    Raises:
        ValueError: for hyper-parameters out of range and duplicate parameters.
        TypeError: for parameters of another dtype, and for complex matrices.
        RuntimeError: for a backend that cannot run here.

    Example:
        >>> opt = wpadamw.WPMuon(
        ...     [
        ...         {"params": model.blocks.parameters(), "lr": 0.02, "adamw_lr_factor": 0.02},
        ...         {"params": model.embedding.parameters(), "lr": 4e-4, "use_muon": False},
        ...     ],
        ... )
    """

    original = _Original

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None,
        *,
        use_muon: bool = True,
        adamw_lr_factor: float = 1.0,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float | None = None,
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
        return _MUON if group["use_muon"] else _REST

    def _rule_of_rest(self, group: Group) -> Rule:
        return _REST
