"""Compiles the Triton kernels as launches do, without a GPU, and reads what the compiler made.

``python compiled_triton.py WORKER WORKERS`` prints the facts of a share of the instantiations as
JSON. A program of its own: under TRITON_INTERPRET nothing is compiled.
"""

from __future__ import annotations

import bisect
import itertools
import json
import re
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import rule_table
import torch
import triton
from rules.blend import Blend
from triton.backends.compiler import GPUTarget

from wpadamw._backends import triton as backend
from wpadamw._backends.interface import BucketTensors, LedgerTensors, Operation, Rows
from wpadamw.rules.averaged import averaged
from wpadamw.rules.rule import Rule
from wpadamw.rules.squares import Squares

TABLE = rule_table.RULES | rule_table.OF_MATRICES
UPDATING = {case.rule.name: case.rule() for case in TABLE.values()}
RULES: dict[str, Rule] = {**UPDATING, "squares": Squares(), "blend": Blend()}
# Of those that can do without a backup, the one with the most to keep in registers.
LARGEST = max(
    (name for name, rule in UPDATING.items() if rule.can_recover()),
    key=lambda name: len(UPDATING[name].state_names),
)
NARROW = ("bfloat16", "float16")
PARAMS = ("float32", *NARROW, "float64")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Instantiation(NamedTuple):
    """What launches of a kernel differ by, and what it is compiled for."""

    kernel: str
    architecture: int
    rule: str
    param: str
    grad: str
    operation: str
    has_backup: bool
    has_flag: bool = False  # found_inf
    num_looks: int = 1
    has_averages: bool = False


def instantiations(rule: str) -> list[Instantiation]:
    """Operations of a rule that an optimizer may launch, without a flag."""
    found = []
    for param, operation in itertools.product(PARAMS, Operation):
        grads = {param, "float32"} if "step" in operation.name else {param}
        found += [
            Instantiation("bucket", 90, rule, param, grad, operation.name, has_backup)
            for grad, has_backup in itertools.product(sorted(grads), (True, False))
            if has_backup or param not in NARROW
        ]
    return found


def of_a_rule(rule: str) -> list[Instantiation]:
    """What computes a step and a prediction: from each source, in each precision."""
    sources = (True, False) if RULES[rule].can_recover() else (True,)
    one = Instantiation("bucket", 90, rule, "float32", "float32", "step_and_predict", True)
    return [
        *(one._replace(has_backup=has_backup) for has_backup in sources),
        one._replace(param="bfloat16", grad="bfloat16"),
        largest(rule),
    ]


def largest(rule: str) -> Instantiation:
    """What computes the most, and needs the most registers."""
    has_backup = not RULES[rule].can_recover()
    return Instantiation("bucket", 90, rule, "float64", "float32", "step_and_predict", has_backup)


def elsewhere(chosen: list[Instantiation]) -> list[Instantiation]:
    """The same for the other architectures."""
    return [one._replace(architecture=number) for number in (80, 100) for one in chosen]


def buckets() -> list[Instantiation]:
    """All of one rule for Hopper; of every other rule, and elsewhere, what may differ."""
    adamw = instantiations("adamw")
    others = [one for rule in UPDATING if rule != "adamw" for one in of_a_rule(rule)]
    steps = [
        one._replace(operation="step")
        for one in others
        if one.rule in ("amsgrad", "sgd") and one.param == "float32"
    ]
    moving = [one for one in of_a_rule("adamw") if one.param != "float64"]
    rollouts = [one._replace(num_looks=3) for one in of_a_rule("adamw")]
    averages = [one._replace(has_averages=True) for one in (*of_a_rule("adamw"), largest(LARGEST))]
    return [
        *(*adamw, *rollouts, *averages, *others, *steps),
        *elsewhere([*moving, largest("adamw"), largest("sgd"), largest(LARGEST)]),
        steps[0]._replace(has_flag=True),
    ]


def covering() -> list[Instantiation]:
    """What is compiled: each kernel once for Hopper, and what may differ from there."""
    sums = [
        Instantiation("chunk_sums", 90, "blend", param, param, "sums", True)
        for param in ("float32", "bfloat16", "float64")
    ]
    squares = sums[0]._replace(rule="squares", has_backup=False)
    advances = [
        Instantiation("advance", 90, "adamw", "float32", "float32", operation.name, True)
        for operation in Operation
    ]
    others = [advances[1]._replace(rule=rule) for rule in UPDATING if rule != "adamw"]
    return [
        *buckets(),
        *(*sums, squares, *elsewhere(sums[:1]), squares._replace(kernel="tensor_sums")),
        *(*advances, advances[0]._replace(has_flag=True), *others),
        advances[1]._replace(has_averages=True),
        *elsewhere(advances[1:2]),
    ]


# Launches.


class Driver:
    """Stands for the machine: its device is the architecture."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


class Recorder:
    """Stands for a kernel, and keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Recorder:
        return self

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options

    def compile(self) -> Any:
        """What the launch would compile, and run."""
        return self.kernel.warmup(*self.arguments, grid=(1,), **self.options)


def kernels_of(chosen: Instantiation) -> backend.BucketKernels:
    """Those of a bucket of one parameter."""
    rule, dtype, has_backup = RULES[chosen.rule], getattr(torch, chosen.param), chosen.has_backup
    rule = averaged(rule) if chosen.has_averages else rule
    param = torch.zeros(8, dtype=dtype)
    flat = torch.zeros(64, dtype=torch.promote_types(dtype, torch.float32))
    return backend.Kernels(
        BucketTensors(
            rule=rule,
            params=[param],
            offsets=[0],
            weight_flat=flat if has_backup else None,
            state_flat=[flat for _ in rule.state_names],
            weight=[flat] if has_backup else None,
            state=[[flat] for _ in rule.state_names],
            num_looks=chosen.num_looks,
        )
    )


def launch_of(chosen: Any, kernels: backend.BucketKernels) -> Callable[[], Any]:
    """What launches a kernel."""
    rule, grad = kernels.bucket.rule, getattr(torch, chosen.grad)
    num_step, width = len(rule.Step._fields), rule.row_width(chosen.num_looks)
    table = torch.zeros(2, width, dtype=torch.float64)
    rows = Rows(table, torch.zeros(2, 1, dtype=torch.int32))
    factor = torch.ones(1, dtype=torch.float64)
    flag = torch.zeros(1) if chosen.has_flag else None
    if chosen.operation == "sums":
        return lambda: kernels._sum(grad, rows, factor)
    operation = Operation[chosen.operation]
    if chosen.kernel in ("bucket", "stored"):
        return lambda: kernels._launch(operation, grad, rows, factor, flag)
    predictions = torch.zeros(1, 1 + width - num_step, dtype=torch.float64)
    hyper = torch.zeros(len(rule.Hyper._fields), dtype=torch.float64)
    shares, has_grad = torch.ones(1, dtype=torch.float64), torch.zeros(1).bool()
    sums = torch.zeros(rule.num_terms, 1, dtype=torch.float64)
    ledger = LedgerTensors(torch.zeros(1), predictions, hyper, shares, has_grad, sums, rows)
    return lambda: kernels.advance(ledger, operation, flag)


def launched(
    chosen: Any, kernels_of: Callable[[Any], backend.BucketKernels] = kernels_of
) -> Recorder:
    """The launch of a kernel."""
    triton.runtime.driver.set_active(Driver(chosen.architecture))
    kernels = kernels_of(chosen)
    recorders: dict[str, Recorder] = {}

    def stand_in(module: Any) -> SimpleNamespace:
        names = [name for name in vars(module) if name.endswith("_kernel")]
        recorders.update({name: Recorder(getattr(module, name)) for name in names})
        return SimpleNamespace(**{**vars(module), **recorders})

    kernels.modules = {name: stand_in(module) for name, module in kernels.modules.items()}
    launch_of(chosen, kernels)()
    return recorders[f"{chosen.kernel}_kernel"]


# What becomes of them.


def tool_output(name: str, *arguments: str) -> str:
    """What a program of CUDA's toolkit prints."""
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def usage(cubin: bytes) -> dict[str, int]:
    """What the registers did not suffice for."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = tool_output("cuobjdump", "-res-usage", file.name)
    stack, local = map(int, re.findall(r"STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", printed)[-1])
    return {"kept_elsewhere": stack + local}


def instructions(cubin: bytes) -> bytes:
    """The machine code in an ELF file: its one section that is executed."""
    (headers,) = struct.unpack_from("<Q", cubin, 0x28)
    (number,) = struct.unpack_from("<H", cubin, 0x3C)
    sections = (struct.unpack_from("<IIQQQQ", cubin, headers + 64 * i) for i in range(number))
    is_executed = 0x4
    ((*_, begin, size),) = (section for section in sections if section[2] & is_executed)
    return cubin[begin : begin + size]


def disassembled(architecture: int, codes: list[bytes]) -> list[str]:
    """All at once, one behind the other: the disassembler takes longer to start than to work."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(codes))
        file.flush()
        # Without its analysis of the flow of data, which nobody reads here.
        text = tool_output("nvdisasm", "-ndf", "-b", f"SM{architecture}", file.name)
    lines = re.findall(r"^\s*/\*([0-9a-f]{4,})\*/(.*)", text, re.MULTILINE)
    ends = [*itertools.accumulate(map(len, codes))]
    parts: list[list[str]] = [[] for _ in codes]
    for address, line in lines:
        parts[bisect.bisect(ends, int(address, 16))].append(line)
    assert all(parts)
    return ["\n".join(part) for part in parts]


def facts(
    chosen: Any, kernels_of: Callable[[Any], backend.BucketKernels] = kernels_of
) -> dict[str, Any]:
    """Of one instantiation, and its machine code."""
    launch = launched(chosen, kernels_of)
    found = launch.compile()
    ptx = re.sub(r"//.*", "", found.asm["ptx"])
    return {
        "shared": found.metadata.shared,
        "threads": 32 * launch.options["num_warps"],
        "rounded_otherwise": re.findall(
            r"\b(?:fma|mad)\.(?:rn|f)[.\w]*|\S*\.(?:approx|ftz|full)\S*", ptx
        ),
        "roots_and_quotients": Counter(re.findall(r"\b(?:div|sqrt)\.\w+\.f\d+", ptx)),
        # Those of whole chunks, as kind, number of elements and their bits.
        "vectors": Counter(
            ".".join(parts)
            for parts in re.findall(r"\b(ld|st)\.global\S*?\.(v\d)\.[a-z](\d+)", ptx)
        ),
        **usage(found.asm["cubin"]),
        "code": instructions(found.asm["cubin"]),
    }


def with_accesses(found: list[tuple[Any, dict[str, Any]]]) -> None:
    """Put the accesses of memory in the place of the machine code."""
    for architecture in {chosen.architecture for chosen, _ in found}:
        there = [its for chosen, its in found if chosen.architecture == architecture]
        for its, text in zip(
            there, disassembled(architecture, [its.pop("code") for its in there]), strict=True
        ):
            its["accesses"] = Counter(re.findall(r"\b(?:LD|ST)[GLS]?(?:\.[.\w]+)?\b(?= )", text))


def main(worker: int, workers: int) -> None:
    """Print the facts of one worker's share."""
    found = [(chosen, facts(chosen)) for chosen in covering()[worker::workers]]
    with_accesses(found)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
