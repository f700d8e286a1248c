"""Slow oracles of the update rules: one element in plain Python, from the equations.

Numbers of Python are float64; two float32 operands give a float64 result that, rounded to float32,
is the correctly rounded one, for + - * / and the root.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import torch

from wpadamw.rules.summing import total


class Slow:
    """One element, in the order of the numerical contract; ``fl`` rounds to a dtype."""

    state_names: ClassVar[tuple[str, ...]]
    sums: tuple[float, ...] = ()  # of the terms of all elements

    def __init__(self, fl: Any, w: float, options: dict[str, Any]) -> None:
        self.fl, self.w, self.k, self.options = fl, w, 0, options
        self.state = {**dict.fromkeys(self.state_names, 0.0), "average": w}

    def step(self, g: float) -> None:
        self.k += 1
        self.update(self.signed(g))
        if (ema := self.options["ema"]) is not None:
            fl, average, past = self.fl, self.state["average"], 1 - ema
            share = fl((1 - past) / (1 - past**self.k))
            self.state["average"] = fl(average + fl(fl(self.w - average) * share))

    def signed(self, g: float) -> float:
        return -g if self.options["maximize"] else g

    def terms(self, g: float) -> tuple[float, ...]:
        return ()

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


class SlowAdaBelief(SlowCoupled):
    state_names = ("exp_avg", "exp_avg_var")

    def option(self, name: str) -> Any:
        return self.options.get(name, {"weight_decouple": True}.get(name, False))

    def eps(self) -> tuple[float, float, float, float]:
        """In the state, under the root, beside it, and beside it in a rectified update."""
        eps = self.options["eps"]
        return {
            "accumulating": (eps, 0.0, eps, eps),
            "inside": (0.0, eps, 0.0, 0.0),
            "outside": (0.0, 0.0, eps, eps),
        }[self.options["eps_mode"]]

    def decay(self) -> float:
        """What a whole update takes of a weight."""
        o = self.options
        if not self.option("weight_decouple"):
            return 0.0
        return o["weight_decay"] * (1.0 if self.option("fixed_decay") else o["lr"])

    def length(self, k: int) -> tuple[float, float]:
        beta2 = self.options["betas"][1]
        longest = 2 / (1 - beta2) - 1
        return longest - 2 * beta2**k * k / (1 - beta2**k), longest

    def size(self, k: int) -> float:
        """lr/(1 - beta1^k), rectified."""
        (beta1, beta2), (n, n_max) = self.options["betas"], self.length(k)
        factor = 1.0
        if self.option("rectify") and n < 5:
            factor = float(self.option("degenerated_to_sgd"))
        elif self.option("rectify"):
            factor = math.sqrt(
                (1 - beta2**k) * (n - 4) / (n_max - 4) * (n - 2) / n * n_max / (n_max - 2)
            )
        return self.options["lr"] * factor / (1 - beta1**k)

    def scalars(self) -> Any:
        c = super().scalars()
        fl, is_coupled = self.fl, not self.option("weight_decouple")
        c.state_eps, c.step_size = fl(self.eps()[0]), fl(self.size(self.k))
        c.decay = fl(1 - self.decay())
        c.coupled = fl(self.options["weight_decay"] if is_coupled else 0.0)
        return c

    def look(self, ahead: int = 0, share: float = 0.0) -> Any:
        o, k, (beta1, beta2) = self.options, self.k + ahead, self.options["betas"]
        _, root_eps, eps, rectified_eps = self.eps()
        root_eps, root_size = root_eps * (1 - beta2**k), 1 / math.sqrt(1 - beta2**k)
        if self.option("rectify"):
            root_size, eps = 1.0, rectified_eps
            if self.length(k)[0] < 5:
                root_eps, root_size, eps = 0.0, 0.0, 1.0
        return self.rounded(
            root_eps=root_eps,
            root_size=root_size,
            eps=eps,
            decay=1 - share * (self.decay() if o["predict_decay"] else 0.0),
            size=share * beta1**ahead * self.size(k),
        )

    def moments(self, g: float, c: Any) -> None:
        super().moments(g, c)
        v = self.state_names[1]
        self.state[v] = self.fl(self.state[v] + c.state_eps)

    def residual(self, g: float) -> float:
        return self.fl(g - self.state["exp_avg"])


class SlowAdaBeliefAMSGrad(SlowLargest, SlowAdaBelief):
    state_names = ("exp_avg", "exp_avg_var", "max_exp_avg_var")


class SlowAdaM3(SlowAdaBelief):
    def eps(self) -> tuple[float, float, float, float]:
        eps = self.options["eps"]
        return eps, 0.0, 0.0, eps

    def residual(self, g: float) -> float:
        return self.state["exp_avg"]


class SlowAdaM3AMSGrad(SlowLargest, SlowAdaM3):
    state_names = ("exp_avg", "exp_avg_var", "max_exp_avg_var")


class SlowAdaPlus(SlowNAdamW, SlowAdaBelief):
    state_names = ("exp_avg", "exp_avg_sq")

    def eps(self) -> tuple[float, float, float, float]:
        eps = self.options["eps"]
        return eps, 0.0, eps if self.options["outer_eps"] else 0.0, 0.0


class SlowAdaPlusAMSGrad(SlowLargest, SlowAdaPlus):
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class SlowVRAdam(SlowAdamW):
    def terms(self, g: float) -> tuple[float, ...]:
        m = self.mean(g, self.rounded(one_minus_beta1=1 - self.options["betas"][0]))
        return (self.fl(m * m),)

    def share_of_lr(self) -> float:
        o = self.options
        return 1 / (1 + min(o["beta3"] * self.sums[0], o["lr_cutoff"]))

    def scalars(self) -> Any:
        o, share = self.options, self.share_of_lr()
        c = super().scalars()
        size = o["lr"] / (1 - o["betas"][0] ** self.k)
        c.decay = self.fl(1 - (1 - (1 - o["lr"] * o["weight_decay"])) * share)
        c.step_size = self.fl(size * share)
        return c

    def look(self, ahead: int = 0, share: float = 0.0) -> Any:
        o, k, beta1 = self.options, self.k + ahead, self.options["betas"][0]
        decay = o["weight_decay"] if o["predict_decay"] else 0.0
        look = super().look(ahead, share)
        look.decay = self.fl(1 - (1 - (1 - share * o["lr"] * decay)) * self.share_of_lr())
        size = share * o["lr"] * beta1**ahead / (1 - beta1**k)
        look.size = self.fl(size * self.share_of_lr())
        return look


class SlowMARS(SlowAdamW):
    state_names = ("exp_avg", "last_grad", "exp_avg_sq")

    def corrected(self, g: float) -> float:
        fl, beta1 = self.fl, self.options["betas"][0]
        size = fl(self.options["gamma"] * beta1 / (1 - beta1))
        return fl(fl(fl(g - self.state["last_grad"]) * size) + g)

    def terms(self, g: float) -> tuple[float, ...]:
        c = self.corrected(g)
        return (self.fl(c * c),)

    def decayed(self, g: float, c: Any) -> float:
        clip = self.fl(1 / max(1.0, math.sqrt(self.sums[0])))
        clipped, self.state["last_grad"] = self.fl(self.corrected(g) * clip), g
        return clipped

    def moments(self, g: float, c: Any) -> None:
        fl = self.fl
        self.state["exp_avg"], v = self.mean(g, c), self.state["exp_avg_sq"]
        self.state["exp_avg_sq"] = fl(fl(v * c.beta2) + fl(fl(g * g) * c.one_minus_beta2))


def step_all(elements: list[Slow], grads: list[float], dtype: torch.dtype) -> None:
    """A step of a tensor of these elements."""
    terms = [e.terms(e.signed(g)) for e, g in zip(elements, grads, strict=True)]
    sums = [
        float(total(torch.tensor(of_term, dtype=dtype))) for of_term in zip(*terms, strict=True)
    ]
    for element, g in zip(elements, grads, strict=True):
        element.sums = tuple(sums)
        element.step(g)


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


class SlowMuon(Slow):
    """Its gradients are finished updates, which it keeps."""

    state_names = ("direction",)

    def update(self, g: float) -> None:
        fl, o = self.fl, self.options
        self.state["direction"] = g
        decay, size = fl(1 - o["lr"] * o["weight_decay"]), fl(o["lr"])
        self.w = fl(fl(self.w * decay) - fl(g * size))

    def look(self, ahead: int, share: float) -> Any:
        o = self.options
        decay = o["weight_decay"] if o["predict_decay"] else 0.0
        return self.rounded(decay=1 - share * o["lr"] * decay, size=share * o["lr"])

    def predict(self, w: float, look: Any) -> float:
        fl, u = self.fl, self.state["direction"]
        return fl(fl(w * look.decay) - fl(u * look.size))

    def recover(self, p: float, look: Any) -> float:
        fl, u = self.fl, self.state["direction"]
        return fl(fl(p + fl(u * look.size)) / look.decay)
