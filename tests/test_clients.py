"""What training programs do to an optimizer: schedulers, scalers, copies, hooks, wrappers."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import unpickles
from models import (
    HYPER,
    Reference,
    equal,
    held,
    network,
    optimizer,
    parameter,
    randn,
    set_grads,
    snapshot,
    started,
    train,
)
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import wpadamw


@pytest.mark.parametrize("lr", [0.0, 1e-28])
def test_lr_of_nothing_leaves_the_weights(lr):
    net = network()
    before = held(net)
    opt = optimizer(net)
    for group in opt.param_groups:
        group["lr"] = lr
    train(net, opt, range(3))
    assert equal(held(net), before)
    assert all(state["exp_avg"].any() for state in opt.state.values())


def test_lr_tensor_equals_the_number():
    lr = torch.tensor(0.25)
    params = [parameter(3), parameter(3)]
    opts = [wpadamw.WPAdamW([params[0]], lr=lr), wpadamw.WPAdamW([params[1]], lr=0.25)]
    for opt in opts:
        schedule = lr_scheduler.StepLR(opt, 1, gamma=0.5)
        for k in range(3):
            set_grads(opt.param_groups[0]["params"], seed=k)
            opt.step()
            schedule.step()
    assert equal(*map(held, ([params[0]], [params[1]])))
    assert opts[0].param_groups[0]["lr"] is lr


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=8),
        lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=5),
        lambda opt: lr_scheduler.StepLR(opt, 2, gamma=0.3),
        lambda opt: lr_scheduler.LambdaLR(opt, lambda k: 1.0 / (1 + k)),
    ],
    ids=["one-cycle", "cosine", "step", "lambda"],
)
def test_schedulers_move_the_options_between_step_and_restore(scheduler):
    params = [parameter(4, seed=i) for i in range(2)]
    opt = wpadamw.WPAdamW(params, **HYPER)
    group, schedule = opt.param_groups[0], scheduler(opt)
    references = list(map(Reference, params))
    for k in range(6):
        set_grads(params, seed=k)
        opt.step()
        for param, reference in zip(params, references, strict=True):
            reference.update(param.grad, group)
        predicted = [reference.predicted(group) for reference in references]
        schedule.step()
        with opt.true_weights():
            assert equal(held(params), [reference.true() for reference in references])
        assert equal(held(params), predicted)


def test_parameters_keep_their_storage_for_life():
    net, opt = started(steps=0)
    addresses = [p.data_ptr() for p in net.parameters()]
    for k in range(3):
        train(net, opt, [k])
        opt.restore()
        opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert [p.data_ptr() for p in net.parameters()] == addresses
    sizes = [p.untyped_storage().nbytes() for p in net.parameters()]
    assert sizes == [p.nbytes for p in net.parameters()]


@pytest.mark.parametrize("write", ["restore", "step"])
def test_writing_between_forward_and_backward_is_an_error_of_autograd(write):
    net, opt = started()
    loss = net(randn(4, 3, seed=1).requires_grad_()).sum()
    getattr(opt, write)()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_versions_rise_only_where_weights_are_written():
    idle, busy = parameter(3), parameter(3)
    opt = wpadamw.WPAdamW([idle, busy], **HYPER)
    set_grads([idle, busy], seed=0)
    opt.step()
    idle.grad = None
    versions = idle._version, busy._version
    opt.step()
    assert idle._version == versions[0]
    assert busy._version > versions[1]


@pytest.mark.parametrize("refusal", [TypeError, RuntimeError])
def test_versions_rise_where_torch_takes_one_tensor_at_a_time(refusal, monkeypatch):
    increment = torch.autograd.graph.increment_version

    def increment_one(tensor):
        if not isinstance(tensor, torch.Tensor):
            raise refusal("increment_version expect a Tensor as input")
        increment(tensor)

    monkeypatch.setattr(torch.autograd.graph, "increment_version", increment_one)
    test_versions_rise_only_where_weights_are_written()


@pytest.mark.parametrize("amp", [False, True], ids=["default", "amp"])
def test_gradient_scaler_scales_away_and_skips_overflows(amp):
    net, opt = started(steps=0, amp=amp)
    twin, twin_opt = started(steps=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for k in range(4):
        for param, value in zip(net.parameters(), twin.parameters(), strict=True):
            value.grad = randn(*value.shape, seed=k)
            param.grad = scaler.scale(value.grad)
        if k == 2:
            param.grad[0] = torch.inf
            before = snapshot(opt)
        scaler.step(opt)
        scaler.update()
        if k == 2:
            assert equal(snapshot(opt), before)
        else:
            twin_opt.step()
    assert equal(snapshot(opt), snapshot(twin_opt))
    assert scaler.get_scale() == 4.0


@pytest.mark.parametrize("found_inf", [0.0, 1.0, 2.0])
def test_amp_skips_the_step_if_any_device_overflowed(found_inf):
    net, opt = started(amp=True)
    set_grads(net.parameters(), seed=1)
    before = snapshot(opt)
    opt.found_inf, opt.grad_scale = torch.tensor(found_inf), None
    opt.step()
    assert equal(snapshot(opt), before) == (found_inf > 0)


@unpickles
@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))],
    ids=["copy", "pickle"],
)
def test_copies_of_model_and_optimizer_continue_with_the_same_bits(duplicate, mode):
    net, opt = started(amsgrad=True, backend="torch")
    opt.predict() if mode == "predicted" else opt.restore()
    twin, twin_opt = duplicate((net, opt))
    assert twin_opt.weights_are == mode
    for module, own in [(net, opt), (twin, twin_opt)]:
        train(module, own, range(3, 6))
    assert equal(snapshot(opt), snapshot(twin_opt))
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in twin.parameters()}


def test_step_hooks_run_around_the_step():
    net, opt = started()
    true, calls = held(net), []
    handles = [
        register_optimizer_step_pre_hook(lambda *args: calls.append("global pre")),
        opt.register_step_pre_hook(lambda *args: calls.append("pre")),
        opt.register_step_post_hook(lambda *args: calls.append(opt.weights_are)),
        register_optimizer_step_post_hook(lambda *args: calls.append("global post")),
    ]
    opt.step()
    for handle in handles:
        handle.remove()
    opt.step()
    assert calls == ["global pre", "pre", "predicted", "global post"]
    assert not equal(held(net), true)


@pytest.mark.parametrize("given", [(), (lambda: "given",)], ids=["no-closure", "closure"])
def test_pre_hook_sees_and_replaces_the_arguments_as_in_torch(given):
    seen = []
    for kind in (torch.optim.AdamW, wpadamw.WPAdamW):
        opt = optimizer(network(), kind)

        def replace(opt, args, kwargs):
            seen.append((len(args), args[1:], kwargs))
            return args[:1], {"closure": lambda: "replaced"}

        opt.register_step_pre_hook(replace)
        assert opt.step(*given) == "replaced"
    assert seen[0] == seen[1]


def test_error_in_a_pre_hook_leaves_everything_as_it_was():
    _, opt = started()
    before = snapshot(opt)

    def fail(*args):
        raise KeyError("hook")

    opt.register_step_pre_hook(fail)
    with pytest.raises(KeyError, match="hook"):
        opt.step()
    assert equal(snapshot(opt), before)
