"""What several tests share: comparing bits, states in mid-training, backends side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import wpadamw
from wpadamw import WPAdamW
from wpadamw._backends.interface import BucketTensors
from wpadamw.rules.adamw import AdamW
from wpadamw.rules.rule import Rule

BACKENDS = ("cpp", "torch")

_CPP_REASON = wpadamw.backends()["cpu"]["cpp"]
needs_cpp = pytest.mark.skipif(_CPP_REASON is not None, reason=f"backend cpp: {_CPP_REASON}")

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Parameter dtype and gradient dtype.
KINDS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "float64": (torch.float64, torch.float64),
    "complex64": (torch.complex64, torch.complex64),
    "bfloat16-with-float32-grad": (torch.bfloat16, torch.float32),
    "float16-with-float32-grad": (torch.float16, torch.float32),
    "float64-with-float32-grad": (torch.float64, torch.float32),
    "float32-with-bfloat16-grad": (torch.float32, torch.bfloat16),
    "complex128-with-complex64-grad": (torch.complex128, torch.complex64),
}
NARROW = (torch.bfloat16, torch.float16)
BACKUPS = {"backup": {}, "no-backup": {"backup": False}}
# Predictions in copies of the parameters, which are float32 then.
COPIES: dict[str, dict[str, Any]] = {
    "bfloat16-copies": {"compute_dtype": torch.bfloat16},
    "float16-copies": {"compute_dtype": torch.float16, "prediction_steps": 2.5},
    "float32-copies": {"compute_dtype": torch.float32},
}
PLACES = {**BACKUPS, **COPIES}  # of true and predicted weights


def kinds_and(options: Mapping[str, dict[str, Any]]) -> list[Any]:
    """Every kind with every one of the options that its parameters accept."""
    return [
        pytest.param(*kind, chosen, id=f"{kind_name}-{name}")
        for kind_name, kind in KINDS.items()
        for name, chosen in options.items()
        if _go_together(kind[0], chosen)
    ]


def _go_together(dtype: torch.dtype, options: dict[str, Any]) -> bool:
    if "compute_dtype" in options:
        return dtype is torch.float32
    return options.get("backup", True) or dtype not in NARROW


def missing_backends(expected: str, report: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """What is missing of a comma list of backends, with the reasons."""
    reasons: dict[str, str | None] = {}
    for backends in reversed(report.values()):
        reasons.update(backends)
    names = [name.strip() for name in expected.split(",") if name.strip()]
    found = {name: reasons.get(name, f"known are {sorted(reasons)}") for name in names}
    return [f"backend {name} is missing: {reason}" for name, reason in found.items() if reason]


# Bits.


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def assert_same_bits(name: str, got: Tensor, want: Tensor) -> None:
    """Same dtype, shape and bits, signs of zeros included; any NaN equals any NaN."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape), name
    got, want = _real(got), _real(want)
    got_bits, want_bits = (tensor.view(_BITS[tensor.element_size()]) for tensor in (got, want))
    if torch.equal(got_bits, want_bits):
        return
    differs = (got_bits != want_bits) & ~(got.isnan() & want.isnan())
    if differs.any():
        first = tuple(differs.nonzero()[0].tolist())
        pytest.fail(
            f"{name}: {int(differs.sum())} of {differs.numel()} numbers differ, the first at "
            f"{first}: got {got[first].item()!r}, want {want[first].item()!r}"
        )


def parameters_of(optimizer: WPAdamW) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def assert_same_training(
    got: WPAdamW, want: WPAdamW, record_dtype: torch.dtype = torch.float64
) -> None:
    """Same mode, parameters and state, bit for bit; records of predictions in a dtype."""
    assert got.weights_are == want.weights_are
    for i, (p, q) in enumerate(zip(parameters_of(got), parameters_of(want), strict=True)):
        assert_same_bits(f"params[{i}]", p, q)
        if want._keeping.copies is not None:
            assert_same_bits(f"copy of params[{i}]", got.compute_copy(p), want.compute_copy(q))
        assert got.state[p].keys() == want.state[q].keys()
        for name, value in got.state[p].items():
            dtype = record_dtype if name == "prediction" else value.dtype
            expected = want.state[q][name].to(dtype)
            assert_same_bits(f"{name} of params[{i}]", value.to(dtype), expected)


# Values.


def wide(shape: Any, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Normal numbers of very different sizes."""
    exponent = torch.rand(shape, generator=generator) * 6 - 5
    return torch.randn(shape, generator=generator, dtype=dtype) * (10**exponent).to(dtype.to_real())


def random_parameters(numels: list[int], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(numel, generator=generator, dtype=dtype) for numel in numels]
    return [torch.nn.Parameter(value) for value in values]


def mid_training_state(
    param: Tensor, step: int, generator: torch.Generator, names: Sequence[str] = AdamW.state_names
) -> dict[str, Tensor]:
    """The state of one parameter as a checkpoint of the original optimizer has it."""
    dtype = torch.promote_types(param.dtype, torch.float32)
    first, *squares = names
    average = wide(param.shape, dtype, generator)
    state = {"step": torch.tensor(float(step)), first: average}
    for name in squares:
        spread = _real(average) * (0.5 + torch.rand(_real(average).shape, generator=generator))
        square = spread**2
        state[name] = torch.view_as_complex(square) if param.is_complex() else square
    return state


def load_mid_training(optimizer: WPAdamW, step: int, seed: int = 0) -> None:
    """Loads a random state after ``step`` updates, as a checkpoint of the original optimizer."""
    generator = torch.Generator().manual_seed(seed)
    groups = optimizer.state_dict()["param_groups"]
    for group in groups:
        del group["weights_are"]
        group.pop("backup", None)  # with copies there is none
        group.pop("master", None)
    names = optimizer._rule(groups[0]).state_names
    state = {
        i: mid_training_state(param, step, generator, names)
        for i, param in enumerate(parameters_of(optimizer))
    }
    optimizer.load_state_dict({"state": state, "param_groups": groups})


# Before torch 2.6 a tensor's own unpickling warns of torch.load's default.
unpickles = pytest.mark.filterwarnings("ignore:You are using `torch.load` with:FutureWarning")


def set_grad(param: Tensor, grad: Tensor | None) -> None:
    """Sets a gradient, also one of another dtype than the parameter."""
    if grad is not None and grad.dtype != param.dtype:
        if not hasattr(param, "grad_dtype"):
            pytest.skip(f"torch {torch.__version__} has no Tensor.grad_dtype")
        param.grad_dtype = grad.dtype
    param.grad = grad


def moved(params: Any, device: str | torch.device) -> list[Any]:
    """Parameters, or groups of them, on a device; those that are there already stay in place."""
    return [
        {**entry, "params": moved(entry["params"], device)}
        if isinstance(entry, dict)
        else _moved(entry, device)
        for entry in params
    ]


def _moved(param: Tensor, device: str | torch.device) -> Tensor:
    there = param.detach().to(device)
    return param if there.device == param.device else torch.nn.Parameter(there)


def tracked_sums(optimizer: WPAdamW) -> list[Tensor]:
    """What the last steps have summed of their predictions, in the order of buckets."""
    plans = map(optimizer._plans.of, optimizer.param_groups)
    return [part.sums.cpu() for plan in plans if plan is not None for part in plan.tracked]


def assert_same_tracking(optimizer: WPAdamW, other: WPAdamW) -> None:
    """The same bits of what predictions are judged by."""
    for own, want in zip(tracked_sums(optimizer), tracked_sums(other), strict=True):
        assert_same_bits("tracked", own, want)


# Of steps that are tracked.
TRACKED = {
    "tracked": {"track_prediction": True},
    "tracked-no-backup": {"track_prediction": True, "backup": False},
    "tracked-averages": {"track_prediction": True, "ema": 0.3},
    "tracked-rollout": {
        "track_prediction": True,
        "prediction": "rollout",
        "prediction_steps": 2.5,
        "backup": False,
    },
}


class Twins:
    """The same training under several backends, compared after every operation.

    Backend cpp has its parameters on the CPU, the others on ``device``.
    """

    def __init__(
        self,
        make_params: Callable[[], Any],
        *,
        make: Any = WPAdamW,
        backends: Sequence[str] | None = None,
        device: str | torch.device = "cpu",
        record_dtype: torch.dtype = torch.float64,
        **options: Any,
    ) -> None:
        self.record_dtype = record_dtype
        self.by_backend = {
            name: make(
                moved(make_params(), "cpu" if name == "cpp" else device), backend=name, **options
            )
            for name in backends or BACKENDS
        }

    @property
    def params(self) -> list[Tensor]:
        """Those of the last backend, which is the yardstick of the others."""
        return parameters_of(self._last)

    @property
    def _last(self) -> WPAdamW:
        return next(reversed(self.by_backend.values()))

    def set_grads(self, grads: list[Tensor | None]) -> None:
        for optimizer in self.by_backend.values():
            for param, grad in zip(parameters_of(optimizer), grads, strict=True):
                set_grad(param, None if grad is None else grad.to(param.device))

    def set_random_grads(self, generator: torch.Generator, dtype: torch.dtype) -> None:
        self.set_grads([wide(param.shape, dtype, generator) for param in self.params])

    def run(self, action: Callable[[WPAdamW], Any]) -> None:
        for optimizer in self.by_backend.values():
            action(optimizer)
        self.compare()

    def compare(self) -> None:
        for optimizer in self.by_backend.values():
            if optimizer is not self._last:
                assert_same_training(optimizer, self._last, self.record_dtype)
                assert_same_tracking(optimizer, self._last)

    def run_everything(self, generator: torch.Generator, grad_dtype: torch.dtype) -> None:
        """Steps from both modes, and both ways between the modes."""
        for action in (WPAdamW.predict, WPAdamW.restore, WPAdamW.predict):
            self.set_random_grads(generator, grad_dtype)
            self.run(WPAdamW.step)
            self.run(action)


# Kernels below the optimizer.


class PinnedTable:
    """A bucket of the extension that always runs with one instruction set."""

    def __init__(self, table: Any, instruction_set: str) -> None:
        self.table, self.instruction_set = table, instruction_set

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    def run(self, *arguments: Any) -> None:
        self.table.run(*arguments, instruction_set=self.instruction_set)


def bucket_of(
    param: Tensor, weight: Tensor | None = None, rule: Rule | None = None
) -> BucketTensors:
    """A bucket of one flat parameter, with a state of zeros."""
    dtype = torch.promote_types(param.dtype, torch.float32)
    rule = rule or AdamW()
    state = [torch.zeros(param.shape, dtype=dtype) for _ in rule.state_names]
    return BucketTensors(
        rule=rule,
        params=[param],
        offsets=[0],
        weight_flat=weight,
        state_flat=state,
        weight=None if weight is None else [weight],
        state=[[kind] for kind in state],
    )
