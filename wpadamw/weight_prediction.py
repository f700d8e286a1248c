"""The semantics of an optimizer with weight prediction: modes, step, closures, checkpoints.

Everything here is the same for every update rule; `wpadamw.optimizers` names rules and defaults.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from wpadamw import _backends, checkpoint, identify
from wpadamw.buckets import Bucket
from wpadamw.compat import (
    check_capture,
    check_no_transform,
    disable_dynamo,
    needs_profiled_step,
    warn_caller,
)
from wpadamw.group_step import GroupStep, move
from wpadamw.identify import Mode
from wpadamw.plan import Group, GroupPlan, check_dtype, check_recoverable, check_unique
from wpadamw.rules import AdamW
from wpadamw.scalars import group_prediction
from wpadamw.scaling import Scaling, clip_factor, grad_norm

WRITTEN_OUTSIDE = (
    "Parameters were written to from outside the optimizer (load_state_dict, clamp_, "
    "re-initialisation, ...) and match neither its true nor its predicted weights. They are taken "
    "as the new true weights. This is said once per optimizer."
)


class _Plans:
    """Group plans and what else is derived. Shared by reference, never saved.

    Wrappers copy an optimizer's ``__dict__`` (Lightning does), so derived data lives in one
    mutable object and the mode lives in the parameter groups.
    """

    def __init__(self) -> None:
        self.by_group: dict[int, GroupPlan] = {}
        self.has_warned = False
        self.updates = 0  # since these plans were made
        self.clip_factor: Tensor | None = None  # of clip_grad_norm_, for the next step


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


class WeightPrediction(Optimizer):
    """Base class: AdamW's state and update, with parameters that can hold predicted weights."""

    # Plain AdamW checkpoints and older ones lack these keys of a group.
    group_defaults: ClassVar[dict[str, Any]] = {
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "prediction_steps": 1.0,
        "predict_decay": True,
        "predict_in_step": True,
        "backup": True,
        "weights_are": "true",
    }

    def __init__(self, params: ParamsT, defaults: Group, *, amp: bool, backend: str) -> None:
        _backends.check_available(backend)
        self._plans = _Plans()
        self._backend = backend
        self._amp = amp
        if amp:
            self._step_supports_amp_scaling = True
        super().__init__(params, defaults)

    # What a subclass says.

    def _rule(self, group: Group) -> AdamW:
        """The update rule of a group."""
        raise NotImplementedError

    def _check_group(self, group: Group) -> None:
        """Raises for hyper-parameters that make no sense."""
        raise NotImplementedError

    # Modes.

    @property
    def weights_are(self) -> Mode:
        """What the parameters hold: ``"true"`` or ``"predicted"`` weights."""
        modes = {group["weights_are"] for group in self.param_groups}
        return "predicted" if "predicted" in modes else "true"

    @disable_dynamo
    def predict(self) -> None:
        """Go to the predicted weights: where the optimizer expects to be after its next step.

        Idempotent, and free when the parameters hold them already. Parameters without a completed
        update keep their true weights. After `restore` the same bits come back.
        """
        self._go("predicted")

    @disable_dynamo
    def restore(self) -> None:
        """Go to the true weights: what AdamW would hold. To evaluate, save and average.

        Idempotent, free when the parameters hold them already, and exact (with ``backup=False``
        to a few ulp).
        """
        self._go("true")

    @disable_dynamo
    def train(self) -> None:
        """The same as `predict`, under the name that training frameworks call."""
        self.predict()

    @disable_dynamo
    def eval(self) -> None:
        """The same as `restore`, under the name that training frameworks call."""
        self.restore()

    @disable_dynamo
    @contextmanager
    def true_weights(self) -> Iterator[None]:
        """Run the body with true weights; the former state comes back, also after an error."""
        modes = self._modes()
        self.restore()
        try:
            yield
        finally:
            self._return_to(modes)

    def _modes(self) -> list[Mode]:
        return [group["weights_are"] for group in self.param_groups]

    @disable_dynamo  # for the end of true_weights()
    def _return_to(self, modes: list[Mode]) -> None:
        """Takes the groups to former modes; groups added since then stay as they are."""
        for group, mode in zip(self.param_groups, modes, strict=False):
            if group["weights_are"] != mode:
                self._move(group, mode)

    def _go(self, mode: Mode) -> None:
        self._return_to([mode] * len(self.param_groups))

    @torch.no_grad()
    def _move(self, group: Group, mode: Mode) -> None:
        check_no_transform(f"going to {mode} weights")
        plan = self._refreshed(group)
        if mode == "predicted" and not all(bucket.columns.all_made() for bucket in plan.buckets):
            check_recoverable(group)
        if group["weights_are"] != mode:  # a new plan begins with true weights
            for bucket in plan.buckets:
                move(bucket, mode, plan.prediction())
        group["weights_are"] = mode

    # Step.

    @disable_dynamo
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply one update to the true weights and, with ``predict_in_step``, predict the next.

        Restore, update and prediction are one memory pass. Works from either state. Parameters
        without a gradient are left alone.

        Args:
            closure: evaluates the model and returns the loss; called at the predicted weights.

        Returns:
            What the closure returned, else None.

        Raises:
            RuntimeError: for sparse gradients and gradients that do not fit their parameter.
                Weights and state are as before.
        """
        if needs_profiled_step(self):
            # Step hooks are shown the arguments as they were given.
            return self._profiled_step(*(() if closure is None else (closure,)))
        return self._step(closure)

    # Tells the base class not to wrap it: torch's wrapper opens a profiler range in every step,
    # which takes as long as everything else that a step does on the host.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            self._update()
            return None
        modes = self._modes()
        self.predict()
        has_updated = False
        try:
            with torch.enable_grad():
                loss = closure()
            has_updated = self._update()
        finally:
            if not has_updated:
                self._return_to(modes)
        return loss

    _profiled_step = Optimizer.profile_hook_step(_step)

    @disable_dynamo
    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
    ) -> Tensor:
        """Clip the norm of all gradients together, in the next `step` and without rewriting them.

        Like `torch.nn.utils.clip_grad_norm_`, which reads and writes every gradient once more.
        The host does not wait for the norm. With a gradient scaler call its ``unscale_`` first.

        Args:
            max_norm: the norm that gradients are scaled down to.
            norm_type: order of the norm, may be ``inf``.
            error_if_nonfinite: raise if the norm is infinite or NaN.

        Returns:
            The norm before clipping, a tensor of one element.
        """
        norm = grad_norm(self.param_groups, norm_type, error_if_nonfinite)
        self._plans.clip_factor = clip_factor(norm, max_norm)
        return norm

    def _update(self) -> bool:
        """One update of all groups; False if there was nothing to do."""
        check_no_transform("step()")
        check_capture(self.param_groups)
        scaling = self._take_scaling().seen_by_host(self.param_groups)
        if scaling is None:
            return False
        steps = self._prepare(scaling)
        if not any(grads is not None for step in steps for grads in step.grads):
            return False
        self._plans.updates += 1
        for step in steps:
            step.run()
        return True

    def _take_scaling(self) -> Scaling:
        """What a gradient scaler and `clip_grad_norm_` left for this step."""
        factor, self._plans.clip_factor = self._plans.clip_factor, None
        if not self._amp:
            return Scaling(clip_factor=factor)
        return Scaling(getattr(self, "grad_scale", None), getattr(self, "found_inf", None), factor)

    def _prepare(self, scaling: Scaling) -> list[GroupStep]:
        """Checks everything that a step needs, before anything is written."""
        started: list[Tensor] = []
        try:
            return [self._prepare_group(group, scaling, started) for group in self.param_groups]
        except BaseException:
            for param in started:
                self.state.pop(param, None)
            raise

    def _prepare_group(self, group: Group, scaling: Scaling, started: list[Tensor]) -> GroupStep:
        check_recoverable(group)
        plan = self._refreshed(group)
        if starting := plan.starting():
            started += starting
            plan.adopt(starting, self.state)
        grads = [bucket.gradients() for bucket in plan.buckets]
        return GroupStep(plan, grads, scaling)

    # Plans.

    def _refreshed(self, group: Group) -> GroupPlan:
        """The group's plan, with every parameter in the group's mode."""
        plan = self._plan(group)
        for bucket in plan.buckets:
            if written := bucket.written_outside():
                found = identify.identify(bucket, written, group_prediction(group))
                self._settle(bucket, found, group)
        return plan

    def _plan(self, group: Group) -> GroupPlan:
        """The group's plan, fit for the parameters and state of this moment."""
        rule = self._rule(group)
        plan = self._plans.by_group.get(id(group))
        if plan is None or plan.group is not group or not plan.fits(group, rule):
            if plan is not None and plan.group is group:
                self._leave(plan)
            plan = self._plans.by_group[id(group)] = GroupPlan(
                group, rule, self._backend, self._amp
            )
        plan.refresh(self.state)
        return plan

    def _leave(self, plan: GroupPlan) -> None:
        """Goes to true weights by the options under which the predictions were made."""
        if plan.group["weights_are"] == "predicted":
            plan.refresh(self.state)
            for bucket in plan.buckets:
                bucket.restore()
            plan.group["weights_are"] = "true"

    def _settle(self, bucket: Bucket, found: dict[int, identify.Found], group: Group) -> None:
        identify.settle(bucket, found, group["weights_are"], group_prediction(group))
        if "neither" in found.values() and not self._plans.has_warned:
            self._plans.has_warned = True
            warn_caller(WRITTEN_OUTSIDE)

    # Groups and checkpoints.

    def add_param_group(self, param_group: Group) -> None:
        """Add a parameter group; it starts in the optimizer's present mode.

        Raises:
            ValueError: for hyper-parameters out of range and duplicate parameters.
            TypeError: for parameters of a dtype that is not supported.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # raises
        group = {"weights_are": self.weights_are if self.param_groups else "true", **param_group}
        if not isinstance(group["params"], (Tensor, set, dict)):
            group["params"] = list(group["params"])
            check_unique(group["params"])
        super().add_param_group(group)
        try:
            for param in self.param_groups[-1]["params"]:
                check_dtype(param)
            self._check_group(self.param_groups[-1])
        except BaseException:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        # Copies: pickling a view writes the whole flat buffer behind it.
        state = {p: {k: _copied(v) for k, v in entry.items()} for p, entry in self.state.items()}
        own = {"state": defaultdict(dict, state), "_backend": self._backend, "_amp": self._amp}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plans = _Plans()
        if self._amp:
            self._step_supports_amp_scaling = True
        for group in self.param_groups:
            for key, value in self.group_defaults.items():
                group.setdefault(key, value)

    @disable_dynamo
    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """The state as plain tensors and numbers, loadable with ``weights_only=True``.

        As in torch its tensors are the optimizer's own: save or copy them before the next step.
        """
        for group in self.param_groups:
            self._refreshed(group)
        return super().state_dict()

    @disable_dynamo
    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer or of ``torch.optim.AdamW``.

        Load the model first. Whether it holds true or predicted weights is found by comparing it
        with the backup in the file; if it is neither, the model is trusted, with a warning.

        Raises:
            ValueError: for a file that does not fit. Weights and state are as before.
        """
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            if (replaced := pre_hook(self, state_dict)) is not None:
                state_dict = replaced
        groups = checkpoint.read_groups(state_dict.get("param_groups"), self.param_groups)
        for group in groups:
            self._check_group(group)
        names = [self._rule(group).state_names for group in groups]
        state = checkpoint.read_state(
            state_dict.get("state"), state_dict["param_groups"], groups, names
        )
        has_warned = self._plans.has_warned
        self.__setstate__({"state": defaultdict(dict, state), "param_groups": groups})
        self._plans.has_warned = has_warned
        self._identify_loaded()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _identify_loaded(self) -> None:
        """Finds the modes from what the parameters hold."""
        found = [self._identify_group(group) for group in self.param_groups]
        kinds = [{kind for _, of_bucket in group for kind in of_bucket.values()} for group in found]
        for group, mode in zip(
            self.param_groups, identify.group_modes(kinds, self._modes()), strict=True
        ):
            group["weights_are"] = mode
        for group, of_group in zip(self.param_groups, found, strict=True):
            for bucket, of_bucket in of_group:
                self._settle(bucket, of_bucket, group)

    def _identify_group(self, group: Group) -> list[tuple[Bucket, dict[int, identify.Found]]]:
        if not group["backup"]:
            return []
        prediction = group_prediction(group)
        return [
            (bucket, identify.identify(bucket, range(len(bucket.params)), prediction))
            for bucket in self._plan(group).buckets
        ]
