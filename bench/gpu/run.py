"""``python -m bench.gpu FOLDER``: builds, tests, checks and measures on a machine with a CUDA GPU.

Under nine minutes, without a network or a virtual environment, in the root of a checkout that is
not built yet (``make gpu OUT=FOLDER``): it works with the Python that runs it, which must have
torch, triton, pytest, pytest-benchmark, hypothesis, pybind11, setuptools, cmake and ninja. What is
missing can be carried in a folder that PYTHONPATH names, filled beforehand with ``pip install
--target``. nvcc, compute-sanitizer and ncu are looked for where CUDA puts them.

Left in the folder: ``summary.txt``, ``gpu.json`` (the steps, the tests, the kernels under ncu),
``cuda.json`` (the benchmarks; a copy in ``bench/results/MACHINE`` is what the documents show),
``report.md`` and ``step-times.png`` (the same to look at; the plot where matplotlib is installed),
``tests.xml``, ``ncu.csv`` and ``log.txt``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import ROOT
from ..report import gpu_tables, speed_tables
from ..report.markup import markdown
from ..steps import PASSED, Outcome, Step, run_all
from . import ncu

PROBE = "wpadamw.bench.gpu.probe"
# Most of the tests' time is Triton's compiler; each process takes half a GB of the GPU's memory.
NUM_TEST_PROCESSES = max(min((os.cpu_count() or 1) - 2, 16), 1)
# Fails without a GPU, where all tests would be skipped.
SHOW_MACHINE = (
    "import torch, triton; print(torch.__version__, triton.__version__); "
    "print(torch.cuda.get_device_properties(0))"
)
TEST_ENVIRONMENT = {"OMP_NUM_THREADS": "2", "TRITON_INTERPRET": "0"}
SHOWN_LINES = 40
NUM_SHOWN_TESTS = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; 1 if one that matters failed."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="of all steps, in their order")
    args = parser.parse_args(arguments)
    out = args.out.resolve()
    steps = plan(out)
    if args.only is not None:
        steps = chosen(steps, args.only, parser)
    out.mkdir(parents=True, exist_ok=True)
    for stale in RESULT_FILES:
        (out / stale).unlink(missing_ok=True)
    outcomes = run_all(steps, ROOT, lambda done: write(done, out))
    print((out / "summary.txt").read_text())
    return int(not all(outcome.is_good for outcome in outcomes))


RESULT_FILES = (
    *("summary.txt", "gpu.json", "cuda.json", "cuda.failed.json"),
    *("report.md", "step-times.png", "tests.xml", "ncu.csv", "log.txt"),
)


# What is run.


def plan(out: Path) -> list[Step]:
    """The steps. Their times add up to less than nine minutes."""
    python, tools = sys.executable, {"PATH": tool_path(), "PYTHONUNBUFFERED": "1"}
    architecture = gpu_architecture()
    build = {**tools, "WPADAMW_CUDA": "on"}
    if architecture is not None:
        build["WPADAMW_CUDA_ARCHITECTURES"] = architecture
    uncached = {**tools, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    probe = [python, "-m", PROBE]
    check = [*probe, "check", "cuda"]  # the device; the backends follow
    return [
        Step("machine", [python, "-c", SHOW_MACHINE], 20, tools),
        Step("build", _build_command(python), 60, build),
        Step("tests", _test_command(python, out), 150, {**tools, **TEST_ENVIRONMENT}),
        Step(
            "benchmarks",
            [python, "-m", "wpadamw", "bench", "--device", "cuda", "--out", str(out)],
            150,
            tools,
        ),
        Step("memcheck", [*_sanitizer("memcheck"), *check, "cuda", "triton"], 75, uncached),
        # Under it a process that launches Triton's kernels may crash.
        Step("racecheck", [*_sanitizer("racecheck"), *check, "cuda"], 30, uncached),
        Step(
            "ncu",
            [*ncu.command(out / "ncu.csv"), *probe, "profile"],
            40,
            tools,
            is_required=False,
        ),
    ]


def chosen(steps: list[Step], names: Sequence[str], parser: argparse.ArgumentParser) -> list[Step]:
    """Those of the names."""
    known = [step.name for step in steps]
    if unknown := sorted({*names}.difference(known)):
        parser.error(f"--only must name some of {', '.join(known)}, got {', '.join(unknown)}")
    return [step for step in steps if step.name in names]


def tool_path() -> str:
    """PATH, with the folders of this Python's programs and of CUDA's."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    profilers = sorted(map(str, Path("/opt/nvidia/nsight-compute").glob("*")), reverse=True)
    own = os.path.dirname(sys.executable)  # unresolved: a virtual environment's programs
    return os.pathsep.join([own, os.environ.get("PATH", ""), f"{home}/bin", *profilers])


def gpu_architecture() -> str | None:
    """The GPU's architecture for CMake, or None where nvidia-smi does not tell."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    capabilities = {line.strip().replace(".", "") for line in done.stdout.splitlines()}
    return ";".join(f"{capability}-real" for capability in sorted(capabilities))


def _build_command(python: str) -> list[str]:
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--verbose"]
    return [*install, "--no-index", "--no-build-isolation", "--no-deps", "--editable", "."]


def _test_command(python: str, out: Path) -> list[str]:
    command = [python, "-m", "pytest", "tests", "-m", "gpu", "-q", "--durations=10"]
    # It warns beside pytest-xdist, and warnings are errors.
    command += ["-p", "no:benchmark"]
    command += [f"--junitxml={out / 'tests.xml'}", "--continue-on-collection-errors"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(NUM_TEST_PROCESSES)]
    return command


def _sanitizer(tool: str) -> list[str]:
    command = ["compute-sanitizer", "--tool", tool, "--target-processes", "all"]
    # torch asks questions of the driver that are answered with error codes.
    command += ["--report-api-errors", "no"] if tool == "memcheck" else []
    return [*command, "--error-exitcode", "42"]


# What is written.


def write(outcomes: Sequence[Outcome], out: Path) -> None:
    """All results so far: whoever ends this early has those."""
    tests, kernels = read_tests(out / "tests.xml"), ncu.read(out / "ncu.csv")
    benchmarks = read_benchmarks(out)
    results = {
        "machine": benchmarks.get("facts", {}).get("gpu"),
        "steps": list(map(_step_results, outcomes)),
        "tests": tests,
        "kernels": kernels,
    }
    (out / "gpu.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "summary.txt").write_text(summary(outcomes, tests, kernels, benchmarks))
    (out / "log.txt").write_text("".join(map(_logged, outcomes)))


def _step_results(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.step.name,
        "verdict": outcome.verdict,
        "seconds": round(outcome.seconds, 1),
        "limit_s": outcome.step.limit_s,
        "command": _shown(outcome.step.command),
        "environment": {k: v for k, v in outcome.step.environment.items() if k != "PATH"},
    }


def _shown(command: Sequence[str]) -> str:
    """A command without the places of the machine that it ran on."""
    return re.sub(r"/\S*/(?=[^/\s])", "", " ".join(command))


def _logged(outcome: Outcome) -> str:
    return f"==== {outcome.step.name}: {outcome.verdict}\n{outcome.output}\n"


def read_tests(path: Path) -> dict[str, Any]:
    """Numbers of tests, and which did not pass, of pytest's record; {} without one."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return {}
    of_kind = {
        kind: [f"{c.get('classname')}::{c.get('name')}" for c in cases if c.find(kind) is not None]
        for kind in ("failure", "error", "skipped")
    }
    return {"number": len(cases), **of_kind, "skipped": len(of_kind["skipped"])}


def read_benchmarks(out: Path) -> dict[str, Any]:
    """The tables, also of a run that failed; {} without any."""
    for name in ("cuda.json", "cuda.failed.json"):
        if (out / name).exists():
            found: dict[str, Any] = json.loads((out / name).read_text())
            return found
    return {}


def summary(
    outcomes: Sequence[Outcome],
    tests: dict[str, Any],
    kernels: Sequence[dict[str, Any]],
    benchmarks: dict[str, Any],
) -> str:
    """What a reader wants to know, most important first."""
    blocks = [markdown(["step", "seconds", "limit", "verdict"], map(_row, outcomes))]
    if tests:
        blocks.append(_test_lines(tests))
    blocks += [_failure(outcome) for outcome in outcomes if outcome.verdict != PASSED]
    if benchmarks:
        blocks += [speed_tables.speed([benchmarks]), speed_tables.full([benchmarks])]
        blocks.append(speed_tables.memory([benchmarks]))
    if kernels:
        blocks.append(gpu_tables.table(kernels))
    return "\n\n".join(blocks) + "\n"


def _row(outcome: Outcome) -> list[str]:
    step = outcome.step
    return [step.name, f"{outcome.seconds:.0f}", f"{step.limit_s:.0f}", outcome.verdict]


def _test_lines(tests: dict[str, Any]) -> str:
    bad = [*tests["failure"], *tests["error"]]
    head = f"{tests['number']} tests: {len(bad)} failed, {tests['skipped']} skipped"
    return "\n".join([head, *(f"failed: {name}" for name in bad[:NUM_SHOWN_TESTS])])


def _failure(outcome: Outcome) -> str:
    end = "\n".join(outcome.output.splitlines()[-SHOWN_LINES:])
    return f"---- the end of {outcome.step.name} ({outcome.verdict}):\n{end}"
