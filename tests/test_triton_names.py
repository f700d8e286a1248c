"""What a rule says twice: in plain PyTorch and in Triton, under the same names."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest
from buckets import RULES
from test_triton_rules import pytestmark  # noqa: F401

from wpadamw._backends import triton
from wpadamw._backends.interface import Kind
from wpadamw.rules.rule import Rule


def unpacked(function):
    """The names that a function's arguments are unpacked into, by argument."""
    found = {}
    for node in ast.walk(ast.parse(inspect.getsource(function))):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Name(id=argument)):
                found[argument] = tuple(name.id.lstrip("_") for name in names)
    return found


each_name = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@each_name
def test_functions_unpack_tuples_into_the_names_of_the_specification(rule):
    names = {"hyper": rule.Hyper._fields, "step": rule.Step._fields, "look": rule.Look._fields}
    names["state"] = rule.state_names
    module = triton._module_of(rule)
    for function in vars(module).values():
        if getattr(function, "__module__", None) == module.__name__:
            for argument, found in unpacked(function.fn).items():
                assert names[argument] == found, function.fn.__name__


@each_name
def test_a_rule_has_the_functions_of_the_specification(rule):
    for name in ("step", "predict", "recover", "terms"):
        is_own = getattr(type(rule), name) is not getattr(Rule, name)
        assert hasattr(triton._module_of(rule), name) == is_own, name


def test_kinds_of_records_have_the_numbers_of_the_interface():
    kernels = importlib.import_module("wpadamw.triton_kernels.advance_kernel")
    assert {kind: getattr(kernels, kind.name.upper()).value for kind in Kind} == {
        kind: kind.value for kind in Kind
    }
