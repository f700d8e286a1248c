"""Text as a stream of bytes: where it comes from, how it is split, how batches are cut."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..usage import UsageError

STDLIB_BYTES = 8_000_000
VALIDATION_SHARE = 0.1
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
# A tenth of the sources, and nearly all of it tables of characters.
_NOT_TEXT = {"encodings"}

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Corpus:
    """A byte stream, cut in two: the end is held out for validation."""

    origin: str
    train: Tensor
    validation: Tensor


def load_corpus(path: Path | None, context: int) -> Corpus:
    """Read and split a corpus.

    Args:
        path: a file, or a directory all files of which are read in sorted order; None for the
            sources of Python's standard library.
        context: bytes a model sees at once; each part of the split is longer than this.

    Raises:
        UsageError: where there is no such path, or too little in it.
    """
    if path is None:
        origin, content = "Python standard library", _join_stdlib_sources()
    else:
        origin, content = str(path), _read_path(path)
    least = 2 * (context + 1)
    if len(content) < least:
        raise UsageError(
            f"--data must hold at least {least} bytes for --context {context}, "
            f"got {len(content)} bytes in {origin}"
        )
    return split_stream(origin, content, context)


def split_stream(origin: str, content: bytes, context: int) -> Corpus:
    """Hold out the end of a stream: a share of it, and one window of a context at least."""
    stream = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    held_out = max(int(len(content) * VALIDATION_SHARE), context + 1)
    return Corpus(origin, train=stream[:-held_out], validation=stream[-held_out:])


def random_batch(
    stream: Tensor, batch_size: int, context: int, generator: torch.Generator
) -> Batch:
    """Cut windows from random places: inputs and targets, int64, ``[batch_size, context]``."""
    starts = torch.randint(len(stream) - context, (batch_size,), generator=generator)
    return _cut_windows(stream, starts, context)


def fixed_batches(stream: Tensor, num_batches: int, batch_size: int, context: int) -> list[Batch]:
    """Cut windows that are spread evenly over the stream; the same ones on each call."""
    last_start = len(stream) - context - 1
    starts = torch.linspace(0, last_start, num_batches * batch_size, dtype=torch.float64).long()
    grid = starts.view(num_batches, batch_size)
    return [_cut_windows(stream, grid[i], context) for i in range(num_batches)]


def _cut_windows(stream: Tensor, starts: Tensor, context: int) -> Batch:
    windows = stream[starts[:, None] + torch.arange(context + 1)].long()
    return windows[:, :-1], windows[:, 1:]


def _read_path(path: Path) -> bytes:
    if not path.exists():
        raise UsageError(f"--data must be a file or a directory, got {path}, which does not exist")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    try:
        return b"".join(file.read_bytes() for file in files)
    except OSError as error:
        raise UsageError(
            f"--data must be readable, got {error.filename}: {error.strerror}"
        ) from None


def _join_stdlib_sources() -> bytes:
    root = Path(sysconfig.get_paths()["stdlib"])
    content = bytearray()
    for file in sorted(root.rglob("*.py")):
        if (_NOT_LIBRARY | _NOT_TEXT).isdisjoint(file.relative_to(root).parts):
            content += file.read_bytes()
        if len(content) >= STDLIB_BYTES:
            break
    return bytes(content[:STDLIB_BYTES])
