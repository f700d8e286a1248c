"""The extension ``wpadamw._C``, imported when it is first asked for."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch


@cache
def extension() -> Any:
    """The module, or as a string the reason why it cannot be imported."""
    try:
        return importlib.import_module("wpadamw._C")
    except ImportError as error:
        return f"the extension wpadamw._C cannot be imported: {error}"


def dtype_code(dtype: torch.dtype) -> Any:
    """The extension's code for a dtype."""
    return getattr(extension().DType, str(dtype).removeprefix("torch."))
