"""AdamW along the Nesterov mix of gradient and momentum (Choi et al. 2019, arXiv 1910.05446)."""

from __future__ import annotations

from torch import Tensor

from wpadamw.rules.adamw import AdamW
from wpadamw.rules.rule import State


class NAdamW(AdamW):
    """The update takes the mix, the prediction the plain direction of AdamW."""

    name = "nadamw"

    def step(
        self, weight: Tensor, state: State, grad: Tensor, step: AdamW.Step, look: AdamW.Look
    ) -> tuple[Tensor, State]:
        """``n = m + (g - m)*(1-beta1)``; ``w`` moves along the direction that n has."""
        exp_avg, exp_avg_sq = self.moments(state, grad, step)
        mix = exp_avg + (grad - exp_avg) * step.one_minus_beta1
        direction = self.direction((mix, exp_avg_sq), look)
        return weight * step.decay - direction * step.step_size, (exp_avg, exp_avg_sq)
