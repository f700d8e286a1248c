"""AdaBelief with the running maximum of s in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

from wpadamw.rules.adabelief import AdaBelief
from wpadamw.rules.amsgrad import AMSGrad


class AdaBeliefAMSGrad(AMSGrad, AdaBelief):
    """The maximum of what is stored, eps included."""

    name = "adabelief_amsgrad"
    state_names = ("exp_avg", "exp_avg_var", "max_exp_avg_var")
    squares = ("exp_avg_var", "max_exp_avg_var")
