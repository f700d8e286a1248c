"""Calls with random bad arguments: ``extension_fuzz.py <library> cpu|cuda <number of calls>``.

A process of its own, since what is not refused may end it. Each call is printed before it is made.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from cuda_on_host import build
from extension_calls import Calls, CpuCalls, CudaCalls

JUNK = [None, "x", 1.5, -1, 2**64, [], {}, b"x", object(), [None], ["x"], [2**64], 1j, Calls]
SIZES_BEYOND = [-1, -(2**31), 2**31, 2**40, 2**63 - 1]
LISTS_OF_SIZES = ("offsets", "numels")
# How a length is wrong differs, so that no two of them are wrong in agreement.
WRONG_LENGTHS = {"params": 4, "offsets": 2, "numels": 1, "weights": 6, "state": 5, "grads": 2}


def spoil_entry(dice: random.Random, values: list[Any], bad: list[Any]) -> list[Any]:
    """Entry 0 is of a tensor that has elements."""
    return [dice.choice(bad), *values[1:]]


def with_length(values: list[Any], length: int) -> list[Any]:
    return (list(values) * length)[:length]


def spoilt(dice: random.Random, name: str, good: Any) -> Any:
    """A value that the argument must not have."""
    addresses = [0, 4097, 2**64 - 4, -1, 2**64, None]
    choices = {
        "rule": ["", "lion", "AdamW", "\0", None],
        "num_threads": [0, -1, 4097, 2**31 - 1, 2**31, "1", None],
        "num_chunks": [*SIZES_BEYOND, None],
        "num_tensors": [*SIZES_BEYOND, None],
        "instruction_set": ["", "sse9", "avx2 ", 3],
        "scalars": [4097, 2**64 - 4, -1, None, [1.0] * 9],
        "num_rows": [0, -1, 2**31, 2**63, None],
        "index": [4097, 2**64 - 4, -1, 2**64, None],
        "grad_factor": ["x", None, []],
        "grad_factor_address": [4097, 2**64 - 4, -1, 2**64, None],
        "has_weights": ["x", b"x", [], {}, object()],  # what has a truth value will do
        "found_inf": [1, 4098, 2**64 - 2, -1, 2**64, None],
        "has_grad": [0, 2**64 - 2, -1, None],
        "stream": [-1, 2**64, None, "x"],
    }
    if name in choices:
        return dice.choice(choices[name])
    if name.endswith(("dtype", "operation")):
        return dice.choice([type(good)(99), type(good)(-1), type(good)(2**31 - 1), *JUNK])
    if not isinstance(good, list):
        return dice.choice(addresses)
    if dice.random() < 0.3:
        return with_length(good, WRONG_LENGTHS.get(name, 7))
    if name in LISTS_OF_SIZES:
        return spoil_entry(dice, good, [-1, -(2**63), 2**61, 2**63 - 1, 2**63, None])
    # Which gradients are misaligned is known when a step runs.
    bad = [2**64 - 4, -1, 2**64, None] if name == "grads" else addresses
    return spoil_entry(dice, good, bad)


def check_refusal(calls: Calls, name: str, arguments: dict[str, Any]) -> None:
    print(type(calls).__name__, calls.dtype, name, arguments, flush=True)
    before = calls.memory.content()
    try:
        calls.function(name)(**arguments)
    except (ValueError, TypeError):
        assert calls.memory.content() == before, "memory has changed"
    else:
        raise AssertionError("was not refused")


def spoil(dice: random.Random, calls: Calls) -> None:
    """One call, of which one to three arguments are bad."""
    name = dice.choice(list(calls.good))
    arguments = dict(calls.good[name])
    # The rule that is summed has no scalars, others have no sums: where they lie does not matter.
    empty = {("sums", "scalars"), ("advance", "sums")}
    names = [argument for argument in arguments if (name, argument) not in empty]
    for argument in dice.sample(names, min(len(names), dice.randint(1, 3))):
        arguments[argument] = spoilt(dice, argument, arguments[argument])
    check_refusal(calls, name, arguments)


def main(library: str, device: str, num_calls: int) -> None:
    extension = build.load(Path(library))
    kind = {"cpu": CpuCalls, "cuda": CudaCalls}[device]
    all_calls = [kind(extension, dtype) for dtype in ("float32", "bfloat16", "float64")]
    dice = random.Random(0)
    for _ in range(num_calls):
        spoil(dice, dice.choice(all_calls))
    for calls in all_calls:
        calls.use()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
