"""The semantics of an optimizer with weight prediction, the same for every update rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from wpadamw.averages import Averages
from wpadamw.checks import (
    Group,
    check_arguments,
    check_mode,
    plain_numbers,
)
from wpadamw.compat import (
    check_capture,
    check_no_transform,
    disable_dynamo,
    needs_profiled_step,
    outside_inference_mode,
)
from wpadamw.plan import GroupPlan
from wpadamw.rules.squares import Squares
from wpadamw.scaling import Scaling, clip
from wpadamw.step import GroupStep
from wpadamw.summed import with_sums
from wpadamw.sums import GradientSums
from wpadamw.tracking import PredictionStats, stats

# Arguments of constructors that are no options of a parameter group.
_OF_OPTIMIZER = ("amp", "backend", "compute_dtype")
_NO_OPTIONS = ("self", "params", "__class__", *_OF_OPTIMIZER)


class WeightPrediction(Averages):
    """Base class: an update rule with parameters that can hold predicted weights."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Takes what a subclass was constructed with, ``locals()``: its signature declares it."""
        given = {name: arguments[name] for name in arguments if name not in _NO_OPTIONS}
        options = plain_numbers(given)
        check_arguments(options, self.original)
        for name in options.keys() & {"betas", "betas_1d"}:
            options[name] = tuple(map(float, options[name]))
        apart: dict[str, Any] = {name: arguments[name] for name in _OF_OPTIMIZER}
        super().__init__(arguments["params"], options, **apart)

    @property
    def releases_gradients(self) -> bool:
        """Whether backward passes step, see `wpadamw.release_gradients`."""
        return self._clients.released is not None

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
        if self._keeping.copies is None:
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

        Raises:
            RuntimeError: if gradients are released in the backward pass.
        """
        if self.releases_gradients:
            raise RuntimeError(
                "clip_grad_norm_ needs all gradients, got an optimizer that has them released: "
                "call remove() of what release_gradients returned, or clip each in a hook"
            )
        groups = self.param_groups
        norm, self._plans.clipping = clip(
            groups, max_norm, norm_type, error_if_nonfinite, self._squared_gradients
        )
        return norm

    def prediction_stats(self) -> list[PredictionStats]:
        """How good the predictions were that the last step had its gradients from.

        With ``track_prediction`` steps measure it on the way, without another pass. The host does
        not wait.

        Returns:
            One entry per parameter group, of the last step that updated it.

        Raises:
            RuntimeError: for a group that is not tracked, or that has had no step since.
        """
        found = []
        for i, group in enumerate(self.param_groups):
            if not group["track_prediction"]:
                raise RuntimeError(
                    f"prediction_stats needs track_prediction=True, got False in param_groups[{i}]"
                )
            plan = self._plans.of(group)
            if plan is None or not plan.tracked:
                raise RuntimeError(f"prediction_stats needs a step, param_groups[{i}] had none")
            found.append(stats(group["params"], plan.tracked, float(group["prediction_steps"])))
        return found

    @outside_inference_mode
    def _squared_gradients(self) -> Tensor:
        params = self._params()
        squared = self._plans.squared_gradients
        if squared is None or not squared.serves(params):
            squared = GradientSums(Squares(), params, self._backend)
            self._plans.squared_gradients = squared
        return squared.total().reshape(())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Like torch's; a factor of `clip_grad_norm_` goes with the gradients."""
        self._plans.clipping = None
        super().zero_grad(set_to_none)

    def _update(self) -> bool:
        """One update of all groups; False if there was nothing to do."""
        check_no_transform("step()")
        check_capture(self.param_groups)
        if self._clients.needs_look:
            self._clients.look(self.param_groups)
        if self.releases_gradients and self._clients.released.has_updated():
            self._clients.released.end()
            return True
        standing = () if torch.is_inference_mode_enabled() else self._standing_plans()
        if not standing:
            return self._long_update()
        self._write([plan.standing_step for plan in standing])
        return True

    @outside_inference_mode
    def _long_update(self) -> bool:
        """An update before which anything may have changed."""
        scaling = self._take_scaling().seen_by_host(self.param_groups)
        if scaling is None:
            return False
        steps = self._prepare(scaling)
        if not any(grads for step in steps for grads in step.grads):
            return False
        if any(rule.num_terms for step in steps for rule in step.plan.rules):
            steps = with_sums(steps)
        self._write([step.run for step in steps])
        self._follow_freezing()
        return True

    def _write(self, runs: list[Callable[[], None]]) -> None:
        """Does the step of each group, after everything has been checked."""
        self._plans.updates += 1
        self._clients.note_update()
        self._plans.is_interrupted = True
        for run in runs:
            run()
        self._plans.is_interrupted = False

    def _standing_plans(self) -> list[GroupPlan]:
        """The plans of all groups if nothing but gradients has changed since the last step."""
        plans = self._plans
        if self._amp or plans.clipping is not None or plans.loaded != "no" or plans.is_interrupted:
            return []
        found = []
        for group in self.param_groups:
            plan = plans.of(group)
            if plan is None:
                return []
            plan.check()
            if not plan.stands(self._rules(group), self.state):
                return []
            found.append(plan)
        return found

    def _take_scaling(self) -> Scaling:
        """What a gradient scaler and `clip_grad_norm_` left for this step."""
        clipping, self._plans.clipping = self._plans.clipping, None
        is_valid = clipping is not None and clipping.belongs_to(self.param_groups)
        factor = clipping.factor if clipping is not None and is_valid else None
        if not self._amp:
            return Scaling(clip_factor=factor)
        return Scaling(getattr(self, "grad_scale", None), getattr(self, "found_inf", None), factor)

    def _prepare(self, scaling: Scaling) -> list[GroupStep]:
        """Checks everything that a step needs, before anything is written."""
        for group in self.param_groups:
            self._check_running(group)
        self._finish_loading()
        started: list[Tensor] = []
        try:
            return [self._prepare_group(group, scaling, started) for group in self.param_groups]
        except BaseException:
            for param in started:
                self.state.pop(param, None)
            raise

    def _prepare_group(self, group: Group, scaling: Scaling, started: list[Tensor]) -> GroupStep:
        plan = self._plans.of(group)
        if plan is not None:
            check_mode(group)
            grads = plan.quick_look(self._rules(group), self.state)
            if grads is not None:
                return GroupStep(plan, grads, scaling)
        plan = self._refreshed(group)
        if starting := plan.starting():
            started += starting
            plan.adopt(starting, self.state)
        return GroupStep(plan, [bucket.gradients.read() for bucket in plan.buckets], scaling)
