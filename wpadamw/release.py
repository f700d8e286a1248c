"""Gradients that are used and freed inside the backward pass."""

from __future__ import annotations

import weakref
from types import TracebackType

import torch
from torch import Tensor, nn

from wpadamw.attach import own_optimizer
from wpadamw.compat import accumulation_hooks, hook_accumulation, outside_inference_mode
from wpadamw.iteration import Iteration
from wpadamw.optimizer import WeightPrediction
from wpadamw.plan import GroupPlan
from wpadamw.release_checks import check_model, check_params, check_running


class _Hook:
    """Called with a parameter that has got its gradient. It keeps nobody alive."""

    def __init__(self, iteration: Iteration) -> None:
        self.iteration = weakref.ref(iteration)

    def __call__(self, param: Tensor) -> None:
        if (iteration := self.iteration()) is not None:
            iteration.receive(param)


class GradientRelease:
    """What `release_gradients` returns; as a context manager it ends with the body."""

    def __init__(self, names: dict[Tensor, str], optimizer: WeightPrediction) -> None:
        self._optimizer, self._iteration = optimizer, Iteration(names, optimizer)
        try:
            _serve_by(self._iteration, optimizer)
        except BaseException:
            optimizer._clients.released = None
            raise
        self._handles = [optimizer.register_mode_pre_hook(self._iteration.before_mode)]
        hook = _Hook(self._iteration)
        for param in names:
            learns = param.requires_grad
            param.requires_grad_(True)  # frozen parameters may be trained later
            self._handles.append(hook_accumulation(param, hook))
            param.requires_grad_(learns)

    def __enter__(self) -> GradientRelease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """End it: gradients stay from now on, until a step. Free when it has ended already."""
        if self._optimizer._clients.released is self._iteration:
            for handle in self._handles:
                handle.remove()
            self._iteration.close()
            _serve_by(None, self._optimizer)


def release_gradients(model: nn.Module, optimizer: WeightPrediction) -> GradientRelease:
    """Update each parameter in the backward pass, as soon as it has its gradient, and free this.

    So there are never all gradients in memory at once. Training loops stay as they are; weights,
    predictions and states get the same bits: ``optimizer.step()`` ends the iteration, for its hooks
    and for schedulers, and updates parameters that still have a gradient as ever. Parameters that
    are not the optimizer's keep their gradients.

    One backward pass gives a parameter one gradient in an iteration: a second one before the step
    raises RuntimeError, and leaves the weights as they are. What needs all gradients at once sees
    none: norms over all of them, clipping, gradient scalers.

    Args:
        model: holds parameters of the optimizer. Those of now are meant: others that come later are
            updated by ``optimizer.step()``.
        optimizer: one of this package; may be in `LaPerm`, and in a wrapper of accelerate or
            Lightning.

    Returns:
        A handle: its ``remove()`` ends it, and so does the end of a ``with`` statement.

    Raises:
        TypeError: for another optimizer, a model that is no module or is replicated, and sharded
            parameters.
        ValueError: if the model holds none of the optimizer's parameters, if they are released
            already, and for ``amp``, ``capturable``, ``track_prediction`` and rules that sum over
            more than a tensor.
        RuntimeError: inside ``averaged_weights()``.

    Example:
        >>> wpadamw.release_gradients(model, opt)
        >>> loss.backward()  # updates
        >>> opt.step(); scheduler.step(); opt.zero_grad()
    """
    check_model(model)
    own = own_optimizer(optimizer)
    ids = set(map(id, own._params()))
    names: dict[Tensor, str] = {
        param: name for name, param in model.named_parameters() if id(param) in ids
    }
    check_params(names, own)
    check_running(own)
    _check_no_other(names)
    return GradientRelease(names, own)


@outside_inference_mode
@torch.no_grad()
def _serve_by(iteration: Iteration | None, optimizer: WeightPrediction) -> None:
    """Has other plans serve the same parameters, which keep what they hold."""
    optimizer._put_in_order()
    optimizer._clients.released = iteration
    for group in optimizer.param_groups:
        former = optimizer._plans.of(group)
        plan = optimizer._new_plan(group, optimizer._copies())
        if former is not None:  # records may be of more looks than options ask for now
            plan.num_looks = max(plan.num_looks, former.num_looks)
        plan.refresh(optimizer.state)
        if former is not None:
            _set_aside(former, plan)
        optimizer._plans.by_group[id(group)] = plan
    optimizer._put_in_order()


def _set_aside(former: GroupPlan, plan: GroupPlan) -> None:
    """Keeps the predictions of frozen parameters for when they are trained again."""
    aside = {key: record for bucket in former.buckets for key, record in bucket.set_aside.items()}
    for bucket in plan.buckets:
        ids = map(id, bucket.params)
        bucket.set_aside = {key: aside[key] for key in ids if key in aside}


def _check_no_other(names: dict[Tensor, str]) -> None:
    for param, name in names.items():
        ours = [hook for hook in accumulation_hooks(param) if isinstance(hook, _Hook)]
        if any(hook.iteration() is not None for hook in ours):
            raise ValueError(f"{name} must be released to one optimizer, got one that has been")
