"""The plan: which buckets serve a parameter group, and whether they still fit what they serve.

Rebuilt lazily whenever parameters, options or state tensors were replaced, so it is never saved.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

from torch import Tensor

from wpadamw import _backends, checks, layout
from wpadamw._backends.interface import Gradients
from wpadamw.bucket import Bucket
from wpadamw.checks import Group, Mode, check_in_step, check_recoverable, check_running
from wpadamw.compare import unexpected
from wpadamw.copies import Copies
from wpadamw.directed_bucket import BUCKETS
from wpadamw.flat_state import StateDict, are_same, holds
from wpadamw.rules.rule import Rule, Rules, Settings, num_looks
from wpadamw.standing import Standing
from wpadamw.tracking import Tracked, unless_void

# Values of options that cannot change in place.
_FIXED = frozenset({float, int, bool, str, tuple, type(None)})

AllStates = dict[Tensor, StateDict]  # opt.state


class _Served(NamedTuple):
    """Who serves whom. Replaced whole, so that no exception finds it half replaced."""

    buckets: list[Bucket]
    pending: list[Tensor]  # parameters without state
    states: list[StateDict]  # the values of opt.state at the last look


class GroupPlan:
    """The buckets of one parameter group."""

    def __init__(
        self,
        group: Group,
        options: Iterable[str],
        rules: Rules,
        backend_name: str,
        amp: bool,
        copies: Copies | None = None,
    ) -> None:
        self.group, self.options, self.rules = group, options, rules
        self.backend_name, self.amp = backend_name, amp
        self.is_capturable: bool = group["capturable"]
        self.copies = copies
        self.wants_backup: bool = group["backup"]
        # With copies parameters hold their true weights.
        self.has_backup = copies is None and self.wants_backup
        self.num_looks = num_looks(group)
        self.master: str = group["master"]
        self.params: list[Tensor] = list(group["params"])
        self.served = _Served([], list(self.params), [])
        self.standings: list[Standing] | None = None
        self.tracked: list[Tracked] = []  # in the last step
        self.are_fixed = False  # objects that cannot change and remain the same
        # By rule, of the hyper-parameters that were checked.
        self.known_settings: dict[Rule, Settings] = {}
        self.checked: list[Any] = []  # the hyper-parameters that were looked at last

    @property
    def buckets(self) -> list[Bucket]:
        """The buckets of the parameters that have state."""
        return self.served.buckets

    def fits(self, group: Group, rules: Rules, copies: Copies | None) -> bool:
        """Whether the plan was made for these parameters, these rules and these copies."""
        return (
            self.rules == rules
            and self.copies is copies
            and self.wants_backup == group["backup"]
            and self.is_capturable == group["capturable"]
            and self.master == group["master"]
            and self.num_looks >= num_looks(group)
            and are_same(self.params, group["params"])
        )

    def check(self) -> None:
        """Raises ValueError for hyper-parameters that a step could not take."""
        values = list(map(self.group.get, self.options))
        if not (self.are_fixed and are_same(values, self.checked)):
            check_running(self.group, self._changed(values))
            check_recoverable(self.group, self.rules)
            if self.copies is not None:
                check_in_step(self.group)
            self.are_fixed = _FIXED.issuperset(map(type, values))
            self.checked, self.known_settings = values, {}

    def _changed(self, values: list[Any]) -> Iterable[str]:
        """Options that have to be looked at: a scheduler changes one in every step."""
        if not (self.are_fixed and self.checked):
            return self.options
        triples = zip(self.options, values, self.checked, strict=True)
        return [name for name, value, known in triples if value is not known]

    def stands(self, rules: Rules, state: AllStates) -> bool:
        """Whether nothing but gradients has changed, and `standing_step` may follow."""
        target = self.mode_after_step()
        if self.standings is None or self.group["track_prediction"]:
            return False
        if self.group["weights_are"] != target:
            return False
        if not self._serves_as_before(rules, state):
            return False
        for standing in self.standings:
            bucket = standing.bucket
            if not (bucket.holds_all(target) and standing.look()):
                return False
        return True

    def has_fresh_copies(self, state: AllStates) -> bool:
        """Whether there are copies that follow from states and records of this moment."""
        is_same = self.copies is not None and holds([state], self.served.states)
        return is_same and not self.is_frozen_anew() and all(map(_is_fresh, self.buckets))

    def mode_after_step(self) -> Mode:
        """What parameters hold after a step."""
        is_moved = self.copies is None and self.group["predict_in_step"]
        return "predicted" if is_moved else "true"

    def standing_step(self) -> None:
        """A step over all buckets, after `stands` has said yes."""
        assert self.standings is not None
        factor = -1.0 if self.group["maximize"] else 1.0
        for standing in self.standings:
            settings = self.checked_settings(standing.bucket.rule)
            standing.step(settings, factor, self.group["predict_in_step"])

    def quick_look(self, rules: Rules, state: AllStates) -> list[list[Gradients]] | None:
        """Each bucket's gradients, if all else is as the last own write has left it; else None."""
        mode = self.group["weights_are"]
        if not self._serves_as_before(rules, state):
            return None
        looks = [b.quick_look() if b.holds_all(mode) else None for b in self.buckets]
        return None if None in looks else cast(list[list[Gradients]], looks)

    def _serves_as_before(self, rules: Rules, state: AllStates) -> bool:
        """Whether parameters, rules and state dicts are those of the last look."""
        is_same = self.fits(self.group, rules, self.copies) and holds([state], self.served.states)
        return is_same and not self.starting()

    def refresh(self, state: AllStates) -> None:
        """Replaces buckets that no longer fit, and serves parameters that have state by now."""
        for bucket in self.buckets:
            bucket.refresh()
        has_same_states = holds([state], self.served.states)
        stale = [
            bucket
            for bucket in self.buckets
            if not (bucket.is_intact() and (has_same_states or bucket.has_states_of(state)))
        ]
        waiting = self.served.pending
        if stale or not has_same_states:
            waiting = [param for param in waiting if state.get(param)]
            self._serve(waiting, stale, state)

    def settings(self, rule: Rule) -> Settings:
        """The group's hyper-parameters of this moment, as a rule names them.

        The lr remains a tensor where the host must not wait for it.
        """
        lr = self.group["lr"]
        would_wait = isinstance(lr, Tensor) and layout.host_must_not_wait(lr.device)
        if would_wait and all(bucket.counts_on_device for bucket in self.buckets):
            return rule.settings(self.group, lr)
        return self.host_settings(rule)

    def host_settings(self, rule: Rule) -> Settings:
        """The same in numbers, for which the host waits."""
        return rule.settings(self.group, float(self.group["lr"]))

    def checked_settings(self, rule: Rule) -> Settings:
        """The same, after `check` has looked at it."""
        if rule not in self.known_settings:
            self.known_settings[rule] = self.host_settings(rule)
        return self.known_settings[rule]

    def is_frozen_anew(self) -> bool:
        """Whether other parameters are frozen than at the last look."""
        return any(bucket.is_frozen_anew() for bucket in self.buckets)

    def follow_freezing(self) -> None:
        """Has frozen parameters hold true weights, until they are trained again."""
        for bucket in self.buckets:
            if bucket.is_frozen_anew():
                bucket.follow_freezing(self.settings(bucket.rule))

    def note_tracked(self, tracked: list[Tracked], found_inf: Tensor | None) -> None:
        """Keeps what a step has found out about predictions, unless it did nothing."""
        self.tracked = unless_void(tracked, self.tracked, found_inf)

    def starting(self) -> list[Tensor]:
        """Parameters that have their first gradient."""
        return [param for param in self.served.pending if param.grad is not None]

    def adopt(self, params: list[Tensor], state: AllStates) -> None:
        """Serves parameters from now on; creates state where there is none."""
        self._serve(params, [], state)

    # Building.

    def _serve(self, params: list[Tensor], stale: list[Bucket], state: AllStates) -> None:
        """Serves parameters, and those of stale buckets, by new buckets."""
        # Options are new, or parameters have been cast: the state is left as it is then.
        checks.check_storage(self.group, self.rules)
        unknown = {id(param) for param in params if state.get(param)}
        held: dict[int, bool] = {}
        for bucket in stale:
            held |= zip(map(id, bucket.params), _held(bucket, self.is_predicted), strict=True)
            unknown |= {id(param) for param in _disturbed(bucket)}
        left = [p for bucket in stale for p in bucket.params if state.get(p)]
        given_up = [p for bucket in stale for p in bucket.params if not state.get(p)]
        built = [self._bucket(same, state, held) for same in self._by_kind([*left, *params])]
        for bucket in built:
            if self.has_backup:
                bucket.watch.doubt([id(param) in unknown for param in bucket.params])
            if not all(other.has_own_states() for other in stale):
                bucket.state_versions = None
        kept = [bucket for bucket in self.buckets if bucket not in stale]
        served = set(map(id, params))
        pending = [param for param in self.served.pending if id(param) not in served]
        self.served = _Served(kept + built, pending + given_up, list(state.values()))
        self.standings = self._standings()

    def _standings(self) -> list[Standing] | None:
        found = [Standing.of(bucket) for bucket in self.buckets]
        return None if None in found else cast(list[Standing], found)

    def _bucket(self, params: list[Tensor], state: AllStates, held: dict[int, bool]) -> Bucket:
        backend = _backends.choose(self.backend_name, params[0].device.type)
        # A new parameter holds its true weights; one with a state, what its group is said to hold.
        holding = [held.get(id(p), self.is_predicted and bool(state.get(p))) for p in params]
        states = [state[param] for param in params]  # of a defaultdict: created where there is none
        rule = self.rules.of(params[0])
        # The host knows nothing of overflow, of captured steps, and of what was summed on a device.
        on_device = bool(self.amp or self.is_capturable or rule.num_terms)
        on_device = on_device and layout.host_must_not_wait(params[0].device)
        return BUCKETS[rule.is_of_matrices, self.copies is not None](
            params,
            rule,
            self.has_backup,
            backend,
            states,
            holding,
            on_device,
            self.num_looks,
            self.copies,
            self.master,
        )

    def _by_kind(self, params: list[Tensor]) -> list[list[Tensor]]:
        """Parameters that one bucket can serve, together."""
        by_kind: dict[object, list[Tensor]] = {}
        for param in params:
            of_copy = self.copies and self.copies.kind_of(param).dtype
            kind = (param.device, param.dtype, of_copy, self.rules.of(param))
            by_kind.setdefault(kind, []).append(param)
        return list(by_kind.values())

    @property
    def is_predicted(self) -> bool:
        """Whether the group is said to hold predictions."""
        return bool(self.group["weights_are"] == "predicted")


def _is_fresh(bucket: Bucket) -> bool:
    is_known = bucket.can_recreate() and not bucket.ledger.is_written()
    return is_known and bucket.holds_all("true") and bucket.has_own_states()


def _held(bucket: Bucket, is_predicted: bool) -> list[bool]:
    """What parameters are to be taken to hold.

    After a cast it is neither their true weights nor the prediction that one makes in the new
    dtype: so it is the contrary of what they should hold, and they are written again.
    """
    if not bucket.has_backup:
        return bucket.held
    pairs = zip(bucket.params, bucket.held, strict=True)
    return [not is_predicted if p.dtype != bucket.dtype else holds for p, holds in pairs]


def _disturbed(bucket: Bucket) -> list[Tensor]:
    """Parameters whose values may not be the optimizer's own: written to, or put in their place."""
    if bucket.watch.is_in_place():
        return [bucket.params[i] for i in bucket.written_outside()]
    moved = [layout.as_real(layout.local(param).detach()) for param in bucket.params]
    pairs = zip(moved, bucket.tensors.params, strict=True)
    is_known = bucket.has_backup and bucket.can_recreate() and bucket.has_own_states()
    if not is_known or not all(layout.lies_like(a, b) for a, b in pairs):
        return bucket.params
    return [bucket.params[i] for i in unexpected(bucket, moved)]
