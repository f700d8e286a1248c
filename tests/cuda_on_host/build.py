"""Builds the extension with the CUDA kernels as ordinary C++ and loads it beside the real one."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pybind11
import quick_builds

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "tests" / "rules"
# Kept, so that only changes are compiled.
BUILD = ROOT / "build" / f"cuda-on-host-{sysconfig.get_config_var('SOABI')}"


def build() -> Path:
    """Compile what has changed; returns the extension's file."""
    configure = [
        *("cmake", f"-S{ROOT}", f"-B{BUILD}", "-GNinja", "-DWPADAMW_CUDA=host"),
        f"-DWPADAMW_EXTRA_RULES={RULES}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={BUILD}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    # The programs of this environment, activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **quick_builds.VARIABLES, "PATH": path}
    with _alone():
        # It names the programs of an environment that may be gone.
        (BUILD / "CMakeCache.txt").unlink(missing_ok=True)
        for command in (configure, ["cmake", "--build", str(BUILD)]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    (library,) = BUILD.glob("_C.*")
    return library


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait for test runs beside this one: they share the folder."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load(library: Path) -> ModuleType:
    """Import an extension from a file, whatever else has its name."""
    spec = importlib.util.spec_from_file_location("_C", library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
