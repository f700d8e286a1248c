"""What is refused, in which words, and that a refusal leaves everything as it was."""

from __future__ import annotations

import contextlib

import pytest
import torch
from models import HYPER, equal, held, parameter, set_grads, snapshot, started
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import wpadamw

TORCH_REFUSES = [
    {"lr": -1.0},
    {"lr": float("nan")},
    {"lr": torch.tensor([0.1, 0.2])},
    {"lr": torch.tensor(0.1), "foreach": True},
    {"betas": (1.0, 0.9)},
    {"betas": (-0.1, 0.9)},
    {"betas": (0.9, 1.0)},
    {"betas": (0.9, -1.0)},
    {"betas": (0.9,)},
    {"betas": (0.9, torch.tensor(0.9))},
    {"betas": (torch.tensor([0.9, 0.9]), torch.tensor(0.9))},
    {"betas": 0.9},
    {"eps": -1e-8},
    {"eps": None},
    {"weight_decay": -0.1},
    {"weight_decay": "much"},
    {"fused": True, "foreach": True},
]
PARAMS_THAT_TORCH_REFUSES = {
    "none": lambda: [],
    "tensor": lambda: parameter(3),
    "number": lambda: [1.0],
    "set": lambda: [{"params": {parameter(3)}}],
    "non-leaf": lambda: [parameter(3) * 2],
    "no-params": lambda: [{"lr": 0.1}],
    "across-groups": lambda: (lambda p: [{"params": [p]}, {"params": [p]}])(parameter(3)),
    "half-named": lambda: [("weight", parameter(3)), parameter(3)],
    "half-named-groups": lambda: [{"params": [("a", parameter(3))]}, {"params": [parameter(3)]}],
}
WE_REFUSE = [
    ({"prediction_steps": -1.0}, ValueError, "prediction_steps must be a number >= 0, got -1.0"),
    ({"prediction_steps": float("nan")}, ValueError, "prediction_steps must be .* got nan"),
    ({"prediction_steps": float("inf")}, ValueError, "prediction_steps must be .* got inf"),
    ({"prediction_steps": "1"}, ValueError, "prediction_steps must be a number >= 0, got '1'"),
    ({"prediction_steps": None}, ValueError, "prediction_steps must be .* got None"),
    ({"differentiable": True}, ValueError, "differentiable must be False"),
    ({"backend": "numpy"}, ValueError, "backend must be one of 'auto', .*'torch'.* got 'numpy'"),
    ({"backend": None}, ValueError, "backend must be one of"),
    (
        {"backup": False, "lr": 2.0, "weight_decay": 0.5},
        ValueError,
        "backup=False needs prediction_steps [*] lr [*] weight_decay < 1",
    ),
]


def error_of(call):
    with pytest.raises(Exception) as caught:
        call()
    return type(caught.value), str(caught.value)


# The constructor.


@pytest.mark.parametrize("arguments", TORCH_REFUSES, ids=str)
def test_arguments_are_refused_in_torchs_words(arguments):
    with contextlib.suppress(Exception):
        torch.optim.AdamW([parameter(3)], **arguments)
        pytest.skip(f"torch {torch.__version__} accepts it")
    ours = error_of(lambda: wpadamw.WPAdamW([parameter(3)], **arguments))
    assert ours == error_of(lambda: torch.optim.AdamW([parameter(3)], **arguments))


@pytest.mark.parametrize("name", PARAMS_THAT_TORCH_REFUSES)
def test_params_are_refused_in_torchs_words(name):
    make = PARAMS_THAT_TORCH_REFUSES[name]
    ours = error_of(lambda: wpadamw.WPAdamW(make()))
    assert ours == error_of(lambda: torch.optim.AdamW(make()))


@pytest.mark.parametrize("argument", [{"lr": 0}, {"eps": 0.0}, {"betas": [0.0, 0.0]}], ids=str)
def test_limits_are_accepted_as_in_torch(argument):
    torch.optim.AdamW([parameter(3)], **argument)
    wpadamw.WPAdamW([parameter(3)], **argument)


# The backend is not an option of groups.
GROUPS_REFUSE = [case for case in WE_REFUSE if "backend" not in case[0]]


@pytest.mark.parametrize(
    ("arguments", "kind", "text"), WE_REFUSE, ids=lambda value: str(value)[:40]
)
def test_own_arguments_are_refused_by_name(arguments, kind, text):
    with pytest.raises(kind, match=text):
        wpadamw.WPAdamW([parameter(3)], **arguments)


@pytest.mark.parametrize(
    ("arguments", "kind", "text"), GROUPS_REFUSE, ids=lambda value: str(value)[:40]
)
def test_own_options_of_a_group_are_refused_by_name(arguments, kind, text):
    with pytest.raises(kind, match=text):
        wpadamw.WPAdamW([{"params": [parameter(3)], **arguments}])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_without_backup_is_refused(dtype):
    with pytest.raises(ValueError, match=f"backup=False needs float32 .* got {dtype}"):
        wpadamw.WPAdamW([parameter(3, dtype=dtype)], backup=False)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn], ids=str)
def test_params_of_other_dtypes_are_refused(dtype):
    param = nn.Parameter(torch.zeros(3).to(dtype), requires_grad=False)
    with pytest.raises(TypeError, match=f"params must have one of the dtypes .* got {dtype}"):
        wpadamw.WPAdamW([parameter(3), param])


@pytest.mark.parametrize("named", [False, True], ids=["plain", "named"])
def test_duplicates_within_a_group_are_updated_once_and_said(named):
    param, twin = parameter(3), parameter(3)
    params = [("a", param), ("b", param)] if named else [param, param]
    with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
        opt = wpadamw.WPAdamW(params)
    single = wpadamw.WPAdamW([twin])
    for each, own in ((param, opt), (twin, single)):
        each.grad = torch.ones(3)
        own.step()
    assert torch.equal(param, twin)
    assert opt.param_groups[0].get("param_names") == (["a"] if named else None)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_named_backend_that_cannot_serve_the_device_raises_with_the_reason(name):
    param = parameter(3)
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=f"backend='{name}' cannot"):
        wpadamw.WPAdamW([param], backend=name).step()


# Groups added later.


@pytest.mark.parametrize(
    "group",
    [
        {"lr": -1.0},
        {"prediction_steps": -1.0},
        {"differentiable": True},
        {"params": [torch.zeros(3, dtype=torch.int32)]},
        {"params": []},
        {"params": [parameter(3).bfloat16().detach().requires_grad_()], "backup": False},
    ],
    ids=["lr", "steps", "differentiable", "int", "duplicate", "backup"],
)
@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_failed_add_param_group_leaves_groups_as_they_were(group, mode):
    net, opt = started()
    opt.predict() if mode == "predicted" else opt.restore()
    before, groups = snapshot(opt), list(opt.param_groups)
    if group.get("params") == []:
        group = {"params": [next(net.parameters())]}
    with pytest.raises((TypeError, ValueError)):
        opt.add_param_group({"params": [parameter(3)], **group})
    assert equal(snapshot(opt), before)
    assert all(a is b for a, b in zip(opt.param_groups, groups, strict=True))
    net2, opt2 = started()
    set_grads(net.parameters(), seed=5)
    set_grads(net2.parameters(), seed=5)
    opt.step()
    opt2.step()
    assert equal(held(net), held(net2))


def test_add_param_group_refuses_what_is_no_dict_in_torchs_words():
    def add(kind):
        return lambda: kind([parameter(3)]).add_param_group([parameter(3)])

    assert error_of(add(wpadamw.WPAdamW)) == error_of(add(torch.optim.AdamW))


def test_add_param_group_leaves_the_callers_dict_alone():
    group = {"params": [parameter(2)]}
    wpadamw.WPAdamW([parameter(3)]).add_param_group(group)
    assert set(group) == {"params"}


# Steps.


def sparse(param):
    param.grad = torch.sparse_coo_tensor([[0]], [1.0], param.shape, check_invariants=True)


def other_shape(param):
    param.grad = torch.ones_like(param)
    param.grad.data = torch.ones(param.shape[0] + 1)


def shrunk_in_place(param):
    param.grad = torch.ones_like(param) if param.grad is None else param.grad
    param.grad.data = param.grad.data[:-1]


BAD_GRADIENTS = {
    sparse: "Adam does not support sparse gradients, please consider SparseAdam instead",
    other_shape: "gradient of params.* must have shape",
    shrunk_in_place: "gradient of params.* must have shape",
}


def test_sparse_gradient_is_refused_in_torchs_words():
    def step(kind):
        param = parameter(3)
        sparse(param)
        return kind([param], foreach=False).step

    # Adam's words: AdamW has its own in older versions.
    assert error_of(step(wpadamw.WPAdamW)) == error_of(step(torch.optim.Adam))


@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize("spoil", BAD_GRADIENTS, ids=lambda spoil: spoil.__name__)
def test_step_with_a_bad_gradient_in_the_second_group_changes_no_bit(spoil, mode):
    net, opt = started()
    opt.predict() if mode == "predicted" else opt.restore()
    set_grads(net.parameters(), seed=1)
    before = snapshot(opt)
    spoil(opt.param_groups[1]["params"][-1])
    with pytest.raises(RuntimeError, match=BAD_GRADIENTS[spoil]):
        opt.step()
    assert equal(snapshot(opt), before)


def test_failed_first_step_leaves_no_state():
    net, opt = started(steps=0)
    set_grads(net.parameters(), seed=1)
    before = snapshot(opt)
    sparse(opt.param_groups[1]["params"][-1])
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    assert equal(snapshot(opt), before)


def test_step_after_a_failed_one_equals_a_first_one():
    net, opt = started(steps=0)
    twin, twin_opt = started(steps=0)
    for module in (net, twin):
        set_grads(module.parameters(), seed=1)
    last = opt.param_groups[1]["params"][-1]
    grad = last.grad
    sparse(last)
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    last.grad = grad
    opt.step()
    twin_opt.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_gradients_of_the_step_before_a_failed_one_can_come_back():
    params, twins = [parameter(3), parameter(4)], [parameter(3), parameter(4)]
    opt, twin_opt = wpadamw.WPAdamW(params, **HYPER), wpadamw.WPAdamW(twins, **HYPER)
    set_grads(params, seed=1)
    set_grads(twins, seed=1)
    grads = [param.grad for param in params]
    opt.step()
    params[0].grad = None
    sparse(params[1])
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    opt.step()
    for _ in range(2):
        twin_opt.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_parameter_that_shares_memory_is_refused_and_its_neighbour_is_stepped_once_when_repaired():
    param, expanded = parameter(3), nn.Parameter(torch.ones(1, dtype=torch.float64).expand(3))
    twin = parameter(3)
    opt = wpadamw.WPAdamW([param, expanded], backup=False, **HYPER)
    twin_opt = wpadamw.WPAdamW([twin], backup=False, **HYPER)
    set_grads([param, expanded], seed=1)
    set_grads([twin], seed=1)
    with pytest.raises(RuntimeError, match=r"params.* must own one number per element"):
        opt.step()
    assert equal(held([param]), held([twin]))
    expanded.data = torch.ones(3, dtype=torch.float64)
    opt.step()
    twin_opt.step()
    assert equal(held([param]), held([twin]))


def test_meta_parameters_are_refused_at_the_first_step():
    param = nn.Parameter(torch.ones(3, device="meta"))
    opt = wpadamw.WPAdamW([param])
    param.grad = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        opt.step()


# Options that make true weights unrecoverable.


def test_lr_raised_beyond_recovery_is_refused_before_any_write():
    _, opt = started(backup=False)
    schedule = LambdaLR(opt, lambda k: 1.0 if k == 0 else 1e4)
    set_grads(opt.param_groups[0]["params"], seed=1)
    opt.step()
    schedule.step()
    before = snapshot(opt)
    with pytest.raises(ValueError, match="backup=False needs prediction_steps"):
        opt.step()
    assert equal(snapshot(opt), before)
    opt.restore()  # by the prediction's own lr
    assert all(weights.isfinite().all() for weights in held(opt.param_groups[0]["params"]))


def test_prediction_beyond_recovery_is_refused_before_any_write():
    _, opt = started(backup=False, predict_in_step=False)
    for group in opt.param_groups:
        group["lr"] = 1e4
    before = snapshot(opt)
    with pytest.raises(ValueError, match="backup=False needs prediction_steps"):
        opt.predict()
    assert equal(snapshot(opt), before)


def test_amsgrad_switched_on_without_backup_keeps_the_true_weights():
    _, opt = started(backup=False)
    _, twin_opt = started(backup=False)
    twin_opt.restore()
    for group in opt.param_groups:
        group["amsgrad"] = True
    opt.restore()
    for ours, theirs in zip(opt.param_groups, twin_opt.param_groups, strict=True):
        assert equal(held(ours["params"]), held(theirs["params"]))
