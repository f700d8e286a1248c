"""AdamW with weight prediction: one memory pass, equal bits on every backend."""

from importlib.metadata import version

from wpadamw._backends import backends
from wpadamw.attach import attach, refresh_batch_norm
from wpadamw.laperm import LaPerm
from wpadamw.optimizers import (
    WPMARS,
    WPSGD,
    WPAdaBelief,
    WPAdam,
    WPAdaM3,
    WPAdamW,
    WPAdaPlus,
    WPMuon,
    WPNAdamW,
    WPVRAdam,
)
from wpadamw.release import release_gradients

__all__ = [
    "WPMARS",
    "WPSGD",
    "LaPerm",
    "WPAdaBelief",
    "WPAdaM3",
    "WPAdaPlus",
    "WPAdam",
    "WPAdamW",
    "WPMuon",
    "WPNAdamW",
    "WPVRAdam",
    "attach",
    "backends",
    "refresh_batch_norm",
    "release_gradients",
]
__version__ = version("wpadamw")
