"""Hands the build of ``wpadamw._C`` to CMake; everything else stands in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Environment variables that CMakeLists.txt knows as options of the same name.
OPTIONS = ("WPADAMW_CUDA", "WPADAMW_CUDA_ARCHITECTURES")


class CMakeBuild(build_ext):
    """Configures and builds with Ninja in ``build_temp``, straight into the package's folder."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build one extension."""
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(self.build_temp).resolve()
        configure = [
            "cmake",
            f"-S{ROOT}",
            f"-B{build_dir}",
            "-GNinja",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={library.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            *(f"-D{name}={os.environ[name]}" for name in OPTIONS if name in os.environ),
        ]
        subprocess.run(configure, check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)


setup(ext_modules=[Extension("wpadamw._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
