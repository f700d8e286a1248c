"""Builds of tests share what they compile: of equal sources alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("compile_once.py")

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="c++ is not installed")


class Build:
    """Compiles one source with one header, in folders of its own."""

    def __init__(self, folder):
        self.folder, self.kept = folder, folder / "kept"

    def run(self, name, *options, number="1", source='#include "number.h"\nint n = NUMBER;\n'):
        folder = self.folder / name
        folder.mkdir()
        (folder / "number.h").write_text(f"#define NUMBER {number}\n")
        (folder / "n.cpp").write_text(source)
        self.made = folder / "n.o"
        command = ["c++", f"-I{folder}", *options, "-MD", "-MF", str(folder / "n.d")]
        command += ["-o", str(self.made), "-c", str(folder / "n.cpp")]
        start = [sys.executable, "-IS", str(PROGRAM), str(self.kept), *command]
        return subprocess.run(start, capture_output=True, text=True).returncode

    def num_kept(self):
        return len([*self.kept.glob("*")])


@pytest.fixture
def build(tmp_path):
    return Build(tmp_path)


def test_an_equal_source_elsewhere_takes_the_object(build):
    assert build.run("here") == 0
    first = build.made.read_bytes()
    (kept,) = build.kept.glob("*.o")
    kept.write_bytes(first + b" as it was kept")
    assert build.run("there") == 0
    assert build.made.read_bytes() == first + b" as it was kept"
    assert "number.h" in (build.made.with_suffix(".d")).read_text()


@pytest.mark.parametrize(("options", "number"), [((), "2"), (("-fPIC",), "1")])
def test_another_header_or_option_makes_another_object(build, options, number):
    assert build.run("here") == 0
    assert build.run("there", *options, number=number) == 0
    assert build.num_kept() == 2


def test_a_source_that_does_not_compile_leaves_nothing(build):
    assert build.run("broken", source="int n = ;\n") != 0
    assert build.run("without", source='#include "missing.h"\n') != 0
    assert build.num_kept() == 0
