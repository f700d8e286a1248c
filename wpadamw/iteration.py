"""Iterations whose updates are done inside backward passes: each gradient is used when it is there.

An update of one parameter is neither a step nor counted as one: the user's `step` ends the
iteration. Parameters have buckets of their own, see `wpadamw.apart`.
"""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple, cast

import torch
from torch import Tensor

from wpadamw._backends.interface import Completed, Kernels
from wpadamw.apart import ApartPlan, Part
from wpadamw.checks import Mode
from wpadamw.compat import (
    backward_pass,
    check_capture,
    check_no_transform,
    disable_dynamo,
    is_in_backward,
    outside_inference_mode,
)
from wpadamw.modes import Modes
from wpadamw.optimizer import WeightPrediction
from wpadamw.plan import GroupPlan
from wpadamw.release_checks import check_no_replicas, check_running
from wpadamw.scaling import Scaling
from wpadamw.step import GroupStep

SECOND = (
    "{name} has a second gradient before step(): with released gradients each one has been used "
    "and freed in its backward pass, so they are neither added up (accumulation, reentrant "
    "checkpoints, DistributedDataParallel around a released model) nor dropped. Call step() after "
    "each backward(), or remove() of what release_gradients returned"
)

NEW = (
    "predict() before step(): with released gradients and predict_in_step=False the backward pass "
    "has left new true weights. Call step() after each backward()"
)


class _Begun(NamedTuple):
    """An update, from before it writes until it has been noted."""

    param: Tensor
    grad: Tensor | None
    kernels: Kernels
    completed: Completed  # before it


class Iteration:
    """What has been updated since the last step, of parameters with names."""

    def __init__(self, names: dict[Tensor, str], optimizer: WeightPrediction) -> None:
        self._names, self._reference = names, weakref.ref(optimizer)
        self._updated: set[int] = set()
        self._begun: _Begun | None = None
        self._seen = optimizer._plans  # others come with a checkpoint, which ends an iteration
        self._is_first = True  # no backward pass has been looked at
        self._pass = -1  # the last backward pass that was looked at
        self._plan_of: dict[int, ApartPlan] = {}
        # Autograd has a thread for each device. An interrupt may come before the lock is let go.
        self._lock = threading.RLock()

    @property
    def _optimizer(self) -> WeightPrediction:
        """Owns this, so that a dropped one updates no longer."""
        optimizer = self._reference()
        assert optimizer is not None
        return optimizer

    def has_updated(self) -> bool:
        """Whether an iteration is under way."""
        self._note()
        return bool(self._updated) and self._seen is self._optimizer._plans

    @disable_dynamo
    @outside_inference_mode
    @torch.no_grad()
    def receive(self, param: Tensor) -> None:
        """Updates a parameter by its gradient, and frees this."""
        with self._lock:
            if param.grad is None or self._reference() is None:  # others have hooks, too
                return
            if not self.has_updated():
                self._updated, self._seen, self._pass = set(), self._optimizer._plans, -1
            elif id(param) in self._updated:
                raise RuntimeError(SECOND.format(name=self._names[param]))
            if self._pass == -1 or self._pass != backward_pass():
                self._look()
            if (plan := self._plan_of.get(id(param))) is not None:
                self._update(plan, param)

    def _look(self) -> None:
        """Before the first update of a backward pass: raises for what cannot be done in it."""
        opt = self._optimizer
        check_no_transform("backward() with released gradients")
        check_capture(opt.param_groups)
        check_running(opt)
        if self._is_first:
            check_no_replicas(self._names)
        self._is_first = False
        plans = [opt._plans.of(group) for group in opt.param_groups]
        if not all(map(self._is_current, plans)):
            self._get_current()
            plans = [opt._plans.of(group) for group in opt.param_groups]
        found = cast(list[ApartPlan], plans)
        self._plan_of = {id(param): plan for plan in found for param in plan.params}
        self._pass = backward_pass()

    def _get_current(self) -> None:
        opt = self._optimizer
        for group in opt.param_groups:
            opt._check_running(group)
        if self._updated:  # nothing moves within an iteration
            for group in opt.param_groups:
                opt._plan(group)
        else:
            opt._finish_loading()
            opt._put_in_order()

    def _is_current(self, plan: GroupPlan | None) -> bool:
        """Whether a plan serves its group as it is at this moment."""
        opt, plans = self._optimizer, self._optimizer._plans
        if not isinstance(plan, ApartPlan) or plans.loaded != "no":
            return False
        if plans.is_interrupted and not self._updated:
            return False
        plan.check()
        return plan.is_current(opt._rules(plan.group), opt._copies(), opt.state)

    def _update(self, plan: ApartPlan, param: Tensor) -> None:
        part = plan.parts.get(id(param)) or self._started(plan, param)
        is_standing = plan.is_standing(part)
        if not is_standing:
            part = self._settled(plan, part, param)
        kernels = part.bucket.kernels
        self._begun = _Begun(param, param.grad, kernels, kernels.completed())
        try:
            if is_standing:
                plan.step_standing(part)
            else:
                plan.step(part.bucket)
        finally:
            self._note()

    def _note(self) -> None:
        """Notes an update that has been done. After an interrupt in here that is repeated."""
        if (begun := self._begun) is None:
            return
        if begun.kernels.completed() != begun.completed:
            self._updated.add(id(begun.param))
            if begun.param.grad is begun.grad:
                begun.param.grad = None
        self._begun = None

    def _started(self, plan: ApartPlan, param: Tensor) -> Part:
        """Who serves a parameter from its first gradient on."""
        opt = self._optimizer
        try:
            plan.adopt([param], opt.state)
        except BaseException:
            opt.state.pop(param, None)
            raise
        return plan.parts[id(param)]

    def _settled(self, plan: ApartPlan, part: Part, param: Tensor) -> Part:
        """Who serves a parameter after others may have moved it or written to it."""
        opt, group = self._optimizer, plan.group
        part.bucket.refresh()
        if not part.bucket.is_intact():
            plan.refresh(opt.state)
            part = plan.parts[id(param)]
        if written := part.bucket.written_outside():
            opt._settle(part.bucket, written, group)
        if plan.mode_after_step() == "predicted":
            group["weights_are"] = "predicted"  # "true" is said only where all parameters are
        return part

    # The end of an iteration.

    @outside_inference_mode
    def end(self) -> None:
        """For `step`: updates what still has a gradient, and counts the iteration once."""
        opt = self._optimizer
        rest = [param for param in opt._params() if param.grad is not None]
        for param in rest:
            if id(param) in self._updated:
                raise RuntimeError(SECOND.format(name=self._names[param]))
        self._finish()
        if rest:
            opt._long_update()
        else:
            opt._write([])
            opt._follow_freezing()
        self._updated = set()

    def before_mode(self, optimizer: Modes, mode: Mode) -> None:
        """Before a user has parameters go to a mode within an iteration."""
        if not self.has_updated() or is_in_backward():
            return
        self._finish()  # else updated parameters would first go to the mode of the others
        is_literal = not all(group["predict_in_step"] for group in self._optimizer.param_groups)
        if mode == "predicted" and is_literal:
            raise RuntimeError(NEW)

    def close(self) -> None:
        """The same without a step, whatever has a gradient."""
        if self.has_updated():
            self._finish()
            self._optimizer._write([])
            self._updated = set()

    @outside_inference_mode
    @torch.no_grad()
    def _finish(self) -> None:
        """Takes all parameters to the weights that they hold after a step."""
        opt = self._optimizer
        for group in opt.param_groups:
            plan = opt._plans.of(group)
            if isinstance(plan, ApartPlan) and plan.is_at_target():
                group["weights_are"] = plan.mode_after_step()
            else:
                plan = opt._plan(group)
                GroupStep(plan, [[] for _ in plan.buckets], Scaling()).run()
