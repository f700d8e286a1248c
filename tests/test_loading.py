"""Loading in every order gives the saved true weights; what is newer replaces them loudly."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from helpers import BACKENDS
from models import (
    equal,
    held,
    network,
    optimizer,
    set_grads,
    snapshot,
    started,
    through_file,
    train,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import wpadamw

OUTSIDE = "written to from outside"
MODES = ("true", "predicted")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def go(opt, mode):
    opt.predict() if mode == "predicted" else opt.restore()


def true_weights(opt):
    twin = copy.deepcopy(opt)
    twin.restore()
    return held(params_of(twin))


def load_in_place(net, saved):
    net.load_state_dict(saved)


def load_through_data(net, saved):
    """As wrappers do it that autograd must not see."""
    for name, param in net.named_parameters():
        param.data.copy_(saved[name])


def load_as_new_data(net, saved):
    for name, param in net.named_parameters():
        param.data = saved[name].clone()


def load_by_swapping(net, saved):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        net.load_state_dict(saved, assign=True)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


LOADERS = [load_in_place, load_through_data, load_as_new_data, load_by_swapping]


def evaluated_weights(net, opt):
    """What a forward sees."""
    seen = []
    handle = net[0].register_forward_hook(lambda *_: seen.append(held(params_of(opt))))
    net.eval()
    net(torch.zeros(1, 3, dtype=net[0].weight.dtype))
    handle.remove()
    return seen[0]


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def ways_back():
    """Every way, with one dtype after the other."""
    ways = itertools.product(
        ["restore", "predict", "state_dict", "attach"], MODES, MODES, [True, False], LOADERS
    )
    return [(*way, dtype) for way, dtype in zip(ways, itertools.cycle(DTYPES))]


@pytest.mark.parametrize(
    ("how", "optimizer_mode", "model_mode", "is_model_first", "load", "dtype"), ways_back()
)
def test_true_weights_come_back(how, optimizer_mode, model_mode, is_model_first, load, dtype):
    dtype = DTYPES[dtype]
    running, running_opt = started(dtype=dtype)
    expected = true_weights(running_opt)
    go(running_opt, model_mode)
    model_file = copy.deepcopy(running.state_dict())
    go(running_opt, optimizer_mode)
    optimizer_file = through_file(running_opt.state_dict())
    net = network(seed=7, dtype=dtype)
    opt = optimizer(net)
    if is_model_first:
        load(net, model_file)
    opt.load_state_dict(optimizer_file)
    if not is_model_first:
        load(net, model_file)
    if how == "attach":
        wpadamw.attach(net, opt)
        assert equal(evaluated_weights(net, opt), expected)
    else:
        getattr(opt, how)()
    opt.restore()
    assert equal(held(params_of(opt)), expected)


@pytest.mark.parametrize("model_mode", MODES)
@pytest.mark.parametrize("is_model_first", [True, False], ids=["model-first", "optimizer-first"])
@pytest.mark.parametrize("load", LOADERS)
def test_training_goes_on_as_if_it_had_never_stopped(model_mode, is_model_first, load):
    running, running_opt = started()
    go(running_opt, model_mode)
    files = copy.deepcopy(running.state_dict()), through_file(running_opt.state_dict())
    net = network(seed=7)
    opt = optimizer(net)
    if is_model_first:
        load(net, files[0])
    opt.load_state_dict(files[1])
    if not is_model_first:
        load(net, files[0])
    for module, own in [(running, running_opt), (net, opt)]:
        set_grads(module.parameters(), seed=5)
        own.step()
    assert equal(snapshot(opt), snapshot(running_opt))


@pytest.mark.filterwarnings("ignore:Parameters were written")
@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_from_outside_come_back_from_the_optimizers_file_alone(backend):
    param, others = (nn.Parameter(torch.full((5,), value)) for value in (1.0, 2.0))
    opt = wpadamw.WPAdamW([param], lr=0.1, backend=backend)
    param.grad = torch.ones(5)
    opt.step()
    with torch.no_grad():
        param.fill_(7.0)  # the new true weights, whose prediction moves nothing
    saved = through_file(opt.state_dict())
    assert saved["param_groups"][0]["weights_are"] == "predicted"
    opt = wpadamw.WPAdamW([others], backend=backend)
    opt.load_state_dict(saved)
    opt.predict()
    assert others.tolist() == [7.0] * 5


def test_optimizer_alone_brings_the_true_weights():
    _, running_opt = started()
    net = network(seed=7)
    opt = optimizer(net)
    opt.load_state_dict(through_file(running_opt.state_dict()))
    assert opt.weights_are == "true"
    assert equal(held(params_of(opt)), true_weights(running_opt))


@pytest.mark.parametrize("mode", MODES)
def test_weights_older_than_the_file_are_replaced(mode):
    _, running_opt = started()
    go(running_opt, mode)
    net = network(seed=7)
    opt = optimizer(net)
    train(net, opt, range(2))
    opt.load_state_dict(through_file(running_opt.state_dict()))
    opt.restore()
    assert equal(held(params_of(opt)), true_weights(running_opt))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("how", ["restore", "predict", "step"])
def test_other_weights_that_come_after_the_file_are_trusted_with_a_warning(load, how):
    _, running_opt = started()
    net = network(seed=7)
    opt = optimizer(net)
    opt.load_state_dict(through_file(running_opt.state_dict()))
    newer = network(seed=8)
    load(net, {**net.state_dict(), **{"0.weight": newer[0].weight.detach()}})
    set_grads(net.parameters(), seed=1)
    before = opt.state[net[0].weight]["weight"].clone()
    with pytest.warns(UserWarning, match=OUTSIDE) as caught:
        getattr(opt, how)()
    assert len(caught) == 1
    assert "param_groups[0]['params'][0]" in str(caught[0].message)
    assert "given up" in str(caught[0].message)
    if how != "step":
        opt.restore()
        assert equal(net[0].weight.detach(), newer[0].weight.detach())
    assert not equal(opt.state[net[0].weight]["weight"], before)


def test_names_of_parameters_are_in_the_warning():
    net = network()
    opt = wpadamw.WPAdamW(net.named_parameters(), lr=0.1)
    train(net, opt, range(2))
    with torch.no_grad():
        net[2].bias.fill_(3.0)
    with pytest.warns(UserWarning, match=r"2\.bias \(param_groups\[0\]\['params'\]\[3\]\)"):
        opt.restore()


@pytest.mark.parametrize("is_model_first", [True, False], ids=["model-first", "optimizer-first"])
@pytest.mark.parametrize("model_mode", MODES)
@pytest.mark.parametrize(
    ("saved", "loaded"),
    [
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("bfloat16", "float64"),
        ("float32", "float64"),
        ("bfloat16", "bfloat16"),
    ],
)
def test_masters_survive_a_change_of_the_models_dtype(saved, loaded, model_mode, is_model_first):
    running, running_opt = started(dtype=DTYPES[saved])
    masters = [state["weight"].to(DTYPES[loaded]) for state in running_opt.state.values()]
    go(running_opt, model_mode)
    files = copy.deepcopy(running.state_dict()), through_file(running_opt.state_dict())
    net = network(seed=7, dtype=DTYPES[loaded])
    opt = optimizer(net)
    if is_model_first:
        net.load_state_dict(files[0])
    opt.load_state_dict(files[1])
    if not is_model_first:
        net.load_state_dict(files[0])
    opt.restore()
    assert equal([param.detach() for param in opt.state], masters)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masters_survive_a_cast_of_the_model(mode, dtype):
    net, opt = started(dtype=torch.bfloat16)
    masters = [state["weight"].to(DTYPES[dtype]) for state in opt.state.values()]
    go(opt, mode)
    net.zero_grad()
    net.to(DTYPES[dtype])
    opt.predict()
    opt.restore()
    assert equal([param.detach() for param in opt.state], masters)


@pytest.mark.parametrize("mode", MODES)
def test_distributed_checkpoint_functions_restore_model_and_optimizer(mode):
    running = network()
    running_opt = wpadamw.WPAdamW(running.parameters(), lr=0.01)
    train(running, running_opt, range(3))
    go(running_opt, mode)
    model_file, optimizer_file = copy.deepcopy(get_state_dict(running, running_opt))
    net = network(seed=7)
    opt = wpadamw.WPAdamW(net.parameters(), lr=0.01)
    set_state_dict(net, opt, model_state_dict=model_file, optim_state_dict=optimizer_file)
    for module, own in [(running, running_opt), (net, opt)]:
        set_grads(module.parameters(), seed=5)
        own.step()
    assert equal(snapshot(opt)["weights"], snapshot(running_opt)["weights"])


def test_plain_adamw_file_before_its_model_is_no_occasion_for_a_warning():
    running = network()
    plain = optimizer(running, torch.optim.AdamW)
    plain.train = lambda: None
    train(running, plain, range(3))
    net = network(seed=7)
    opt = optimizer(net)
    opt.load_state_dict(through_file(plain.state_dict()))
    net.load_state_dict(running.state_dict())
    opt.restore()
    assert equal(held(net), held(running))


@pytest.mark.parametrize("is_model_first", [True, False], ids=["model-first", "optimizer-first"])
@pytest.mark.parametrize("mode", MODES)
def test_without_a_backup_the_mode_of_the_file_counts_in_any_order(mode, is_model_first):
    running, running_opt = started(backup=False)
    go(running_opt, mode)
    files = copy.deepcopy(running.state_dict()), through_file(running_opt.state_dict())
    net = network(seed=7)
    opt = optimizer(net, backup=False)
    if is_model_first:
        net.load_state_dict(files[0])
    opt.load_state_dict(files[1])
    if not is_model_first:
        net.load_state_dict(files[0])
    for module, own in [(running, running_opt), (net, opt)]:
        train(module, own, range(3, 5))
    assert equal(snapshot(opt), snapshot(running_opt))


# Swaps through .data, as packages for averages of weights do them.


@pytest.mark.parametrize("mode", MODES)
def test_weights_swapped_in_through_data_are_kept_at_the_next_switch(mode):
    net, opt = started()
    go(opt, mode)
    average = [torch.full_like(param, 0.25) for param in net.parameters()]
    for param, value in zip(net.parameters(), average, strict=True):
        param.data.copy_(value)
    with pytest.warns(UserWarning, match=OUTSIDE):
        go(opt, "true" if mode == "predicted" else "predicted")
    opt.restore()
    assert equal(held(net), average)


@pytest.mark.parametrize("mode", MODES)
def test_one_element_of_one_parameter_is_noticed_wherever_it_lies(mode):
    param = nn.Parameter(torch.randn(70_001))
    opt = wpadamw.WPAdamW([param], lr=0.1)
    set_grads([param], seed=1)
    opt.step()
    for position in (0, 16_383, 16_384, 70_000):
        go(opt, mode)
        param.data[position] = 7.5
        opt._plans.has_warned = False
        with pytest.warns(UserWarning, match=OUTSIDE):
            go(opt, "true" if mode == "predicted" else "predicted")
        opt.restore()
        assert float(param.detach()[position]) == 7.5


@pytest.mark.parametrize("mode", MODES)
def test_nan_weights_are_the_optimizers_own(mode):
    net, opt = started()
    net[0].weight.grad[0, 0] = torch.nan
    opt.step()
    go(opt, mode)
    opt.restore()
    opt.predict()
    assert net[0].weight.isnan().sum() == 1
