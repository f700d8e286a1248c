"""After a checkpoint has been read: which weights do the parameters hold, and which are right?

The optimizer's file carries the true weights. Parameters that hold neither these nor the
prediction from them when the file is loaded are older than the file and receive them. What comes
afterwards is newer: a model file of the same moment is known again, other weights take the place
of the file's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wpadamw import identify
from wpadamw.bucket import Bucket
from wpadamw.checks import Group, Mode
from wpadamw.plan import GroupPlan

_Found = list[tuple[Bucket, dict[int, identify.Found]]]
Foreign = list[tuple[Group, list[Tensor]]]  # parameters with weights from outside


def receive(plans: Sequence[GroupPlan], is_newer: bool) -> Foreign:
    """Brings all groups to a mode in which their parameters hold the right weights.

    Args:
        plans: of all groups that have a backup to compare with.
        is_newer: whether weights of unknown origin came after the file, and take the place of its
            own.

    Returns:
        The parameters whose backups have been given up.
    """
    found = [_identify(plan) for plan in plans]
    for plan, mode in zip(plans, _modes(plans, found, is_newer), strict=True):
        plan.group["weights_are"] = mode
    pairs = zip(plans, found, strict=True)
    return [foreign for plan, of_plan in pairs for foreign in _settle(plan, of_plan, is_newer)]


def _modes(plans: Sequence[GroupPlan], found: list[_Found], is_newer: bool) -> list[Mode]:
    """The modes that parameters are found to be in; "true" where nothing has been recognised."""
    kinds = [[kind for _, of in of_plan for kind in of.values()] for of_plan in found]
    if not is_newer:
        kinds = [[kind for kind in of_plan if not kind.is_foreign] for of_plan in kinds]
    modes = identify.group_modes(kinds, [plan.group["weights_are"] for plan in plans])
    told = [mode for mode, of_plan in zip(modes, kinds, strict=True) if of_plan] or ["true"]
    has_state = [bool(of_plan) for of_plan in found]
    return [
        told[0] if stateful and not of_plan else mode
        for mode, of_plan, stateful in zip(modes, kinds, has_state, strict=True)
    ]


def _identify(plan: GroupPlan) -> _Found:
    found = []
    for bucket in plan.buckets:
        settings = plan.host_settings(bucket.rule)
        everything = range(len(bucket.params))
        found.append((bucket, identify.identify(bucket, everything, settings, is_loading=True)))
    return found


def _settle(plan: GroupPlan, found: _Found, is_newer: bool) -> Foreign:
    mode = plan.group["weights_are"]
    foreign: Foreign = []
    for bucket, of_bucket in found:
        unknown = [i for i, kind in of_bucket.items() if kind.is_foreign]
        if is_newer and unknown:
            foreign.append((plan.group, [bucket.params[i] for i in unknown]))
        else:  # older than the file: the file's weights take their place
            of_bucket = {i: kind for i, kind in of_bucket.items() if i not in unknown}
        settings = plan.host_settings(bucket.rule)
        identify.settle(bucket, of_bucket, mode, settings, is_loading=True)
    return foreign


def names(groups: Sequence[Group], foreign: Foreign, limit: int = 8) -> str:
    """The names of parameters, or their places in groups without names."""
    found = [_name(groups, group, param) for group, params in foreign for param in params]
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return ", ".join(found[:limit]) + more


def _name(groups: Sequence[Group], group: Group, param: Tensor) -> str:
    number = next(i for i, own in enumerate(groups) if own is group)
    position = next(i for i, own in enumerate(group["params"]) if own is param)
    place = f"param_groups[{number}]['params'][{position}]"
    return f"{group['param_names'][position]} ({place})" if "param_names" in group else place
