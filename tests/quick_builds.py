"""Builds that tests make: done soon, rather than fast when they run."""

from __future__ import annotations

# For CMake. The compiler's last word on optimization counts, and no code is left to the linker.
VARIABLES = {
    "CMAKE_BUILD_TYPE": "Debug",
    "CMAKE_CXX_COMPILER_LAUNCHER": 'sh;-c;exec "$@" -O0 -g0;sh',
}
