"""What keeps the numerical contract: flags, machine code, and an import without side effects."""

from __future__ import annotations

import importlib.util
import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import needs_cpp

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
RULES = sorted(path.stem for path in (CSRC / "rules").iterdir())

on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="vector widths are those of x86-64"
)


# Flags.


class CMakeFlags:
    """The compiler's options for the CPU loop, read out of CMakeLists.txt."""

    def __init__(self):
        self.text = re.sub(r"#.*", "", (ROOT / "CMakeLists.txt").read_text())
        self.variables = dict(re.findall(r"set\((\w+)\s+([^)]*)\)", self.text))

    def one(self, pattern):
        (found,) = re.findall(pattern, self.text)
        return found

    def expand(self, options):
        return re.sub(r"\$\{(\w+)\}", lambda match: self.variables[match[1]], options).split()

    def of(self, isa):
        own = self.one(rf"add_cpu_kernels\({isa}\b([^)]*)\)")
        self.variables["ARGN"] = own
        shared = self.one(r"target_compile_options\(cpu_\$\{isa\} PRIVATE ([^)]*)\)")
        define = self.one(r"target_compile_definitions\(cpu_\$\{isa\} PRIVATE (\S+)=\$\{isa\}\)")
        standard = self.variables["CMAKE_CXX_STANDARD"].strip()
        return [f"-std=c++{standard}", f"-D{define}={isa}", *self.expand(shared), f"-I{CSRC}"]


FORBIDDEN_FLAGS = (
    "-ffast-math",
    "-Ofast",
    "-funsafe-math",
    "-ffp-contract=fast",
    "-march=native",
    "-mrecip",
    "use_fast_math",
    "fast-math",
)


@pytest.mark.parametrize("flag", FORBIDDEN_FLAGS)
def test_no_build_file_names_a_flag_that_changes_results(flag):
    names = ("CMakeLists.txt", "setup.py", "pyproject.toml", "Makefile", ".ci/run")
    files = [path for name in names if (path := ROOT / name).exists()]
    sources = [path for path in CSRC.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert [path.name for path in files + sources if flag in path.read_text()] == []


def test_flags_of_the_numerical_contract_reach_every_loop():
    flags = CMakeFlags()
    for isa in ("baseline", "avx2", "avx512"):
        assert {"-O3", "-ffp-contract=off", "-fno-math-errno"} <= set(flags.of(isa))


# Machine code.


def gcc():
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    if "Free Software Foundation" not in version.stdout:
        pytest.skip("g++ is not GCC")
    return compiler


# float32 and float64: step and step_and_predict from three sources, a prediction from two, and the
# restore from a prediction. bfloat16 and float16: two steps and a prediction. Restores from a
# backup may become memcpy.
LOOPS_OVER_A_BUCKET = 2 * (2 * 3 + 2 + 1) + 2 * (2 + 1)
# Per rule: whole blocks and the tail of each; or, of a sum that reads gradients alone, one loop for
# each dtype of parameters.
FEWEST_LOOPS = dict.fromkeys(RULES, 2 * LOOPS_OVER_A_BUCKET) | {"squares": 4}


def kernels_of(rule, folder):
    """The source that CMake makes of the template."""
    text = (CSRC / "cpu" / "rule.cpp.in").read_text()
    text = text.replace("@WPADAMW_RULE_HEADER@", f"rules/{rule}.h").replace("@WPADAMW_RULE@", rule)
    source = folder / f"{rule}.cpp"
    source.write_text(text)
    return source


def loops_over_elements(name):
    """Where they stand, as the compiler names them: behind a file's pragmas."""
    lines = (CSRC / "cpu" / name).read_text().splitlines()
    positions = [i for i, line in enumerate(lines) if "#pragma GCC ivdep" in line]
    return [f"{name}:{position + 2}:" for position in positions]


@on_x86
@pytest.mark.parametrize("rule", RULES)
def test_every_loop_over_a_bucket_is_vectorized_to_full_width(rule, tmp_path):
    name = "sum_loop.h" if rule == "squares" else "bucket_loop.h"
    loop = loops_over_elements(name)[-1]
    report = "-fopt-info-vec-optimized-missed"
    source, flags = kernels_of(rule, tmp_path), CMakeFlags().of("avx512")
    command = [gcc(), *flags, report, "-c", source, "-o", tmp_path / "loop.o"]

    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    vectorized, missed = notes_of(loop, log)
    assert len(vectorized) >= FEWEST_LOOPS[rule]
    assert missed == []
    if rule != "squares":  # further looks, and the way back from them, of float32 and float64
        for loop in loops_over_elements("tensor.h"):
            vectorized, missed = notes_of(loop, log)
            assert len(vectorized) >= 2
            assert missed == []


def notes_of(loop, log):
    """What the compiler says of a loop: where it succeeded and where it did not."""
    notes = [line for line in log.splitlines() if loop in line]
    vectorized = [note for note in notes if "loop vectorized using 64 byte vectors" in note]
    return vectorized, [note for note in notes if "couldn't vectorize loop" in note]


@needs_cpp
@on_x86
def test_the_extension_has_no_fused_and_no_approximate_instruction():
    objdump = shutil.which("objdump")
    if objdump is None:
        pytest.skip("objdump is not installed")
    library = importlib.util.find_spec("wpadamw._C").origin
    command = [objdump, "-d", "--no-show-raw-insn", library]
    code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    mnemonics = set(re.findall(r"^\s*[0-9a-f]+:\s+(\w+)", code, re.MULTILINE))
    assert {"divps", "vdivps", "sqrtps", "vsqrtps"} <= mnemonics
    inexact = re.compile(r"vfn?m(add|sub)|v?(rcp|rsqrt)")
    assert sorted(filter(inexact.match, mnemonics)) == []


# Importing the package, in a process of its own.


def run_python(program):
    command = [sys.executable, "-W", "error", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_importing_the_package_is_silent_and_imports_nothing_optional():
    imported = run_python(
        """
import json, sys
import torch
before = set(sys.modules)
import wpadamw
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    )
    assert "wpadamw.optimizers" in imported
    optional = re.compile(r"(matplotlib|tqdm|triton|numpy|torch\.distributed|torch\._dynamo)\b")
    assert list(filter(optional.match, imported)) == []


def test_without_the_extension_the_specification_serves_and_cpp_says_why():
    found = run_python(
        """
import json, sys
sys.modules["wpadamw._C"] = None
import torch, wpadamw
param = torch.nn.Parameter(torch.ones(3))
param.grad = torch.ones(3)
optimizer = wpadamw.WPAdamW([param], lr=0.5, weight_decay=0.0)
optimizer.step()
optimizer.restore()
try:
    wpadamw.WPAdamW([param], backend="cpp").step()
    refusal = None
except RuntimeError as error:
    refusal = str(error)
print(json.dumps([wpadamw.backends()["cpu"], param.tolist(), refusal]))
"""
    )
    backends, weights, refusal = found
    assert backends["torch"] is None
    assert "wpadamw._C cannot be imported" in backends["cpp"]
    assert weights == pytest.approx([0.5] * 3)
    assert backends["cpp"] in refusal
