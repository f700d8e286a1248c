"""Slow oracles of the update rules: one element in plain Python, from the equations.

Numbers of Python are float64; two float32 operands give a float64 result that, rounded to float32,
is the correctly rounded one, for + - * / and the root.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar


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

    def shares(self) -> list[float]:
        steps = self.options["prediction_steps"]
        if self.options["prediction"] == "linear":
            return [steps]
        return [0.0] + [min(1.0, steps - past) for past in range(max(1, math.ceil(steps)))]

    def looks(self) -> list[Any]:
        return [self.look(ahead, share) for ahead, share in enumerate(self.shares())]

    def predicted(self) -> float:
        return functools.reduce(self.predict, self.looks(), self.w)

    def recovered(self, p: float) -> float:
        return functools.reduce(self.recover, self.looks()[::-1], p)

    def update(self, g: float) -> None:
        raise NotImplementedError

    def look(self, ahead: int, share: float) -> Any:
        raise NotImplementedError

    def predict(self, w: float, look: Any) -> float:
        raise NotImplementedError

    def recover(self, p: float, look: Any) -> float:
        raise NotImplementedError


class SlowAdamW(Slow):
    state_names = ("exp_avg", "exp_avg_sq")

    def scalars(self) -> Any:
        o, k = self.options, self.k
        beta1, beta2 = o["betas"]
        return self.rounded(
            one_minus_beta1=1 - beta1,
            beta2=beta2,
            one_minus_beta2=1 - beta2,
            decay=1 - o["lr"] * o["weight_decay"],
            step_size=o["lr"] / (1 - beta1**k),
        )

    def look(self, ahead: int = 0, share: float = 0.0) -> Any:
        o, k, (beta1, beta2) = self.options, self.k + ahead, self.options["betas"]
        decay = o["weight_decay"] if o["predict_decay"] else 0.0
        return self.rounded(
            root_eps=0.0,
            root_size=1 / math.sqrt(1 - beta2**k),
            eps=o["eps"],
            decay=1 - share * o["lr"] * decay,
            size=share * o["lr"] * beta1**ahead / (1 - beta1**k),
        )

    def update(self, g: float) -> None:
        fl, c = self.fl, self.scalars()
        g = self.decayed(g, c)
        self.moments(g, c)
        direction = self.along(self.mean_of_step(g, c), self.look())
        self.w = fl(fl(self.w * c.decay) - fl(direction * c.step_size))

    def decayed(self, g: float, c: Any) -> float:
        return g

    def moments(self, g: float, c: Any) -> None:
        fl, (m, v, *_) = self.fl, self.state_names
        self.state[m] = self.mean(g, c)
        r = self.residual(g)
        self.state[v] = fl(fl(self.state[v] * c.beta2) + fl(fl(r * r) * c.one_minus_beta2))

    def mean(self, g: float, c: Any) -> float:
        fl, m = self.fl, self.state["exp_avg"]
        return fl(m + fl(fl(g - m) * c.one_minus_beta1))

    def residual(self, g: float) -> float:
        return g

    def mean_of_step(self, g: float, c: Any) -> float:
        return self.state["exp_avg"]

    def along(self, m: float, look: Any) -> float:
        fl, v = self.fl, self.state[self.state_names[-1]]
        root = fl(math.sqrt(fl(v + look.root_eps)))
        return fl(m / fl(fl(root * look.root_size) + look.eps))

    def predict(self, w: float, look: Any) -> float:
        fl, u = self.fl, self.along(self.state["exp_avg"], look)
        return fl(fl(w * look.decay) - fl(u * look.size))

    def recover(self, p: float, look: Any) -> float:
        fl, u = self.fl, self.along(self.state["exp_avg"], look)
        return fl(fl(p + fl(u * look.size)) / look.decay)


class SlowLargest(SlowAdamW):
    """Before another one, whose largest second moment it keeps as a third state."""

    def moments(self, g: float, c: Any) -> None:
        super().moments(g, c)
        _, v, largest = self.state_names
        self.state[largest] = max(self.state[largest], self.state[v])


class SlowAMSGrad(SlowLargest):
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class SlowNAdamW(SlowAdamW):
    def mean_of_step(self, g: float, c: Any) -> float:
        return self.mean(g, c)


class SlowCoupled(SlowAdamW):
    def decayed(self, g: float, c: Any) -> float:
        return self.fl(g + self.fl(self.w * c.coupled))


class SlowAdam(SlowCoupled):
    """What it does not multiply by is 1."""

    def scalars(self) -> Any:
        c = super().scalars()
        c.decay, c.coupled = 1.0, self.fl(self.options["weight_decay"])
        return c

    def look(self, ahead: int = 0, share: float = 0.0) -> Any:
        look = super().look(ahead, share)
        look.decay = 1.0
        return look


class SlowAdamAMSGrad(SlowLargest, SlowAdam):
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


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

    def look(self, ahead: int, share: float) -> Any:
        o = self.options
        return self.rounded(size=share * o["lr"] * o["momentum"] ** ahead)

    def predict(self, w: float, look: Any) -> float:
        return self.fl(w - self.fl(self.state["momentum_buffer"] * look.size))

    def recover(self, p: float, look: Any) -> float:
        return self.fl(p + self.fl(self.state["momentum_buffer"] * look.size))
