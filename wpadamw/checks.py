"""Refusals: parameters and hyper-parameters that an optimizer cannot work with.

Every check raises before anything is written.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw.scalars import Mode

Group = dict[str, Any]

MODES = get_args(Mode)
# The arguments of torch.optim.AdamW, which checks them for us, in its own words.
_TORCH_ARGUMENTS = ("lr", "betas", "eps", "weight_decay", "amsgrad")
_TORCH_KEYWORDS = ("maximize", "foreach", "capturable", "fused")
_FLAGS = ("amsgrad", "maximize", "capturable", "predict_decay", "predict_in_step", "backup")
_WITHOUT_EFFECT = ("foreach", "fused")
# What a step reads of its group.
RUNNING = ("lr", "betas", "eps", "weight_decay", "prediction_steps", "weights_are", *_FLAGS)


def plain_numbers(group: Group) -> Group:
    """A group without numbers of NumPy, which would not load with ``weights_only=True``."""
    return {key: value if key == "params" else _plain(value) for key, value in group.items()}


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_plain, value))
    is_numpy = type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0
    return value.item() if is_numpy else value


def check_hyperparameters(group: Group) -> None:
    """Raises for hyper-parameters of a new group that ``torch.optim.AdamW`` or we refuse."""
    torch.optim.AdamW(
        [torch.empty(0, device="cpu")],
        *(group[name] for name in _TORCH_ARGUMENTS),
        **{name: group[name] for name in _TORCH_KEYWORDS},
    )
    check_differentiable(group)
    _check_number("prediction_steps", group["prediction_steps"])


def check_differentiable(group: Group) -> None:
    """Raises ValueError for ``differentiable=True``."""
    if group["differentiable"] is not False:
        raise ValueError("differentiable must be False: the kernels cannot be differentiated")


def check_running(group: Group, where: str = "") -> None:
    """Raises ValueError for hyper-parameters that a step could not take.

    Schedulers write what they like: any lr is as good here as in torch, negative or infinite ones
    too. ``where`` stands before the name that the error tells.
    """
    lr = group["lr"]
    if not (_is_number(lr) or _is_one_number(lr)):
        name = _name("lr", where)
        raise ValueError(f"{name} must be a number or a tensor of one element, got {lr!r:.200}")
    _check_betas(_name("betas", where), group["betas"])
    for name in ("eps", "weight_decay", "prediction_steps"):
        _check_number(_name(name, where), group[name])
    for name in (*_FLAGS, *_WITHOUT_EFFECT):
        known = (False, True, None) if name in _WITHOUT_EFFECT else (False, True)
        if isinstance(group[name], Tensor) or group[name] not in known:
            text = f"{_name(name, where)} must be one of {known}, got {group[name]!r:.200}"
            raise ValueError(text)
    check_mode(group, where)


def check_step(group: Group) -> None:
    """Raises ValueError for hyper-parameters with which no step can be taken."""
    check_running(group)
    check_recoverable(group)


def check_mode(group: Group, where: str = "") -> None:
    """Raises ValueError for a mode that is none."""
    if group["weights_are"] not in MODES:
        name, found = _name("weights_are", where), f"got {group['weights_are']!r:.200}"
        raise ValueError(f"{name} must be 'true' or 'predicted', {found}")


def _name(name: str, where: str) -> str:
    return f"{where}[{name!r}]" if where else name


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


def _is_number(value: Any) -> bool:
    return isinstance(value, Real)


def check_unique(params: list[Any]) -> None:
    """Raises ValueError for a parameter that is listed twice, alone or as (name, parameter)."""
    tensors = [item[1] if isinstance(item, tuple) else item for item in params]
    if len(set(map(id, tensors))) != len(tensors):
        raise ValueError(
            "optimizer contains a parameter group with duplicate parameters: params has "
            f"{len(tensors)} entries, {len(set(map(id, tensors)))} of them distinct"
        )


def check_dtype(param: Tensor) -> None:
    """Raises TypeError for parameters of a dtype that has no rule of rounding here."""
    if param.dtype not in layout.REAL_DTYPE:
        known = ", ".join(str(dtype) for dtype in layout.REAL_DTYPE)
        raise TypeError(f"params must have one of the dtypes {known}, got {param.dtype}")


def why_no_memory(param: Tensor) -> str | None:
    """Why a parameter has no memory of its own to be updated in, or None if it has."""
    local = layout.local(param)
    if local.layout != torch.strided or local.is_nested or local.is_quantized:
        return f"must be dense, got layout {local.layout}"
    if local.is_meta:
        return "must have data, got a meta tensor"
    if not layout.has_memory(local):
        return "must have memory, got a freed storage"
    if local.is_conj() or local.is_neg() or layout.overlaps(local):
        return (
            "must own one number per element, got a conjugate, negative or expanded view of shape "
            f"{tuple(local.shape)} and strides {local.stride()}"
        )
    return None


def check_backup(group: Group) -> None:
    """Raises ValueError for parameters too narrow to do without a backup."""
    narrow = [p.dtype for p in group["params"] if p.dtype in (torch.bfloat16, torch.float16)]
    if narrow and not group["backup"]:
        raise ValueError(f"backup=False needs float32 or float64 params, got {narrow[0]}")


def check_recoverable(group: Group) -> None:
    """Raises ValueError where true weights cannot be computed from predicted ones."""
    if group["backup"]:
        return
    s, lr, weight_decay = group["prediction_steps"], group["lr"], group["weight_decay"]
    is_unknown = (
        isinstance(lr, Tensor) and group["capturable"] and layout.host_must_not_wait(lr.device)
    )
    if not is_unknown and group["predict_decay"] and not s * float(lr) * weight_decay < 1.0:
        raise ValueError(
            "backup=False needs prediction_steps * lr * weight_decay < 1, got "
            f"{s} * {float(lr)} * {weight_decay}"
        )
    check_backup(group)
