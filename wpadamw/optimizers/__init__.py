"""The optimizers: update rules with their hyper-parameters and defaults."""

from wpadamw.optimizers.adabelief import WPAdaBelief, WPAdaM3
from wpadamw.optimizers.adam import WPAdam
from wpadamw.optimizers.adamw import WPAdamW
from wpadamw.optimizers.adaplus import WPAdaPlus
from wpadamw.optimizers.muon import WPMuon
from wpadamw.optimizers.nadamw import WPNAdamW
from wpadamw.optimizers.sgd import WPSGD

__all__ = [
    "WPSGD",
    "WPAdaBelief",
    "WPAdaM3",
    "WPAdaPlus",
    "WPAdam",
    "WPAdamW",
    "WPMuon",
    "WPNAdamW",
]
