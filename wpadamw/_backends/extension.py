"""The extension ``wpadamw._C``, imported when it is first asked for."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch

from wpadamw._backends.interface import BucketTensors
from wpadamw.formats import FORMATS
from wpadamw.rules.stored import formats_of


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


def storage(bucket: BucketTensors) -> dict[str, Any]:
    """How a bucket is stored, for the extension; nothing where all is of one dtype."""
    if not bucket.is_small:
        return {}
    scales = bucket.scales_flat or [None] * len(bucket.state_flat)
    return {
        "formats": list(map(FORMATS.index, formats_of(bucket.rule))),
        "scales": [0 if flat is None else flat.data_ptr() for flat in scales],
        "rest": 0 if bucket.rest_flat is None else bucket.rest_flat.data_ptr(),
        "has_noisy_params": bucket.has_noisy_params,
    }
