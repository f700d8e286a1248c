"""What the compiler made of the Triton kernel of small formats, for real GPUs, without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

PROGRAM = Path(__file__).with_name("compiled_formats.py")
CHUNK_NUMEL = 2048
VECTORS = {"v4.32": 16, "v2.32": 8}
# Bytes per parameter that are read and written, scales apart.
MOVED = {
    # Weights 2 + 2, gradients 2, moments 1 + 1.
    ("bfloat16", "rest", "int8", "adamw", "step_and_predict"): (8, 6),
    ("bfloat16", "rest", "int8", "adamw", "step"): (8, 6),
    ("bfloat16", "rest", "int8", "adamw", "predict"): (6, 4),
    ("bfloat16", "rest", "int8", "adamw", "restore"): (6, 4),
    ("bfloat16", "rest", "int8", "amsgrad", "step_and_predict"): (9, 7),
    # Moments 2 + 2.
    ("bfloat16", "rest", "bfloat16", "adamw", "step_and_predict"): (10, 8),
    # Weights 4, gradients 4, moments 2 + 2; predicted weights 4.
    ("float32", "backup", "bfloat16", "adamw", "step_and_predict"): (12, 12),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """All that is compiled. The compiler says nothing."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-W", "error", str(PROGRAM)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return [SimpleNamespace(**chosen, facts=facts) for chosen, facts in json.loads(done.stdout)]


def moved(kernel, kind):
    """Bytes per parameter that a whole chunk moves by vectors."""
    vectors = kernel.facts["vectors"]
    per_thread = sum(size * vectors.get(f"{kind}.{name}", 0) for name, size in VECTORS.items())
    return per_thread * kernel.facts["threads"] / CHUNK_NUMEL


def kinds_of_accesses(kernel):
    return {access.split(".")[0] for access in kernel.facts["accesses"]}


def test_whole_chunks_move_by_vectors_what_the_formats_need(found):
    names = set()
    for kernel in found:
        name = (kernel.param, kernel.master, kernel.moments, kernel.rule, kernel.operation)
        assert (moved(kernel, "ld"), moved(kernel, "st")) == MOVED[name], name
        names.add(name)
    assert names == MOVED.keys()
    assert {kernel.architecture for kernel in found} == {80, 90, 100}


def test_the_machine_has_an_instruction_for_every_wide_vector(found):
    for kernel in found:
        vectors, accesses = kernel.facts["vectors"], kernel.facts["accesses"]
        assert vectors["st.v4.32"] == accesses["STG.E.128"], kernel
        assert vectors["ld.v4.32"] == accesses["LDG.E.128"], kernel


def test_nothing_spills_and_only_scales_go_through_shared_memory(found):
    for kernel in found:
        assert kernel.facts["kept_elsewhere"] == 0, kernel
        updates_scales = kernel.moments == "int8" and "step" in kernel.operation
        shared = {"LDS", "STS"} if updates_scales else set()
        assert kinds_of_accesses(kernel) == {"LDG", "STG"} | shared, kernel
        assert kernel.facts["shared"] <= (128 if updates_scales else 0), kernel


def test_every_operation_is_rounded_once(found):
    for kernel in found:
        assert kernel.facts["rounded_otherwise"] == [], kernel
        assert kernel.facts["roots_and_quotients"].keys() == {"div.rn.f32", "sqrt.rn.f32"}, kernel
