"""A bar over processes that tell how far they are: lines with the thousandths that are done."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class NoBar:
    """Stands in for the bar where tqdm is not installed."""

    def update(self, thousandths: int) -> None:
        """Show nothing."""

    def set_description(self, text: str) -> None:
        """Show nothing."""


@contextmanager
def progress_bar(num_processes: int) -> Iterator[Any]:
    """A bar on stderr, all processes of which are of one length."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield NoBar()
        return
    form = "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1000 * num_processes, bar_format=form) as bar:
        yield bar


def watch(command: Sequence[str], bar: Any, name: str) -> tuple[int, str]:
    """Run a command, which gets ``--progress-fd``, and move the bar: exit code and output."""
    bar.set_description(name)
    reader, writer = os.pipe()
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [*command, f"--progress-fd={writer}"],
            pass_fds=[writer],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        os.close(writer)
        _follow(reader, bar)
        code = process.wait()
        output.seek(0)
        return code, output.read()


def _follow(reader: int, bar: Any) -> None:
    """Move the bar until the other end is closed, and then to the end of the process."""
    done = 0
    with os.fdopen(reader) as lines:
        for line in lines:
            bar.update(int(line) - done)
            done = int(line)
    bar.update(1000 - done)
