"""Good calls of the extension over memory of their own, to be spoilt by tests. Imports no torch."""

from __future__ import annotations

import ctypes
from typing import Any

NUMELS = [3, 0, 40]
OFFSETS = [0, 64, 64]
FLAT_NUMEL = 104
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
# grad_factor, 1 - beta1, beta2, 1 - beta2, inv_sqrt_bc2, eps, decay, step_size, and the prediction.
ROW = [1.0, 0.1, 0.9, 0.1, 1.0, 1e-8, 0.9, 0.01, 0.9, 0.01]


class Memory:
    """Named blocks of bytes, aligned to 64."""

    def __init__(self) -> None:
        self.blocks: dict[str, tuple[Any, int, int]] = {}

    def add(self, name: str, content: bytes) -> int:
        """A new block; returns its address."""
        buffer = ctypes.create_string_buffer(len(content) + 64)
        address = (ctypes.addressof(buffer) + 63) // 64 * 64
        ctypes.memmove(address, content, len(content))
        self.blocks[name] = buffer, address, len(content)
        return address

    def add_numbers(self, name: str, num_bytes: int) -> int:
        """A new block of positive numbers below one, in any floating-point format."""
        return self.add(name, bytes(i * 37 % 61 for i in range(num_bytes)))

    def content(self) -> dict[str, bytes]:
        """What stands in each block."""
        return {
            name: ctypes.string_at(address, num_bytes)
            for name, (_, address, num_bytes) in self.blocks.items()
        }


def int64s(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in values)


class Calls:
    """Arguments with which each call succeeds, and the calls."""

    good: dict[str, dict[str, Any]]
    tables: tuple[str, ...] = ()  # blocks that hold addresses

    def __init__(self, extension: Any, dtype: str = "float32") -> None:
        self.extension, self.dtype, self.memory = extension, dtype, Memory()
        size, real_size = SIZES[dtype], max(SIZES[dtype], 4)
        numbers = self.memory.add_numbers
        self.params = [numbers(f"params[{i}]", n * size) if n else 0 for i, n in enumerate(NUMELS)]
        self.grads = [numbers(f"grads[{i}]", n * size) if n else 0 for i, n in enumerate(NUMELS)]
        weight, *state = [
            numbers(name, FLAT_NUMEL * real_size) for name in ("weight", "state[0]", "state[1]")
        ]
        self.flat = {"weight": weight, "state": state}
        self.of_bucket = {"rule": "adamw", "param_dtype": getattr(extension.DType, dtype)}
        self.of_call = {
            "operation": extension.Operation.step_and_predict,
            "grad_dtype": self.of_bucket["param_dtype"],
        }

    def call(self, name: str, **changes: Any) -> Any:
        """With good arguments, but for these."""
        return self.function(name)(**{**self.good[name], **changes})

    def function(self, name: str) -> Any:
        """What is called by this name."""
        raise NotImplementedError

    def numbers(self) -> dict[str, bytes]:
        """What stands in memory, but for addresses."""
        content = self.memory.content()
        return {name: content[name] for name in content if name not in self.tables}


class CpuCalls(Calls):
    """Of the bucket for CPU tensors."""

    def __init__(self, extension: Any, dtype: str = "float32") -> None:
        super().__init__(extension, dtype)
        spans = {"params": self.params, "offsets": OFFSETS, "numels": NUMELS}
        self.good = {
            "Bucket": {**self.of_bucket, **spans, **self.flat},
            "set_grads": {"grads": self.grads},
            "run": {
                **self.of_call,
                **{"scalars": 2 * ROW, "rows": [0, 1, 0], "last_rows": [-1, 0, 1]},
                **{"num_threads": 2, "instruction_set": "baseline"},
            },
        }
        self.bucket = self.call("Bucket")
        self.call("set_grads")

    def function(self, name: str) -> Any:
        return self.extension.Bucket if name == "Bucket" else getattr(self.bucket, name)

    def use(self) -> None:
        """Do everything that the bucket can do."""
        self.call("run")
        self.call("run", operation=self.extension.Operation.restore)


class CudaCalls(Calls):
    """Of the bucket for CUDA tensors, with kernels that run on the host."""

    tables = ("chunks", "addresses of gradients")

    def __init__(self, extension: Any, dtype: str = "float32") -> None:
        super().__init__(extension, dtype)
        add, numbers, n = self.memory.add, self.memory.add_numbers, len(NUMELS)
        chunks = [
            int64s(self.params[i], OFFSETS[i], 0, i + (NUMELS[i] << 32))
            for i in range(n)
            if NUMELS[i]
        ]
        table = {"chunks": add("chunks", b"".join(chunks)), "num_chunks": len(chunks)}
        grads = {"num_tensors": n, "grads": add("addresses of gradients", int64s(*self.grads))}
        end = {"found_inf": add("found_inf", bytes(4)), "stream": 0}
        rows = {"scalars": numbers("scalars", 2 * n * 80), "index": add("index", bytes(2 * n * 4))}
        columns = {
            "steps": numbers("steps", n * 4),
            "predictions": numbers("predictions", n * 56),
            "options": numbers("options", 72),
            "has_grad": add("has_grad", b"\1" * n),
        }
        operation = {"operation": self.of_call["operation"]}
        self.good = {
            "Bucket": {**self.of_bucket, **table, **grads, **self.flat},
            "run_row": {**self.of_call, "row": ROW, "last": ROW, "stream": 0},
            "run_rows": {**self.of_call, **rows, **end},
            "advance": {"num_tensors": n, **columns, **rows, **operation, **end},
        }
        self.bucket = self.call("Bucket")

    def function(self, name: str) -> Any:
        owner = self.extension.cuda if name == "Bucket" else self.bucket
        return getattr(owner, name)

    def use(self) -> None:
        """Do everything that the bucket can do."""
        for name in ("run_row", "run_rows", "advance"):
            self.call(name)
