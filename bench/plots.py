"""Plots that know what they were drawn from: a PNG carries the digest of its source."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

DPI = 120
KEY = "Source"


def save(figure: Any, path: Path, source: object) -> None:
    """Write a figure of matplotlib with the digest of the JSON value that it was drawn from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={KEY: digest(source)})


def is_current(path: Path, source: object) -> bool:
    """Whether a plot is there and was drawn from this source."""
    # matplotlib brings it; a machine that only measures needs neither.
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.info.get(KEY) == digest(source)
    except (FileNotFoundError, UnidentifiedImageError):
        return False


def digest(source: object) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    canonical = json.dumps(source, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
