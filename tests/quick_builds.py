"""Builds that tests make: done soon, rather than fast when they run."""

from __future__ import annotations

import sys
from pathlib import Path

_COMPILER = Path(__file__).with_name("compile_once.py")
# Kept, so that only changes are compiled.
_OBJECTS = _COMPILER.parent.parent / "build" / "objects-of-tests"

# For CMake. No code is left to the linker.
VARIABLES = {
    "CMAKE_BUILD_TYPE": "Debug",
    "CMAKE_CXX_COMPILER_LAUNCHER": f"{sys.executable};-IS;{_COMPILER};{_OBJECTS}",
}
