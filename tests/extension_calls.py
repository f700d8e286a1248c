"""Good calls of the extension over memory of their own, to be spoilt by tests. Imports no torch."""

from __future__ import annotations

import ctypes
import struct
from typing import Any, ClassVar

NUMELS = [3, 0, 40]
OFFSETS = [0, 64, 64]
FLAT_NUMEL = 104
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
# Of adamw: 1 - beta1, beta2, 1 - beta2, decay, step_size; inv_sqrt_bc2, eps, and the prediction.
ROW = [0.1, 0.9, 0.1, 0.9, 0.01, 1.0, 1e-8, 0.9, 0.01]
ROW_BYTES, RECORD_BYTES, HYPER_BYTES = 8 * 9, 8 * 5, 8 * 6


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


def int32s(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little", signed=True) for value in values)


class Calls:
    """Arguments with which each call succeeds, and the calls."""

    good: dict[str, dict[str, Any]]
    none_apart: ClassVar[dict[str, Any]]  # of a bucket: no true weights apart from the parameters
    tables: tuple[str, ...] = ()  # blocks that hold addresses

    def __init__(self, extension: Any, dtype: str = "float32") -> None:
        self.extension, self.dtype, self.memory = extension, dtype, Memory()
        size, real_size = SIZES[dtype], max(SIZES[dtype], 4)
        numbers = self.memory.add_numbers
        self.params = [numbers(f"params[{i}]", n * size) if n else 0 for i, n in enumerate(NUMELS)]
        self.grads = [numbers(f"grads[{i}]", n * size) if n else 0 for i, n in enumerate(NUMELS)]
        self.weights = [
            numbers(f"weights[{i}]", n * real_size) if n else 0 for i, n in enumerate(NUMELS)
        ]
        self.state = [numbers(name, FLAT_NUMEL * real_size) for name in ("state[0]", "state[1]")]
        self.of_bucket = {"rule": "adamw", "param_dtype": getattr(extension.DType, dtype)}
        self.operation = {"operation": extension.Operation.step_and_predict}
        self.grad_dtype = {"grad_dtype": self.of_bucket["param_dtype"]}
        self.rows = {"scalars": self.memory.add("scalars", struct.pack("18d", *ROW, *ROW))}
        # A bucket of a rule that has terms to sum, beside the bucket of one that moves weights.
        self.of_sums = {**self.of_bucket, **self.none_apart, "rule": "squares", "state": []}

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

    none_apart: ClassVar = {"weights": []}

    def __init__(self, extension: Any, dtype: str = "float32") -> None:
        super().__init__(extension, dtype)
        spans = {"params": self.params, "offsets": OFFSETS, "numels": NUMELS}
        index = self.memory.add("index", int32s(0, 1, 0, -1, 0, 1))
        rest = {"num_rows": 2, "index": index, "grad_factor": 1.0}
        rest |= {"num_threads": 2, "instruction_set": "baseline"}
        out = self.memory.add("out", bytes(8 * len(NUMELS)))
        self.good = {
            "Bucket": {**self.of_bucket, **spans, "weights": self.weights, "state": self.state},
            "set_grads": {"grads": self.grads},
            "run": {**self.operation, **self.grad_dtype, **self.rows, **rest},
            "sums": {**self.grad_dtype, **self.rows, **rest, "out": out},
        }
        self.bucket = self.call("Bucket")
        self.call("set_grads")
        self.sums_bucket = self.call("Bucket", **self.of_sums)
        self.sums_bucket.set_grads(self.grads)

    def function(self, name: str) -> Any:
        if name == "Bucket":
            return self.extension.Bucket
        return getattr(self.sums_bucket if name == "sums" else self.bucket, name)

    def use(self) -> None:
        """Do everything that the buckets can do."""
        self.call("run")
        self.call("run", operation=self.extension.Operation.restore)
        self.call("sums")


class CudaCalls(Calls):
    """Of the bucket for CUDA tensors, with kernels that run on the host."""

    tables = ("chunks", "addresses of gradients")
    none_apart: ClassVar = {"has_weights": False}

    def __init__(self, extension: Any, dtype: str = "float32") -> None:
        super().__init__(extension, dtype)
        add, numbers, n = self.memory.add, self.memory.add_numbers, len(NUMELS)
        chunks = [
            int64s(self.params[i], self.weights[i], OFFSETS[i], 0, i + (NUMELS[i] << 32))
            for i in range(n)
            if NUMELS[i]
        ]
        table = {"chunks": add("chunks", b"".join(chunks)), "num_chunks": len(chunks)}
        grads = {"num_tensors": n, "grads": add("addresses of gradients", int64s(*self.grads))}
        factor = {"grad_factor": 1.0, "grad_factor_address": 0}
        end = {"found_inf": add("found_inf", bytes(4)), "stream": 0}
        index = {"index": add("index", bytes(2 * n * 4))}
        sums = {"partial": numbers("partial", len(chunks) * 8), "out": numbers("out", n * 8)}
        ledger = {
            "steps": numbers("steps", n * 4),
            "predictions": numbers("predictions", n * RECORD_BYTES),
            "hyper": numbers("hyper", HYPER_BYTES),
            "shares": numbers("shares", 8),
            "has_grad": add("has_grad", b"\1" * n),
            "sums": 0,
            "scalars": numbers("rows of the ledger", 2 * n * ROW_BYTES),
            "index": add("index of the ledger", bytes(2 * n * 4)),
        }
        of_call = {**self.operation, **self.grad_dtype, **self.rows}
        flat = {"has_weights": True, "state": self.state}
        self.good = {
            "Bucket": {**self.of_bucket, **table, **grads, **flat},
            "run_row": {**of_call, "num_rows": 2, **factor, **end},
            "run_rows": {**of_call, **index, **factor, **end},
            "sums": {**self.grad_dtype, **self.rows, **index, **factor, **sums, "stream": 0},
            "advance": {"num_tensors": n, **ledger, **self.operation, **end},
        }
        self.bucket = self.call("Bucket")
        self.sums_bucket = self.call("Bucket", **self.of_sums)

    def function(self, name: str) -> Any:
        if name == "Bucket":
            return self.extension.cuda.Bucket
        return getattr(self.sums_bucket if name == "sums" else self.bucket, name)

    def use(self) -> None:
        """Do everything that the buckets can do."""
        for name in ("run_row", "run_rows", "sums", "advance"):
            self.call(name)
