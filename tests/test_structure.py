"""What may include and import what, in C++ and in Python, and the shape of rules."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from helpers import needs_cpp

from wpadamw.rules.rule import Rule

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "wpadamw"
RULES = sorted(path.stem for path in (CSRC / "rules").iterdir())


def without_comments(text):
    return re.sub(r"//.*|/\*.*?\*/", "", text)


# Layers of the C++ sources.

SOURCES = sorted(
    path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".in")
)

# What a directory or file may include, besides its own directory.
NUMBERS = {"rule.h", "operation.h", "combinations.h", "float_types.h", "formats.h", "dtype.h"}
NUMBERS |= {"host_device.h"}
MAY_INCLUDE = {
    "host_device.h": set(),
    "dtype.h": set(),
    "float_types.h": {"host_device.h"},
    "formats.h": {"float_types.h"},
    "rule.h": {"host_device.h"},
    "rules": {"rule.h"},
    "operation.h": {"host_device.h", "rule.h"},
    "combinations.h": {"dtype.h", "float_types.h", "operation.h", "rule.h"},
    "bucket.h": {"dtype.h", "formats.h", "operation.h"},
    "cpu": NUMBERS | {"bucket.h"},
    "cuda": NUMBERS,
    "bindings": {"bucket.h", "operation.h", "dtype.h", "formats.h", "rule.h", "cpu", "cuda"},
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
    {"rules"},
    {"_backends"},
    {"ledger", "gradients", "watch"},
    {"bucket"},
    {"plan", "apart", "checkpoint"},
    {"step", "serving"},
    {"upkeep"},
    {"optimizer"},
    {"optimizers"},
    {"attach", "cli", "integrations", "laperm", "pipeline", "release", "__main__"},
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


# Pipelines stand on what torch promises.

PIPELINE = sorted((PACKAGE / "pipeline").glob("*.py"))


def underscored(tree):
    """Private names that are read, imported or defined, but for those of Python itself."""
    for node in ast.walk(tree):
        names = [
            *(alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)),
            *(str(getattr(node, field, "")) for field in ("attr", "id", "module", "arg")),
            getattr(node, "name", None) or "",
        ]
        for part in ".".join(map(str, names)).split("."):
            if part.startswith("_") and part != "_" and not part.endswith("__"):
                yield part


def test_pipelines_use_one_private_name_of_torch():
    from torch.distributed.pipelining import schedules, stage

    ours = {name for path in PIPELINE for name in underscored(ast.parse(path.read_text()))}
    text = "\n".join(Path(module.__file__).read_text() for module in (schedules, stage))
    assert {name for name in ours if re.search(rf"\b{name}\b", text)} == {"_step_microbatches"}
    defined = {
        node.name if hasattr(node, "name") else node.id
        for path in PIPELINE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        or (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    }
    assert ours - defined == set()
