"""Builds and tests with the oldest, a middle and the newest of what is promised.

``python -m wpadamw.bench.versions``, in a checkout. Each combination of Python, torch, Triton and
NumPy is one row: what passed, what failed, and what cannot be had here, with the reason.
Environments are kept in ``build/versions``, one per Python and torch. pip decides where packages
come from, so torch may bring gigabytes of CUDA. The rows go to
``bench/results/MACHINE/versions.json``, which `wpadamw.bench.report` makes tables of; ``--only
TEXT`` runs again those whose name has the text, and keeps the others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import RESULTS, ROOT, machine
from .steps import NOT_AVAILABLE, PASSED, Outcome, Step, run

ENVIRONMENTS = ROOT / "build" / "versions"


class Combination(NamedTuple):
    """Versions that are tested together."""

    python: str
    torch: str
    triton: str
    numpy: str

    @property
    def name(self) -> str:
        """For ``--only`` and messages."""
        return " ".join(f"{key}-{value}" for key, value in self._asdict().items())


# Up to Triton 3.6 the interpreter does what NumPy refuses from 2.4 on.
COMBINATIONS = (
    Combination("3.10", torch="2.4.0", triton="3.4.0", numpy="1.26.4"),
    Combination("3.11", torch="2.13.0", triton="3.6.0", numpy="2.3.5"),
    Combination("3.11", torch="2.13.0", triton="3.9.0", numpy="2.4.6"),
    Combination("3.12", torch="2.9.1", triton="3.5.1", numpy="2.0.2"),
    Combination("3.13", torch="2.14.1", triton="3.9.0", numpy="2.4.6"),
)


# What is run for a row.

TOOLS = ("pytest", "pytest-benchmark", "hypothesis", "cmake", "ninja", "pybind11", "setuptools")
# The package's own tests that need no further package and no minutes.
PACKAGE_TESTS = (
    *("attach", "backend_rounding", "backends", "checkpoint", "clients", "dtensor", "modes"),
    *("outside_writes", "validation"),
)
TESTS = {
    "package": tuple(f"tests/test_{name}.py" for name in PACKAGE_TESTS),
    "interpreter": tuple(
        f"tests/test_{name}.py" for name in ("triton", "triton_rules", "weights_apart")
    ),
    "code": ("tests/test_triton_code.py",),
}
# Steps that do not work where an interpreter or a wheel cannot be had.
SUPPLIES = ("environment", "packages", "triton")
# By its file: `import wpadamw` needs torch.
LOAD_EXTENSION = """
import importlib.util, sysconfig
folder, suffix = sysconfig.get_path("platlib"), sysconfig.get_config_var("EXT_SUFFIX")
spec = importlib.util.spec_from_file_location("_C", f"{folder}/wpadamw/_C{suffix}")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "baseline" in module.instruction_sets()
"""


def plan(chosen: Combination, interpreter: str) -> list[Step]:
    """The steps of a row; the extension comes before torch, which it does not need."""
    folder = ENVIRONMENTS / f"python{chosen.python}-torch{chosen.torch}"
    python, pip = f"{folder}/bin/python", _pip(folder)
    packages = [f"torch=={chosen.torch}", f"numpy=={chosen.numpy}", *TOOLS]
    build = [*pip, "--no-deps", "--force-reinstall", "."]
    return [
        Step("environment", [interpreter, "-m", "venv", str(folder)], 120),
        Step("build", build, 600, {"WPADAMW_CUDA": "off"}),
        Step("extension", [python, "-c", LOAD_EXTENSION], 60),
        Step("packages", [*pip, *packages], 1800),
        # Without those that torch names, which is one version.
        Step("triton", [*pip, "--no-deps", f"triton=={chosen.triton}"], 600),
        *(_tests(name, folder) for name in TESTS),
    ]


def _pip(folder: Path) -> list[str]:
    quiet = ["--quiet", "--disable-pip-version-check"]
    return [f"{folder}/bin/python", "-m", "pip", "install", *quiet]


def _tests(name: str, folder: Path) -> Step:
    # The program: `python -m pytest` would import the package from here, not what was built.
    command = [f"{folder}/bin/pytest", *TESTS[name], "--quiet", "--tb=line", "--maxfail=50"]
    command += ["-p", "no:cacheprovider"]
    expected = {"WPADAMW_EXPECT_BACKENDS": "cpp,torch"}
    return Step(name, command, 900, expected, is_required=False)


# What became of it.


def row(chosen: Combination) -> dict[str, Any]:
    """Run the steps until one fails that later ones need."""
    interpreter, results = find_python(chosen.python), {}
    if interpreter is None:
        return {**chosen._asdict(), "why": f"Python {chosen.python} is not installed", "steps": {}}
    for step in plan(chosen, interpreter):
        outcome = run(step, ROOT, step.limit_s)
        results[step.name] = facts(outcome)
        print(f"{chosen.name}: {step.name}: {results[step.name]['verdict']}", flush=True)
        if not outcome.is_good:
            break
    return {**chosen._asdict(), "steps": results}


def find_python(version: str) -> str | None:
    """An interpreter of pyenv, or on PATH, where pyenv has programs for versions that it lacks."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    paths = [*map(str, home.glob(f"versions/{version}.*/bin")), os.environ.get("PATH", "")]
    return shutil.which(f"python{version}", path=os.pathsep.join(paths))


def facts(outcome: Outcome) -> dict[str, Any]:
    """The verdict, the time, what pytest counted, and the reason of what failed."""
    found: dict[str, Any] = {"verdict": outcome.verdict, "seconds": round(outcome.seconds, 1)}
    lines = outcome.output.strip().splitlines()
    if counted := re.search(r"(\d+ (?:passed|failed|error).*) in [\d.]+s", outcome.output):
        found["tests"] = counted[1]
    if outcome.verdict != PASSED:
        if outcome.step.name in SUPPLIES:
            found["verdict"] = NOT_AVAILABLE
        told = [line for line in lines if re.match(r"(ERROR|FAILED|E  |\w*Error)", line)]
        found["why"] = (told or lines or [""])[0].strip()
    return found


# The file.


def known_rows(path: Path) -> dict[Combination, dict[str, Any]]:
    """The rows of earlier runs."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {Combination(*(known[key] for key in Combination._fields)): known for known in rows}


def write(path: Path, about: dict[str, Any], rows: dict[Combination, dict[str, Any]]) -> None:
    """Write the rows of the combinations that there are by now."""
    kept = ("cpu", "cores", "system", "wpadamw")
    found = [rows[chosen] for chosen in COMBINATIONS if chosen in rows]
    results = {"facts": {key: about[key] for key in kept}, "rows": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the combinations; 1 if a build or a test failed."""
    parser = argparse.ArgumentParser(
        "python -m wpadamw.bench.versions", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--only", default="", help="run the combinations whose name has this")
    only = parser.parse_args(arguments).only
    about = machine.facts(torch.device("cpu"))
    path = RESULTS / machine.machine_slug(about) / "versions.json"
    rows = known_rows(path)
    chosen = [combination for combination in COMBINATIONS if only in combination.name]
    for combination in chosen:
        source = {key: about[key] for key in ("date", "commit", "dirty")}
        rows[combination] = {**row(combination), **source}
        write(path, about, rows)
    verdicts = {found["verdict"] for key in chosen for found in rows[key]["steps"].values()}
    return int(not verdicts <= {PASSED, NOT_AVAILABLE})


if __name__ == "__main__":
    sys.exit(main())
