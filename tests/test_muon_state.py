"""WPMuon's momenta in checkpoints, under interrupts, overflow and clipping; what it refuses."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
from helpers import BACKENDS, assert_same_bits, assert_same_training, needs_cpp
from models import equal, held, snapshot
from muons import needs_original, parameters, set_grads, trained, twins
from test_interrupts import ACTIONS, check_everywhere
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from wpadamw import WPAdamW, WPMuon, layout

SHAPES = ((4, 6), (4, 6), (6, 3))


# Interrupts.


def interruptible(mode="predicted", **options):
    """Two groups; the second parameter has no gradient, the last one has gaps."""
    wide = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    params = [*parameters([(4, 5), (4, 5)]), nn.Parameter(wide[:, ::2])]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 3e-2}]
    opt = WPMuon(groups, lr=1e-2, **options)
    for k in range(2):
        set_grads(k, params)
        opt.step()
    set_grads(2, params)
    params[1].grad = None
    opt.predict() if mode == "predicted" else opt.restore()
    opt.saved = opt.state_dict()
    return opt


PLACES = {"backup": {}, "no-backup": {"backup": False}, "copies": {"compute_dtype": torch.bfloat16}}


@pytest.mark.parametrize("backend", [pytest.param("cpp", marks=needs_cpp), "torch"])
@pytest.mark.parametrize("place", PLACES)
def test_momentum_and_weights_belong_together_after_interrupts(place, backend):
    def make():
        return interruptible(backend=backend, **PLACES[place])

    check_everywhere(make, ACTIONS["step"], is_exact=place != "no-backup")


def test_interrupts_of_a_step_that_the_device_counts(monkeypatch, cuda_on_host):
    monkeypatch.setattr(layout, "host_must_not_wait", lambda device: True)

    def make():
        return interruptible(backend="cuda", amp=True)

    check_everywhere(make, ACTIONS["step"], is_exact=True)


# Checkpoints.


def through_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(params, opt, **options):
    others = twins(params)
    other = WPMuon(others, **options)
    other.load_state_dict(through_file(opt.state_dict()))
    return others, other


@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
def test_training_resumes_bit_for_bit(backup, mode):
    params, opt = trained(backup=backup, momentum=0.8)
    opt.predict() if mode == "predicted" else opt.restore()
    others, other = resumed(params, opt)
    for k in range(3):
        set_grads(10 + k, params, others)
        opt.step()
        other.step()
    assert_same_training(other, opt)


def test_groups_without_muon_have_checkpoints_of_adamws_rule():
    params = parameters(SHAPES)
    groups = [{"params": params[:2]}, {"params": params[2:], "use_muon": False}]
    opt = WPMuon(groups)
    set_grads(0, params)
    opt.step()
    saved = opt.state_dict()
    assert [group["rule"] for group in saved["param_groups"]] == ["muon", "adamw"]
    others = twins(params)
    other = WPMuon([{"params": others[:2]}, {"params": others[2:]}])
    other.load_state_dict(through_file(saved))
    set_grads(1, params, others)
    opt.step()
    other.step()
    assert_same_training(other, opt)


@needs_original
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_from_a_checkpoint_of_muon(backend):
    theirs = parameters(SHAPES, torch.float64)
    original = torch.optim.Muon(theirs, lr=0.02, momentum=0.9)
    for k in range(5):
        set_grads(k, theirs)
        original.step()
    ours = twins(theirs)
    opt = WPMuon(ours, prediction_steps=0.0, backend=backend)
    opt.load_state_dict(through_file(original.state_dict()))
    assert opt.param_groups[0]["momentum"] == 0.9
    for k in range(5, 10):
        set_grads(k, ours, theirs)
        opt.step()
        original.step()
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@needs_original
def test_a_checkpoint_of_muon_has_nothing_to_predict_from():
    theirs = parameters(SHAPES)
    original = torch.optim.Muon(theirs, lr=0.02)
    set_grads(0, theirs)
    original.step()
    ours = twins(theirs)
    opt = WPMuon(ours, prediction_steps=3.0)
    opt.load_state_dict(original.state_dict())
    opt.predict()
    assert equal(held(ours), held(theirs))
    set_grads(1, ours)
    opt.step()
    assert not equal(held(ours), held(theirs))
    others, other = resumed(ours, opt)
    set_grads(2, ours, others)
    opt.step()
    other.step()
    assert_same_training(other, opt)


def without(name):
    def change(saved):
        del saved["state"][0][name]

    return change


def of_adamw(saved):
    opt = WPAdamW(parameters(SHAPES))
    saved.update(opt.state_dict())


def as_adamw(saved):
    saved["param_groups"][0]["use_muon"] = False


FILES = {
    "without a direction": (without("direction"), "must have 'direction' for rule 'muon'"),
    "without a momentum": (without("momentum_buffer"), "must have 'momentum_buffer'"),
    "of AdamW": (of_adamw, "of rule 'adamw', not of 'muon'"),
    "without muon": (as_adamw, "of rule 'muon', not of 'adamw'"),
}


@pytest.mark.parametrize(("change", "message"), FILES.values(), ids=FILES)
def test_files_that_do_not_fit_are_refused(change, message):
    _, opt = trained(shapes=SHAPES)
    saved, before = copy.deepcopy(opt.state_dict()), snapshot(opt)
    change(saved)
    with pytest.raises(ValueError, match=re.escape(message)):
        opt.load_state_dict(saved)
    assert equal(snapshot(opt), before)


# Factors and schedules.


def test_clipping_is_of_gradients_before_they_reach_the_momentum():
    params, opt = trained(momentum=0.5)
    others, other = trained(momentum=0.5)
    set_grads(5, params, others, scale=50.0)
    opt.clip_grad_norm_(1e-2)
    torch.nn.utils.clip_grad_norm_(others, 1e-2)
    opt.step()
    other.step()
    for param, its in zip(params[:2], others, strict=False):
        found, want = (o.state[p]["momentum_buffer"] for o, p in ((opt, param), (other, its)))
        torch.testing.assert_close(found, want)


def test_maximizing_is_minimizing_the_contrary():
    params, opt = trained(maximize=True, steps=0)
    others, other = trained(steps=0)
    for param in others:
        param.grad.neg_()
    opt.step()
    other.step()
    assert equal(held(params), held(others))


def scaled(opt, params, grad_scale, found_inf):
    """What a gradient scaler leaves to the step."""
    opt.grad_scale, opt.found_inf = torch.tensor(grad_scale), torch.tensor(found_inf)
    for param in params:
        param.grad.mul_(grad_scale)
        if found_inf:
            param.grad.view(-1)[0] = float("inf")


@pytest.fixture(params=["cpp", "torch", "torch-on-device", "cuda-on-device"])
def backend(request, monkeypatch):
    """A backend, also where the host must not wait to know of an overflow."""
    name, _, place = request.param.partition("-on-")
    if place:
        monkeypatch.setattr(layout, "host_must_not_wait", lambda device: True)
    if name == "cuda":
        request.getfixturevalue("cuda_on_host")
    return name


def test_an_overflow_leaves_everything_as_it_was(backend):
    params, opt = trained(amp=True, backend=backend)
    before = snapshot(opt)
    scaled(opt, params, 8.0, 1.0)
    opt.step()
    assert equal(snapshot(opt), before)


def test_the_step_unscales(backend):
    params, opt = trained(amp=True, backend=backend)
    others, other = trained(backend="torch")
    scaled(opt, params, 8.0, 0.0)
    opt.step()
    other.step()
    for param, its in zip(params, others, strict=True):
        for name in ("weight", "momentum_buffer", "direction"):
            if name in other.state[its]:
                assert_same_bits(name, opt.state[param][name], other.state[its][name])


def test_counts_on_the_device_equal_those_of_the_host(backend):
    options = {"prediction": "rollout", "prediction_steps": 2.5}
    _, opt = trained(capturable=True, backend=backend, **options)
    _, other = trained(backend="torch", **options)
    for each in (opt, other):
        each.step()
        each.restore()
        each.predict()
    assert_same_training(opt, other, record_dtype=torch.float32)


def test_a_schedule_drives_both_rules():
    params, opt = trained(steps=0)
    scheduler = LambdaLR(opt, lambda k: 1.0 / (1 + k))
    others, other = trained(steps=0)
    for k in range(3):
        set_grads(k, params, others)
        opt.step()
        scheduler.step()
        other.param_groups[0]["lr"] = 0.02 / (1 + k)
        other.step()
    assert equal(held(params), held(others))


def test_accumulated_gradients_are_one_gradient():
    params, opt = trained(steps=0)
    others, other = trained(steps=0)
    for param, its in zip(params, others, strict=True):
        param.grad += param.grad.clone()
        its.grad = 2 * its.grad
    opt.step()
    other.step()
    assert equal(held(params), held(others))


# Refusals.

BAD = {
    "weight_decay": (-0.1, float("inf")),
    "momentum": (-0.1, "much"),
    "nesterov": ("yes",),
    "ns_coefficients": ((1.0, 2.0), (1.0, 2.0, float("nan")), 3.0),
    "eps": (-1.0,),
    "ns_steps": (-1, 100, 2.5),
    "adjust_lr_fn": ("spectral",),
    "use_muon": ("yes", None),
    "adamw_lr_factor": (-1.0, None),
    "adamw_betas": ((0.9,), (0.9, 1.0)),
    "adamw_eps": (-1.0,),
    "adamw_weight_decay": (-1.0, "none"),
    "prediction_steps": (-1.0,),
}
VALUES = [(name, value) for name, values in BAD.items() for value in values]


@pytest.mark.parametrize(("name", "value"), VALUES, ids=str)
def test_bad_arguments_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        WPMuon(parameters(SHAPES), **{name: value})


@pytest.mark.parametrize("lr", [-1.0, float("nan"), torch.tensor([0.1, 0.2])], ids=str)
def test_a_bad_lr_is_refused_in_torchs_words(lr):
    with pytest.raises(ValueError, match=r"^(Invalid learning rate: |Tensor lr must be 1-element)"):
        WPMuon(parameters(SHAPES), lr=lr)


@pytest.mark.parametrize(("name", "value"), VALUES, ids=str)
def test_bad_options_are_refused_before_anything_is_written(name, value):
    _, opt = trained()
    opt.add_param_group({"params": parameters([(3, 3)], seed=5)})
    opt.param_groups[1][name] = value
    before = snapshot(opt)["weights"]
    with pytest.raises(ValueError, match=f"^{name} must be"):
        opt.step()
    assert equal(snapshot(opt)["weights"], before)


@pytest.mark.parametrize("use_muon", [True, False])
def test_complex_matrices_are_for_adamw(use_muon):
    group = {"params": [nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))]}
    group["use_muon"] = use_muon
    opt = WPMuon(parameters([(3,)]))
    if use_muon:
        with pytest.raises(TypeError, match="params of rule 'muon' must be real"):
            WPMuon([group])
        with pytest.raises(TypeError, match="params of rule 'muon' must be real"):
            opt.add_param_group(group)
        assert len(opt.param_groups) == 1
    else:
        opt.add_param_group(group)
        group["params"][0].grad = torch.ones(2, 2, dtype=torch.complex64)
        opt.step()


def test_complex_matrices_are_refused_by_a_step_before_anything_is_written():
    params = [nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)), *parameters([(3,)])]
    opt = WPMuon(params, use_muon=False)
    opt.param_groups[0]["use_muon"] = True
    for param in params:
        param.grad = torch.ones_like(param)
    before = held(params)
    with pytest.raises(TypeError, match="params of rule 'muon' must be real"):
        opt.step()
    assert equal(held(params), before) and not opt.state


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_rule_is_kept_once_there_is_state(is_copied):
    params, opt = trained()
    if is_copied:
        params, opt = copy.deepcopy((params, opt))
    opt.param_groups[0]["use_muon"] = False
    before = held(params)
    with pytest.raises(ValueError, match=r"params\[0\] must keep its rule, got rule 'adamw'"):
        opt.step()
    assert equal(held(params), before)
    opt.param_groups[0]["use_muon"] = True
    opt.step()


def test_without_state_a_group_may_change_its_rule():
    params, opt = trained(steps=0)
    opt.param_groups[0]["use_muon"] = False
    opt.step()
    assert all("exp_avg" in opt.state[param] for param in params)


def test_options_of_adamw_are_told_by_their_names_here():
    with pytest.raises(ValueError, match=r"no argument 'betas', its options are .*adamw_betas"):
        WPMuon([{"params": parameters(SHAPES), "betas": (0.9, 0.99)}])


def test_a_prediction_must_leave_something_of_a_weight():
    for options in ({"adamw_weight_decay": 0.0}, {"weight_decay": 0.0, "adamw_weight_decay": 0.5}):
        arguments = {"lr": 2.0, "weight_decay": 0.5, "backup": False, **options}
        with pytest.raises(ValueError, match="backup=False needs prediction_steps"):
            WPMuon(parameters(SHAPES), **arguments)
