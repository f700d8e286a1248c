"""What an optimizer keeps in order between the calls of its users.

Which weights parameters and copies hold, what was left half done by an interrupt, and what a
checkpoint brought.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wpadamw import loading
from wpadamw.checks import Group, Mode, check_in_step, check_mode
from wpadamw.compat import (
    check_no_transform,
    disable_dynamo,
    forget_gathered,
    is_capturing,
    outside_inference_mode,
)
from wpadamw.copies import Copies
from wpadamw.plan import GroupPlan
from wpadamw.serving import Serving


class Upkeep(Serving):
    """The plumbing below `WeightPrediction`."""

    # Modes.

    def _modes(self) -> list[Mode]:
        if self._plans.loaded != "no":
            self._receive()
        return [group["weights_are"] for group in self.param_groups]

    @disable_dynamo  # for the end of true_weights()
    @outside_inference_mode
    def _return_to(self, modes: list[Mode], look: bool = True) -> None:
        """Takes the groups to former modes; groups added since then stay as they are."""
        self._finish_loading()
        if self._plans.is_interrupted:
            self._put_in_order()
        if self._keeping.copies is not None:
            return  # parameters stay true
        pairs = zip(self.param_groups, modes, strict=False)
        moving = [(group, mode) for group, mode in pairs if group["weights_are"] != mode]
        for group, _ in moving:
            check_mode(group)
            self._clients.check_no_averages("switching between modes")
        for group, mode in moving:
            self._move(group, mode, look)

    @torch.no_grad()
    def _move(self, group: Group, mode: Mode, look: bool) -> None:
        check_no_transform(f"going to {mode} weights")
        plan = self._refreshed(group)
        if mode == "predicted" and not all(bucket.ledger.all_made() for bucket in plan.buckets):
            self._check_running(group)
        moving = [bucket for bucket in plan.buckets if not bucket.holds_all(mode)]
        for bucket in moving if look else ():
            self._look(bucket, group)
        self._plans.is_interrupted = True
        if mode == "predicted":
            group["weights_are"] = mode  # "true" is said only where all parameters are
            if not is_capturing():
                plan.follow_freezing()
        for bucket in moving:
            bucket.move(mode, plan.settings(bucket.rule))
        group["weights_are"] = mode
        self._plans.is_interrupted = False
        self._clients.has_shown_true |= mode == "true"
        if any(bucket.watch.are_sharded for bucket in moving):
            forget_gathered()

    def _follow_freezing(self) -> None:
        """Has frozen parameters hold true weights, until they are trained again."""
        plans = [self._plans.of(group) for group in self.param_groups]
        changed = [plan for plan in plans if plan is not None and plan.is_frozen_anew()]
        if changed and not is_capturing():
            self._change_freezing(changed)

    @outside_inference_mode
    @torch.no_grad()
    def _change_freezing(self, plans: list[GroupPlan]) -> None:
        self._put_in_order()
        self._plans.is_interrupted = True
        for plan in plans:
            plan.follow_freezing()
        self._plans.is_interrupted = False

    @outside_inference_mode
    @torch.no_grad()
    def _put_in_order(self) -> None:
        """Finishes what was interrupted, and takes note of what was written from outside."""
        self._modes()
        for group in self.param_groups:
            self._refreshed(group)
        self._plans.is_interrupted = False

    # Copies.

    def _keep_copies(self, copies: Copies | None) -> None:
        """Has predictions go to these copies from now on, or to the parameters; all are true."""
        for group in self.param_groups:
            if copies is not None:
                check_in_step(group)
        self._keeping.copies = copies

    def _refresh_copies(self) -> bool:
        """Brings copies up to date where states were written to, or parameters frozen.

        Tells whether there was something to do.
        """
        plans = [self._plans.of(group) for group in self.param_groups]
        is_known = (
            self._plans.loaded == "no" and not self._plans.is_interrupted and None not in plans
        )
        fresh = (plan.has_fresh_copies(self.state) for plan in plans if plan is not None)
        if is_known and all(fresh):
            return False
        self._renew_copies()
        return True

    @outside_inference_mode
    @torch.no_grad()
    def _renew_copies(self, anew: bool = False) -> None:
        """Brings the copies that hold predictions up to date, or computes all of them ``anew``."""
        self._finish_loading()
        for group in self.param_groups:
            if anew and (plan := self._plans.of(group)) is not None:
                for bucket in plan.buckets:
                    bucket.state_versions = None
            plan = self._refreshed(group)
            plan.follow_freezing()
            if anew and plan.copies is not None:
                plan.copies.show_true(plan.served.pending)
            if anew and any(bucket.watch.are_sharded for bucket in plan.buckets):
                forget_gathered()
        self._plans.is_interrupted = False

    # Checkpoints.

    def _replace(self, state: dict[Tensor, Any], groups: list[Group]) -> None:
        """Takes another state; the former one stays if there is no serving it."""
        former = {name: self.__dict__[name] for name in ("state", "param_groups", "_plans")}
        carried = {id(param) for param, entry in state.items() if "weight" in entry}
        try:
            self.__setstate__({"state": state, "param_groups": groups})
            if carried or self._keeping.copies is None or "predicted" in self._modes():
                self._plans.loaded, self._plans.carried = "read", carried
            for group in groups:
                if self._keeping.copies is not None:
                    check_in_step(group)
                self._plan(group)
        except BaseException as error:
            self.__dict__.update(former)
            if isinstance(error, (RuntimeError, TypeError)):
                raise ValueError(f"state_dict cannot be served here: {error}") from error
            raise

    @outside_inference_mode
    @torch.no_grad()
    def _receive(self) -> None:
        """Brings parameters to the weights of the checkpoint, or to newer ones that followed it."""
        plans = [self._plan(group) for group in self.param_groups]
        compared = [plan for plan in plans if plan.has_backup]
        foreign = loading.receive(compared, is_newer=self._plans.loaded == "received")
        for bucket in (bucket for plan in plans if not plan.has_backup for bucket in plan.buckets):
            bucket.watch.own()  # there is no copy to compare with: this is the model file
        self._plans.loaded = "received"
        if self._keeping.copies is not None:
            for plan in compared:  # of the others a model file may still come
                self._leave(plan)
        if any(bucket.watch.are_sharded for plan in plans for bucket in plan.buckets):
            forget_gathered()
        self._warn([(g, [p for p in of if id(p) in self._plans.carried]) for g, of in foreign])

    def _finish_loading(self) -> None:
        """To be called before the weights are used: what they hold now is what was meant."""
        if self._plans.loaded != "no":
            self._receive()
            # Copies serve from now on, and what was loaded without a backup goes to true weights.
            self._plans.is_interrupted |= self._keeping.copies is not None
            self._plans.loaded = "no"
            if self._plans.is_interrupted:
                self._put_in_order()
