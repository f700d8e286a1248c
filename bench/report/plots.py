"""Plots that know what they were drawn from (a PNG carries its source's digest), and lines."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..usage import optional_module
from .markup import rounded, standard_error
from .styles import clean, style_of

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


# Lines with bands.


def mean_line(x: Sequence[float], values: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """The mean over the rows of ``values`` and its standard error at each x that has a value."""
    columns = [[v for v in column if v is not None] for column in zip(*values, strict=True)]
    kept = [(at, column) for at, column in zip(x, columns, strict=True) if column]
    return {
        "x": [at for at, _ in kept],
        "mean": [rounded(statistics.fmean(column), 5) for _, column in kept],
        "error": [rounded(standard_error(column), 5) for _, column in kept],
    }


def panels(num_rows: int, num_columns: int, inches: tuple[float, float]) -> tuple[Any, Any]:
    """A figure and the rows of its panels, each of a size."""
    # A figure without pyplot draws with Agg and leaves the caller's matplotlib settings alone.
    width, height = inches
    figure = optional_module("matplotlib.figure", "study").Figure(
        figsize=(width * num_columns, height * num_rows), layout="constrained"
    )
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)


def grid(number: int, most_columns: int, inches: tuple[float, float]) -> tuple[Any, list[Any]]:
    """A figure and so many panels, row by row; an empty one where there are none."""
    num_columns = columns_of_grid(number, most_columns)
    num_rows = -(-max(number, 1) // num_columns)
    figure, rows = panels(num_rows, num_columns, inches)
    all_axes = [axes for row in rows for axes in row]
    for axes in all_axes[max(number, 1) :]:
        axes.remove()
    return figure, all_axes[:number]


def columns_of_grid(number: int, most: int) -> int:
    """How many columns fill as few rows evenly."""
    num_rows = -(-max(number, 1) // most)
    return -(-max(number, 1) // num_rows)


def draw_lines(axes: Any, lines: dict[str, Any]) -> None:
    """Draw means with their errors as bands, each in the style of its name."""
    for name, line in lines.items():
        style = style_of(name)
        axes.plot(line["x"], line["mean"], label=name, linewidth=1.4, **style.options)
        lower, upper = (
            [mean + sign * error for mean, error in zip(line["mean"], line["error"], strict=True)]
            for sign in (-1, 1)
        )
        axes.fill_between(line["x"], lower, upper, color=style.color, alpha=0.15, linewidth=0)
    clean(axes)
