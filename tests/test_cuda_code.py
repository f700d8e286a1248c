"""What the compiler made of the CUDA kernels: read out of the extension, without a GPU."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cuda_code import (
    NUM_STATES,
    BucketKernel,
    bucket_kernels,
    functions,
    stored_steps,
    tool_output,
    tracked_kernels,
)

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
ELEMENTS_PER_THREAD = 8  # kElementsPerThread of csrc/cuda/launch.h
# float32 and float64 with three operations with and without a backup, gradients of float32 for
# float64, and three operations and gradients of float32 for bfloat16 and float16.
KERNELS_OF_A_RULE = 2 * 6 + 2 + 2 * 4
# Float64 with both gradients, with and without a backup; the others are tracked like small formats.
TRACKED_OF_A_RULE = 2 * 2


def cuda_tools():
    """The programs of CUDA's toolkit that the Triton wheel brings along."""
    package = importlib.util.find_spec("triton")
    assert package is not None, "triton is not installed: it brings the disassembler"
    return Path(package.origin).parent / "backends" / "nvidia" / "bin"


def cuobjdump(*arguments):
    return tool_output(cuda_tools() / "cuobjdump", *arguments)


@pytest.fixture(scope="module")
def extension():
    spec = importlib.util.find_spec("wpadamw._C")
    if spec is None or not hasattr(__import__("wpadamw._C")._C, "cuda"):
        assert shutil.which("nvcc") is None, "nvcc is there, but the extension is without CUDA"
        pytest.skip("nvcc is not installed: the extension was built without CUDA")
    return spec.origin


@pytest.fixture(scope="module")
def architectures(extension):
    listed = cuobjdump("--list-elf", extension)
    found = set(re.findall(r"\.(sm_\d+)\.cubin", listed))
    assert found <= set(ARCHITECTURES) and found
    return found


@pytest.fixture(scope="module", params=ARCHITECTURES)
def code(request, extension, architectures):
    if request.param not in architectures:
        pytest.skip(f"the extension was built for {sorted(architectures)} only")
    return functions(cuda_tools(), extension, request.param)


@pytest.fixture(scope="module")
def kernels(code):
    found = bucket_kernels(code)
    assert len(found) == len({kernel.name for kernel in found})
    assert Counter(kernel.rule for kernel in found) == dict.fromkeys(NUM_STATES, KERNELS_OF_A_RULE)
    return found


@pytest.fixture(scope="module")
def ptx(extension):
    text = cuobjdump("-ptx", extension)
    code = re.sub(r"//.*", "", text)
    assert ".entry" in code
    return code


def test_the_table_of_bytes_is_that_of_the_documentation():
    def moved(*description, has_averages=False):
        kernel = BucketKernel(*description, accesses=Counter(), has_averages=has_averages)
        return kernel.bytes_read() + kernel.bytes_written()

    assert moved("adamw", "float", "float", "step_and_predict", True) == 32
    assert moved("adamw", "float", "float", "step_and_predict", False) == 28
    bfloat16 = "wpadamw::bfloat16"
    assert moved("adamw", bfloat16, bfloat16, "step_and_predict", True) == 28
    assert moved("sgd", "float", "float", "step_and_predict", True) == 24
    assert moved("amsgrad", "float", "float", "step_and_predict", True) == 40
    assert moved("sgd", "float", "float", "step_and_predict", True, has_averages=True) == 32


def test_every_array_is_accessed_by_16_bytes_and_as_often_as_the_table_says(kernels):
    for kernel in kernels:
        read, written = (
            ELEMENTS_PER_THREAD * size for size in (kernel.bytes_read(), kernel.bytes_written())
        )
        assert kernel.wide_bytes("LDG") == read, kernel.name
        # Where a parameter may hold a prediction or not, and where it may be moved or not, each way
        # may have stores of its own.
        has_ways = kernel.operation != "restore" or not kernel.has_backup
        num_ways = 2 if has_ways else 1
        assert kernel.wide_bytes("STG") in (written, num_ways * written), kernel.name


def test_tracked_steps_move_the_bytes_of_others(code):
    found = tracked_kernels(code)
    assert Counter(kernel.rule for kernel in found) == dict.fromkeys(NUM_STATES, TRACKED_OF_A_RULE)
    for kernel in found:
        read, written = (
            ELEMENTS_PER_THREAD * size for size in (kernel.bytes_read(), kernel.bytes_written())
        )
        assert kernel.wide_bytes("LDG") == read, kernel.name
        assert kernel.wide_bytes("STG") in (written, 2 * written), kernel.name
        kinds = {access.split(".")[0] for access in kernel.accesses}
        assert kinds == {"LDG", "STG", "LDS", "STS"}, kernel.name  # terms wait in shared memory


def test_steps_over_small_formats_access_each_array_once(code):
    """Eight elements a thread: so a format's own bytes are all that is moved of an array.

    One access of 16 bytes serves numbers of 16 bits, and two serve float32; 8 bytes serve codes.
    In bfloat16 halves with codes and gradients of bfloat16 that is 8 bytes in and 6 out.
    """
    steps = stored_steps(code)
    assert steps.keys() == NUM_STATES.keys()
    for rule, accesses in steps.items():
        num_states = NUM_STATES[rule]
        # Parameter, rest, backup and averages; gradients are read alone.
        arrays = 2 + 1 + 2 + 2 + 2 * num_states
        assert accesses["LDG.E.128"] == arrays + 2, rule
        assert accesses["STG.E.128"] == arrays, rule
        assert accesses["STG.E.64"] == num_states + 3, rule  # and sums of what is tracked
        kinds = {access.split(".")[0] for access in accesses}
        assert kinds == {"LDG", "STG", "LDS", "STS"}, rule


def test_memory_is_known_to_be_global(kernels):
    for kernel in kernels:
        kinds = {access.split(".")[0] for access in kernel.accesses}
        assert kinds == {"LDG", "STG"}, kernel.name  # not local, shared or of unknown space


def test_nothing_spills(extension):
    usage = cuobjdump("-res-usage", extension)
    found = re.findall(r"Function (\S+):\s+REG:\d+ STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", usage)
    assert len(found) > len(NUM_STATES) * KERNELS_OF_A_RULE
    for name, stack, shared, local in found:
        assert (stack, local) == ("0", "0"), name
        # Sums, and scales of blocks that several threads share.
        assert shared == "0" or re.search("sum_kernel|track_kernel|stored_kernel", name), name


@pytest.mark.parametrize("rule", ["adamw", "amsgrad"])
def test_one_pass_computes_the_direction_once(rule, code):
    """As many divisions and roots as elements of a thread, and those of the tail."""
    for operation in (1, 2):  # an update, a prediction
        (found,) = (
            its_code
            for name, its_code in code.items()
            if f"bucket_kernel<wpadamw::{rule}::Rule, float, float, " in name
            and f"(wpadamw::Operation){operation}, true>" in name
        )
        roots = len(re.findall(r"MUFU\.RSQ", found))
        assert ELEMENTS_PER_THREAD < roots < 2 * ELEMENTS_PER_THREAD, operation


def test_every_operation_is_rounded_once(ptx):
    assert {"div.rn.f32", "div.rn.f64", "sqrt.rn.f32", "sqrt.rn.f64"} <= set(
        re.findall(r"\b(?:div|sqrt)\.[.\w]+", ptx)
    )
    assert re.findall(r"\b(?:fma|mad)\.(?:rn|f)[.\w]*|\.approx|\.ftz|\.full", ptx) == []


def test_the_extension_imports_without_a_driver_and_says_so(extension):
    program = """
import json, torch, wpadamw
from wpadamw import _C
param = torch.nn.Parameter(torch.ones(3))
reason = wpadamw.backends()["cuda"]["cuda"]
print(json.dumps([_C.cuda.why_not(), reason, torch.cuda.is_available()]))
"""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    why_not, reason, has_device = json.loads(done.stdout)
    assert done.stderr == ""
    if has_device:
        assert (why_not, reason) == ("", None)
    else:
        assert why_not.startswith("no CUDA device")
        assert reason == why_not
