"""The optimizers: update rules with their hyper-parameters and defaults."""

from wpadamw.optimizers.adabelief import WPAdaBelief, WPAdaM3
from wpadamw.optimizers.adam import WPAdam
from wpadamw.optimizers.adamw import WPAdamW
from wpadamw.optimizers.adaplus import WPAdaPlus
from wpadamw.optimizers.mars import WPMARS
from wpadamw.optimizers.muon import WPMuon
from wpadamw.optimizers.nadamw import WPNAdamW
from wpadamw.optimizers.sgd import WPSGD
from wpadamw.optimizers.vradam import WPVRAdam

__all__ = [
    "WPMARS",
    "WPSGD",
    "WPAdaBelief",
    "WPAdaM3",
    "WPAdaPlus",
    "WPAdam",
    "WPAdamW",
    "WPMuon",
    "WPNAdamW",
    "WPVRAdam",
]
