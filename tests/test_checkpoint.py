"""Checkpoints: exact resume whatever was saved when, refusal of bad files, writes from outside."""

from __future__ import annotations

import copy

import pytest
import torch
from models import (
    HYPER,
    Reference,
    equal,
    held,
    network,
    optimizer,
    randn,
    set_grads,
    snapshot,
    started,
    through_file,
    train,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import wpadamw
from wpadamw.rules.adamw import AdamW

OUTSIDE = "written to from outside"
STEPS = 8
VARIANTS = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "amsgrad": (torch.float32, {"amsgrad": True}),
    "literal": (torch.float32, {"predict_in_step": False}),
}


def result(net, opt):
    """True weights and state at the end of a run, with the prediction from them made."""
    opt.predict()
    opt.restore()
    after = snapshot(opt)
    return after["weights"], after["state"]


def go(opt, mode):
    opt.predict() if mode == "predicted" else opt.restore()


# Resume.


def test_state_dict_is_plain_and_has_one_key_set():
    _, opt = started()
    saved = through_file(opt.state_dict())
    assert equal(saved["state"], opt.state_dict()["state"])
    assert {tuple(state) for state in saved["state"].values()} == {
        ("step", "exp_avg", "exp_avg_sq", "weight", "prediction")
    }
    assert {type(v) for state in saved["state"].values() for v in state.values()} == {torch.Tensor}
    plain = {bool, float, int, str, tuple, list, type(None)}
    assert {type(v) for group in saved["param_groups"] for v in group.values()} <= plain
    for number, param in enumerate(p for group in opt.param_groups for p in group["params"]):
        assert saved["state"][number]["exp_avg"].shape == param.shape


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_mode", ["true", "predicted"])
@pytest.mark.parametrize("optimizer_mode", ["true", "predicted"])
@pytest.mark.parametrize("is_model_first", [True, False], ids=["model-first", "optimizer-first"])
def test_resume_at_every_step_equals_the_uninterrupted_run(
    variant, model_mode, optimizer_mode, is_model_first
):
    dtype, options = VARIANTS[variant]
    expected = result(*started(STEPS, dtype=dtype, **options))
    running, running_opt = started(0, dtype=dtype, **options)
    for k in range(STEPS):
        train(running, running_opt, [k])
        saves = [(running, model_mode), (running_opt, optimizer_mode)]
        files = {}
        for saved, mode in saves if is_model_first else reversed(saves):
            go(running_opt, mode)
            files[saved] = through_file(saved.state_dict())

        net = network(seed=1, dtype=dtype)
        opt = optimizer(net, **options)
        net.load_state_dict(files[running])
        opt.load_state_dict(files[running_opt])
        assert opt.weights_are == model_mode
        train(net, opt, range(k + 1, STEPS))
        assert equal(result(net, opt), expected), f"resumed after step {k}"


def test_warning_raised_as_an_error_leaves_weights_that_agree_with_the_mode():
    net, opt = started()
    true = [opt.state[p]["weight"].clone() for p in net.parameters()]
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    with pytest.raises(UserWarning, match=OUTSIDE):
        opt.restore()
    opt.restore()
    assert equal(net[0].weight.detach(), torch.full((5, 3), 2.0))
    assert equal(held(net)[1:], true[1:])


# Checkpoints of torch.optim.AdamW.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_plain_adamw_checkpoint_continues_with_prediction(dtype):
    net = network(dtype=dtype)
    plain = optimizer(net, torch.optim.AdamW)
    plain.train = lambda: None
    train(net, plain, range(3))
    start = held(net)
    opt = optimizer(net)
    opt.load_state_dict(through_file(plain.state_dict()))
    net.zero_grad()
    assert opt.weights_are == "true"
    assert equal(held(net), start)
    assert {state["exp_avg"].dtype for state in opt.state.values()} == {torch.float32}
    opt.predict()
    for group in opt.param_groups:
        for param in group["params"]:
            reference, moments = Reference(param), plain.state[param]
            reference.weight = opt.state[param]["weight"].clone()
            reference.exp_avg = moments["exp_avg"].float()
            reference.exp_avg_sq = moments["exp_avg_sq"].float()
            reference.count = 3
            assert equal(param.detach(), reference.predicted(group))
            param.grad = torch.ones_like(param)
            reference.update(param.grad, group)
            opt.step()
            param.grad = None
            assert equal(param.detach(), reference.predicted(group))
    opt.restore()
    assert not equal(held(net), start)


def test_own_options_survive_a_plain_adamw_checkpoint():
    net = network()
    plain = optimizer(net, torch.optim.AdamW, betas=(0.5, 0.6))
    plain.train = lambda: None
    train(net, plain, [0])
    own = {
        "prediction_steps": 3.0,
        "predict_decay": False,
        "predict_in_step": False,
        "backup": False,
    }
    opt = optimizer(net, **own)
    opt.load_state_dict(through_file(plain.state_dict()))
    for group in opt.param_groups:
        assert {key: group[key] for key in own} == own
        assert group["betas"] == (0.5, 0.6)


def test_our_checkpoint_loads_into_plain_adamw():
    net, opt = started()
    twin = network(seed=1)
    opt.restore()
    twin.load_state_dict(net.state_dict())
    plain = optimizer(twin, torch.optim.AdamW)
    plain.load_state_dict(through_file(opt.state_dict()))
    for module, own in [(net, opt), (twin, plain)]:
        set_grads(module.parameters(), seed=9)
        own.step()
    opt.restore()
    torch.testing.assert_close(held(net), held(twin), rtol=1e-6, atol=1e-7)
    assert {float(state["step"]) for state in plain.state.values()} == {4.0}


def test_loading_copies_and_keeps_the_dtype_of_the_state():
    net, opt = started(dtype=torch.bfloat16)
    twin, twin_opt = started(0, dtype=torch.bfloat16)
    twin.load_state_dict(net.state_dict())
    saved = opt.state_dict()
    before = copy.deepcopy(saved)
    twin_opt.load_state_dict(saved)
    train(twin, twin_opt, [3])
    twin_opt.param_groups[0]["lr"] = 7.0
    assert equal(saved, before)
    train(net, opt, [3])
    assert equal(held(net), held(twin))
    for state in twin_opt.state.values():
        assert {state[k].dtype for k in ("exp_avg", "exp_avg_sq", "weight")} == {torch.float32}


# Files that do not fit.


def entry(key, value, number=3):
    """A change of one entry of a state dict; deletes it if the value is None."""

    def spoil(saved):
        if value is None:
            del saved["state"][number][key]
        else:
            saved["state"][number][key] = value

    return spoil


def group_entry(key, value):
    return lambda saved: saved["param_groups"][1].update({key: value})


def prediction(**values):
    """A prediction row with some of its values replaced."""
    fields = ("kind", *AdamW.Look._fields)

    def spoil(saved):
        for name, value in values.items():
            saved["state"][3]["prediction"][fields.index(name)] = value

    return spoil


SPOILED = {
    "shape": (entry("exp_avg", torch.ones(3)), "'exp_avg'.* shape"),
    "truncated": (entry("weight", torch.ones(1)), "'weight'.* shape"),
    "wide-dtype": (entry("exp_avg_sq", torch.ones(2).double()), "'exp_avg_sq'.* dtype"),
    "complex-dtype": (entry("exp_avg", torch.ones(2) * 1j), "'exp_avg'.* dtype"),
    "no-tensor": (entry("exp_avg", [1.0, 2.0]), "'exp_avg'.* tensor"),
    "missing-moment": (entry("exp_avg_sq", None), "'exp_avg_sq'"),
    "missing-step": (entry("step", None), "'step'"),
    "missing-weight": (entry("weight", None), "'weight'"),
    "unknown-key": (entry("momentum_buffer", torch.ones(2)), "'momentum_buffer'"),
    "unknown-parameter": (lambda saved: saved["state"].update({17: {}}), "17"),
    "entry-no-dict": (lambda saved: saved["state"].update({3: [1]}), "state.*3"),
    "nan-step": (entry("step", torch.tensor(float("nan"))), "'step'"),
    "negative-step": (entry("step", torch.tensor(-1.0)), "'step'"),
    "half-step": (entry("step", 1.5), "'step'"),
    "two-steps": (entry("step", torch.ones(2)), "'step'"),
    "prediction-size": (entry("prediction", torch.ones(3)), "'prediction'"),
    "prediction-kind": (prediction(kind=3.0), "'prediction'.* kind"),
    "other-rule": (group_entry("rule", "sgd"), "rule 'sgd', not of 'adamw'"),
    "weights-are": (group_entry("weights_are", "best"), "'weights_are'"),
    "lr": (group_entry("lr", None), r"\['lr'\] must be a number"),
    "three-betas": (group_entry("betas", (0.9, 0.99, 0.999)), r"\['betas'\]"),
    "eps": (group_entry("eps", -1.0), r"\['eps'\]"),
    "backup": (group_entry("backup", "no"), r"\['backup'\]"),
    "huge-step": (entry("step", 1e300), "'step'"),
    "sparse": (entry("exp_avg", torch.ones(2).to_sparse()), "'exp_avg'.* dense"),
    "meta": (entry("exp_avg", torch.ones(2, device="meta")), "'exp_avg'.* data"),
    "number-twice": (lambda saved: saved["param_groups"][1].update(params=[2, 2]), "once"),
    "steps": (group_entry("prediction_steps", -1.0), "prediction_steps"),
    "group-count": (lambda saved: saved["param_groups"].pop(), "number of parameter groups"),
    "group-size": (lambda saved: saved["param_groups"][1]["params"].pop(), "match the size"),
    "no-state": (lambda saved: saved.pop("state"), "state"),
    "no-groups": (lambda saved: saved.pop("param_groups"), "param_groups"),
}


@pytest.mark.parametrize("name", SPOILED)
@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_file_that_does_not_fit_is_refused_by_name_and_changes_no_bit(name, mode):
    spoil, text = SPOILED[name]
    net, opt = started()
    go(opt, mode)
    saved = through_file(opt.state_dict())
    spoil(saved)
    train(net, opt, [3])
    go(opt, mode)
    before, groups = snapshot(opt), list(opt.param_groups)
    with pytest.raises(ValueError, match=text):
        opt.load_state_dict(saved)
    assert equal(snapshot(opt), before)
    assert all(a is b for a, b in zip(opt.param_groups, groups, strict=True))


# Hooks.


def test_state_dict_hooks_run():
    _, opt = started()
    calls = []
    opt.register_state_dict_pre_hook(lambda opt: calls.append("save pre"))
    opt.register_state_dict_post_hook(lambda opt, saved: calls.append("save post"))
    opt.register_load_state_dict_post_hook(lambda opt: calls.append(opt.param_groups[0]["lr"]))

    def replace(opt, saved):
        calls.append("load pre")
        groups = [{**group, "lr": 0.5} for group in saved["param_groups"]]
        return {**saved, "param_groups": groups}

    opt.register_load_state_dict_pre_hook(replace)
    opt.load_state_dict(opt.state_dict())
    assert calls == ["save pre", "save post", "load pre", 0.5]


# Memory.


@pytest.mark.parametrize(
    ("dtype", "options", "expected"),
    [
        (torch.float32, {}, 12),
        (torch.float32, {"backup": False}, 8),
        (torch.float32, {"amsgrad": True}, 16),
        (torch.bfloat16, {}, 12),
        (torch.float64, {"backup": False}, 16),
    ],
    ids=["float32", "without-backup", "amsgrad", "bfloat16", "float64"],
)
def test_state_takes_the_bytes_per_parameter_of_the_table(dtype, options, expected):
    params = [nn.Parameter(randn(2**16, dtype=dtype)) for _ in range(3)]
    opt = wpadamw.WPAdamW(params, **options)
    set_grads(params, seed=1)
    opt.step()
    tensors = [value for state in opt.state.values() for value in state.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert abs(sum(storages.values()) / (3 * 2**16) - expected) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_and_switches_allocate_nothing_of_a_parameters_size(dtype):
    param = nn.Parameter(randn(2**20, dtype=dtype))
    opt = wpadamw.WPAdamW([param], **HYPER)
    set_grads([param], seed=1)
    opt.step()
    with torch.profiler.profile(profile_memory=True) as profile:
        opt.step()
        opt.restore()
        opt.predict()
        sixteenth = torch.zeros(param.numel() // 16)
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events()]
    assert max(sizes) == sixteenth.nbytes


class Copies(TorchDispatchMode):
    """Counts copies of large tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("copy_", "_to_copy", "clone") and args[0].numel() >= NUMEL_OF_LARGE:
            self.count += 1
        return function(*args, **(kwargs or {}))


NUMEL_OF_LARGE = 100_000


def test_every_tensor_of_a_file_is_copied_once():
    params = [nn.Parameter(torch.randn(NUMEL_OF_LARGE)) for _ in range(2)]
    optimizers = [wpadamw.WPAdamW([param]) for param in params]
    for param, opt in zip(params, optimizers, strict=True):
        param.grad = torch.randn(NUMEL_OF_LARGE)
        opt.step()
    file = optimizers[0].state_dict()
    with Copies() as copies:
        optimizers[1].load_state_dict(file)
    assert copies.count == 3  # both moments and the weight
    optimizers[0].step()
    exp_avg = optimizers[1].state[params[1]]["exp_avg"]
    assert not torch.equal(exp_avg, optimizers[0].state[params[0]]["exp_avg"])
