"""Every optimizer that takes part anywhere: a line each. Imports what it names when that is built.

The parts are ``fp32`` and ``bf16`` (tables of times and memory), ``extras`` (times of steps that do
more than AdamW's), ``small`` (those of small formats), the same with `` cuda`` (only on a
GPU), ``peers`` (times beside other packages) and ``train`` (the command). Those of the study are
``core`` (AdamW, its predictions, its rivals), ``steps`` (rules for the number of steps to predict),
``families`` (the other update rules) and ``formats`` (of moments); its contest of pipelines has a
part of its own, ``pipeline`` (ways to train one with WPAdamW). A table has the order of the lines;
the first one of a part is what the others are compared with.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

FUSED = "AdamW(fused=True)"
FUSED_BF16 = "AdamW(fused=True) on fp32 masters, and casts"
FUSED_SGD = "SGD(fused=True)"
FUSED_ADAM = "Adam(fused=True)"
FOREACH = "AdamW(foreach=True)"
FOR_LOOP = "AdamW(foreach=False)"
COMPILED = "AdamW, torch.compile"
PLAIN = "prediction in plain PyTorch"
OURS = "WPAdamW"
OURS_WITHOUT_BACKUP = "WPAdamW(backup=False)"
AVERAGING = "WPAdamW(ema=1e-3)"
TRACKED = "WPAdamW(track_prediction=True)"
ROLLOUT = 'WPAdamW(prediction="rollout")'
BFLOAT16_MOMENTS = 'WPAdamW(moments="bfloat16")'
INT8_MOMENTS = 'WPAdamW(moments="int8")'
SPLIT = 'WPAdamW(master="split")'
SPLIT_BFLOAT16 = 'WPAdamW(master="split", moments="bfloat16")'
SPLIT_INT8 = 'WPAdamW(master="split", moments="int8")'
TRITON = 'WPAdamW(backend="triton")'
FUSED_CAST = "AdamW(fused=True), and one cast"
FUSED_CASTS = "AdamW(fused=True), and two casts"
COPYING = "WPAdamW(compute_dtype=torch.bfloat16)"
SMALL_COPYING = 'WPAdamW(compute_dtype=torch.bfloat16, moments="bfloat16")'
TRITON_COPYING = 'WPAdamW(compute_dtype=torch.bfloat16, backend="triton")'
TRITON_WITHOUT_BACKUP = 'WPAdamW(backup=False, backend="triton")'
SCALED = "WPAdamW(amp=True)"
REPLAYED = "WPAdamW(capturable=True), a CUDA graph"
DEEPSPEED = "DeepSpeedCPUAdam"
HEAVYBALL = "AdamW (heavyball)"
BITSANDBYTES = "AdamW8bit (bitsandbytes)"
TORCHAO = "AdamW8bit (torchao)"
COPY = "device copy"
IN_PLACE = "in-place multiply"

# What a fused AdamW step over fp32 reads (weight, gradient, both moments) and writes, per
# parameter. Copies move as much.
STEP_BYTES = 28
# Of the races; trainings bring their own.
DEFAULTS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}


def why_missing(module: str | None, package: str | None = None) -> str | None:
    """Return None where a module is installed or none is needed, else what to install."""
    if module is None or importlib.util.find_spec(module) is not None:
        return None
    return f"{package or module} is not installed"


class Entrant(NamedTuple):
    """An optimizer that takes part.

    Args:
        name: in tables, unique in a part.
        factory: ``module:attribute``, called with parameters or groups and the options.
        options: beside `DEFAULTS`.
        parts: in which it takes part.
        bytes_per_parameter: that a step reads and writes, every operation counted; None where
            it depends on the version of another package.
        held_bytes: per parameter at most: weight, gradient, moments, copies of the weight.
        temporary_bytes: per parameter at most, for a while during a step.
        package: what pip installs, of an optional package.
        is_scheduled: whether a schedule sets its learning rate; else it is told ``warmup_steps``.
        rule: in the study, what sets ``prediction_steps`` while it trains: a name of
            `wpadamw.bench.study.lookahead`.
        is_averaged: whether the study also evaluates a moving average of its weights.
        lr_of: in the study, whose best learning rate it has; it is trained at no other.
        lr_scale: of the study's learning rates, beside AdamW's.
        decay_scale: of the study's weight decay, beside AdamW's.
        why_not: why it does not take part here.
    """

    name: str
    factory: str
    options: Mapping[str, Any]
    parts: tuple[str, ...]
    bytes_per_parameter: float | None = None
    held_bytes: int = 20
    temporary_bytes: int = 0
    package: str | None = None
    is_scheduled: bool = True
    rule: str | None = None
    is_averaged: bool = False
    lr_of: str | None = None
    lr_scale: float = 1.0
    decay_scale: float = 1.0
    why_not: str | None = None

    def build(self, params: Any, **options: Any) -> Any:
        """Make the optimizer over parameters or groups, or the pipeline of stages."""
        module, _, attribute = self.factory.partition(":")
        factory = getattr(importlib.import_module(module, __package__), attribute)
        return factory(params, **{**DEFAULTS, **self.options, **options})

    @property
    def predicts(self) -> bool:
        """Whether it is a class of this package."""
        return self.factory.startswith("wpadamw:")

    @property
    def missing(self) -> str | None:
        """Why it cannot be built here, or None."""
        if self.why_not is not None or self.package is None:
            return self.why_not
        module = re.split("[.:]", self.factory)[0]  # empty where it is one of ours
        return why_missing(module or self.package, self.package)


def _adam(**options: Any) -> dict[str, Any]:
    return {"betas": (0.9, 0.999), "eps": 1e-8, **options}


_TORCH, _WP, _PIPELINE = "torch.optim:AdamW", "wpadamw:WPAdamW", ".study.pipeline:Pipeline"
_HALVED = ".steppers:Halved"
_SGD: dict[str, Any] = {"momentum": 0.9}
_BELIEF = _adam(eps=1e-16)
# What differs from the original's defaults: the decay is that of the matrices alone.
_MARS = {"betas": (0.95, 0.99), "eps": 1e-8, "weight_decay_1d": 0.0}
# Families that the study also averages.
_AVERAGED = {"WPVRAdam", "WPMARS", "WPMuon"}
_MUON = {"adjust_lr_fn": "match_rms_adamw", "adamw_betas": (0.9, 0.999)}
_RACE, _PEER, _CORE = ("fp32", "peers"), ("peers",), ("core",)
_S = "prediction_steps"

# fmt: off
ENTRANTS = (
    Entrant(FUSED, _TORCH, _adam(fused=True), (*_RACE, "extras", "small", "train"), STEP_BYTES),
    Entrant(OURS, _WP, _adam(), (*_RACE, "extras", "small", "train"), STEP_BYTES + 4),
    Entrant(OURS_WITHOUT_BACKUP, _WP, _adam(backup=False), _RACE, STEP_BYTES),
    Entrant(ROLLOUT, _WP, _adam(prediction="rollout"), ("fp32",), STEP_BYTES + 4),
    Entrant(PLAIN, ".steppers:PlainPrediction", _adam(), _RACE, 92, temporary_bytes=12),
    Entrant(FOREACH, _TORCH, _adam(foreach=True), _RACE, temporary_bytes=16),
    Entrant(FUSED_SGD, "torch.optim:SGD", _SGD | {"fused": True}, ("fp32",), 20, 16),
    Entrant("WPNAdamW", "wpadamw:WPNAdamW", _adam(), ("fp32", "train"), STEP_BYTES + 4),
    Entrant("WPSGD", "wpadamw:WPSGD", _SGD, ("fp32", "train"), 24, 16),
    Entrant(FUSED_ADAM, "torch.optim:Adam", _adam(fused=True), ("fp32",), STEP_BYTES),
    Entrant("WPAdam", "wpadamw:WPAdam", _adam(), ("fp32", "train"), STEP_BYTES + 4),
    Entrant("WPAdaBelief", "wpadamw:WPAdaBelief", _BELIEF, (*_RACE, "train"),
            STEP_BYTES + 4),
    Entrant("WPAdaM3", "wpadamw:WPAdaM3", _BELIEF, ("fp32", "train"), STEP_BYTES + 4),
    Entrant("WPAdaPlus", "wpadamw:WPAdaPlus", _adam(), ("fp32", "train"), STEP_BYTES + 4),
    Entrant(AVERAGING, _WP, _adam(ema=1e-3), ("extras",), STEP_BYTES + 12, held_bytes=24),
    Entrant(TRACKED, _WP, _adam(track_prediction=True), ("extras",), STEP_BYTES + 8),
    Entrant("WPVRAdam", "wpadamw:WPVRAdam", _adam(), ("extras", "train"), STEP_BYTES + 12),
    Entrant("WPMARS", "wpadamw:WPMARS", _MARS, ("train",)),
    # The races are over vectors.
    Entrant("WPMARS", "wpadamw:WPMARS", _MARS | {"optimize_1d": True}, ("extras",),
            STEP_BYTES + 20, held_bytes=24),
    # By its sizes it has the learning rates of AdamW.
    Entrant("WPMuon", "wpadamw:WPMuon", _MUON, ("train",)),
    # Small formats: of moments, and of weights in two halves. A scale is read and written for every
    # 64 codes.
    Entrant(BFLOAT16_MOMENTS, _WP, _adam(moments="bfloat16"), ("small",), STEP_BYTES - 4, 16),
    Entrant(INT8_MOMENTS, _WP, _adam(moments="int8"), ("small", *_PEER), STEP_BYTES - 7.75, 15),
    Entrant(SPLIT, _HALVED, _adam(), ("small",), 26, 20),
    Entrant(SPLIT_BFLOAT16, _HALVED, _adam(moments="bfloat16"), ("small",), 18, 16),
    Entrant(SPLIT_INT8, _HALVED, _adam(moments="int8"), ("small", *_PEER), 14.25, 15),
    # On a GPU.
    Entrant(TRITON, _WP, _adam(backend="triton"), ("fp32 cuda",), STEP_BYTES + 4),
    Entrant(TRITON_WITHOUT_BACKUP, _WP, _adam(backend="triton", backup=False), ("fp32 cuda",),
            STEP_BYTES),
    Entrant(SCALED, ".steppers:Scaled", _adam(), ("fp32 cuda",), STEP_BYTES + 4),
    Entrant(REPLAYED, ".steppers:Replayed", _adam(), ("fp32 cuda",), STEP_BYTES + 4),
    # Over bfloat16.
    Entrant(FUSED_BF16, ".steppers:MasterWeights", _adam(), ("bf16",), 40),
    Entrant(OURS, _WP, _adam(), ("bf16",), STEP_BYTES, held_bytes=16),
    Entrant(TRITON, _WP, _adam(backend="triton"), ("bf16 cuda",), STEP_BYTES, held_bytes=16),
    # With what is computed with: the weights or the prediction in bfloat16.
    Entrant(FUSED_CAST, ".steppers:Casting", _adam(), ("cast",), 34),
    Entrant(FUSED_CASTS, ".steppers:Casting", _adam(num_casts=2), ("cast",), 40),
    Entrant(COPYING, ".steppers:Copying", _adam(), ("cast",), 30),
    Entrant(SMALL_COPYING, ".steppers:Copying", _adam(moments="bfloat16"), ("cast",), 22),
    Entrant(TRITON_COPYING, ".steppers:Copying", _adam(backend="triton"), ("cast cuda",), 30),
    # Trainings.
    Entrant("AdamW", _TORCH, _adam(fused=True), _CORE, is_averaged=True),
    *(
        Entrant(f"WPAdamW, s = {s:g}", _WP, _adam(**{_S: s}), _CORE, is_averaged=s in (1, 2))
        for s in (0.5, 1, 2, 3)
    ),
    Entrant("NAdamW", "torch.optim:NAdam", _adam(decoupled_weight_decay=True), (*_CORE, "train")),
    Entrant("WPNAdamW, s = 0", "wpadamw:WPNAdamW", _adam(**{_S: 0.0}), _CORE),
    Entrant("AdamWScheduleFree", ".steppers:schedule_free", _adam(), (*_CORE, "train", "peers"),
            temporary_bytes=16, package="schedulefree", is_scheduled=False),
    *(
        Entrant(f"s = {rule}", _WP, _adam(), ("steps",), rule=rule)
        for rule in ("2, matrices only", "2, warmed up", "2 x schedule", "best", "2 x best")
    ),
    *(
        Entrant(f"{name}, s = {s:g}", f"wpadamw:{name}", {**options, _S: s}, ("families",),
                lr_scale=lr_scale, decay_scale=1 / lr_scale, is_averaged=name in _AVERAGED)
        for name, options, lr_scale in (
            ("WPSGD", _SGD, 32.0), ("WPAdaBelief", _BELIEF, 1.0), ("WPAdaM3", _BELIEF, 1.0),
            ("WPAdaPlus", _adam(), 1.0), ("WPVRAdam", _adam(), 1.0), ("WPMARS", _MARS, 1.0),
            ("WPMuon", _MUON, 1.0),
        )
        for s in (0.0, 1.0)
    ),
    *(
        Entrant(f"s = 1, {moments} moments", _WP, _adam(**{_S: 1.0, "moments": moments}),
                ("formats",), lr_of="WPAdamW, s = 1")
        for moments in ("bfloat16", "int8")
    ),
    Entrant("AdaBelief (pytorch_optimizer)", "pytorch_optimizer:AdaBelief", _BELIEF, _PEER,
            temporary_bytes=16, package="pytorch_optimizer"),
    *(
        Entrant(name, _PIPELINE, options, ("pipeline",), lr_scale=lr_scale)
        for name, options, lr_scale in (
            ("synchronous, 1 micro-batch", {"flush_after": "1"}, 2**0.5),
            ("synchronous, D micro-batches", {"flush_after": "D"}, 1.0),
            # Delays need lower rates.
            ("PipeOptim", {"predicts": True, "backward": "current"}, 2**-2.5),
            ("predicted for both", {"predicts": True, "backward": "forward"}, 2**-2.5),
            ("PipeDream", {"backward": "forward"}, 2**-2.5),
            ("stale gradients", {"backward": "current"}, 2**-2.5),
        )
    ),
    # Beside other packages.
    Entrant(FOR_LOOP, _TORCH, _adam(foreach=False), _PEER, temporary_bytes=8),
    Entrant("AdaBelief (adabelief_pytorch)", ".steppers:adabelief", _BELIEF, _PEER,
            temporary_bytes=16, package="adabelief_pytorch"),
    *(
        Entrant(name, factory, _adam(**options), _PEER, moved, temporary_bytes=16, package=package)
        for name, factory, options, moved, package in (
            (DEEPSPEED, "deepspeed.ops.adam:DeepSpeedCPUAdam", {"adamw_mode": True}, STEP_BYTES,
             "deepspeed"),
            ("AdamW (optimi)", "optimi:AdamW", {}, None, "torch-optimi"),
            ("StableAdamW (pytorch_optimizer)", "pytorch_optimizer:StableAdamW", {}, None,
             "pytorch_optimizer"),  # its AdamW is torch's
            (BITSANDBYTES, "bitsandbytes.optim:AdamW8bit", {}, None, "bitsandbytes"),
            ("FlashAdamW", "flashoptim:FlashAdamW", {"master_weight_bits": None}, None,
             "flashoptim"),
            (TORCHAO, "torchao.optim:AdamW8bit", {}, None, "torchao"),
            # Last, as their compilers take as long as they like.
            (HEAVYBALL, "heavyball:AdamW", {}, None, "heavyball"),
            (COMPILED, ".steppers:Compiled", {}, None, None),
        )
    ),
)
# fmt: on
STUDIED = ("core", "steps", "families", "formats")
PIPELINED = ("pipeline",)


def entrants(*parts: str) -> dict[str, Entrant]:
    """Who takes part, by name."""
    return {e.name: e for e in ENTRANTS if not {*parts}.isdisjoint(e.parts)}
