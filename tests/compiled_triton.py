"""Compiles the Triton kernels as launches do, without a GPU, and reads what the compiler made.

``python compiled_triton.py WORKER WORKERS`` prints the facts of a share of the instantiations as
JSON. A program of its own: under TRITON_INTERPRET nothing is compiled.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wpadamw._backends import triton as backend
from wpadamw._backends.interface import (
    BucketTensors,
    ColumnTensors,
    DeviceRows,
    Operation,
)
from wpadamw.rules import AdamW, AMSGrad

RULES = {rule.name: rule for rule in (AdamW(), AMSGrad())}
NARROW = ("bfloat16", "float16")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.bool: "*i1",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}


class Instantiation(NamedTuple):
    """What launches of ``bucket_kernel`` differ by."""

    rule: str
    param: str
    grad: str
    operation: str
    has_backup: bool
    has_flag: bool = False  # found_inf


def instantiations() -> list[Instantiation]:
    """All that an optimizer may launch; with the flag, one for many."""
    found = []
    for rule, param in itertools.product(RULES, ("float32", *NARROW, "float64")):
        backups = (True,) if param in NARROW else (True, False)
        for operation, has_backup in itertools.product(Operation, backups):
            grads = {param, "float32"} if "step" in operation.name else {param}
            found += [
                Instantiation(rule, param, grad, operation.name, has_backup)
                for grad in sorted(grads)
            ]
    return [*found, Instantiation("amsgrad", "float32", "float32", "step", False, has_flag=True)]


# Launches.


class Recorder:
    """Stands for a kernel, and keeps what it is launched with."""

    def __getitem__(self, grid: tuple[int]) -> Recorder:
        return self

    def __call__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options = arguments, options


def kernels_of(rule: AdamW, dtype: torch.dtype, has_backup: bool) -> backend.Kernels:
    """Those of a bucket of one parameter."""
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
        )
    )


def rows(has_flag: bool) -> DeviceRows:
    """For one parameter."""
    flag = torch.zeros(1) if has_flag else None
    scalars = torch.zeros(2, 10, dtype=torch.float64)
    return DeviceRows(scalars, torch.zeros(2, 1, dtype=torch.int32), flag)


def recorded(kernels: backend.Kernels, module: str, launch: Any) -> Recorder:
    """What a kernel is launched with by a function."""
    real, recorder = kernels.modules[module], Recorder()
    stand_in = SimpleNamespace(**{**vars(real), module.removesuffix("s"): recorder})
    kernels.modules = {**kernels.modules, module: stand_in}
    launch()
    return recorder


def bucket_launch(chosen: Instantiation) -> Recorder:
    """The launch of an operation."""
    kernels = kernels_of(RULES[chosen.rule], getattr(torch, chosen.param), chosen.has_backup)
    grad = torch.zeros(8, dtype=getattr(torch, chosen.grad))
    operation = Operation[chosen.operation]
    return recorded(
        kernels,
        "bucket_kernels",
        lambda: kernels._run(operation, grad.dtype, rows(chosen.has_flag), None),
    )


def advance_launch(operation: Operation, has_flag: bool) -> Recorder:
    """The launch of ``advance_kernel``."""
    numbers = torch.zeros(9, dtype=torch.float64)
    columns = ColumnTensors(torch.zeros(1), numbers, numbers, torch.zeros(1).bool(), rows(has_flag))
    kernels = kernels_of(AdamW(), torch.float32, True)
    return recorded(kernels, "advance_kernel", lambda: kernels.advance(columns, operation))


# What becomes of them.


def compiled(kernel: Any, launch: Recorder, architecture: int) -> Any:
    """What a launch compiles, for tensors as torch allocates them: at multiples of 16 bytes."""
    options = {name: launch.options[name] for name in ("num_warps", "enable_fp_fusion")}
    constants = {name: value for name, value in launch.options.items() if name not in options}
    names = [name for name in kernel.arg_names if name not in constants]
    arguments = dict(zip(names, launch.arguments, strict=True))
    constants |= {name: None for name, argument in arguments.items() if argument is None}
    signature = {
        name: "constexpr"
        if name in constants
        else TYPES[arguments[name].dtype]
        if isinstance(arguments[name], torch.Tensor)
        else "i32"
        for name in kernel.arg_names
    }
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def tool_output(name: str, *arguments: str) -> str:
    """What a program of CUDA's toolkit prints."""
    command = [str(TOOLS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def machine_code(cubin: bytes) -> dict[str, Any]:
    """Accesses of memory, and what the registers did not suffice for."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = tool_output("cuobjdump", "-res-usage", file.name)
        sass = tool_output("nvdisasm", "-c", file.name)
    pattern = r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    registers, stack, shared, local = map(int, re.findall(pattern, usage)[-1])
    return {
        "registers": registers,
        "kept_elsewhere": stack + shared + local,
        "accesses": Counter(re.findall(r"\b(?:LD|ST)[GLS]?(?:\.[.\w]+)?\b(?= )", sass)),
    }


def facts(kernel: Any, launch: Recorder, architecture: int) -> dict[str, Any]:
    """Of one instantiation."""
    found = compiled(kernel, launch, architecture)
    ptx = re.sub(r"//.*", "", found.asm["ptx"])
    return {
        "shared": found.metadata.shared,
        "threads": 32 * launch.options["num_warps"],
        "rounded_otherwise": re.findall(
            r"\b(?:fma|mad)\.(?:rn|f)[.\w]*|\S*\.(?:approx|ftz|full)\S*", ptx
        ),
        "roots_and_quotients": sorted(set(re.findall(r"\b(?:div|sqrt)\.\w+\.f\d+", ptx))),
        # Those of whole chunks, as kind, number of elements and their bits.
        "vectors": Counter(
            ".".join(parts)
            for parts in re.findall(r"\b(ld|st)\.global\S*?\.(v\d)\.[a-z](\d+)", ptx)
        ),
        **machine_code(found.asm["cubin"]),
    }


def chosen_for(architecture: int) -> list[Instantiation]:
    """All for Hopper; for others those that move and compute the most."""
    return [
        chosen
        for chosen in instantiations()
        if architecture == 90
        or (chosen.operation == "step_and_predict" and chosen.param != "float16")
    ]


def main(worker: int, workers: int) -> None:
    """Print the facts of one worker's share, per architecture."""
    modules = backend._kernels()
    bucket = modules["bucket_kernels"].bucket_kernel
    advance = modules["advance_kernel"].advance_kernel
    advances = list(itertools.product(Operation, (False, True)))
    found = {
        architecture: {
            "bucket": [
                (chosen, facts(bucket, bucket_launch(chosen), architecture))
                for chosen in chosen_for(architecture)[worker::workers]
            ],
            "advance": [
                (
                    [operation.name, flag],
                    facts(advance, advance_launch(operation, flag), architecture),
                )
                for operation, flag in advances[worker::workers]
                if architecture == 90 or operation is Operation.step
            ],
        }
        for architecture in (80, 90, 100)
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
