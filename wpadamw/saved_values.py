"""The values of a saved state: each is checked, and refused by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw._backends.interface import Kind
from wpadamw.compat import to_complex
from wpadamw.flat_state import scale_of
from wpadamw.formats import num_blocks
from wpadamw.rules.rule import MAX_ROLLOUT, Rule

# The largest count that float32 counts on from; torch counts in it, too.
_MAX_COUNT = 2**24


def read_step(where: str, value: Any) -> Tensor:
    """The count of updates, as a tensor of one float32 number."""
    number = _number(value)
    if not (0 <= number <= _MAX_COUNT and number.is_integer()):
        raise ValueError(
            f"{where}['step'] must be one whole number from 0 to {_MAX_COUNT}, got {value!r:.200}"
        )
    return torch.tensor(number, dtype=torch.float32, device="cpu")


def _number(value: Any) -> float:
    """A number, or a tensor of one, as a float; NaN for everything else."""
    try:
        is_one = isinstance(value, Real) or (isinstance(value, Tensor) and value.numel() == 1)
        return float(value) if is_one else math.nan
    except (RuntimeError, TypeError, NotImplementedError, OverflowError):
        return math.nan


def read_tensor(where: str, value: Any, param: Tensor) -> Tensor:
    """A tensor of the state; it is copied where it goes to."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{where} must be a tensor, got {type(value).__name__}")
    if (reason := _why_not_like(value, param)) is not None:
        raise ValueError(f"{where} must {reason}")
    return value.detach()  # copied where it goes to


def is_code(value: Any) -> bool:
    """Whether numbers of a state are codes, of which blocks share a scale."""
    return isinstance(value, Tensor) and value.dtype in (torch.int8, torch.uint8)


def moments_of(rule: Rule) -> list[str]:
    """The tensors of a rule's state that may be codes."""
    return [name for name in rule.state_names if name not in rule.whole_names]


def read_numbers(
    where: str, entry: Mapping[str, Any], name: str, param: Tensor, rule: Rule
) -> dict[str, Any]:
    """A tensor of the state in any format, and the scales of its codes."""
    value = entry[name]
    if not (is_code(value) and name in moments_of(rule)):
        return {name: read_tensor(f"{where}[{name!r}]", value, param)}
    code = torch.uint8 if name in rule.squares else torch.int8
    _check_alike(f"{where}[{name!r}]", value, param, code)
    scale = scale_of(name)
    shape = (num_blocks(param.numel()),)
    _check_alike(
        f"{where}[{scale!r}]", entry[scale], torch.empty(shape, device="meta"), torch.float32
    )
    return {name: value.detach(), scale: entry[scale].detach()}


def read_remainder(where: str, value: Any, param: Tensor) -> Tensor:
    """The lower half of float32 weights."""
    _check_alike(f"{where}['remainder']", value, param, torch.int16)
    found: Tensor = value
    return found.detach()


def _check_alike(where: str, value: Any, like: Tensor, dtype: torch.dtype) -> None:
    is_alike = isinstance(value, Tensor) and _is_dense(value)
    is_alike = is_alike and value.shape == like.shape and value.dtype == dtype
    if not (is_alike and layout.is_dtensor(value) == layout.is_dtensor(like)):
        raise ValueError(
            f"{where} must be a tensor of shape {tuple(like.shape)} and {dtype}, got "
            f"{_described(value)}"
        )


def _is_dense(value: Tensor) -> bool:
    """Whether a tensor has a number of its own for each element, in memory."""
    is_strided = value.layout == torch.strided and not value.is_meta
    return is_strided and not (value.is_nested or value.is_quantized)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"{value!r:.200}"
    if not _is_dense(value):  # a nested one has no shape
        return f"layout {value.layout} on device {value.device}"
    return f"{type(value).__name__} of {tuple(value.shape)} and {value.dtype}"


def _state_dtype(param: Tensor) -> torch.dtype:
    real_dtype = layout.REAL_DTYPE[param.dtype]
    return to_complex(real_dtype) if param.is_complex() else real_dtype


def _why_not_like(value: Tensor, param: Tensor) -> str | None:
    """Why a tensor cannot be the state of a parameter, or None if it can."""
    if not _is_dense(value):
        return f"be dense and have data, got layout {value.layout} on device {value.device}"
    if value.shape != param.shape:
        return f"have shape {tuple(param.shape)} like its parameter, got {tuple(value.shape)}"
    if layout.is_dtensor(value) != layout.is_dtensor(param):
        return f"be a {type(param).__name__} like its parameter, got {type(value).__name__}"
    dtype = _state_dtype(param)
    is_exact = value.is_floating_point() or value.is_complex()
    if not is_exact or _promoted(value.dtype, dtype) != dtype:
        return f"have dtype {dtype} or a narrower one, got {value.dtype}"
    return None


def _promoted(a: torch.dtype, b: torch.dtype) -> torch.dtype | None:
    try:
        return torch.promote_types(a, b)
    except RuntimeError:  # dtypes that promote to nothing, float8 for one
        return None


def read_prediction(where: str, value: Any, rule: Rule) -> Tensor:
    """The record of a prediction."""
    width = len(rule.Look._fields)
    if not (isinstance(value, Tensor) and _is_record(value, width)):
        raise ValueError(
            f"{where}['prediction'] must be {1 + width} real numbers, or for each further update "
            f"ahead {width} more, got {value!r:.200}"
        )
    row: Tensor = value
    # A scheduler may have made any lr of it: the other numbers may be infinite, or NaN.
    if row[0].item() not in tuple(Kind):
        raise ValueError(
            f"{where}['prediction'] must be a kind, one of {list(map(int, Kind))}, and the scalars "
            f"{', '.join(rule.Look._fields)}, got {row.tolist()}"
        )
    return row.detach().to(device="cpu", dtype=torch.float64, copy=True)


def nothing_to_predict(rule: Rule) -> Tensor:
    """The record of a prediction that moves nothing."""
    numbers = (float(Kind.null), *rule.still)
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _is_record(value: Tensor, width: int) -> bool:
    """Whether a tensor holds a kind, and for each of some updates so many scalars."""
    if not _is_dense(value) or value.is_complex() or layout.is_dtensor(value):
        return False
    if value.dim() != 1:
        return False
    num_looks, rest = divmod(len(value) - 1, width)
    return rest == 0 and 1 <= num_looks <= 1 + MAX_ROLLOUT
