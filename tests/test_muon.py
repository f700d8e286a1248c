"""WPMuon beside the optimizers of torch, its updates, and its predictions."""

from __future__ import annotations

import copy
import inspect
import struct

import pytest
import torch
from helpers import BACKENDS, PLACES, Twins, assert_same_bits, kinds_and, needs_cpp
from models import equal, held, snapshot
from muons import OTHERS, SHAPES, needs_original, parameters, set_grads, trained, twins
from rule_table import OF_MATRICES

import wpadamw
from wpadamw import WPAdamW, WPMuon
from wpadamw.orthogonal import Updates

OPTIONS = {
    "defaults": {},
    "plain-momentum": {"nesterov": False, "momentum": 0.8},
    "little-momentum": {"momentum": 0.3, "weight_decay": 0.0},
    "adamw-sizes": {"adjust_lr_fn": "match_rms_adamw", "ns_steps": 3, "eps": 1e-3},
    "coefficients": {"adjust_lr_fn": "original", "ns_coefficients": (2.0, -1.5, 0.5)},
}
FORMS = {"linear": {}, "rollout": {"prediction": "rollout", "prediction_steps": 2.5}}


def distance(got, want):
    """The largest difference, relative to the largest weight."""
    pairs = [(p, q) for p, q in zip(got, want, strict=True) if p.numel()]
    return max(((p - q).abs().max() / q.abs().max()).item() for p, q in pairs)


# Beside torch, without prediction.


@needs_original
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_without_prediction_it_is_muon(options, backend):
    ours = parameters([shape for shape in SHAPES if 0 not in shape], torch.float64)
    theirs = twins(ours)
    opt = WPMuon(ours, lr=0.02, prediction_steps=0.0, backend=backend, **options)
    original = torch.optim.Muon(theirs, lr=0.02, **options)
    for k in range(60):
        set_grads(k, ours, theirs)
        opt.step()
        original.step()
    assert distance(ours, theirs) < 1e-12
    for p, q in zip(ours, theirs, strict=True):
        assert_same_bits(
            "momentum", opt.state[p]["momentum_buffer"], original.state[q]["momentum_buffer"]
        )


@needs_original
def test_training_by_its_own_gradients_is_muons():
    ours = parameters([(20, 30), (30, 20)], torch.float64)
    theirs = twins(ours)
    opt = WPMuon(ours, lr=0.02, prediction_steps=0.0)
    original = torch.optim.Muon(theirs, lr=0.02)
    inputs = torch.randn(20, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for _ in range(60):
        for (p, q), each in ((ours, opt), (theirs, original)):
            each.zero_grad()
            (torch.tanh(inputs @ p) @ q - inputs).square().mean().backward()
            each.step()
    assert distance(ours, theirs) < 1e-12


@needs_original
def test_arguments_and_defaults_are_those_of_muon():
    ours, theirs = (inspect.signature(kind).parameters for kind in (WPMuon, torch.optim.Muon))
    for own, its in zip(list(ours.values()), theirs.values(), strict=False):
        assert (own.name, own.default, own.kind) == (its.name, its.default, its.kind)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_matrix_is_trained_by_adamw(backend):
    ours = parameters([*OTHERS, (4, 3), (6, 2)], torch.float64)
    theirs = twins(ours)
    groups = [{"params": ours[:3]}, {"params": ours[3:], "use_muon": False, "lr": 0.05}]
    options = {"adamw_betas": (0.8, 0.9), "adamw_eps": 1e-5, "adamw_lr_factor": 0.3}
    opt = WPMuon(groups, lr=0.02, prediction_steps=0.0, backend=backend, **options)
    original = torch.optim.AdamW(
        [{"params": theirs[:3], "lr": 0.02 * 0.3}, {"params": theirs[3:], "lr": 0.05 * 0.3}],
        betas=(0.8, 0.9),
        eps=1e-5,
        weight_decay=0.1,
    )
    for k in range(60):
        set_grads(k, ours, theirs)
        opt.step()
        original.step()
    assert distance(ours, theirs) < 1e-12


def test_adamw_may_have_a_decay_of_its_own():
    for given, expected in ((None, 0.3), (0.0, 0.0), (0.2, 0.2)):
        (ours,) = parameters([(5,)], torch.float64)
        (theirs,) = twins([ours])
        opt = WPMuon([ours], weight_decay=0.3, adamw_weight_decay=given, prediction_steps=0.0)
        original = WPAdamW([theirs], weight_decay=expected, betas=(0.9, 0.95), prediction_steps=0.0)
        for k in range(3):
            set_grads(k, [ours], [theirs])
            opt.step()
            original.step()
        assert_same_bits("weight", ours, theirs)


def test_rest_predicts_as_adamw_does():
    (ours,) = parameters([(5,)])
    (theirs,) = twins([ours])
    opt = WPMuon([ours], lr=0.1, adamw_lr_factor=0.5, prediction_steps=2.0)
    original = WPAdamW([theirs], lr=0.05, betas=(0.9, 0.95), weight_decay=0.1, prediction_steps=2.0)
    for k in range(3):
        set_grads(k, [ours], [theirs])
        opt.step()
        original.step()
    assert_same_bits("predicted", ours, theirs)


# The updates.

HOW = Updates(0.95, True, (3.4445, -4.775, 2.0315), 1e-7, 5, None)


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8), (1, 9), (9, 1)], ids=str)
def test_singular_values_go_to_around_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = HOW.orthogonal(matrix).double()
    values = torch.linalg.svdvals(found)
    assert found.shape == shape
    assert 0.3 < values.min() <= values.max() < 1.3
    # Along the same singular vectors: the product of the two is nearly symmetric and positive.
    product = found.mT @ matrix.double()
    torch.testing.assert_close(product, product.mT, atol=0.05 * product.abs().max(), rtol=0.0)
    assert torch.trace(product) > 0.5 * torch.linalg.svdvals(matrix.double()).sum()


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8), (1, 9), (9, 1)], ids=str)
def test_a_batch_is_as_good_as_its_matrices(shape):
    """Products of a batch may be added up in another order: a few roundings to bfloat16."""
    batch = torch.randn((3, *shape), generator=torch.Generator().manual_seed(0)).bfloat16()
    singles = torch.stack(HOW.all_orthogonal(list(batch)))
    torch.testing.assert_close(HOW.orthogonal(batch), singles, rtol=0.0, atol=0.03)


def test_norms_below_eps_count_as_eps():
    assert not HOW.orthogonal(torch.zeros(3, 4).bfloat16()).any()
    small = torch.full((3, 4), 0.125).bfloat16()
    assert torch.equal(HOW._replace(eps=2.0, steps=0).orthogonal(small), small / 2)


@pytest.mark.parametrize(
    ("adjustment", "shape", "size"),
    [
        (None, (8, 2), 2.0),
        ("original", (2, 8), 1.0),
        ("match_rms_adamw", (4, 25), 1.0),
        ("match_rms_adamw", (100, 4), 2.0),
        (None, (4, 0), 2.0),
    ],
)
def test_sizes_by_the_shape(adjustment, shape, size):
    assert HOW._replace(adjustment=adjustment).size(torch.Size(shape)) == pytest.approx(size)


def test_the_momentum_may_change_between_steps():
    (param,), opt = trained(shapes=((4, 6),))
    before = opt.state[param]["momentum_buffer"].clone()
    opt.param_groups[0]["momentum"] = 0.25
    opt.step()
    expected = before.lerp(param.grad, 0.75)
    assert_same_bits("momentum", opt.state[param]["momentum_buffer"], expected)


# Equal bits.


def float32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


@pytest.mark.parametrize(("dtype", "fl"), [(torch.float32, float32), (torch.float64, float)])
@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_kernel_follows_its_formulas_to_the_bit(form, backend, backup, dtype, fl):
    case = OF_MATRICES["muon"]
    (param,) = parameters([(12, 17)], dtype)
    opt = case.make([param], lr=0.013, backend=backend, backup=backup, **case.options, **form)
    group = opt.param_groups[0]
    slow = [case.slow(fl, w, group) for w in param.flatten().tolist()]
    for k in range(5):
        set_grads(k, [param])
        opt.step()
        update = opt.state[param]["direction"].flatten().tolist()
        for element, u in zip(slow, update, strict=True):
            element.step(u)
        want = torch.tensor([element.predicted() for element in slow], dtype=dtype)
        assert_same_bits("predicted", param.flatten(), want)
        if not backup:
            for element, p in zip(slow, want.tolist(), strict=True):
                element.w = element.recovered(p)
    opt.restore()
    assert_same_bits("true", param.flatten(), torch.tensor([e.w for e in slow], dtype=dtype))


PLACES_OF_FORMS = {
    f"{place}-{form}": {**options, **FORMS[form]}
    for place, options in PLACES.items()
    for form in FORMS
}
REAL = [case for case in kinds_and(PLACES_OF_FORMS) if not case.values[0].is_complex]


@needs_cpp
@pytest.mark.parametrize(("dtype", "grad_dtype", "options"), REAL)
def test_backends_have_the_same_bits(dtype, grad_dtype, options, generator):
    def make_params():
        params = parameters([*SHAPES[:7], *SHAPES[-2:], *OTHERS], dtype)
        with torch.no_grad():  # in memory by columns, and with gaps
            params.append(torch.nn.Parameter(torch.ones(6, 4, dtype=dtype).t()))
            params.append(torch.nn.Parameter(torch.ones(6, 4, dtype=dtype)[:, ::2]))
        return params

    Twins(make_params, make=WPMuon, lr=0.02, **options).run_everything(generator, grad_dtype)


# Predictions.


def test_a_prediction_goes_along_the_update():
    params, opt = trained(prediction_steps=2.0, weight_decay=0.1, shapes=((4, 6), (6, 4)))
    opt.step()
    predicted = held(params)
    opt.restore()
    for param, p in zip(params, predicted, strict=True):
        want = param * (1 - 2 * 0.02 * 0.1) - opt.state[param]["direction"] * (2 * 0.02)
        torch.testing.assert_close(p, want)
        assert (p - param).abs().max() > 1e-3


@pytest.mark.parametrize("form", ["linear", "rollout"])
def test_prediction_looks_where_steps_with_the_same_gradient_would_lead(form):
    ahead = {"linear": 1, "rollout": 3}[form]
    options = {"momentum": 0.0, "prediction": form, "prediction_steps": ahead}
    (predicted,), _ = trained(steps=1, shapes=((4, 6),), **options)
    (param,), opt = trained(steps=0, shapes=((4, 6),), **{**options, "prediction_steps": 0.0})
    for _ in range(1 + ahead):
        set_grads(0, [param])
        opt.step()
    assert_same_bits("weights", predicted, param)


def test_true_weights_come_back():
    for backup in (True, False):
        params, opt = trained(backup=backup)
        straight, _ = trained(backup=backup, prediction_steps=0.0)
        opt.restore()
        opt.predict()
        opt.eval()
        for param, other in zip(params, straight, strict=True):
            if backup:
                assert_same_bits("true", param, other)
            torch.testing.assert_close(param, other)


def test_an_attached_model_evaluates_with_true_weights():
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    opt = WPMuon(model.parameters(), lr=0.02)
    wpadamw.attach(model, opt)
    for _ in range(2):
        model.train()
        model(torch.ones(3, 4)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    assert opt.weights_are == "predicted"
    model.eval()
    assert opt.weights_are == "true"
    assert equal(held(model), [opt.state[param]["weight"] for param in model.parameters()])


def test_a_new_group_is_predicted_too():
    params, opt = trained()
    added = parameters([(3, 3), (4,)], seed=5)
    opt.add_param_group({"params": added, "momentum": 0.5})
    set_grads(7, params, params)
    set_grads(8, added)
    opt.step()
    assert opt.weights_are == "predicted"
    predicted = held(added)
    opt.restore()
    assert not any(torch.equal(p, q) for p, q in zip(predicted, added, strict=True))


def test_unused_and_frozen_parameters_stay():
    params, opt = trained(shapes=((4, 6), (4, 6), (6, 4), (5,)))
    opt.restore()
    params[1].grad, before = None, copy.deepcopy(opt.state[params[1]])
    weight = params[1].detach().clone()
    params[2].requires_grad_(False)
    params[2].grad, frozen = None, params[2].detach().clone()
    opt.step()
    assert_same_bits("frozen", params[2], frozen)
    assert equal(before["momentum_buffer"], opt.state[params[1]]["momentum_buffer"])
    assert before["step"] + 1 == opt.state[params[0]]["step"]
    opt.restore()
    assert_same_bits("unused", params[1], weight)
    assert snapshot(opt)["state"][1]["step"] == before["step"]
