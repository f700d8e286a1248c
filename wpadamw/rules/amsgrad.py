"""AdamW with the running maximum of v in its place (Reddi et al. 2018, arXiv 1904.09237)."""

from __future__ import annotations

import torch
from torch import Tensor

from wpadamw.rules.adamw import AdamW
from wpadamw.rules.rule import Row, State


class AMSGrad(AdamW):
    """The maximum takes the place of v in updates and in predictions alike.

    Before another rule with these moments among the bases of a class it does the same to that.
    """

    name = "amsgrad"
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    squares = ("exp_avg_sq", "max_exp_avg_sq")

    def moments(self, state: State, grad: Tensor, step: Row) -> State:
        """The moments and the running maximum of the second one after a gradient."""
        exp_avg, exp_avg_sq = super().moments(state[:2], grad, step)
        return exp_avg, exp_avg_sq, torch.maximum(state[2], exp_avg_sq)
