"""Compiles the Triton kernel of small formats, as ``compiled_triton.py`` does the others.

``python compiled_formats.py`` prints the facts of each instantiation as JSON.
"""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from buckets import RULES, small_bucket
from compiled_triton import facts, with_accesses

from wpadamw._backends import triton as backend


class Instantiation(NamedTuple):
    """What launches differ by, and what they are compiled for."""

    param: str
    master: str
    moments: str
    grad: str
    rule: str = "adamw"
    operation: str = "step_and_predict"
    architecture: int = 90
    num_looks: int = 1
    kernel: str = "stored"
    has_flag: bool = False


SMALLEST = Instantiation("bfloat16", "rest", "int8", "bfloat16")
COVERING = [
    SMALLEST,
    Instantiation("bfloat16", "rest", "bfloat16", "bfloat16"),
    Instantiation("float32", "backup", "bfloat16", "float32"),
    SMALLEST._replace(rule="amsgrad"),
    *(SMALLEST._replace(operation=operation) for operation in ("step", "predict", "restore")),
    *(SMALLEST._replace(architecture=architecture) for architecture in (80, 100)),
]


def kernels_of(chosen: Instantiation) -> backend.BucketKernels:
    """Those of a bucket of one parameter."""
    return backend.Kernels(
        small_bucket(
            RULES[chosen.rule], getattr(torch, chosen.param), chosen.master, chosen.moments, [64]
        )
    )


def main() -> None:
    """Print the facts of all."""
    found = [(chosen, facts(chosen, kernels_of)) for chosen in COVERING]
    with_accesses(found)
    print(json.dumps([(chosen._asdict(), its) for chosen, its in found]))


if __name__ == "__main__":
    main()
