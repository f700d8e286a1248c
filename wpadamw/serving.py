"""Which plan serves a parameter group, and what the optimizer does about writes from outside."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from wpadamw import _backends, identify, layout, loading
from wpadamw.accelerated import answer_through_accelerate
from wpadamw.apart import ApartPlan
from wpadamw.bucket import Bucket
from wpadamw.checks import Group, check_in_step, check_mode, check_states, check_step
from wpadamw.clients import Clients
from wpadamw.compare import unexpected
from wpadamw.compat import (
    is_capturing,
    warn_caller,
)
from wpadamw.copies import Copies, Keeping, Kind, check_compute_dtype
from wpadamw.plan import GroupPlan
from wpadamw.rules.averaged import averaged
from wpadamw.rules.rule import Rule, Rules
from wpadamw.rules.stored import stored
from wpadamw.scaling import Clipping
from wpadamw.sums import GradientSums

WRITTEN_OUTSIDE = (
    "Parameters were written to from outside the optimizer (load_state_dict, clamp_, a swap "
    "through .data, re-initialisation, ...) and match neither its true nor its predicted weights. "
    "What they hold is taken as the new true weights, and the optimizer's own copy of these is "
    "given up, for {names}. This is said once, until a checkpoint is loaded."
)


class Plans:
    """Group plans and what else is derived. Shared by reference, never saved.

    Wrappers copy an optimizer's ``__dict__`` (Lightning does), so derived data lives in one
    mutable object and the mode lives in the parameter groups.
    """

    def __init__(self) -> None:
        self.by_group: dict[int, GroupPlan] = {}
        self.has_warned = False
        self.clipping: Clipping | None = None  # of clip_grad_norm_, for the next step
        self.squared_gradients: GradientSums | None = None
        self.updates = 0  # since these plans were made
        self.is_interrupted = False  # between the first and the last write of an operation
        # A checkpoint of which it is not yet known whether newer weights followed it, and the
        # parameters whose true weights it carried.
        self.loaded: Literal["no", "read", "received"] = "no"
        self.carried: set[int] = set()

    def of(self, group: Group) -> GroupPlan | None:
        """The plan of a group, if it has one."""
        plan = self.by_group.get(id(group))
        return plan if plan is not None and plan.group is group else None


class Serving(Optimizer):
    """An optimizer whose parameters are served by plans."""

    # The optimizer whose arguments, texts and checkpoints a subclass takes over.
    original: ClassVar[type[Optimizer]]

    def __init__(
        self,
        params: ParamsT,
        defaults: Group,
        *,
        amp: bool,
        backend: str,
        compute_dtype: torch.dtype | None,
    ) -> None:
        _backends.check_available(backend)
        check_compute_dtype(compute_dtype)
        self._plans, self._clients = Plans(), Clients()
        self._keeping = Keeping(None if compute_dtype is None else Copies(Kind(compute_dtype)))
        self._backend = backend
        self._amp = amp
        if amp:
            self._step_supports_amp_scaling = True
        super().__init__(params, defaults)
        answer_through_accelerate()

    @property
    def amp(self) -> bool:
        """Whether a gradient scaler may leave its scale to the step."""
        return self._amp

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The dtype of the copies that hold predictions; None where parameters do."""
        kind = self._keeping.copies and self._keeping.copies.kind
        return kind.dtype if kind else None

    # What a subclass says.

    def _rule(self, group: Group) -> Rule:
        """The update rule of a group."""
        raise NotImplementedError

    def _rule_of_rest(self, group: Group) -> Rule:
        """That of parameters of the group that are no matrices."""
        return self._rule(group)

    def _rules(self, group: Group) -> Rules:
        rules = [self._rule(group), self._rule_of_rest(group)]
        if group["ema"] is not None:
            rules = list(map(averaged, rules))
        is_noisy = group["master"] == "none"
        return Rules(*(stored(rule, group["moments"], is_noisy) for rule in rules))

    def _params(self) -> list[Tensor]:
        """The parameters of all groups."""
        return [param for group in self.param_groups for param in group["params"]]

    # Plans.

    def _plan(self, group: Group) -> GroupPlan:
        """The group's plan, fit for the parameters and state of this moment."""
        check_mode(group)
        plan, copies, rules = self._plans.of(group), self._copies(), self._rules(group)
        if plan is None or not plan.fits(group, rules, copies):
            check_states(group, rules, self.state)
            if plan is None and copies is not None:
                plan = self._new_plan(group, None)  # knows the way back from predictions
            if plan is not None:
                self._leave(plan)
            plan = self._new_plan(group, copies)
            self._plans.by_group[id(group)] = plan
        plan.refresh(self.state)
        return plan

    def _copies(self) -> Copies | None:
        """The copies that hold predictions.

        None while it is not known which weights a checkpoint brings: until then they are told apart
        by means of a backup.
        """
        return self._keeping.copies if self._plans.loaded == "no" else None

    def _new_plan(self, group: Group, copies: Copies | None) -> GroupPlan:
        options = tuple(self.defaults)
        make = GroupPlan if self._clients.released is None else ApartPlan
        return make(group, options, self._rules(group), self._backend, self._amp, copies)

    def _leave(self, plan: GroupPlan) -> None:
        """Goes to true weights by the options under which the predictions were made."""
        if plan.group["weights_are"] == "predicted":
            plan.refresh(self.state)
            for bucket in plan.buckets:
                bucket.restore()
            plan.group["weights_are"] = "true"

    def _refreshed(self, group: Group) -> GroupPlan:
        """The group's plan, with every parameter in the group's mode."""
        plan = self._plan(group)
        for bucket in plan.buckets:
            if self._clients.shows_averages:
                continue  # true weights come back after them
            if written := bucket.written_outside():
                self._settle(bucket, written, group)
            if not bucket.holds_all(group["weights_are"]):  # an operation was interrupted
                bucket.move(group["weights_are"], plan.settings(bucket.rule))
            if bucket.to_begin and self._plans.loaded == "no":
                self._begin(bucket, group)
        return plan

    def _begin(self, bucket: Bucket, group: Group) -> None:
        """Has averages that a state came without begin as the true weights."""
        settings = bucket.rule.settings(group, float(group["lr"]))
        if bucket.recovers:
            bucket.restore()
        bucket.begin()
        if bucket.recovers:
            bucket.move(group["weights_are"], settings)

    def _check_running(self, group: Group) -> None:
        """Raises ValueError for hyper-parameters that a step could not take."""
        if (plan := self._plans.of(group)) is not None:
            plan.check()
        else:
            check_step(group, self.defaults, self._rules)
            if self._keeping.copies is not None:
                check_in_step(group)

    # Weights from outside.

    def _look(self, bucket: Bucket, group: Group) -> None:
        """Before a switch: keeps weights from being lost that came without leaving a trace."""
        if is_capturing() or not bucket.has_backup:
            return
        # In the literal form every step is followed by a switch: a GPU is not waited for then.
        must_not_wait = layout.host_must_not_wait(bucket.tensors.params[0].device)
        if bucket.is_after_literal_step and must_not_wait:
            return
        # Where the state was replaced meanwhile nobody can know, and the backup is trusted.
        if bucket.can_recreate() and (found := unexpected(bucket)):
            self._settle(bucket, found, group)

    def _settle(self, bucket: Bucket, indices: list[int], group: Group) -> None:
        """Brings parameters that others wrote to into the group's mode."""
        settings = bucket.rule.settings(group, float(group["lr"]))
        found = identify.identify(bucket, indices, settings)
        identify.settle(bucket, found, group["weights_are"], settings)
        self._warn([(group, [bucket.params[i] for i, kind in found.items() if kind.is_foreign])])

    def _warn(self, foreign: loading.Foreign) -> None:
        if any(params for _, params in foreign) and not self._plans.has_warned:
            self._plans.has_warned = True
            names = loading.names(self.param_groups, foreign)
            warn_caller(WRITTEN_OUTSIDE.format(names=names))
