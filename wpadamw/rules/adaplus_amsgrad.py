"""AdaPlus with the running maximum of s in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

from wpadamw.rules.adaplus import AdaPlus
from wpadamw.rules.amsgrad import AMSGrad


class AdaPlusAMSGrad(AMSGrad, AdaPlus):
    """The maximum of what is stored, eps included."""

    name = "adaplus_amsgrad"
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    squares = ("exp_avg_sq", "max_exp_avg_sq")
