"""A rule for tests alone: an average of gradients, sums of two terms, no way back."""

from __future__ import annotations

import operator
from typing import NamedTuple

from wpadamw.rules.rule import Rule


class Hyper(NamedTuple):
    lr: float
    beta1: float


class Step(NamedTuple):
    one_minus_beta1: float


class Look(NamedTuple):
    predict_size: float
    predict_decay: float


class Blend(Rule):
    """Predictions cannot be solved, so that it needs a backup."""

    name = "blend"
    triton_module = "rules.blend_triton"
    state_names = ("exp_avg",)
    Hyper, Step, Look = Hyper, Step, Look
    still = Look(0.0, 1.0)
    num_terms = 2

    def hyper(self, group, lr):
        return Hyper(lr, group["betas"][0])

    def scalars(self, hyper, count, ahead=0, share=1.0, power=operator.pow, sqrt=None):
        lr, beta1 = hyper
        return Step(1.0 - beta1), Look(share * lr * power(beta1, ahead), 1.0)

    def step(self, weight, state, grad, step, look):
        """``m = m + (g - m)*(1-beta1)``, ``w = w*decay - m*size``."""
        state = self.average(state, grad, step)
        return self.predict(weight, state, look), state

    def predict(self, weight, state, look):
        """``p = w*decay - m*size``."""
        return weight * look.predict_decay - state[0] * look.predict_size

    def with_sums(self, hyper, step, look, sums):
        """Both are smaller, the larger the sums are."""
        squares, products = sums
        return step, Look(look.predict_size / (1.0 + squares), 1.0 / (1.0 + products * products))

    def terms(self, weight, state, grad, step, look):
        """``m*m`` after the gradient, ``w*g``."""
        (exp_avg,) = self.average(state, grad, step)
        return exp_avg * exp_avg, weight * grad

    def average(self, state, grad, step):
        (exp_avg,) = state
        return (exp_avg + (grad - exp_avg) * step.one_minus_beta1,)
