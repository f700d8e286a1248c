"""bfloat16 parameters without any further bits of their weights: steps round them with noise."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import BACKENDS, assert_same_training

from wpadamw import WPAdamW

NONE = {"master": "none", "backup": False}
# Between 0.5 and 1, and between 1 and 2.
ULP_BELOW, ULP_ABOVE = 2.0**-8, 2.0**-7


def trained(num_steps, backend="cpp", numel=4096, **options):
    param = torch.nn.Parameter(torch.ones(numel, dtype=torch.bfloat16))
    opt = WPAdamW([param], lr=1e-4, weight_decay=0.0, backend=backend, **NONE, **options)
    for _ in range(num_steps):
        param.grad = torch.ones_like(param)
        opt.step()
    return param, opt


@pytest.mark.parametrize("moments", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_updates_far_below_a_unit_in_the_last_place_add_up(backend, moments):
    param, opt = trained(300, backend, moments=moments)
    # Each is a twentieth of what a rounding to nearest would let pass.
    assert param.float().mean().item() == pytest.approx(1 - 301e-4, abs=4e-4)
    opt.restore()
    assert param.float().mean().item() == pytest.approx(1 - 300e-4, abs=4e-4)
    assert param.float().unique().numel() > 2  # each with a noise of its own


def test_nothing_but_moments_is_kept():
    param, opt = trained(2, moments="int8")
    names = {"exp_avg", "exp_avg_sq", "exp_avg_scale", "exp_avg_sq_scale", "prediction", "step"}
    assert opt.state[param].keys() == names
    tensors = [param, *(v for k, v in opt.state[param].items() if k not in ("prediction", "step"))]
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert held == 4.125 * param.numel()


def test_true_weights_are_computed_back_to_a_unit_in_the_last_place():
    param, opt = trained(20)
    before = param.detach().float().clone()
    with opt.true_weights():
        true = param.detach().float().clone()
    assert ((true - before - 1e-4).abs() <= ULP_BELOW).all()
    assert ((param.detach().float() - before).abs() <= ULP_ABOVE).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_checkpoint_goes_on_with_the_same_bits(backend):
    param, opt = trained(5, backend, numel=100)
    other = torch.nn.Parameter(param.detach().clone())
    loaded = WPAdamW([other], lr=1.0, backend=backend, **NONE)
    loaded.load_state_dict(copy.deepcopy(opt.state_dict()))
    for each, owner in ((param, opt), (other, loaded)):
        for _ in range(3):
            each.grad = torch.ones_like(each)
            owner.step()
    assert_same_training(loaded, opt)


def test_what_cannot_be_is_refused_by_name():
    param = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"master='none' needs backup=False"):
        WPAdamW([param], master="none")
    with pytest.raises(ValueError, match=r"master='none' needs bfloat16 or wider"):
        WPAdamW([torch.nn.Parameter(torch.ones(3).half())], **NONE)
    with pytest.raises(ValueError, match=r"master='none' needs bfloat16 params, got torch.float32"):
        WPAdamW([torch.nn.Parameter(torch.ones(3))], **NONE)
