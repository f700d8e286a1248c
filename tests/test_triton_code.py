"""What the compiler made of the Triton kernels, for real GPUs, without one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cuda_code import NUM_PREDICTING, NUM_STATES, num_read

from wpadamw.rules.summing import CHUNK_NUMEL

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

PROGRAM = Path(__file__).with_name("compiled_triton.py")
WORKERS = 2
SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}


class Kernel(NamedTuple):
    """An instantiation of a kernel, and facts of it: see compiled_triton.py."""

    kernel: str
    architecture: int
    rule: str
    param: str
    grad: str
    operation: str
    has_backup: bool
    has_flag: bool
    num_looks: int
    has_averages: bool
    facts: dict[str, Any]

    @property
    def updates(self) -> bool:
        return "step" in self.operation

    @property
    def real_size(self) -> int:
        """Bytes of a number of the state."""
        return max(4, SIZES[self.param])

    def read(self) -> Counter[str]:
        """How many arrays an operation reads of each dtype: the table of the operations."""
        arrays = Counter({self.real if self.has_backup else self.param: 1})
        if self.updates:
            num_states = num_read(self.rule, self.has_backup) + self.has_averages
            arrays += Counter({self.grad: 1}) + Counter({self.real: num_states})
        elif self.operation == "predict" or not self.has_backup:
            arrays[self.real] += NUM_PREDICTING[self.rule]
        return arrays

    def written(self) -> Counter[str]:
        """How many arrays an operation writes of each dtype: the table of the operations."""
        num_states = NUM_STATES[self.rule] + self.has_averages
        kept = num_states + self.has_backup if self.updates else 0
        return Counter({self.param: 1}) + Counter({self.real: kept})

    @property
    def real(self) -> str:
        return "float64" if self.param == "float64" else "float32"

    def moved(self, kind: str, width: int) -> float:
        """Bytes per parameter that a whole chunk moves by vectors of so many bytes."""
        vectors = {"v4.32": 16, "v2.64": 16, "v2.32": 8}
        per_thread = sum(
            width * self.facts["vectors"].get(f"{kind}.{name}", 0)
            for name, size in vectors.items()
            if size == width
        )
        return per_thread * self.facts["threads"] / CHUNK_NUMEL


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All that is compiled. The compiler says nothing."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def start(worker):
        command = [sys.executable, "-W", "error", str(PROGRAM), str(worker), str(WORKERS)]
        return subprocess.Popen(command, env=environment, **pipe)

    kernels = []
    for process in [start(worker) for worker in range(WORKERS)]:
        output, errors = process.communicate()
        assert (process.returncode, errors) == (0, "")
        kernels += [Kernel(*chosen, facts) for chosen, facts in json.loads(output)]
    return kernels


@pytest.fixture
def buckets(found):
    return [kernel for kernel in found if kernel.kernel == "bucket"]


def name_of(kernel):
    return kernel[:-1]


def bytes_by_width(kernel, arrays):
    """Bytes per parameter that arrays move by 8 and by 16 bytes: as many elements of each."""
    moved = Counter()
    for dtype, number in arrays.items():
        moved[16 * SIZES[dtype] // kernel.real_size] += number * SIZES[dtype]
    return [moved[8], moved[16]]


def test_every_kernel_is_compiled_once(found):
    names = [name_of(kernel) for kernel in found]
    assert len(set(names)) == len(names)
    assert {kernel.architecture for kernel in found} == {80, 90, 100}
    kinds = Counter((kernel.kernel, kernel.rule) for kernel in found if kernel.architecture == 90)
    assert (kinds["bucket", "adamw"], kinds["advance", "adamw"]) == (40, 6)
    assert all(kinds["bucket", rule] >= 3 and kinds["advance", rule] for rule in NUM_STATES)
    assert {kind: number for kind, number in kinds.items() if "sums" in kind[0]} == {
        ("chunk_sums", "blend"): 3,
        ("chunk_sums", "squares"): 1,
        ("tensor_sums", "squares"): 1,
    }


def test_whole_chunks_move_by_vectors_the_bytes_of_the_table(buckets):
    for kernel in buckets:
        for kind, arrays in [("ld", kernel.read()), ("st", kernel.written())]:
            moved = [kernel.moved(kind, width) for width in (8, 16)]
            assert moved == bytes_by_width(kernel, arrays), (kind, name_of(kernel))


def test_sums_read_by_vectors_what_their_terms_need(found):
    for kernel in found:
        if kernel.kernel == "chunk_sums":
            arrays = Counter({kernel.grad: 1})
            if kernel.rule == "blend":
                arrays[kernel.real] += 2  # the true weight and the state
            moved = [kernel.moved("ld", width) for width in (8, 16)]
            assert moved == bytes_by_width(kernel, arrays), name_of(kernel)
            assert kernel.moved("st", 8) == kernel.moved("st", 16) == 0, name_of(kernel)


def test_the_machine_has_an_instruction_for_every_vector(buckets):
    for kernel in buckets:
        vectors, accesses = kernel.facts["vectors"], kernel.facts["accesses"]
        for kind, name in [("ld", "LDG.E.128"), ("st", "STG.E.128")]:
            wide = sum(vectors.get(f"{kind}.{shape}", 0) for shape in ("v4.32", "v2.64"))
            assert accesses.get(name, 0) == wide, name_of(kernel)


def test_nothing_spills(found):
    for kernel in found:
        assert kernel.facts["kept_elsewhere"] == 0, name_of(kernel)
        kinds = {access.split(".")[0] for access in kernel.facts["accesses"]}
        assert kinds <= {"LDG", "STG", "LDS", "STS"}, name_of(kernel)


def test_only_sums_of_chunks_go_through_shared_memory(found):
    for kernel in found:
        if kernel.kernel != "chunk_sums":
            assert kernel.facts["shared"] == 0, name_of(kernel)
            kinds = {access.split(".")[0] for access in kernel.facts["accesses"]}
            assert kinds == {"LDG", "STG"}, name_of(kernel)


def test_a_direction_is_computed_once(buckets):
    """A prediction after a step goes along the direction of the step."""
    exact = {kernel[:-1]: kernel.facts["roots_and_quotients"] for kernel in buckets}
    pairs = 0
    for name, operations in exact.items():
        both = tuple("step_and_predict" if part == "step" else part for part in name)
        if both != name and both in exact:
            assert exact[both] == operations, name
            pairs += 1
    assert pairs > 10


def test_every_operation_is_rounded_once(found):
    roots_and_quotients = set()
    for kernel in found:
        assert kernel.facts["rounded_otherwise"] == [], name_of(kernel)
        roots_and_quotients.update(kernel.facts["roots_and_quotients"])
    real = {"div.rn.f32", "sqrt.rn.f32", "div.rn.f64", "sqrt.rn.f64"}
    assert roots_and_quotients == real
