"""The table of update rules: how each is asked for, and its slow oracle.

An oracle is one element in plain Python. Numbers of Python are float64; two float32 operands give
a float64 result that, rounded to float32, is the correctly rounded one, for + - * / and the root.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch

import wpadamw
from wpadamw.rules import adamw, amsgrad, nadamw, sgd
from wpadamw.rules.rule import Rule


class Slow:
    """One element, in the order of the numerical contract; ``fl`` rounds to a dtype."""

    state_names: ClassVar[tuple[str, ...]]

    def __init__(self, fl: Any, w: float, options: dict[str, Any]) -> None:
        self.fl, self.w, self.k, self.options = fl, w, 0, options
        self.state = dict.fromkeys(self.state_names, 0.0)

    def step(self, g: float) -> None:
        self.k += 1
        self.update(-g if self.options["maximize"] else g)

    def rounded(self, **scalars: float) -> Any:
        return type("Scalars", (), {name: self.fl(value) for name, value in scalars.items()})

    def update(self, g: float) -> None:
        raise NotImplementedError

    def predicted(self) -> float:
        raise NotImplementedError

    def recovered(self, p: float) -> float:
        raise NotImplementedError


class SlowAdamW(Slow):
    state_names = ("exp_avg", "exp_avg_sq")

    def scalars(self) -> Any:
        o, k = self.options, self.k
        (beta1, beta2), s, lr = o["betas"], o["prediction_steps"], o["lr"]
        predicted = o["weight_decay"] if o["predict_decay"] else 0.0
        return self.rounded(
            beta1=beta1,
            one_minus_beta1=1 - beta1,
            beta2=beta2,
            one_minus_beta2=1 - beta2,
            inv_sqrt_bc2=1 / math.sqrt(1 - beta2**k),
            eps=o["eps"],
            decay=1 - lr * o["weight_decay"],
            step_size=lr / (1 - beta1**k),
            predict_decay=1 - s * lr * predicted,
            predict_size=s * lr / (1 - beta1**k),
        )

    def update(self, g: float) -> None:
        fl, c = self.fl, self.scalars()
        self.moments(g)
        direction = self.step_direction(g)
        self.w = fl(fl(self.w * c.decay) - fl(direction * c.step_size))

    def moments(self, g: float) -> None:
        fl, c, state = self.fl, self.scalars(), self.state
        m, v = state["exp_avg"], state["exp_avg_sq"]
        state["exp_avg"] = fl(m + fl(fl(g - m) * c.one_minus_beta1))
        state["exp_avg_sq"] = fl(fl(v * c.beta2) + fl(fl(g * g) * c.one_minus_beta2))

    def along(self, m: float) -> float:
        fl, c, v = self.fl, self.scalars(), self.state[self.state_names[-1]]
        return fl(m / fl(fl(fl(math.sqrt(v)) * c.inv_sqrt_bc2) + c.eps))

    def step_direction(self, g: float) -> float:
        return self.along(self.state["exp_avg"])

    def predicted(self) -> float:
        fl, c = self.fl, self.scalars()
        u = self.along(self.state["exp_avg"])
        return fl(fl(self.w * c.predict_decay) - fl(u * c.predict_size))

    def recovered(self, p: float) -> float:
        fl, c = self.fl, self.scalars()
        u = self.along(self.state["exp_avg"])
        return fl(fl(p + fl(u * c.predict_size)) / c.predict_decay)


class SlowAMSGrad(SlowAdamW):
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def moments(self, g: float) -> None:
        super().moments(g)
        largest = max(self.state["max_exp_avg_sq"], self.state["exp_avg_sq"])
        self.state["max_exp_avg_sq"] = largest


class SlowNAdamW(SlowAdamW):
    def step_direction(self, g: float) -> float:
        fl, m = self.fl, self.state["exp_avg"]
        return self.along(fl(m + fl(fl(g - m) * self.scalars().one_minus_beta1)))


class SlowSGD(Slow):
    state_names = ("momentum_buffer",)

    def update(self, g: float) -> None:
        fl, o, m = self.fl, self.options, self.state["momentum_buffer"]
        c = self.rounded(**{n: o[n] for n in ("momentum", "weight_decay", "lr")})
        g = fl(g + fl(self.w * c.weight_decay))
        if self.k == 1 or o["momentum"] == 0:
            m = g
        else:
            m = fl(fl(m * c.momentum) + fl(g * fl(1 - o["dampening"])))
        self.state["momentum_buffer"] = m
        direction = fl(g + fl(m * c.momentum)) if o["nesterov"] else m
        self.w = fl(self.w - fl(direction * c.lr))

    def size(self) -> float:
        return self.fl(self.options["prediction_steps"] * self.options["lr"])

    def predicted(self) -> float:
        return self.fl(self.w - self.fl(self.state["momentum_buffer"] * self.size()))

    def recovered(self, p: float) -> float:
        return self.fl(p + self.fl(self.state["momentum_buffer"] * self.size()))


class RuleCase(NamedTuple):
    """A rule, the optimizer and the options that ask for it, and its oracle."""

    rule: type[Rule]
    make: Any
    slow: type[Slow]
    options: dict[str, Any]

    def hyper(self, **options: Any) -> Any:
        """The hyper-parameters, as the rule names them."""
        (group,) = self.make([torch.zeros(1)], **self.options, **options).param_groups
        return self.rule().hyper(group, group["lr"])


_ADAM: dict[str, Any] = {"betas": (0.87, 0.993), "eps": 1e-6, "weight_decay": 0.07}

RULES = {
    "adamw": RuleCase(adamw.AdamW, wpadamw.WPAdamW, SlowAdamW, _ADAM),
    "amsgrad": RuleCase(amsgrad.AMSGrad, wpadamw.WPAdamW, SlowAMSGrad, {**_ADAM, "amsgrad": True}),
    "nadamw": RuleCase(nadamw.NAdamW, wpadamw.WPNAdamW, SlowNAdamW, _ADAM),
    "sgd": RuleCase(
        sgd.SGD, wpadamw.WPSGD, SlowSGD, {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.07}
    ),
    "sgd-nesterov": RuleCase(sgd.SGD, wpadamw.WPSGD, SlowSGD, {"momentum": 0.9, "nesterov": True}),
}
