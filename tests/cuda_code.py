"""Reads the machine code of the CUDA kernels inside the extension."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from rule_table import OF_MATRICES, RULES

from wpadamw.rules.rule import Rule

SIZES = {"float": 4, "double": 8, "wpadamw::bfloat16": 2, "wpadamw::float16": 2}


def _num_predicting(rule: Rule) -> int:
    """How many tensors of the state a prediction depends on."""
    state = tuple(torch.ones(1, requires_grad=True) for _ in rule.state_names)
    look = rule.Look(*[torch.ones(())] * len(rule.Look._fields))
    rule.predict(torch.ones(1), state, look).backward()
    return sum(tensor.grad is not None for tensor in state)


def _num_updating(rule: Rule) -> int:
    """How many tensors of the state an update depends on, the way back apart."""
    state = tuple(torch.ones(1, requires_grad=True) for _ in rule.state_names)
    step, look = (row(*[torch.ones(())] * len(row._fields)) for row in (rule.Step, rule.Look))
    weight, after = rule.step(torch.ones(1), state, torch.ones(1), step, look)
    sum([weight, *after]).backward()
    return sum(tensor.grad is not None for tensor in state)


# Of each rule: tensors of its state, those that an update reads, and those that a prediction reads.
CASES = (RULES | OF_MATRICES).values()
NUM_PREDICTING = {case.rule.name: _num_predicting(case.rule()) for case in CASES}
NUM_UPDATING = {case.rule.name: _num_updating(case.rule()) for case in CASES}
NUM_STATES = {case.rule.name: len(case.rule.state_names) for case in CASES}


def num_read(rule: str, has_backup: bool) -> int:
    """How many tensors of the state a step reads: for the way back, too, without a backup."""
    return (NUM_UPDATING if has_backup else NUM_STATES)[rule]


OPERATIONS = ("step", "step_and_predict", "predict", "restore")

_SIGNATURE = re.compile(
    r"bucket_kernel<wpadamw::(?P<rule>\w+)::Rule, (?P<param>[\w:]+), (?P<grad>[\w:]+), "
    r"\(wpadamw::Operation\)(?P<operation>\d), (?P<has_backup>true|false)>"
)
_TRACKED = re.compile(
    r"track_kernel<wpadamw::(?P<rule>\w+)::Rule, (?P<param>[\w:]+), (?P<grad>[\w:]+), "
    r"(?P<has_backup>true|false)>"
)
_STORED = re.compile(
    r"stored_kernel<wpadamw::(?P<rule>\w+)::Rule, \(wpadamw::Operation\)(?P<operation>\d)>"
)
_ACCESS = re.compile(r"\b((?:LD|ST|LDG|STG|LDL|STL|LDS|STS)\.[.\w]*|LDL|STL|LDS|STS)\b")


@dataclass(frozen=True)
class BucketKernel:
    """One instantiation of ``bucket_kernel`` for one architecture."""

    rule: str
    param: str
    grad: str
    operation: str
    has_backup: bool
    accesses: Counter[str]  # instructions that access memory
    is_tracked: bool = False  # whether it reads what parameters hold, too
    has_averages: bool = True  # whether they are moved: where there are some

    @property
    def name(self) -> str:
        """For messages."""
        backup = "backup" if self.has_backup else "no-backup"
        return f"{self.rule}-{self.param}-{self.grad}-{self.operation}-{backup}"

    @property
    def real_size(self) -> int:
        """Bytes of a number of the state."""
        return max(4, SIZES[self.param])

    @property
    def num_states(self) -> int:
        """Tensors of the state that an update moves."""
        return NUM_STATES[self.rule] + self.has_averages

    def bytes_read(self) -> int:
        """Per parameter, from the table of the operations."""
        weight = self.real_size if self.has_backup else SIZES[self.param]
        if self.operation == "restore" and self.has_backup:
            return weight
        if "step" not in self.operation:
            return weight + NUM_PREDICTING[self.rule] * self.real_size
        num_states = num_read(self.rule, self.has_backup) + self.has_averages
        shown = SIZES[self.param] if self.is_tracked and self.has_backup else 0
        return weight + shown + SIZES[self.grad] + num_states * self.real_size

    def bytes_written(self) -> int:
        """Per parameter, from the table of the operations."""
        if "step" not in self.operation:
            return SIZES[self.param]
        num_real = self.num_states + self.has_backup
        return SIZES[self.param] + num_real * self.real_size

    def wide_bytes(self, kind: str) -> int:
        """Bytes that one thread moves by 16-byte accesses of global memory."""
        return 16 * self.accesses[f"{kind}.E.128"]


def tool_output(tool: Path, *arguments: str) -> str:
    """What a tool prints."""
    command = [str(tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def functions(tools: Path, extension: str, architecture: str) -> dict[str, str]:
    """Machine code by demangled name."""
    with tempfile.TemporaryDirectory() as folder:
        extract = [str(tools / "cuobjdump"), "-xelf", architecture, extension]
        subprocess.run(extract, capture_output=True, check=True, cwd=folder)
        # Without its analysis of the flow of data, which nobody reads here.
        texts = [
            tool_output(tools / "nvdisasm", "-ndf", "-c", str(cubin))
            for cubin in sorted(Path(folder).iterdir())
        ]
    parts = re.split(r"^\.text\.(\S+):$", "\n".join(texts), flags=re.MULTILINE)
    names = subprocess.run(
        ["c++filt"], input="\n".join(parts[1::2]), capture_output=True, text=True, check=True
    )
    return dict(zip(names.stdout.splitlines(), parts[2::2], strict=True))


def bucket_kernels(code: dict[str, str]) -> list[BucketKernel]:
    """All instantiations among functions."""
    return [
        _kernel(match, OPERATIONS[int(match["operation"])], its_code)
        for name, its_code in code.items()
        if (match := _SIGNATURE.search(name))
    ]


def stored_steps(code: dict[str, str]) -> dict[str, Counter[str]]:
    """What steps over small formats access, by rule."""
    return {
        match["rule"]: Counter(_ACCESS.findall(its_code))
        for name, its_code in code.items()
        if (match := _STORED.search(name)) and "step" in OPERATIONS[int(match["operation"])]
    }


def tracked_kernels(code: dict[str, str]) -> list[BucketKernel]:
    """The same of steps that are tracked."""
    return [
        _kernel(match, "step_and_predict", its_code, is_tracked=True)
        for name, its_code in code.items()
        if (match := _TRACKED.search(name))
    ]


def _kernel(
    match: re.Match[str], operation: str, its_code: str, is_tracked: bool = False
) -> BucketKernel:
    return BucketKernel(
        rule=match["rule"],
        param=match["param"],
        grad=match["grad"],
        operation=operation,
        has_backup=match["has_backup"] == "true",
        accesses=Counter(_ACCESS.findall(its_code)),
        is_tracked=is_tracked,
    )
