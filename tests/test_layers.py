"""Which folder may import what, and how long a file is. Layers in a folder: test_build.py."""

from __future__ import annotations

import ast
from importlib.util import resolve_name
from pathlib import Path

import pytest

import wpadamw
from wpadamw import pipeline

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("wpadamw", "bench", "csrc", "triton_kernels")
SUFFIXES = {".py", ".pyi", ".h", ".cpp", ".cu"}
MAX_LINES = 300

OURS, EVALUATION, COMMANDS = "wpadamw", "wpadamw.bench", "wpadamw.cli"
ABOVE_BACKENDS = ("optimizers", "optimizer", "weight_prediction", "attach", "checkpoint", "plan")
PARTS = tuple(f"{EVALUATION}.{part}" for part in ("speed", "study", "gpu", "versions"))
# A folder, those in it that have rules of their own, what is not imported, and exceptions to that.
RULES = {
    "core": ("wpadamw", ("cli", "integrations", "__main__.py"), (EVALUATION, COMMANDS), ()),
    "core-alone": ("wpadamw", ("integrations",), ("wpadamw.integrations", "triton"), ()),
    "backends": ("wpadamw/_backends", (), tuple(f"{OURS}.{name}" for name in ABOVE_BACKENDS), ()),
    "integrations": ("wpadamw/integrations", (), (EVALUATION, COMMANDS), ()),
    "triton": ("triton_kernels", (), (OURS,), ("wpadamw.triton_kernels",)),
    "bench": ("bench", (), (COMMANDS, "triton"), ()),
    "report": ("bench/report", (), (*PARTS, f"{EVALUATION}.machine", "torch"), ()),
    "registry": ("bench/registry.py", (), (EVALUATION, "torch"), ()),
}


def modules_in(folder, others=()):
    root = ROOT / folder
    paths = [root] if root.suffix else root.rglob("*.py")
    return [path for path in paths if not {*path.relative_to(root).parts[:1]} & {*others}]


def imported(path):
    """Full names of what a module imports, inside functions too."""
    package = ".".join(path.relative_to(ROOT).parent.parts)
    package = package if package.startswith(OURS) else f"{OURS}.{package}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def lies_in(name, packages):
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("rule", RULES)
def test_a_folder_imports_only_what_it_may(rule):
    folder, others, forbidden, exceptions = RULES[rule]
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in modules_in(folder, others)
        for name in imported(path)
        if name != OURS and lies_in(name, forbidden) and not lies_in(name, exceptions)
    }
    assert found == set()


def test_the_evaluation_uses_what_is_public():
    names = {name for path in modules_in("bench") for name in imported(path)}
    ours = {name for name in names if lies_in(name, [OURS]) and not lies_in(name, [EVALUATION])}
    public = {OURS: [*wpadamw.__all__, "__version__"], f"{OURS}.pipeline": pipeline.__all__}
    assert ours <= {OURS, *(f"{part}.{name}" for part in public for name in public[part])}


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_are_short(folder):
    paths = [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: number for name, number in lines.items() if number > MAX_LINES} == {}


@pytest.mark.parametrize("folder", ["bench", "tests"])
def test_nobody_changes_the_path_of_imports(folder):
    changed = "sys." + "path"
    assert [path.name for path in modules_in(folder) if changed in path.read_text()] == []
