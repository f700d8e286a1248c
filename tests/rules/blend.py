"""A rule for tests alone: an average of gradients, sums of two terms, no way back."""

from __future__ import annotations

from typing import NamedTuple

from wpadamw.rules.rule import Rule


class Hyper(NamedTuple):
    beta1: float
    predict_size: float


class Step(NamedTuple):
    one_minus_beta1: float


class Look(NamedTuple):
    predict_size: float


class Blend(Rule):
    """Predictions cannot be solved, so that it needs a backup."""

    name = "blend"
    triton_module = "rules.blend_triton"
    state_names = ("exp_avg",)
    Hyper, Step, Look = Hyper, Step, Look
    num_terms = 2

    def hyper(self, group, lr):
        return Hyper(group["betas"][0], lr)

    def scalars(self, hyper, count, power=None, sqrt=None):
        beta1, predict_size = hyper
        return Step(1.0 - beta1), Look(predict_size)

    def step(self, weight, state, grad, step, look):
        """``m = m + (g - m)*(1-beta1)``, ``w = w - m*size``."""
        state = self.average(state, grad, step)
        return self.predict(weight, state, look), state

    def predict(self, weight, state, look):
        """``p = w - m*size``."""
        return weight - state[0] * look.predict_size

    def terms(self, weight, state, grad, step, look):
        """``m*m`` after the gradient, ``w*g``."""
        (exp_avg,) = self.average(state, grad, step)
        return exp_avg * exp_avg, weight * grad

    def average(self, state, grad, step):
        (exp_avg,) = state
        return (exp_avg + (grad - exp_avg) * step.one_minus_beta1,)
