"""AdaM3 with the running maximum of s in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

from wpadamw.rules.adam3 import AdaM3
from wpadamw.rules.amsgrad import AMSGrad


class AdaM3AMSGrad(AMSGrad, AdaM3):
    """The maximum of what is stored, eps included."""

    name = "adam3_amsgrad"
    state_names = ("exp_avg", "exp_avg_var", "max_exp_avg_var")
    squares = ("exp_avg_var", "max_exp_avg_var")
