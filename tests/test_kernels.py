"""C++ and CUDA below the optimizers, against backend torch, with the rules of tests/rules."""

from __future__ import annotations

import pytest

# The tables of backend triton, collected here once more for these.
from test_triton_rules import (  # noqa: F401
    test_infinite_weights_have_equal_effects,
    test_operations_equal_the_specification,
    test_sums_equal_the_specification,
    test_sums_of_nothing_are_zero,
    test_totals_equal_the_specification,
)
from test_weights_apart import (  # noqa: F401
    test_operations_equal_the_specification_wherever_weights_lie,
    test_sums_equal_the_specification_wherever_weights_lie,
)

from wpadamw._backends import cpp, cuda


@pytest.fixture(params=["cpp", "cpp-2-threads", "cuda"])
def backend(request, cuda_on_host, monkeypatch):
    """The extension with CUDA kernels as loops on the host: it knows the rules of tests/rules."""
    if request.param == "cuda":
        return cuda
    monkeypatch.setattr(cpp, "extension", lambda: cuda_on_host)
    monkeypatch.setattr(cpp, "dtype_code", cuda.dtype_code)
    monkeypatch.setattr(cpp, "num_threads", lambda: 1 + (request.param != "cpp"))
    return cpp
