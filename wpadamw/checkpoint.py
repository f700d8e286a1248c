"""Reading a state dict: everything is checked before anything of the optimizer changes.

The base class would cast moments to the parameter's dtype, alias the given tensors, and accept
tensors of any shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from wpadamw.checks import (
    Group,
    check_running,
    check_storage,
    drop_implied,
    foreign_options,
    why_no_memory,
)
from wpadamw.flat_state import COMMON_NAMES, StateDict, scale_of
from wpadamw.rules.rule import Rule, Rules, all_rules, relatives
from wpadamw.saved_values import (
    is_code,
    moments_of,
    nothing_to_predict,
    read_numbers,
    read_prediction,
    read_remainder,
    read_step,
)

# What a group does not take from a file: its parameters, and how its own state is stored.
_KEPT = ("params", "rule", "moments", "master")


def read(
    state_dict: Mapping[str, Any],
    groups: Sequence[Group],
    options: Iterable[str],
    original: type[torch.optim.Optimizer],
    rules_of: Callable[[Group], Rules],
) -> tuple[list[Group], dict[Tensor, StateDict]]:
    """Copies of the saved groups with these groups' parameters, and the parameters' states.

    The tensors of the states are the saved ones: buckets copy them to their flat buffers.

    Args:
        state_dict: what was saved.
        groups: the groups of the optimizer that loads.
        options: the names of its options.
        original: the optimizer whose checkpoints are read, too.
        rules_of: tells the update rules of a group.

    Raises:
        ValueError: for anything that does not fit, by its name.
    """
    read = _read_groups(state_dict.get("param_groups"), groups, options)
    rules = [rules_of(group) for group in read]
    saved_groups = state_dict["param_groups"]
    for i, (saved, group, of) in enumerate(zip(saved_groups, read, rules, strict=True)):
        where = f"state_dict['param_groups'][{i}]"
        _check_rule(saved, group, options, original, of, where)
    return read, _read_state(state_dict.get("state"), saved_groups, read, rules)


def _read_groups(saved: Any, groups: Sequence[Group], options: Iterable[str]) -> list[Group]:
    """Copies of the saved groups with this optimizer's parameters in them.

    Raises:
        ValueError: if number or sizes of the groups differ, in torch's words.
    """
    if not isinstance(saved, list) or not all(isinstance(group, dict) for group in saved):
        raise ValueError(f"state_dict['param_groups'] must be a list of dicts, got {saved!r:.200}")
    if len(saved) != len(groups):
        raise ValueError("loaded state dict has a different number of parameter groups")
    pairs = list(zip(saved, groups, strict=True))
    if any(_num_params(theirs) != len(ours["params"]) for theirs, ours in pairs):
        raise ValueError(
            "loaded state dict contains a parameter group that doesn't match the size of "
            "optimizer's group"
        )
    return [_read_group(theirs, ours, options, i) for i, (theirs, ours) in enumerate(pairs)]


def for_copies(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict for a reader that keeps copies.

    It asks `torch.distributed.checkpoint` for no backup, and where parameters were saved at their
    true weights there is nothing to miss.
    """
    groups, state = state_dict.get("param_groups"), state_dict.get("state")
    if isinstance(state, Mapping) and isinstance(groups, list) and not _carries_weights(state):
        groups = [
            {**group, "backup": None} if _is_at_true_weights(group) else group for group in groups
        ]
    return {**state_dict, "param_groups": groups}


def _carries_weights(state: Mapping[Any, Any]) -> bool:
    return any(isinstance(entry, Mapping) and "weight" in entry for entry in state.values())


def _is_at_true_weights(group: Any) -> bool:
    return isinstance(group, dict) and group.get("weights_are") == "true"


def _num_params(saved: Group) -> int:
    params = saved.get("params", ())
    return len(params) if isinstance(params, (list, tuple)) else -1


def _read_group(saved: Group, group: Group, options: Iterable[str], index: int) -> Group:
    loaded = {key: _copied(value) for key, value in saved.items() if key not in _KEPT}
    _check_has_weights(saved, group, index)
    if group["master"] != "float32" and _has_weights(saved):  # parameters take them
        loaded |= {"backup": False, "weights_are": "true"}
    if loaded.get("backup", ...) is None:  # predictions were in copies
        del loaded["backup"]
    # A checkpoint of the original knows nothing of prediction: those options stay as they are.
    read = {**group, "weights_are": "true", **loaded, "params": group["params"]}
    check_running(read, options, f"state_dict['param_groups'][{index}]")
    return read


def _check_has_weights(saved: Group, group: Group, index: int) -> None:
    if saved.get("master") == "split" != group["master"]:
        raise ValueError(
            f"state_dict['param_groups'][{index}] must have master={group['master']!r}, got "
            "'split': the model's file has the upper half of its weights"
        )


def _check_rule(
    saved: Group,
    read: Group,
    options: Iterable[str],
    original: type[torch.optim.Optimizer],
    rules: Rules,
    where: str,
) -> None:
    name = rules.main.name
    found = saved.get("rule", name)
    if not isinstance(found, str) or found != name:
        raise ValueError(f"{where} is of rule {found!r:.200}, not of {name!r}")
    drop_implied(read, options, original)
    for option in foreign_options(read, options):
        raise ValueError(
            f"{where} has {option!r}: it is of another rule than {name!r}, whose options are "
            f"{', '.join(options)}"
        )
    check_storage(read, rules)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else deepcopy(value)


def _read_state(
    saved: Any,
    saved_groups: Sequence[Group],
    groups: Sequence[Group],
    rules: Sequence[Rules],
) -> dict[Tensor, StateDict]:
    """The saved per-parameter states.

    Args:
        saved: ``state_dict["state"]``.
        saved_groups: the groups of the file, whose ``params`` number the parameters.
        groups: the groups that were read.
        rules: the rules of the groups.

    Raises:
        ValueError: for an entry that is missing, unknown, or of wrong shape or dtype.
    """
    if not isinstance(saved, Mapping):
        raise ValueError(f"state_dict['state'] must be a dict, got {type(saved).__name__}")
    state: dict[Tensor, StateDict] = {}
    unread = dict(saved)
    _check_keys([key for group in saved_groups for key in group["params"]])
    for theirs, ours, of in zip(saved_groups, groups, rules, strict=True):
        for key, param in zip(theirs["params"], ours["params"], strict=True):
            entry = unread.pop(key, None)
            if not _is_empty(entry):
                where = f"state_dict['state'][{key!r}]"
                state[param] = _read_entry(where, entry, theirs, param, of.of(param))
    if unread:
        raise ValueError(
            f"state_dict['state'] has an entry of no parameter: {next(iter(unread))!r}"
        )
    return state


def _check_keys(keys: list[Any]) -> None:
    try:
        num_keys = len(set(keys))
    except TypeError:
        num_keys = -1
    if num_keys != len(keys):
        raise ValueError(
            f"state_dict['param_groups'] must number each parameter once, got {keys!r:.200}"
        )


def _is_empty(entry: Any) -> bool:
    """Whether nothing has been saved of a parameter; torch.optim.SGD says so by None, too."""
    is_dict = isinstance(entry, Mapping)
    return entry is None or (is_dict and all(value is None for value in entry.values()))


def _check_names(where: str, entry: Any, saved_group: Group, param: Tensor, rule: Rule) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a dict, got {type(entry).__name__}")
    optional = rule.from_weight
    if "weights_are" not in saved_group:
        optional += rule.own_names
    required = [name for name in rule.state_names if name not in optional]
    required += ["step"] if rule.has_time else []
    required += ["weight"] if _has_weights(saved_group) else []
    required += ["prediction"] if "weights_are" in saved_group else []
    required += ["remainder"] if _is_split(saved_group, param) else []
    required += [scale_of(name) for name in moments_of(rule) if is_code(entry.get(name))]
    missing = [name for name in required if name not in entry]
    if missing:
        raise ValueError(
            f"{where} must have {missing[0]!r} for rule {rule.name!r}, got only "
            f"{sorted(map(str, entry))}{_as_of_others(entry)}"
        )
    known = {name for other in relatives(rule) for name in other.state_names}
    known |= {*map(scale_of, known), *rule.unused_names, *COMMON_NAMES}
    extra = [name for name in entry if name not in known]
    if extra:
        raise ValueError(f"{where} must have no entry {extra[0]!r}")


def _has_weights(saved_group: Group) -> bool:
    """Whether a state is to carry the true weights: it does with a backup."""
    is_predicted = saved_group.get("weights_are") == "predicted"
    backup = saved_group.get("backup")
    return is_predicted if backup is None else bool(backup)


def _is_split(saved_group: Group, param: Tensor) -> bool:
    """Whether a state has half of a weight: others of the group may be whole."""
    return saved_group.get("master") == "split" and param.dtype == torch.bfloat16


def _as_of_others(entry: Mapping[str, Any]) -> str:
    names = [r.name for r in all_rules() if r.state_names and set(r.state_names) <= entry.keys()]
    return f", the state of rule {names[0]!r}" if names else ""


def _read_entry(where: str, entry: Any, saved_group: Group, param: Tensor, rule: Rule) -> StateDict:
    _check_names(where, entry, saved_group, param, rule)
    if (reason := why_no_memory(param)) is not None:
        raise ValueError(f"{where} is of a parameter that {reason}")
    state: StateDict = {"step": read_step(where, entry.get("step", 1.0))}
    weights = ["weight"] if _has_weights(saved_group) else []
    for name in filter(entry.__contains__, [*rule.state_names, *weights]):
        state |= read_numbers(where, entry, name, param, rule)
    if _is_split(saved_group, param):
        state["remainder"] = read_remainder(where, entry["remainder"], param)
    if not all(map(entry.__contains__, rule.own_names)):
        state["prediction"] = nothing_to_predict(rule)
    elif "prediction" in entry:
        state["prediction"] = read_prediction(where, entry["prediction"], rule)
    return state
