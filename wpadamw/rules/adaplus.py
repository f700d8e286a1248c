"""AdaPlus (Guan 2023, arXiv 2309.01966, Algorithm 1)."""

from __future__ import annotations

from typing import ClassVar

from wpadamw.rules.adabelief import AdaBelief
from wpadamw.rules.nadamw import NAdamW
from wpadamw.rules.rule import Group


class AdaPlus(NAdamW, AdaBelief):
    """AdaBelief's second moment under NAdamW's mix; the prediction takes the plain direction."""

    name = "adaplus"
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    squares: ClassVar[tuple[str, ...]] = ("exp_avg_sq",)
    unused_names = ("exp_avg_bar",)

    def epsilons(self, group: Group) -> tuple[float, float, float, float]:
        """To the state, and to the root unless ``outer_eps`` is off."""
        eps = float(group["eps"])
        outer = eps * bool(group["outer_eps"])
        return eps, 0.0, outer, outer
