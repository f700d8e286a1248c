"""What the compiler made of the Triton kernels, for real GPUs, without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from cuda_code import BucketKernel

from wpadamw._backends.device_table import CHUNK_NUMEL

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

PROGRAM = Path(__file__).with_name("compiled_triton.py")
WORKERS = 2
# As tests/cuda_code.py names them.
RULES = {"adamw": "AdamW", "amsgrad": "AMSGrad"}
TYPES = {
    "float32": "float",
    "float64": "double",
    "bfloat16": "wpadamw::bfloat16",
    "float16": "wpadamw::float16",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Facts of all instantiations, by architecture. The compiler says nothing."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def start(worker):
        command = [sys.executable, "-W", "error", str(PROGRAM), str(worker), str(WORKERS)]
        return subprocess.Popen(command, env=environment, **pipe)

    parts = []
    for process in [start(worker) for worker in range(WORKERS)]:
        output, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        parts.append(json.loads(output))
    return {
        int(key): {kind: [fact for part in parts for fact in part[key][kind]] for kind in value}
        for key, value in parts[0].items()
    }


@pytest.fixture(params=[80, 90, 100], ids="sm_{}".format)
def found(request, compiled):
    return compiled[request.param]


def in_c(rule, param, grad, operation, has_backup, has_flag):
    """The CUDA kernel that does the same: it has the table of bytes."""
    return BucketKernel(RULES[rule], TYPES[param], TYPES[grad], operation, has_backup, Counter())


def narrow_bytes(rule, param, grad, operation, has_backup, has_flag):
    """Bytes per parameter, read and written, of arrays narrower than the state."""
    size = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
    real = max(4, size[param])
    read = size[grad] if "step" in operation and size[grad] < real else 0
    return read, size[param] if size[param] < real else 0


def bytes_of(facts, kind, size):
    """Bytes per parameter that a whole chunk moves by vectors of a size in bytes."""
    vectors = {"v4.32": 16, "v2.64": 16, "v2.32": 8}
    per_thread = sum(
        size * facts["vectors"].get(f"{kind}.{name}", 0)
        for name, found in vectors.items()
        if found == size
    )
    return per_thread * facts["threads"] / CHUNK_NUMEL


def test_every_instantiation_is_compiled(compiled):
    found = compiled[90]
    # Those of tests/test_cuda_code.py and one with a flag; operations with and without a flag.
    assert len({tuple(chosen) for chosen, _ in found["bucket"]}) == 65
    assert len(found["advance"]) == 8


def test_whole_chunks_move_by_vectors_the_bytes_of_the_table(found):
    for chosen, facts in found["bucket"]:
        table, (narrow_read, narrow_written) = in_c(*chosen), narrow_bytes(*chosen)
        assert bytes_of(facts, "ld", 8) == narrow_read, chosen
        assert bytes_of(facts, "st", 8) == narrow_written, chosen
        assert bytes_of(facts, "ld", 16) == table.bytes_read() - narrow_read, chosen
        assert bytes_of(facts, "st", 16) == table.bytes_written() - narrow_written, chosen


def test_the_machine_has_an_instruction_for_every_vector(found):
    for chosen, facts in found["bucket"]:
        for kind, name in [("ld", "LDG.E.128"), ("st", "STG.E.128")]:
            wide = sum(facts["vectors"].get(f"{kind}.{shape}", 0) for shape in ("v4.32", "v2.64"))
            assert facts["accesses"].get(name, 0) == wide, chosen


def test_nothing_spills_or_goes_through_shared_memory(found):
    for name, facts in found["bucket"] + found["advance"]:
        assert (facts["shared"], facts["kept_elsewhere"]) == (0, 0), name
        kinds = {access.split(".")[0] for access in facts["accesses"]}
        assert kinds == {"LDG", "STG"}, name


def test_every_operation_is_rounded_once(found):
    roots_and_quotients = set()
    for name, facts in found["bucket"] + found["advance"]:
        assert facts["rounded_otherwise"] == [], name
        roots_and_quotients.update(facts["roots_and_quotients"])
    real = {"div.rn.f32", "sqrt.rn.f32", "div.rn.f64", "sqrt.rn.f64"}
    assert roots_and_quotients == real
