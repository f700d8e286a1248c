"""Checkpoints of the optimizers whose arguments ours take; options that are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from models import equal
from test_adaptive_originals import (
    BELIEF,
    assert_close,
    belief_of,
    gradients,
    has_decoupled,
    start,
    trained,
)

from wpadamw import WPAdaBelief, WPAdam, WPAdaM3, WPAdamW, WPAdaPlus, WPNAdamW


def saved_by(kind, param, grads, **options):
    """A checkpoint of an optimizer of torch after these gradients."""
    optimizer = kind([param], **options)
    trained(optimizer, param, grads)
    return optimizer


@pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW], ids=["Adam", "AdamW"])
def test_training_goes_on_from_a_checkpoint_of_adam(kind, amsgrad, generator):
    theirs, grads = start(generator), gradients(generator)
    original = saved_by(kind, theirs, grads[:20], lr=0.01, weight_decay=0.1, amsgrad=amsgrad)
    ours = torch.nn.Parameter(theirs.detach().clone())
    is_decoupled = {} if has_decoupled else {"decoupled_weight_decay": kind is torch.optim.AdamW}
    optimizer = WPAdam([ours], prediction_steps=0.0, **is_decoupled)
    optimizer.load_state_dict(original.state_dict())
    name = {"Adam": ("adam", "adam_amsgrad"), "AdamW": ("adamw", "amsgrad")}[kind.__name__][amsgrad]
    assert optimizer.state_dict()["param_groups"][0]["rule"] == name
    assert_close(trained(optimizer, ours, grads[20:]), trained(original, theirs, grads[20:]))


@pytest.mark.parametrize("make", [WPAdamW, WPNAdamW], ids=["WPAdamW", "WPNAdamW"])
def test_what_always_holds_in_the_original_is_no_foreign_option(make, generator):
    param = start(generator)
    original = saved_by(torch.optim.AdamW, param, gradients(generator)[:2])
    optimizer = make([param])
    optimizer.load_state_dict(original.state_dict())
    assert "decoupled_weight_decay" not in optimizer.param_groups[0]
    make(original.param_groups)


@pytest.mark.skipif(not has_decoupled, reason="torch.optim.Adam has no decoupled_weight_decay")
def test_a_checkpoint_of_adam_is_refused_by_adamw(generator):
    param = start(generator)
    original = saved_by(torch.optim.Adam, param, gradients(generator)[:2])
    optimizer = WPAdamW([param])
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"'decoupled_weight_decay'.* rule than 'adamw'"):
        optimizer.load_state_dict(original.state_dict())
    assert equal(optimizer.state_dict(), before)


def as_saved_by_its_code(optimizer, own_options, **more):
    """A state dict as the authors' codes save theirs: whole numbers for counts, no more options."""
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = int(entry["step"])
        del entry["weight"], entry["prediction"]
        entry.update({name: value.clone() for name, value in more.items()})
    names = ("lr", "betas", "eps", "weight_decay", "amsgrad", "params")
    groups = [{name: group[name] for name in names} for group in saved["param_groups"]]
    return {"state": saved["state"], "param_groups": [{**g, **own_options} for g in groups]}


CODES = {
    "AdaBelief": (WPAdaBelief, {"buffer": [[None, None, None]] * 10}, {}),
    "AdaM3": (WPAdaM3, {"buffer": [[9, 4.9, 1.5]] * 10}, {}),
    "AdaPlus": (WPAdaPlus, {}, {"exp_avg_bar": torch.zeros(50, dtype=torch.float64)}),
}


@pytest.mark.parametrize("amsgrad", [False, True], ids=["plain", "amsgrad"])
@pytest.mark.parametrize("make, own_options, more", CODES.values(), ids=CODES)
def test_training_goes_on_from_a_checkpoint_of_the_authors_code(
    make, own_options, more, amsgrad, generator
):
    params, grads = [start(generator)], gradients(generator)
    twin = make(params, **BELIEF, amsgrad=amsgrad)
    trained(twin, params[0], grads[:20])
    twin.restore()
    file = as_saved_by_its_code(twin, own_options, **more)
    others = [torch.nn.Parameter(params[0].detach().clone())]
    optimizer = make(others)
    optimizer.load_state_dict(file)
    assert "exp_avg_bar" not in optimizer.state[others[0]]
    assert torch.equal(
        trained(optimizer, others[0], grads[20:]), trained(twin, params[0], grads[20:])
    )


def test_training_goes_on_from_a_checkpoint_of_adabelief_pytorch(generator):
    param, grads = start(generator), gradients(generator)
    original = belief_of("adabelief_pytorch")([param], **BELIEF, rectify=False)
    trained(original, param, grads[:20])
    ours = torch.nn.Parameter(param.detach().clone())
    optimizer = WPAdaBelief([ours], prediction_steps=0.0)
    optimizer.load_state_dict(original.state_dict())
    assert_close(trained(optimizer, ours, grads[20:]), trained(original, param, grads[20:]))


# What is refused.

NONSENSE = {
    "eps_mode": (WPAdaBelief, "under"),
    "weight_decouple": (WPAdaBelief, None),
    "fixed_decay": (WPAdaBelief, 2),
    "rectify": (WPAdaM3, "yes"),
    "degenerated_to_sgd": (WPAdaM3, None),
    "print_change_log": (WPAdaBelief, "no"),
    "outer_eps": (WPAdaPlus, None),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_options_are_refused_by_name_when_given_and_when_written(name):
    make, value = NONSENSE[name]
    param = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        make([param], **{name: value})
    optimizer = make([param])
    optimizer.param_groups[0][name] = value
    param.grad = torch.ones(3)
    with pytest.raises(ValueError, match=f"{name} must be one of"):
        optimizer.step()


@pytest.mark.parametrize("make", [WPAdaBelief, WPAdaM3, WPAdaPlus], ids=lambda make: make.__name__)
def test_eps_may_be_0(make):
    make([torch.nn.Parameter(torch.ones(3))], eps=0.0)


NOT_RECOVERABLE = {
    "decoupled": ({"lr": 2.0, "weight_decay": 0.5}, r"steps \* lr \* weight_decay < 1, got 1.0"),
    "fixed": ({"lr": 0.1, "weight_decay": 1.0, "fixed_decay": True}, r"steps \* weight_decay < 1"),
}


@pytest.mark.parametrize("options, message", NOT_RECOVERABLE.values(), ids=NOT_RECOVERABLE)
def test_a_decay_that_reaches_the_whole_weight_needs_a_backup(options, message):
    param = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=message):
        WPAdaBelief([param], **options, backup=False)
    WPAdaBelief([param], **options, predict_decay=False, backup=False)
    WPAdaBelief([param], **{**options, "weight_decouple": False}, backup=False)
