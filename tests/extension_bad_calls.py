"""Bad calls of the extension: what is changed in the good arguments, and what the refusal says."""

from __future__ import annotations

from extension_calls import Memory, int32s

MOST = 2**61 - 1  # numbers of the state


def dtype(code):
    return lambda calls: calls.extension.DType(code)


def operation(code):
    return lambda calls: calls.extension.Operation(code)


def indices(*values):
    """The address of such an index, in memory of its own."""

    def change(calls):
        calls.memory_of_index = Memory()
        return calls.memory_of_index.add("index", int32s(*values))

    return change


def replaced(name, i, value):
    """The good list of some call, but for one entry."""

    def change(calls):
        values = list(next(good[name] for good in calls.good.values() if name in good))
        return [*values[:i], value, *values[i + 1 :]]

    return change


BAD_DTYPES = [
    ("grad_dtype", dtype(99), "grad_dtype must be a known DType, got 99"),
    ("grad_dtype", dtype(2), "grad_dtype must be float32, got float16"),
]
BAD_CODES = [
    *BAD_DTYPES,
    ("operation", operation(-1), "operation must be a known Operation, got -1"),
]
# What every call over rows of the host refuses.
BAD_THREADS = [
    ("num_threads", 0, "num_threads must be >= 1, got 0"),
    ("num_threads", 2**31 - 1, f"num_threads must be <= 4096, got {2**31 - 1}"),
    (
        "instruction_set",
        "sse9",
        "instruction_set must be one that this processor runs, got sse9",
    ),
]
BAD_ROWS = [
    ("num_rows", 0, "num_rows must be >= 1, got 0"),
    ("num_rows", 2**31, f"num_rows must be <= {2**31 - 1}, got {2**31}"),
    ("num_rows", 1, "index[1] must be <= 0, got 1"),
    ("index", 4098, "index must be a multiple of 4, got 4098"),
    ("index", 2**64 - 4, "index must be the address of at least 24 bytes"),
    ("index", indices(-1, 0, 0, 0, 0, 0), "index[0] must be >= 0, got -1"),
    ("index", indices(0, 0, 2, 0, 0, 0), "index[2] must be <= 1, got 2"),
    ("index", indices(0, 0, 0, 0, -2, 0), "index[4] must be >= -1, got -2"),
    ("index", indices(0, 0, 0, 0, 0, 2), "index[5] must be <= 1, got 2"),
]
BAD_FACTOR = [
    ("grad_factor_address", 4100, "grad_factor_address must be a multiple of 8, got 4100"),
]
BAD_FLAT = [
    ("rule", "lion", "rule must be a known name, got lion"),
    ("param_dtype", dtype(99), "param_dtype must be a known DType, got 99"),
    ("state", [64], "state must have 2 entries, got 1"),
    ("has_averages", True, "state must have 3 entries, got 2"),
]
BAD_CPU = {
    "Bucket": [
        *BAD_FLAT,
        ("params", replaced("params", 0, 0), "params[0] must be the address of at least 12 bytes"),
        ("params", replaced("params", 0, 4097), "params[0] must be a multiple of 4, got 4097"),
        ("params", replaced("params", 2, 2**64 - 4), f"of at least 160 bytes, got {2**64 - 4}"),
        ("params", [64], "offsets must have 1 entries, got 3"),
        ("offsets", replaced("offsets", 2, -64), "offsets[2] must be >= 0, got -64"),
        ("offsets", replaced("offsets", 2, MOST), f"offsets[2] must be <= {MOST - 40}, got {MOST}"),
        ("offsets", [0], "offsets must have 3 entries, got 1"),
        ("numels", replaced("numels", 1, -1), "numels[1] must be >= 0, got -1"),
        (
            "numels",
            replaced("numels", 0, 2**63 - 1),
            f"numels[0] must be <= {MOST}, got {2**63 - 1}",
        ),
        ("numels", [MOST, 0, 1], f"the sum of numels must be <= {MOST}, got {MOST + 1}"),
        ("numels", [3, 0], "numels must have 3 entries, got 2"),
        ("weights", [64], "weights must have 3 entries, got 1"),
        ("weights", [64, 0, 64, 0], "weights must have 3 entries, got 4"),
        (
            "weights",
            replaced("weights", 0, 0),
            "weights[0] must be the address of at least 12 bytes",
        ),
        ("weights", replaced("weights", 0, 4098), "weights[0] must be a multiple of 4, got 4098"),
        (
            "weights",
            replaced("weights", 2, 2**64 - 4),
            f"weights[2] must be the address of at least 160 bytes, got {2**64 - 4}",
        ),
        ("state", replaced("state", 1, 0), "state[1] must be the address of at least 416 bytes"),
        ("state", replaced("state", 0, 4097), "state[0] must be a multiple of 4, got 4097"),
    ],
    "set_grads": [
        ("grads", [0], "grads must have 3 entries, got 1"),
        ("grads", replaced("grads", 2, 2**64 - 4), f"of at least 160 bytes, got {2**64 - 4}"),
    ],
    "run": [
        *BAD_CODES,
        *BAD_ROWS,
        *BAD_THREADS,
        ("scalars", 0, "scalars must be the address of at least 144 bytes, got 0"),
        ("scalars", 4100, "scalars must be a multiple of 8, got 4100"),
        ("tracked", 4100, "tracked must be a multiple of 8, got 4100"),
    ],
    "sums": [
        *BAD_DTYPES,
        *BAD_ROWS,
        *BAD_THREADS,
        ("out", 0, "out must be the address of at least 24 bytes, got 0"),
        ("out", 4100, "out must be a multiple of 8, got 4100"),
    ],
}
BAD_CUDA = {
    "Bucket": [
        *BAD_FLAT,
        ("chunks", 0, "chunks must be the address of at least 80 bytes, got 0"),
        ("chunks", 4100, "chunks must be a multiple of 8, got 4100"),
        ("chunks", 2**64 - 8, "chunks must be the address of at least 80 bytes"),
        ("num_chunks", -1, "num_chunks must be >= 0, got -1"),
        ("num_chunks", 2**31, f"num_chunks must be <= {2**31 - 1}, got {2**31}"),
        ("num_tensors", 0, "num_tensors must be >= 1, got 0"),
        ("num_tensors", 2**31, f"num_tensors must be <= {2**31 - 1}, got {2**31}"),
        ("grads", 0, "grads must be the address of at least 24 bytes, got 0"),
        ("state", replaced("state", 1, 0), "state[1] must be the address of at least 16 bytes"),
        ("state", replaced("state", 0, 4104), "state[0] must be a multiple of 16, got 4104"),
    ],
    "run_row": [
        *BAD_CODES,
        *BAD_FACTOR,
        ("scalars", 0, "scalars must be the address of at least 144 bytes, got 0"),
        ("num_rows", 0, "num_rows must be >= 1, got 0"),
        ("num_rows", 3, "num_rows must be <= 2, got 3"),
        ("found_inf", 4098, "found_inf must be a multiple of 4, got 4098"),
    ],
    "run_rows": [
        *BAD_CODES,
        *BAD_FACTOR,
        ("scalars", 0, "scalars must be the address of at least 72 bytes, got 0"),
        ("index", 0, "index must be the address of at least 24 bytes, got 0"),
        ("index", 4098, "index must be a multiple of 4, got 4098"),
        ("found_inf", 4098, "found_inf must be a multiple of 4, got 4098"),
    ],
    "sums": [
        *BAD_DTYPES,
        *BAD_FACTOR,
        ("index", 0, "index must be the address of at least 24 bytes, got 0"),
        ("partial", 0, "partial must be the address of at least 16 bytes, got 0"),
        ("out", 4100, "out must be a multiple of 8, got 4100"),
    ],
    "advance": [
        ("operation", operation(4), "operation must be a known Operation, got 4"),
        ("num_tensors", -1, "num_tensors must be >= 0, got -1"),
        ("num_tensors", 2**30, f"num_tensors must be <= {2**30 - 1}, got {2**30}"),
        ("steps", 0, "steps must be the address of at least 12 bytes, got 0"),
        ("predictions", 0, "predictions must be the address of at least 120 bytes, got 0"),
        ("hyper", 4100, "hyper must be a multiple of 8, got 4100"),
        ("shares", 4100, "shares must be a multiple of 8, got 4100"),
        ("has_grad", 0, "has_grad must be the address of at least 3 bytes, got 0"),
        ("scalars", 0, "scalars must be the address of at least 432 bytes, got 0"),
        ("index", 2**64 - 4, "index must be the address of at least 24 bytes"),
        ("found_inf", 2, "found_inf must be a multiple of 4, got 2"),
    ],
}
OF_ANOTHER_TYPE = {
    "Bucket": [
        *[("rule", None), ("param_dtype", 0), ("state", [2**64, 0])],
        *[("weights", 64), ("weights", [-1, 0, 0]), ("weights", [None] * 3), ("weights", None)],
    ],
    "set_grads": [("grads", 64), ("grads", [-1, 0, 0]), ("grads", [None] * 3)],
    "run": [("scalars", [1.0]), ("num_rows", 2.5), ("index", None), ("num_threads", 2**31)],
    "sums": [("out", -1), ("grad_factor", "x")],
}
NO_WEIGHTS = "param_dtype must be float32 or float64 without weights, got bfloat16"
NARROW = [
    ("weights", [], NO_WEIGHTS),
    ("weights", replaced("weights", 0, 4098), "weights[0] must be a multiple of 4, got 4098"),
    ("weights", replaced("weights", 2, 2**64 - 4), f"of at least 160 bytes, got {2**64 - 4}"),
    ("state", replaced("state", 1, 4098), "state[1] must be a multiple of 4, got 4098"),
    ("params", replaced("params", 0, 4097), "params[0] must be a multiple of 2, got 4097"),
]
