"""AdamW along the Nesterov mix of gradient and momentum (Choi et al. 2019, arXiv 1910.05446)."""

from __future__ import annotations

from torch import Tensor

from wpadamw.rules.adamw import AdamW
from wpadamw.rules.rule import Row


class NAdamW(AdamW):
    """The update takes the mix, the prediction the plain direction of AdamW."""

    name = "nadamw"

    def mean_of_step(self, exp_avg: Tensor, grad: Tensor, step: Row) -> Tensor:
        """``n = m + (g - m)*(1-beta1)``."""
        return self.mean(exp_avg, grad, step)
