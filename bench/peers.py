"""Optimizers of other packages, as many as are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import machine
import names
from contestants import (
    COMPILED,
    FOR_LOOP,
    FOREACH,
    FP32,
    OPTIONS,
    STEP_BYTES,
    Kind,
    Stepper,
)
from measure import LeftOut
from torch.nn import Parameter


class Peer(NamedTuple):
    """An optimizer that another package brings.

    Args:
        name: in the tables.
        package: what pip installs.
        module: what is imported.
        build: makes the optimizer from that module, over parameters.
        bytes_per_parameter: that a step reads and writes, if that is ours to say.
    """

    name: str
    package: str
    module: str
    build: Callable[[Any, list[Parameter]], Stepper]
    bytes_per_parameter: int | None = None

    def kind(self) -> Kind:
        """The entry of a table."""
        build = partial(_build, self)
        return Kind(self.name, build, self.bytes_per_parameter, temporary_bytes=16)


def _build(peer: Peer, params: list[Parameter]) -> Stepper:
    try:
        module = importlib.import_module(peer.module)
    except ModuleNotFoundError as error:
        if error.name != peer.module.partition(".")[0]:
            raise
        raise LeftOut(f"{peer.package} is not installed") from None
    return peer.build(module, params)


def _schedule_free(module: Any, params: list[Parameter]) -> Stepper:
    optimizer = module.AdamWScheduleFree(params, **OPTIONS)
    optimizer.train()
    return optimizer


DEEPSPEED = Peer(
    names.DEEPSPEED,
    "deepspeed",
    "deepspeed.ops.adam",
    lambda module, params: module.DeepSpeedCPUAdam(params, adamw_mode=True, **OPTIONS),
    STEP_BYTES,
)
HEAVYBALL = Peer(
    "AdamW (heavyball)", "heavyball", "heavyball", lambda m, params: m.AdamW(params, **OPTIONS)
)
TORCHAO = Peer(
    "AdamW8bit (torchao)",
    "torchao",
    "torchao.optim",
    lambda module, params: module.AdamW8bit(params, **OPTIONS),
)
PEERS = [
    DEEPSPEED,
    HEAVYBALL,
    Peer("AdamWScheduleFree", "schedulefree", "schedulefree", _schedule_free),
    Peer("AdamW (optimi)", "torch-optimi", "optimi", lambda m, params: m.AdamW(params, **OPTIONS)),
    Peer(  # its AdamW is torch's
        "StableAdamW (pytorch_optimizer)",
        "pytorch_optimizer",
        "pytorch_optimizer",
        lambda module, params: module.StableAdamW(params, **OPTIONS),
    ),
    Peer(
        "AdamW8bit (bitsandbytes)",
        "bitsandbytes",
        "bitsandbytes.optim",
        lambda module, params: module.AdamW8bit(params, **OPTIONS),
    ),
    TORCHAO,
    Peer(
        "FlashAdamW",
        "flashoptim",
        "flashoptim",
        lambda module, params: module.FlashAdamW(params, **OPTIONS),
    ),
]
# These take a graph of all tensors together to Inductor: minutes for a thousand.
COMPILED_AS_A_WHOLE = (names.COMPILED, HEAVYBALL.name)
COMPILED_AT_ALL = (*COMPILED_AS_A_WHOLE, TORCHAO.name)


def kinds(without: tuple[str, ...] = (), reason: str | None = None) -> list[Kind]:
    """All that is compared with peers; those named ``without`` stay out for a reason."""
    everyone = [*FP32, FOREACH, FOR_LOOP, COMPILED, *(peer.kind() for peer in PEERS)]
    return [k._replace(why_not=reason if k.name in without else None) for k in everyone]


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {peer.package: machine.version(peer.package) for peer in PEERS}
    return {package: version for package, version in found.items() if version is not None}
