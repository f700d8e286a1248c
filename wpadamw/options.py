"""The options of parameter groups: each is checked, and refused by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor


def _check_lr(name: str, lr: Any) -> None:
    if not (_is_number(lr) or _is_one_number(lr)):
        raise ValueError(f"{name} must be a number or a tensor of one element, got {lr!r:.200}")


def _is_one_number(value: Any) -> bool:
    """Whether a value is a tensor of one real number."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_nested:
        return False
    return value.numel() == 1 and not (value.is_meta or value.is_complex())


def _check_betas(name: str, betas: Any) -> None:
    is_pair = isinstance(betas, (tuple, list)) and len(betas) == 2 and all(map(_is_number, betas))
    if not (is_pair and all(0.0 <= float(beta) < 1.0 for beta in betas)):
        raise ValueError(f"{name} must be two numbers in [0, 1), got {betas!r:.200}")


def _check_number(name: str, value: Any) -> None:
    if not (_is_number(value) and 0 <= float(value) < math.inf):
        raise ValueError(f"{name} must be a number >= 0, got {value!r:.200}")


def _check_real(name: str, value: Any) -> None:
    if not (_is_number(value) and math.isfinite(value)):
        raise ValueError(f"{name} must be a finite number, got {value!r:.200}")


def _check_ema(name: str, value: Any) -> None:
    # The share of the past has to be a number below 1 in float64.
    if not (value is None or (_is_number(value) and 0.0 <= 1.0 - float(value) < 1.0)):
        raise ValueError(f"{name} must be None or a number in (0, 1], got {value!r:.200}")


def _check_flag(name: str, value: Any) -> None:
    _check_one_of(name, value, (False, True))


def _check_prediction(name: str, value: Any) -> None:
    _check_one_of(name, value, ("linear", "rollout"))


def _check_norm_scope(name: str, value: Any) -> None:
    _check_one_of(name, value, ("group", "global", "tensor"))


def _check_eps_mode(name: str, value: Any) -> None:
    _check_one_of(name, value, ("accumulating", "inside", "outside"))


def _check_moments(name: str, value: Any) -> None:
    _check_one_of(name, value, ("float32", "bfloat16", "int8"))


def _check_master(name: str, value: Any) -> None:
    _check_one_of(name, value, ("float32", "split", "none"))


def _check_hint(name: str, value: Any) -> None:
    _check_one_of(name, value, (False, True, None))


def _check_one_of(name: str, value: Any, known: tuple[Any, ...]) -> None:
    if isinstance(value, Tensor) or value not in known:
        raise ValueError(f"{name} must be one of {known}, got {value!r:.200}")


def _check_differentiable(name: str, value: Any) -> None:
    if value is not False:
        raise ValueError(f"{name} must be False: the kernels cannot be differentiated")


def _check_optional_number(name: str, value: Any) -> None:
    if value is not None:
        _check_number(name, value)


def _check_coefficients(name: str, value: Any) -> None:
    is_triple = isinstance(value, (tuple, list)) and len(value) == 3 and all(map(_is_number, value))
    if not (is_triple and all(map(math.isfinite, value))):
        raise ValueError(f"{name} must be three finite numbers, got {value!r:.200}")


def _check_num_iterations(name: str, value: Any) -> None:
    if not (isinstance(value, int) and 0 <= value < 100):
        raise ValueError(f"{name} must be an integer in [0, 100), got {value!r:.200}")


def _check_adjustment(name: str, value: Any) -> None:
    _check_one_of(name, value, (None, "original", "match_rms_adamw"))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


# Every option that an optimizer of this package may have, and what it must be.
CHECKS: dict[str, Callable[[str, Any], None]] = {
    "lr": _check_lr,
    "betas": _check_betas,
    "betas_1d": _check_betas,
    "beta3": _check_number,
    "lr_cutoff": _check_number,
    "norm_scope": _check_norm_scope,
    "gamma": _check_real,
    "lr_1d_factor": _check_number,
    "weight_decay_1d": _check_number,
    "optimize_1d": _check_flag,
    "eps": _check_number,
    "eps_mode": _check_eps_mode,
    "outer_eps": _check_flag,
    "momentum": _check_number,
    "dampening": _check_real,
    "weight_decay": _check_number,
    "decoupled_weight_decay": _check_flag,
    "weight_decouple": _check_flag,
    "fixed_decay": _check_flag,
    "rectify": _check_flag,
    "degenerated_to_sgd": _check_flag,
    "print_change_log": _check_flag,
    "nesterov": _check_flag,
    "amsgrad": _check_flag,
    "ns_coefficients": _check_coefficients,
    "ns_steps": _check_num_iterations,
    "adjust_lr_fn": _check_adjustment,
    "use_muon": _check_flag,
    "adamw_lr_factor": _check_number,
    "adamw_betas": _check_betas,
    "adamw_eps": _check_number,
    "adamw_weight_decay": _check_optional_number,
    "maximize": _check_flag,
    "foreach": _check_hint,
    "capturable": _check_flag,
    "differentiable": _check_differentiable,
    "fused": _check_hint,
    "prediction_steps": _check_number,
    "prediction": _check_prediction,
    "predict_decay": _check_flag,
    "predict_in_step": _check_flag,
    "track_prediction": _check_flag,
    "backup": _check_flag,
    "ema": _check_ema,
    "moments": _check_moments,
    "master": _check_master,
}
