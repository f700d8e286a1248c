"""Runs commands one after the other, each within its time. Knows nothing of what they do."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

# Between the interrupt, at which pytest still writes its report, and the end.
GRACE_S = 5.0
MAX_OUTPUT_BYTES = 2**21

PASSED, OUT_OF_TIME, NOT_AVAILABLE = "passed", "out of time", "not available"


@dataclass(frozen=True)
class Step:
    """A command.

    Args:
        name: unique among the steps of a run.
        command: program and arguments.
        limit_s: its time; what earlier steps left of theirs comes on top.
        environment: variables beside those of this process.
        is_required: whether the whole fails with it.
    """

    name: str
    command: Sequence[str]
    limit_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    is_required: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: Step
    verdict: str
    seconds: float
    output: str

    @property
    def is_good(self) -> bool:
        """Whether it passed, or need not have."""
        return self.verdict == PASSED or not self.step.is_required


def run_all(
    steps: Sequence[Step], root: Path, report: Callable[[Sequence[Outcome]], None]
) -> list[Outcome]:
    """Run all steps, whatever becomes of them; ``report`` sees the outcomes after each."""
    outcomes: list[Outcome] = []
    until = time.monotonic()
    for step in steps:
        until += step.limit_s
        outcomes.append(run(step, root, until - time.monotonic()))
        report(outcomes)
    return outcomes


def run(step: Step, root: Path, limit_s: float) -> Outcome:
    """Run one step; when its time is over, it and all that it started end."""
    start = time.monotonic()
    # A file: a pipe would stay open as long as any descendant lives.
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                step.command,
                cwd=root,
                env={**os.environ, **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(step, f"cannot be started: {error.strerror}", 0.0, str(error))
        verdict = _wait(process, limit_s)
        return Outcome(step, verdict, time.monotonic() - start, _tail(output))


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> str:
    try:
        code = process.wait(max(limit_s - GRACE_S, 0.0))
        return PASSED if code == 0 else f"failed with exit code {code}"
    except subprocess.TimeoutExpired:
        _signal(process, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        return OUT_OF_TIME
    finally:
        _signal(process, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the process and its descendants, if any of them still lives."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _tail(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(size - MAX_OUTPUT_BYTES, 0))
    return output.read().decode(errors="replace")
