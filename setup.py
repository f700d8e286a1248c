"""Hands the build of ``wpadamw._C`` to CMake; everything else stands in pyproject.toml."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Environment variables that CMakeLists.txt knows as options of the same name.
OPTIONS = ("WPADAMW_CUDA", "WPADAMW_CUDA_ARCHITECTURES")


class CMakeBuild(build_ext):
    """Configures and builds with Ninja, straight into the package's folder."""

    def build_extension(self, ext: Extension) -> None:
        """Configure and build one extension; what earlier builds compiled is used again."""
        library, build_dir = Path(self.get_ext_fullpath(ext.name)).resolve(), self._build_dir()
        # It names programs, options and folders of the last build, which may be gone.
        (build_dir / "CMakeCache.txt").unlink(missing_ok=True)
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
        for command in (configure, ["cmake", "--build", str(build_dir)]):
            subprocess.run(command, check=True, env={**os.environ, "PATH": _tool_path()})

    def _build_dir(self) -> Path:
        # Not build_temp, which editable installs throw away. Another ABI or pybind11 must not meet
        # these objects.
        name = f"{sysconfig.get_config_var('SOABI')}-pybind11-{pybind11.__version__}"
        return Path(self.get_finalized_command("build").build_base, name).resolve()


def _tool_path() -> str:
    """PATH, then the folder of this Python: that of an environment that is not activated."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), os.path.dirname(sys.executable)])


class FreshWheel(bdist_wheel):
    """Gathers the modules in a new folder: in build/ may lie some that are gone by now."""

    def run(self) -> None:
        """Build the wheel."""
        build = self.get_finalized_command("build")
        with tempfile.TemporaryDirectory() as fresh:
            build.build_lib, self.bdist_dir = str(Path(fresh, "lib")), str(Path(fresh, "wheel"))
            super().run()


setup(
    ext_modules=[Extension("wpadamw._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": FreshWheel},
)
