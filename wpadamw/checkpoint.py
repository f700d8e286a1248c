"""Reading a state dict: everything is checked and copied before anything of the optimizer changes.

The base class would cast moments to the parameter's dtype, alias the given tensors, and accept
tensors of any shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw.buckets import OWN_NAMES, StateDict
from wpadamw.compat import to_complex
from wpadamw.plan import Group
from wpadamw.scalars import Prediction

MODES = ("true", "predicted")


def read_groups(saved: Any, groups: Sequence[Group]) -> list[Group]:
    """Copies of the saved groups with this optimizer's parameters in them.

    Raises:
        ValueError: if number or sizes of the groups differ, in torch's words.
    """
    if not isinstance(saved, list) or not all(isinstance(group, dict) for group in saved):
        raise ValueError(f"state_dict['param_groups'] must be a list of dicts, got {saved!r:.200}")
    if len(saved) != len(groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    pairs = list(zip(saved, groups, strict=True))
    if any(len(theirs.get("params", ())) != len(ours["params"]) for theirs, ours in pairs):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            "optimizer's group"
        )
    return [_read_group(theirs, ours, i) for i, (theirs, ours) in enumerate(pairs)]


def _read_group(saved: Group, group: Group, index: int) -> Group:
    mode = saved.get("weights_are", "true")
    if mode not in MODES:
        raise ValueError(
            f"state_dict['param_groups'][{index}]['weights_are'] must be 'true' or 'predicted', "
            f"got {mode!r}"
        )
    own = {key: value for key, value in group.items() if key not in ("params", "weights_are")}
    loaded = {key: deepcopy(value) for key, value in saved.items() if key != "params"}
    # A plain AdamW checkpoint knows nothing of prediction: those options stay as they are.
    return {**own, "weights_are": mode, **loaded, "params": group["params"]}


def read_state(
    saved: Any,
    saved_groups: Sequence[Group],
    groups: Sequence[Group],
    state_names: Sequence[Sequence[str]],
) -> dict[Tensor, StateDict]:
    """Copies of the saved per-parameter states, on the parameters' devices.

    Args:
        saved: ``state_dict["state"]``.
        saved_groups: the groups of the file, whose ``params`` number the parameters.
        groups: the groups that `read_groups` returned.
        state_names: per group the names of its rule's state tensors.

    Raises:
        ValueError: for an entry that is missing, unknown, or of wrong shape or dtype.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"state_dict['state'] must be a dict, got {type(saved).__name__}")
    state = {}
    unread = dict(saved)
    for theirs, ours, names in zip(saved_groups, groups, state_names, strict=True):
        tensors = [*names, "weight"] if theirs.get("backup") else list(names)
        required = [*tensors, "step"]
        if "weights_are" in theirs:
            required.append("prediction")
        for key, param in zip(theirs["params"], ours["params"], strict=True):
            if entry := unread.pop(key, None):
                where = f"state_dict['state'][{key!r}]"
                _check_names(where, entry, required)
                state[param] = _read_entry(where, entry, param, tensors)
    if unread:
        raise ValueError(
            f"state_dict['state'] has an entry of no parameter: {next(iter(unread))!r}"
        )
    return state


def _check_names(where: str, entry: Any, required: Sequence[str]) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a dict, got {type(entry).__name__}")
    missing = [name for name in required if name not in entry]
    if missing:
        raise ValueError(f"{where} must have {missing[0]!r}, got only {sorted(map(str, entry))}")
    extra = [name for name in entry if name not in OWN_NAMES]
    if extra:
        raise ValueError(f"{where} must have no entry {extra[0]!r}")


def _read_entry(where: str, entry: StateDict, param: Tensor, tensors: Sequence[str]) -> StateDict:
    state: StateDict = {"step": _read_step(where, entry["step"])}
    for name in tensors:
        state[name] = _read_tensor(f"{where}[{name!r}]", entry[name], param)
    if "prediction" in entry:
        state["prediction"] = _read_prediction(where, entry["prediction"])
    return state


def _read_step(where: str, value: Any) -> Tensor:
    is_one_number = isinstance(value, (int, float)) or (
        isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
    )
    number = float(value) if is_one_number else math.nan
    if not (number >= 0 and number.is_integer()):
        raise ValueError(f"{where}['step'] must be one whole number >= 0, got {value!r:.200}")
    return torch.tensor(number, dtype=torch.float32, device="cpu")


def _read_tensor(where: str, value: Any, param: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{where} must be a tensor, got {type(value).__name__}")
    if value.shape != param.shape:
        raise ValueError(
            f"{where} must have shape {tuple(param.shape)} like its parameter, "
            f"got {tuple(value.shape)}"
        )
    real_dtype = layout.REAL_DTYPE[param.dtype]
    dtype = to_complex(real_dtype) if param.is_complex() else real_dtype
    is_exact = value.is_floating_point() or value.is_complex()
    if not is_exact or torch.promote_types(value.dtype, dtype) != dtype:
        raise ValueError(f"{where} must have dtype {dtype} or a narrower one, got {value.dtype}")
    # Converted before it is moved: a copy even where dtype and device are the same.
    return value.detach().to(device=param.device, dtype=dtype, copy=True)


def _read_prediction(where: str, value: Any) -> Tensor:
    num_fields = len(Prediction._fields)
    if not isinstance(value, Tensor) or value.shape != (num_fields,) or value.is_complex():
        raise ValueError(f"{where}['prediction'] must be {num_fields} real numbers, got {value!r}")
    p = Prediction(*value.tolist())
    is_valid = p.made in (0.0, 1.0) and max(p.beta1, p.beta2) < 1.0 and min(p) >= 0.0
    if not is_valid or not math.isfinite(sum(p)):
        raise ValueError(f"{where}['prediction'] must be hyper-parameters of a step, got {p}")
    return value.detach().to(device="cpu", dtype=torch.float64, copy=True)
