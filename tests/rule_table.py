"""The table of update rules: how each is asked for, and its slow oracle."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from oracles import (
    Slow,
    SlowAdaBelief,
    SlowAdaBeliefAMSGrad,
    SlowAdam,
    SlowAdaM3,
    SlowAdaM3AMSGrad,
    SlowAdamAMSGrad,
    SlowAdamW,
    SlowAdaPlus,
    SlowAdaPlusAMSGrad,
    SlowAMSGrad,
    SlowMARS,
    SlowMuon,
    SlowNAdamW,
    SlowSGD,
    SlowVRAdam,
)

from wpadamw import (
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
from wpadamw.rules import adamw, amsgrad, muon, nadamw, sgd
from wpadamw.rules.adabelief import AdaBelief
from wpadamw.rules.adabelief_amsgrad import AdaBeliefAMSGrad
from wpadamw.rules.adam import Adam
from wpadamw.rules.adam3 import AdaM3
from wpadamw.rules.adam3_amsgrad import AdaM3AMSGrad
from wpadamw.rules.adam_amsgrad import AdamAMSGrad
from wpadamw.rules.adaplus import AdaPlus
from wpadamw.rules.adaplus_amsgrad import AdaPlusAMSGrad
from wpadamw.rules.mars import MARS
from wpadamw.rules.rule import Rule
from wpadamw.rules.vradam import VRAdam


class RuleCase(NamedTuple):
    """A rule, the optimizer and the options that ask for it, and its oracle."""

    rule: type[Rule]
    make: Any
    slow: type[Slow]
    options: dict[str, Any]

    def hyper(self, **options: Any) -> Any:
        """The hyper-parameters, as the rule names them."""
        (group,) = self.make([torch.zeros(1)], **self.options, **options).param_groups
        return self.rule().hyper(group, group["lr"])


_ADAM: dict[str, Any] = {"betas": (0.87, 0.993), "eps": 1e-6, "weight_decay": 0.07}
STILL_AT_FIRST = {"rectify": True, "degenerated_to_sgd": False}


def _cases() -> dict[str, RuleCase]:
    """Rules by name; with options where these lead to other formulas."""
    amsgrad_on = {"amsgrad": True}
    rows = [
        ("adamw", adamw.AdamW, WPAdamW, SlowAdamW, {}),
        ("amsgrad", amsgrad.AMSGrad, WPAdamW, SlowAMSGrad, amsgrad_on),
        ("nadamw", nadamw.NAdamW, WPNAdamW, SlowNAdamW, {}),
        ("adam", Adam, WPAdam, SlowAdam, {}),
        ("adam-amsgrad", AdamAMSGrad, WPAdam, SlowAdamAMSGrad, amsgrad_on),
        ("adabelief", AdaBelief, WPAdaBelief, SlowAdaBelief, {}),
        ("adabelief-coupled", AdaBelief, WPAdaBelief, SlowAdaBelief, {"weight_decouple": False}),
        ("adabelief-fixed-decay", AdaBelief, WPAdaBelief, SlowAdaBelief, {"fixed_decay": True}),
        ("adabelief-inside", AdaBelief, WPAdaBelief, SlowAdaBelief, {"eps_mode": "inside"}),
        ("adabelief-outside", AdaBelief, WPAdaBelief, SlowAdaBelief, {"eps_mode": "outside"}),
        ("adabelief-rectified", AdaBelief, WPAdaBelief, SlowAdaBelief, {"rectify": True}),
        ("adabelief-amsgrad", AdaBeliefAMSGrad, WPAdaBelief, SlowAdaBeliefAMSGrad, amsgrad_on),
        ("adam3", AdaM3, WPAdaM3, SlowAdaM3, {}),
        ("adam3-rectified", AdaM3, WPAdaM3, SlowAdaM3, STILL_AT_FIRST),
        ("adam3-amsgrad", AdaM3AMSGrad, WPAdaM3, SlowAdaM3AMSGrad, amsgrad_on),
        ("adaplus", AdaPlus, WPAdaPlus, SlowAdaPlus, {}),
        ("adaplus-inner-eps", AdaPlus, WPAdaPlus, SlowAdaPlus, {"outer_eps": False}),
        ("adaplus-amsgrad", AdaPlusAMSGrad, WPAdaPlus, SlowAdaPlusAMSGrad, amsgrad_on),
        ("vradam", VRAdam, WPVRAdam, SlowVRAdam, {"norm_scope": "tensor", "beta3": 1e-3}),
        ("mars", MARS, WPMARS, SlowMARS, {"optimize_1d": True, "gamma": 0.1}),
    ]
    return {name: RuleCase(rule, make, slow, {**_ADAM, **o}) for name, rule, make, slow, o in rows}


RULES = {
    **_cases(),
    "sgd": RuleCase(
        sgd.SGD, WPSGD, SlowSGD, {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.07}
    ),
    "sgd-nesterov": RuleCase(sgd.SGD, WPSGD, SlowSGD, {"momentum": 0.9, "nesterov": True}),
}

# Of matrices: an element's gradient is its part of a finished update.
OF_MATRICES = {"muon": RuleCase(muon.Muon, WPMuon, SlowMuon, {"weight_decay": 0.07})}
