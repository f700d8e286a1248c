"""LaPerm: weights that keep the values of their initialisation, and are trained in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from wpadamw import initial_values
from wpadamw.checks import Group
from wpadamw.compat import disable_dynamo, is_capturing
from wpadamw.optimizer import WeightPrediction

# What torch's optimizers have and LaPerm takes from the one in it; other names are looked up.
_OF_OPTIMIZER = (
    *("param_groups", "state", "defaults", "grad_scale", "found_inf"),
    *("zero_grad", "state_dict", "load_state_dict"),
    *(f"register_step_{when}_hook" for when in ("pre", "post")),
    *(f"register_state_dict_{when}_hook" for when in ("pre", "post")),
    *(f"register_load_state_dict_{when}_hook" for when in ("pre", "post")),
)


class _Forward:
    """An attribute that is the wrapped optimizer's."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, wrapper: Any, owner: type) -> Any:
        return self if wrapper is None else getattr(wrapper.optimizer, self.name)

    def __set__(self, wrapper: Any, value: Any) -> None:
        setattr(wrapper.optimizer, self.name, value)

    def __delete__(self, wrapper: Any) -> None:
        delattr(wrapper.optimizer, self.name)


class LaPerm(Optimizer):
    """Train by reconnecting weights: Qiu & Suda 2020, arXiv 2003.02570.

    After every ``every`` updates the weights that come to a neuron, a row of a linear layer or a
    filter of a convolution, take the values that they had initially, in the rank order that
    training has given them; equal weights keep their order. So it is with every parameter of two
    dimensions or more, along all but the first, that is not frozen then. Others train as ever.

    What is ordered are true weights. Moments stay, and predictions go on from the new weights. It
    happens at the end of a step, whether this or the wrapped optimizer is called. Counted are steps
    that make an update; with ``amp=True`` on a GPU overflows are counted, too, as the host does not
    know of them. The initial values are the true weights when this is made, or when parameters are
    added: 4 bytes per element, 8 for float64.

    Everything else is the wrapped optimizer's, whose state dict carries the initial values and the
    count. An optimizer without LaPerm refuses them, and a state dict without them is refused here:
    load that before. Copies and pickles of this go on; of the wrapped optimizer alone they are
    plain.

    Args:
        optimizer: one of this package.
        every: updates from one permutation to the next; the paper's are 250 to 1,200.

    Raises:
        TypeError: for another optimizer, and for complex matrices.
        ValueError: for ``every`` that is no whole number from 1 on, for an optimizer that has a
            LaPerm, and for matrices that are sharded along another dimension than the first.

    Example:
        >>> opt = wpadamw.LaPerm(wpadamw.WPAdamW(model.parameters(), lr=1e-3), every=500)
    """

    def __init__(self, optimizer: WeightPrediction, every: int) -> None:
        _check_wrapped(optimizer)
        self.every = every
        self.optimizer = optimizer
        self._count = 0  # updates since the last permutation
        self._initial: dict[Tensor, Tensor] = {}  # by parameter: its sorted rows
        self._take_initial()
        self._watch()

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # a copy in the making
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def __getstate__(self) -> dict[str, Any]:
        return {name: vars(self)[name] for name in ("optimizer", "_every", "_count", "_initial")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch()

    @property
    def every(self) -> int:
        """Updates from one permutation to the next; may be changed at any time."""
        return self._every

    @every.setter
    def every(self, every: int) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ValueError(f"every must be a whole number >= 1, got {every!r:.200}")
        self._every = every

    @disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of the wrapped optimizer, which ends with the permutation when it is due."""
        return self.optimizer.step(closure)

    step.hooked = True  # type: ignore[attr-defined]  # the wrapped one runs the hooks

    def add_param_group(self, param_group: Group) -> None:
        """Like the wrapped optimizer's; initial values are those of this moment.

        Raises:
            TypeError, ValueError: as there, and for matrices that cannot be permuted.
        """
        self.optimizer.add_param_group(param_group)
        try:
            self._take_initial()
        except BaseException:
            self.param_groups.pop()
            raise

    def remove(self) -> None:
        """Leave the optimizer as it is without this; weights keep the values that they have."""
        for handle in self._handles:
            handle.remove()

    # Permutations.

    def _watch(self) -> None:
        opt = self.optimizer
        self._seen = opt._plans, opt._plans.updates
        self._read: initial_values.Read | None = None
        self._handles = [
            opt.register_step_pre_hook(self._before_step),
            opt.register_step_post_hook(self._after_step),
            opt.register_state_dict_post_hook(self._add_to),
            opt.register_load_state_dict_pre_hook(self._before_load),
            opt.register_load_state_dict_post_hook(self._after_load),
        ]

    def _take_initial(self) -> None:
        """Takes the values of matrices that have none yet."""
        new = initial_values.missing(self.param_groups, self._initial)

        def take(param: Tensor, weight: Tensor) -> None:
            if param in new:
                self._initial[param] = initial_values.sorted_rows(param, weight)

        if new:
            self.optimizer.set_true_weights(take)

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if is_capturing():
            raise RuntimeError("LaPerm counts updates on the host, got a step in a CUDA graph")
        self._take_initial()  # of parameters that came by the wrapped optimizer

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        plans, (seen, updates) = self.optimizer._plans, self._seen
        self._count += plans.updates - (updates if plans is seen else 0)  # a load makes new ones
        self._seen = plans, plans.updates
        if self._count >= self.every:
            self.optimizer.set_true_weights(self._permuted)
            self._count = 0

    def _permuted(self, param: Tensor, weight: Tensor) -> Tensor | None:
        if param not in self._initial or not param.requires_grad:
            return None
        return initial_values.in_order_of(weight, self._initial[param].to(weight.device))

    # Checkpoints.

    def _add_to(self, optimizer: Any, saved: dict[str, Any]) -> dict[str, Any]:
        self._take_initial()
        return initial_values.add(saved, self.param_groups, self._initial, self._count)

    def _before_load(self, optimizer: Any, saved: dict[str, Any]) -> dict[str, Any] | None:
        self._read = initial_values.take_out(saved, self.param_groups)
        return self._read and self._read.rest

    def _after_load(self, optimizer: Any) -> None:
        assert self._read is not None
        self._initial.update(self._read.values)
        self._count, self._read = self._read.updates, None


for _name in _OF_OPTIMIZER:
    setattr(LaPerm, _name, _Forward(_name))


def _check_wrapped(optimizer: Any) -> None:
    hooks = getattr(optimizer, "_optimizer_step_post_hooks", {}).values()
    if any(isinstance(getattr(hook, "__self__", None), LaPerm) for hook in hooks):
        raise ValueError("optimizer must have no LaPerm yet, got one that has")
    if not isinstance(optimizer, WeightPrediction):
        raise TypeError(f"optimizer must be one of wpadamw's, got {type(optimizer).__name__}")
