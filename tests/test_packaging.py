"""Every way to build the package: from the sdist alone, again and again, after other builds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pybind11
import pytest
import quick_builds

ROOT = Path(__file__).resolve().parent.parent
# The programs of this environment, activated or not.
TOOL_PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
CACHES = ("build", ".*", "*.so", "*.egg-info", "__pycache__", "runs")
# Neither a network nor nvcc, and what pip is told elsewhere does not count.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("WPADAMW_")},
    **quick_builds.VARIABLES,
    "WPADAMW_CUDA": "off",
    "PATH": TOOL_PATH,
    "PIP_CONFIG_FILE": os.devnull,
    "PYTHONPATH": "",
}
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps", "--no-build-isolation"]
ONE_STEP = """
import torch, wpadamw, wpadamw.bench, wpadamw.triton_kernels
param = torch.nn.Parameter(torch.ones(3))
param.grad = torch.ones(3)
wpadamw.WPAdamW([param], lr=0.5, weight_decay=0.0, prediction_steps=0, backend="cpp").step()
print(wpadamw.__file__, wpadamw.bench.__file__, wpadamw.triton_kernels.__file__, param.tolist())
"""


def run(command, cwd, **variables):
    done = subprocess.run(
        command, cwd=cwd, env={**ENVIRONMENT, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source, out, **variables):
    run([*PIP, "wheel", *OFFLINE, "--wheel-dir", str(out), "."], source, **variables)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The sdist of a copy: this checkout stays as it is."""
    folder = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, folder / "checkout", ignore=shutil.ignore_patterns(*CACHES))
    program = "from setuptools import build_meta; build_meta.build_sdist('..')"
    run([sys.executable, "-c", program], folder / "checkout")
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    """What the sdist holds, alone in a folder; of the rules one, as each takes long to compile."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    (source,) = folder.iterdir()
    for rule in (source / "csrc" / "rules").glob("*.h"):
        if rule.stem != "adamw":
            rule.unlink()
    return source


@pytest.fixture(scope="module")
def first_build(unpacked, tmp_path_factory):
    """A wheel as an isolated build makes it: its environment is gone afterwards.

    The sources have a module that they no longer have afterwards, and objects and configuration of
    the build stay in the folder.
    """
    folder = tmp_path_factory.mktemp("first")
    environment = folder / "environment"
    variables = isolated(environment)
    gone = unpacked / "wpadamw" / "gone.py"
    gone.touch()
    wheel = build_wheel(unpacked, folder, WPADAMW_CUDA_ARCHITECTURES="75-real", **variables)
    gone.unlink()
    shutil.rmtree(environment)
    return wheel


def isolated(environment):
    """Variables of a build with ninja and pybind11 of an environment of its own."""
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "ninja").symlink_to(shutil.which("ninja", path=TOOL_PATH))
    package = Path(pybind11.__file__).parent
    shutil.copytree(package, environment / "lib" / "pybind11")
    path = os.pathsep.join([str(environment / "bin"), TOOL_PATH])
    return {"PATH": path, "PYTHONPATH": str(environment / "lib")}


@pytest.fixture(scope="module")
def second_build(unpacked, first_build, tmp_path_factory):
    """The wheel of a later build in the same folder, with the programs of this environment."""
    return build_wheel(unpacked, tmp_path_factory.mktemp("second"))


def test_the_sdist_holds_the_repository(sdist):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = run(["git", "ls-files"], ROOT).split()
    wanted = {name for name in tracked if not name.startswith(".") and (ROOT / name).exists()}
    with tarfile.open(sdist) as archive:
        assert wanted - {name.partition("/")[2] for name in archive.getnames()} == set()


def test_a_wheel_of_the_sdist_alone_runs(first_build, tmp_path):
    target = tmp_path / "target"
    run([*PIP, "install", *OFFLINE, "--target", str(target), str(first_build)], tmp_path)
    *files, weights = run([sys.executable, "-c", ONE_STEP], tmp_path, PYTHONPATH=str(target)).split(
        maxsplit=3
    )
    assert all(Path(file).is_relative_to(target) for file in files), files
    assert weights.strip() == "[0.5, 0.5, 0.5]"


def test_a_build_after_one_whose_environment_is_gone(second_build):
    assert f"wpadamw/_C{sysconfig.get_config_var('EXT_SUFFIX')}" in contents(second_build)


def test_a_module_that_is_gone_stays_out_of_later_wheels(second_build, first_build):
    assert "wpadamw/gone.py" in contents(first_build)
    assert "wpadamw/gone.py" not in contents(second_build)


def test_options_of_earlier_builds_are_forgotten(second_build, unpacked):
    (cache,) = unpacked.glob("build/*/CMakeCache.txt")
    (found,) = re.findall(r"^WPADAMW_CUDA_ARCHITECTURES:STRING=(.*)", cache.read_text(), re.M)
    assert found == "80;90-real;100-real"


def test_kernels_are_not_compiled_again(second_build, first_build, unpacked):
    kernels = list(unpacked.glob("build/*/**/made/cpu/*.cpp.o"))
    assert kernels
    assert all(path.stat().st_mtime < first_build.stat().st_mtime for path in kernels)


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())
