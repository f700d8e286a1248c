from collections.abc import Sequence
from typing import Any

class DType:
    float32: DType
    bfloat16: DType
    float16: DType
    float64: DType

class Operation:
    step: Operation
    step_and_predict: Operation
    predict: Operation
    restore: Operation

class Bucket:
    completed: int

    def __init__(
        self,
        rule: str,
        param_dtype: DType,
        params: Sequence[int],
        offsets: Sequence[int],
        numels: Sequence[int],
        weights: Sequence[int],
        state: Sequence[int],
        num_looks: int = 1,
        has_averages: bool = False,
        is_noisy: bool = False,
        formats: Sequence[int] = (),
        scales: Sequence[int] = (),
        rest: int = 0,
        has_noisy_params: bool = False,
    ) -> None: ...
    def set_grads(self, grads: Sequence[int]) -> None: ...
    def run(
        self,
        operation: Operation,
        grad_dtype: DType,
        scalars: int,
        num_rows: int,
        index: int,
        grad_factor: float,
        num_threads: int,
        tracked: int = 0,
        instruction_set: str | None = None,
    ) -> None: ...
    def sums(
        self,
        grad_dtype: DType,
        scalars: int,
        num_rows: int,
        index: int,
        grad_factor: float,
        num_threads: int,
        out: int,
        instruction_set: str | None = None,
    ) -> None: ...

class Layouts:
    def __init__(self, tensor_type: type, tensors: Sequence[Any]) -> None: ...
    def are_of(self, tensors: list[Any]) -> bool: ...
    def addresses_of(
        self, grads: list[Any]
    ) -> tuple[list[int], list[bool] | None, bool] | None: ...
    def grads_of(self, params: list[Any]) -> list[Any]: ...

class Versions:
    def __init__(self, tensors: list[Any]) -> None: ...
    def are_of(self, tensors: list[Any]) -> bool: ...
    def differing(self, tensors: list[Any]) -> list[int]: ...
    def raise_all(self) -> None: ...
    def doubt(self, i: int) -> None: ...

class Standing:
    def __init__(
        self,
        bucket: Bucket,
        layouts: Layouts,
        params: list[Any],
        flats: list[Any],
        ledger: list[Any],
        states: list[dict[Any, Any]],
        values: list[Any],
        dtype: DType,
        steps: int,
        records: int,
        increment: Any,
    ) -> None: ...
    def look(self, of_params: Versions, of_flats: Versions, of_ledger: Versions) -> int: ...
    def step(
        self,
        operation: Operation,
        row: Sequence[float],
        holds_prediction: bool,
        grad_factor: float,
        num_threads: int,
        of_params: Versions,
    ) -> None: ...

def are_same(left: list[Any], right: list[Any]) -> bool: ...
def holds(dicts: list[dict[Any, Any]], values: list[Any]) -> bool: ...
def instruction_sets() -> list[str]: ...
def rules() -> dict[str, dict[str, Any]]: ...
