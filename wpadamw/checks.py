"""Refusals: parameters and hyper-parameters that an optimizer cannot work with.

Every check raises before anything is written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from wpadamw import layout
from wpadamw.compat import warn_caller
from wpadamw.options import CHECKS
from wpadamw.rules.rule import MAX_ROLLOUT, Rule, Rules, all_rules

Group = dict[str, Any]

# Which weights parameters hold.
Mode = Literal["true", "predicted"]
MODES = get_args(Mode)

_NARROW = (torch.bfloat16, torch.float16)


def plain_numbers(group: Group) -> Group:
    """A group without numbers of NumPy, which would not load with ``weights_only=True``."""
    return {key: value if key == "params" else _plain(value) for key, value in group.items()}


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_plain, value))
    is_numpy = type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0
    return value.item() if is_numpy else value


def check_arguments(group: Group, original: type[torch.optim.Optimizer]) -> None:
    """Raises for arguments of a new group that the original optimizer or we refuse."""
    theirs = inspect.signature(original).parameters.keys() & group.keys() - {
        "params",
        "differentiable",
    }
    original([torch.empty(0, device="cpu")], **{name: group[name] for name in theirs})
    for name in group:
        if name in CHECKS and name not in theirs:
            CHECKS[name](name, group[name])
    _check_rollout(group)


def _defaults_of(original: Callable[..., torch.optim.Optimizer]) -> Group:
    """What the original optimizer gives its groups where nothing else is said."""
    own = original([torch.empty(0, device="cpu")]).defaults
    # torch before 2.7 does not say it.
    return {"decoupled_weight_decay": True, **own} if original is torch.optim.AdamW else own


def foreign_options(group: Group, options: Iterable[str]) -> list[str]:
    """Options of other optimizers of ours, which would have no effect."""
    return [name for name in group if name in CHECKS and name not in options]


def drop_implied(
    group: Group, options: Iterable[str], original: type[torch.optim.Optimizer]
) -> None:
    """Removes options of others that say what always holds in the original optimizer."""
    foreign = foreign_options(group, options)
    implied = _defaults_of(original) if foreign else {}  # most groups have none
    for name in foreign:
        if name in implied and _is_same(group[name], implied[name]):
            del group[name]


def _is_same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def check_known(group: Group, options: Iterable[str], optimizer: str) -> None:
    """Raises ValueError for an option of another of our optimizers."""
    for name in foreign_options(group, options):
        raise ValueError(
            f"{optimizer} has no argument {name!r}, its options are {', '.join(options)}"
        )


def check_running(group: Group, options: Iterable[str], where: str = "") -> None:
    """Raises ValueError for hyper-parameters that a step could not take.

    Schedulers write what they like: any lr is as good here as in torch, negative or infinite ones
    too.

    Args:
        group: the parameter group.
        options: names of the optimizer's options.
        where: stands before the name that the error tells.
    """
    for name in options:
        CHECKS[name](_name(name, where), group[name])
    _check_rollout(group, where)
    check_mode(group, where)


def check_in_step(group: Group) -> None:
    """Raises ValueError where a step would leave copies without a prediction."""
    if not group["predict_in_step"]:
        raise ValueError("predict_in_step must be True with compute copies, got False")


def check_step(group: Group, options: Iterable[str], rules_of: Callable[[Group], Rules]) -> None:
    """Raises ValueError for hyper-parameters with which no step can be taken."""
    check_running(group, options)
    check_recoverable(group, rules_of(group))


def check_mode(group: Group, where: str = "") -> None:
    """Raises ValueError for a mode that is none."""
    if group["weights_are"] not in MODES:
        name, found = _name("weights_are", where), f"got {group['weights_are']!r:.200}"
        raise ValueError(f"{name} must be 'true' or 'predicted', {found}")


def _check_rollout(group: Group, where: str = "") -> None:
    """Each update ahead is computed."""
    steps = group["prediction_steps"]
    if group["prediction"] == "rollout" and steps > MAX_ROLLOUT:
        name = _name("prediction_steps", where)
        raise ValueError(f"{name} must be <= {MAX_ROLLOUT} with prediction='rollout', got {steps}")


def _name(name: str, where: str) -> str:
    return f"{where}[{name!r}]" if where else name


def unique(params: list[Any]) -> list[Any]:
    """Parameters, alone or as (name, parameter), each at its first place; warns as torch does."""
    distinct: dict[int, Any] = {}
    for item in params:
        distinct.setdefault(id(item[1] if isinstance(item, tuple) else item), item)
    if len(distinct) != len(params):
        warn_caller(
            "optimizer contains a parameter group with duplicate parameters, each of which will be "
            f"updated once in a step: params has {len(params)} entries, {len(distinct)} of them "
            "distinct"
        )
    return list(distinct.values())


def check_kind(param: Tensor, rule: Rule) -> None:
    """Raises TypeError for parameters of FSDP1, or of a dtype that has no rule of rounding here."""
    if rule.is_of_matrices and param.is_complex():
        raise TypeError(f"params of rule {rule.name!r} must be real, got {param.dtype}")
    if getattr(param, "_fsdp_flattened", False):
        raise TypeError(
            "params must not be those of FullyShardedDataParallel, which keeps weights of its own: "
            "use torch.distributed.fsdp.fully_shard"
        )
    if param.dtype not in layout.REAL_DTYPE:
        known = ", ".join(str(dtype) for dtype in layout.REAL_DTYPE)
        raise TypeError(f"params must have one of the dtypes {known}, got {param.dtype}")


def why_no_memory(param: Tensor) -> str | None:
    """Why a parameter has no memory of its own to be updated in, or None if it has."""
    local = layout.local(param)
    if local.layout != torch.strided or local.is_nested or local.is_quantized:
        return f"must be dense, got layout {local.layout}"
    if local.is_meta:
        return "must have data, got a meta tensor"
    if not layout.has_memory(local):
        return "must have memory, got a freed storage"
    if local.is_conj() or local.is_neg() or layout.overlaps(local):
        return (
            "must own one number per element, got a conjugate, negative or expanded view of shape "
            f"{tuple(local.shape)} and strides {local.stride()}"
        )
    return None


def check_storage(group: Group, rules: Rules) -> None:
    """Raises ValueError for parameters and rules that cannot be stored as the group says."""
    _check_moments(group, rules)
    _check_master(group)
    if group["backup"]:
        return
    own_masters = () if group["master"] == "float32" else (torch.bfloat16,)
    narrow = [p.dtype for p in group["params"] if p.dtype in _NARROW and p.dtype not in own_masters]
    if narrow:
        raise ValueError(f"backup=False needs float32 or float64 params, got {narrow[0]}")
    for rule in rules:
        if not rule.can_recover():
            raise ValueError(
                "backup=False needs a rule whose predictions can be solved for the weights, got "
                f"rule {rule.name!r}"
            )


def _check_moments(group: Group, rules: Rules) -> None:
    if group["moments"] == "float32":
        return
    needs = f"moments={group['moments']!r} needs"
    for rule in rules:
        if rule.is_of_matrices:
            raise ValueError(f"{needs} a rule of single elements, got rule {rule.name!r}")
    for param in group["params"]:
        if param.dtype not in (torch.float32, *_NARROW):
            raise ValueError(f"{needs} float32, bfloat16 or float16 params, got {param.dtype}")
        if group["moments"] == "int8" and layout.is_dtensor(param):
            raise ValueError(f"{needs} params that are not sharded, got {type(param).__name__}")


def _check_master(group: Group) -> None:
    if (master := group["master"]) == "float32":
        return
    if group["backup"]:
        raise ValueError(
            f"master={master!r} needs backup=False: true weights are computed from the predicted "
            "ones"
        )
    if torch.float16 in (found := [param.dtype for param in group["params"]]):
        raise ValueError(f"master={master!r} needs bfloat16 or wider params, got {torch.float16}")
    if found and torch.bfloat16 not in found:
        raise ValueError(f"master={master!r} needs bfloat16 params, got {found[0]}")


def check_recoverable(group: Group, rules: Rules) -> None:
    """Raises ValueError where true weights cannot be computed from predicted ones."""
    check_storage(group, rules)
    lr = group["lr"]
    must_not_wait = isinstance(lr, Tensor) and layout.host_must_not_wait(lr.device)
    if group["backup"] or (must_not_wait and group["capturable"]):
        return
    for rule in rules:
        if (reason := rule.why_not_recoverable(group, float(lr))) is not None:
            raise ValueError(f"backup=False {reason}")


def check_states(group: Group, rules: Rules, states: Mapping[Tensor, Any]) -> None:
    """Raises ValueError for parameters with the state of a rule that theirs cannot go on from."""
    of_rules = {name for rule in all_rules() for name in rule.state_names}
    for i, param in enumerate(group["params"]):
        rule, found = rules.of(param), of_rules & states.get(param, {}).keys()
        if found and found.isdisjoint(rule.state_names):
            raise ValueError(
                f"params[{i}] must keep its rule, got rule {rule.name!r} for one with a state of "
                f"{', '.join(sorted(found))}"
            )
