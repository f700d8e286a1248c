"""Shared fixtures, and what makes a session fail or a test be skipped."""

from __future__ import annotations

import importlib
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

from cuda_on_host import build
from helpers import PinnedTable, missing_backends
from hypothesis import settings

import wpadamw
from wpadamw import _backends
from wpadamw._backends import cpp, cuda
from wpadamw.standing import Standing

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_sessionstart(session):
    expected = os.environ.get("WPADAMW_EXPECT_BACKENDS", "")
    if missing := missing_backends(expected, wpadamw.backends()):
        raise pytest.UsageError(f"WPADAMW_EXPECT_BACKENDS={expected}: {'; '.join(missing)}")
    # In a program that a test starts, pytest-benchmark would take itself for a worker's.
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        del os.environ[name]


# So that no worker is still in one of them when the other has nothing left to do.
SLOW_FILES_FIRST = (
    "test_packaging.py",
    "test_triton_code.py",
    "test_interrupts.py",
    "test_cuda_on_host.py",
    "test_triton.py",
    "test_bench.py",
    "test_backends.py",
    "test_study.py",
)


def _place(item):
    name = item.path.name
    return SLOW_FILES_FIRST.index(name) if name in SLOW_FILES_FIRST else len(SLOW_FILES_FIRST)


def pytest_collection_modifyitems(items):
    items.sort(key=_place)
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch.cuda.is_available() is False")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(1)


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _instruction_sets():
    try:
        return importlib.import_module("wpadamw._C").instruction_sets()
    except ImportError:
        return []


@pytest.fixture(params=_instruction_sets())
def instruction_set(request, monkeypatch):
    """Backend cpp runs with one of the instruction sets that this processor has."""
    construct = cpp.Kernels.__init__

    def construct_pinned(kernels, bucket):
        construct(kernels, bucket)
        kernels.table = PinnedTable(kernels.table, request.param)

    monkeypatch.setattr(cpp.Kernels, "__init__", construct_pinned)
    monkeypatch.setattr(Standing, "of", lambda bucket: None)  # takes the best one
    return request.param


@pytest.fixture(scope="session")
def cuda_extension_on_host():
    """The extension with CUDA kernels that are loops on the host."""
    return build.load(build.build())


@pytest.fixture
def cuda_on_host(cuda_extension_on_host, monkeypatch):
    """Backend cuda serves CPU tensors, with kernels that are loops on the host."""
    extension = cuda_extension_on_host
    code = lambda dtype: getattr(extension.DType, str(dtype).removeprefix("torch."))  # noqa: E731
    monkeypatch.setattr(cuda, "extension", lambda: extension)
    monkeypatch.setattr(cuda, "dtype_code", code)
    monkeypatch.setattr(cuda, "why_not", lambda device_type: None)
    monkeypatch.setitem(_backends._BY_DEVICE, "cpu", (*_backends._BY_DEVICE["cpu"], cuda))
    return extension


@pytest.fixture
def fresh_dynamo():
    """torch.compile begins anew, and leaves nothing behind."""
    compiling = importlib.import_module("compiling")
    compiling.forget()
    yield
    compiling.forget()
