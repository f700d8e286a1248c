"""AdamW with weight prediction: one memory pass, equal bits on every backend."""

from importlib.metadata import version

from wpadamw._backends import backends
from wpadamw.attach import attach
from wpadamw.optimizers import WPSGD, WPAdaBelief, WPAdam, WPAdaM3, WPAdamW, WPAdaPlus, WPNAdamW

__all__ = [
    "WPSGD",
    "WPAdaBelief",
    "WPAdaM3",
    "WPAdaPlus",
    "WPAdam",
    "WPAdamW",
    "WPNAdamW",
    "attach",
    "backends",
]
__version__ = version("wpadamw")
