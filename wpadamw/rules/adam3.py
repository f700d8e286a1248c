"""AdaM3 (Wang et al. 2021, arXiv 2106.11514, Algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from wpadamw.rules.adabelief import AdaBelief
from wpadamw.rules.rule import Group


class AdaM3(AdaBelief):
    """The second moment is that of the momentum itself."""

    name = "adam3"

    def epsilons(self, group: Group) -> tuple[float, float, float, float]:
        """To the state alone, and to the root of rectified updates."""
        eps = float(group["eps"])
        return eps, 0.0, 0.0, eps

    def residual(self, exp_avg: Tensor, grad: Tensor) -> Tensor:
        """``r = m``, the new one."""
        return exp_avg
