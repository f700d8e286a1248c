"""What commands check before they work: argument values, the device, optional packages."""

from __future__ import annotations

import importlib
import math
from argparse import ArgumentTypeError
from pathlib import Path
from tempfile import TemporaryFile
from types import ModuleType

import torch


class UsageError(Exception):
    """Something the caller of a command can put right; shown without a traceback."""


def positive_int(text: str) -> int:
    """Convert an argument to an int of at least 1."""
    number = int(text) if text.strip().lstrip("+-").isdecimal() else 0
    if number < 1:
        raise ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return number


def non_negative_float(text: str) -> float:
    """Convert an argument to a finite float of at least 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return number


def usable_device(text: str) -> torch.device:
    """Convert an argument to a torch device that holds tensors here."""
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentTypeError(
            f"must be a device torch can use here, got {text!r}: {reason}"
        ) from None
    return device


def output_directory(path: Path) -> Path:
    """Create the directory given as ``--out`` where it does not exist; try to write to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path).close()
    except OSError as error:
        raise UsageError(
            f"--out must be a directory that can be written, got {path}: {error.strerror}"
        ) from None
    return path


def optional_module(name: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency, or say which package to install."""
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UsageError(
            f"the package {package!r} is needed and could not be imported; "
            f"install it, or all that is needed here with: pip install 'wpadamw[{extra}]'"
        ) from None
