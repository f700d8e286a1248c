"""``python -m wpadamw info``: versions, and which backend serves which device here."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Mapping
from importlib import metadata

import wpadamw


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    for package in ("wpadamw", "torch", "triton"):
        print(f"{package:<8} {_installed_version(package)}")
    print(f"{'python':<8} {platform.python_version()}")
    for device, backends in wpadamw.backends().items():
        print("\n" + describe_device(device, backends))
    return 0


def describe_device(device: str, backends: Mapping[str, str | None]) -> str:
    """Format the backends of a device, in order of preference, with why some are missing.

    Args:
        device: the device's name.
        backends: from a backend's name to None if it serves the device, else to the reason.
    """
    available = [name for name, reason in backends.items() if reason is None]
    if available:
        lines = [f'{device}: backend="auto" takes {available[0]}']
    else:
        lines = [f"{device}: no backend"]
    for name, reason in backends.items():
        lines.append(f"  {name:<8} " + ("available" if reason is None else f"missing: {reason}"))
    return "\n".join(lines)


def _installed_version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
