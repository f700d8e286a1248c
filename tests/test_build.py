"""What keeps the numerical contract and the layers: flags, machine code, imports."""

from __future__ import annotations

import ast
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

from wpadamw.rules.rule import Rule

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
RULES = sorted(path.stem for path in (CSRC / "rules").iterdir())
PACKAGE = ROOT / "wpadamw"

on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="vector widths are those of x86-64"
)


def without_comments(text):
    return re.sub(r"//.*|/\*.*?\*/", "", text)


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


# float32 and, with two dtypes of gradients, float64: step and step_and_predict from three sources.
# float32 and float64: a prediction from two, and the restore from a prediction. bfloat16 and float16:
# two steps with two dtypes of gradients, and a prediction. Restores from a backup may become memcpy.
LOOPS_OVER_A_BUCKET = 3 * 2 * 3 + 2 * (2 + 1) + 2 * (2 * 2 + 1)
# Per rule: whole blocks and the tail of each; or, of a sum that reads gradients alone, one loop for
# each pair of their dtype and that of the state.
FEWEST_LOOPS = dict.fromkeys(RULES, 2 * LOOPS_OVER_A_BUCKET) | {"squares": 5}


def kernels_of(rule, folder):
    """The source that CMake makes of the template."""
    text = (CSRC / "cpu" / "rule.cpp.in").read_text()
    text = text.replace("@WPADAMW_RULE_HEADER@", f"rules/{rule}.h").replace("@WPADAMW_RULE@", rule)
    source = folder / f"{rule}.cpp"
    source.write_text(text)
    return source


def loop_over_elements(name):
    """Where it stands, as the compiler names it: behind the last of a file's pragmas."""
    lines = (CSRC / "cpu" / name).read_text().splitlines()
    *_, position = [i for i, line in enumerate(lines) if "#pragma GCC ivdep" in line]
    return f"{name}:{position + 2}:"


@on_x86
@pytest.mark.parametrize("rule", RULES)
def test_every_loop_over_a_bucket_is_vectorized_to_full_width(rule, tmp_path):
    name = "sum_loop.h" if rule == "squares" else "bucket_loop.h"
    loop = loop_over_elements(name)
    report = "-fopt-info-vec-optimized-missed"
    source, flags = kernels_of(rule, tmp_path), CMakeFlags().of("avx512")
    command = [gcc(), *flags, report, "-c", source, "-o", tmp_path / "loop.o"]

    log = subprocess.run(command, capture_output=True, text=True, check=True).stderr

    notes = [line for line in log.splitlines() if loop in line]
    vectorized = [note for note in notes if "loop vectorized using 64 byte vectors" in note]
    assert len(vectorized) >= FEWEST_LOOPS[rule]
    assert [note for note in notes if "couldn't vectorize loop" in note] == []


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


# Layers of the C++ sources.

SOURCES = sorted(
    path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".in")
)

# What a directory or file may include, besides its own directory.
NUMBERS = {"rule.h", "operation.h", "combinations.h", "float_types.h", "dtype.h", "host_device.h"}
MAY_INCLUDE = {
    "host_device.h": set(),
    "dtype.h": set(),
    "float_types.h": {"host_device.h"},
    "rule.h": {"host_device.h"},
    "rules": {"rule.h"},
    "operation.h": {"host_device.h", "rule.h"},
    "combinations.h": {"dtype.h", "float_types.h", "operation.h", "rule.h"},
    "bucket.h": {"dtype.h", "operation.h"},
    "cpu": NUMBERS | {"bucket.h"},
    "cuda": NUMBERS,
    "bindings": {"bucket.h", "operation.h", "dtype.h", "rule.h", "cpu", "cuda"},
}


def relative(path):
    return str(path.relative_to(CSRC))


def layer(path):
    return path.resolve().relative_to(CSRC).parts[0]


def included(path):
    """The files that a source includes; what CMake makes of a template includes from csrc."""
    for name in includes(path, '"([^"@]+)"'):
        yield CSRC / name if path.suffix == ".in" else path.parent / name


def includes(path, pattern):
    return re.findall(rf"^\s*#\s*include\s*{pattern}", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_sources_include_lower_layers_only(path):
    allowed = MAY_INCLUDE[layer(path)] | {layer(path)}
    assert {layer(name) for name in included(path)} <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_kernels_know_neither_torch_nor_python(path):
    headers = includes(path, "<([^>]+)>")
    assert [name for name in headers if re.match(r"(torch|ATen|c10|Python\.h)", name)] == []
    if layer(path) != "bindings":
        assert [name for name in headers if name.startswith("pybind11")] == []
    if layer(path) != "cuda":
        assert [name for name in headers if name.startswith("cuda")] == []


@pytest.mark.parametrize("rule", RULES)
def test_rules_have_no_loop_no_pointer_and_no_dtype(rule):
    code = without_comments((CSRC / "rules" / f"{rule}.h").read_text())
    assert re.findall(r"\b(?:for|while|do|goto)\b", code) == []
    assert re.findall(r"[\w>]\*|->|&\w", code) == []
    # Scalars are float64 until they are rounded.
    assert re.findall(r"\b(?:float|bfloat16|float16|half)\b", code) == []


def test_every_rule_is_a_namespace_of_its_own_name():
    assert {"adamw", "amsgrad", "sgd", "squares"} <= set(RULES)
    for rule in RULES:
        assert f"namespace wpadamw::{rule} {{" in (CSRC / "rules" / f"{rule}.h").read_text()


@needs_cpp
@pytest.mark.parametrize("rule", RULES)
def test_rules_have_the_names_of_their_specification(rule):
    module = importlib.import_module(f"wpadamw.rules.{rule}")
    (specified,) = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and vars(value).get("name") == rule
    ]
    found = importlib.import_module("wpadamw._C").rules()[rule]
    assert found["state"] == list(specified.state_names)
    for part in ("hyper", "step", "look"):
        assert found[part] == list(getattr(specified, part.title())._fields)
    assert found["num_terms"] == specified.num_terms
    assert found["can_recover"] == (specified.recover is not Rule.recover)


# Layers of the Python package.

# From the bottom to the top. Modules that are not named may be used by all, and count with what
# they import.
LAYERS = [
    {"scalars", "rules"},
    {"buckets", "checkpoint", "_backends"},
    {"weight_prediction"},
    {"optimizers"},
    {"attach", "cli", "integrations", "__main__"},
]


def imported_modules(path):
    """First names below the package of what a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *parts = name.split(".")
            if package == "wpadamw" and parts:
                yield parts[0]


def import_graph():
    graph = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        graph.setdefault(name, set()).update(imported_modules(path))
    return graph


def everything_below(name, graph, seen):
    for imported in graph.get(name, set()) - seen:
        seen.add(imported)
        everything_below(imported, graph, seen)
    return seen


@pytest.mark.parametrize("index", range(len(LAYERS) - 1), ids=lambda i: "-".join(sorted(LAYERS[i])))
def test_modules_import_lower_layers_only(index):
    graph = import_graph()
    higher = set().union(*LAYERS[index + 1 :])
    for name in LAYERS[index]:
        assert graph.keys() >= {name}
        assert everything_below(name, graph, set()) & higher == set()


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
