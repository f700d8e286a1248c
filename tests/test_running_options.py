"""What is put into ``param_groups`` at run time: taken, or refused before anything is written."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
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

import wpadamw

NONSENSE = {
    "eps": [-1, math.nan, math.inf, None, "1e-8", torch.ones(2), 1j],
    "lr": [None, "0.1", [0.1], torch.ones(2), torch.ones(0), 1j, torch.ones(1, device="meta")],
    "betas": [
        (0.9,),
        (0.9, 0.99, 0.999),
        None,
        0.9,
        (1.0, 0.9),
        (0.9, -0.1),
        ("a", "b"),
        (math.nan, 0),
    ],
    "weight_decay": [-0.1, math.nan, None, "0"],
    "prediction_steps": [math.nan, -1.0, math.inf, None, "1", torch.ones(1)],
    "weights_are": ["both", None, 1, "True"],
    "maximize": [None, "yes", 2],
    "predict_in_step": [None, "no"],
    "predict_decay": [None, 0.5],
    "backup": [None, "no"],
    "amsgrad": [None, "off"],
    "capturable": [None, "x"],
}


@pytest.mark.parametrize("steps", [0, 2], ids=["first-step", "later"])
@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in NONSENSE.items() for value in values]
)
def test_nonsense_is_refused_by_name_before_anything_is_written(name, value, steps):
    net, opt = started(steps)
    set_grads(net.parameters(), seed=4)
    good = opt.param_groups[1][name]
    before = snapshot(opt)
    opt.param_groups[1][name] = value
    with pytest.raises(ValueError, match=name):
        opt.step()
    with pytest.raises(ValueError, match=name):
        opt.step(lambda: 0.0)
    opt.param_groups[1][name] = good
    assert equal(snapshot(opt), before)
    twin, twin_opt = started(steps)
    set_grads(twin.parameters(), seed=4)
    opt.step()
    twin_opt.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


ODD_RATES = [
    -0.01,
    math.inf,
    -math.inf,
    0.0,
    1e30,
    np.float32(0.25),
    np.float64(-0.5),
    np.int64(1),
    1,
]


@pytest.mark.parametrize("lr", ODD_RATES, ids=repr)
@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_own_checkpoint_after_an_odd_rate_loads(lr, mode, backend):
    net, opt = started(backend=backend)
    for group in opt.param_groups:
        group["lr"] = lr
    train(net, opt, [3])
    opt.predict() if mode == "predicted" else opt.restore()
    files = copy.deepcopy(net.state_dict()), through_file(opt.state_dict())
    twin = network(seed=5)
    other = optimizer(twin, backend=backend)
    twin.load_state_dict(files[0])
    other.load_state_dict(files[1])
    for module, own in [(net, opt), (twin, other)]:
        for group in own.param_groups:
            group["lr"] = 0.01
        train(module, own, [4])
    assert equal(snapshot(opt), snapshot(other))


@pytest.mark.parametrize("lr", [math.nan])
def test_rate_that_is_no_number_loads_too(lr):
    _, opt = started()
    opt.param_groups[0]["lr"] = lr
    saved = through_file(opt.state_dict())
    other = optimizer(network(seed=5))
    other.load_state_dict(saved)
    assert math.isnan(other.param_groups[0]["lr"])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_numbers_of_numpy_are_numbers(kind):
    options = {"lr": 0.25, "eps": 0.5, "weight_decay": 0.125, "prediction_steps": 2.0}
    nets = [network(), network()]
    plain = wpadamw.WPAdamW(nets[0].parameters(), betas=(0.5, 0.75), **options)
    ours = wpadamw.WPAdamW(
        [{"params": list(nets[1].parameters()), "lr": kind(0.25)}],
        betas=(kind(0.5), kind(0.75)),
        **{name: kind(value) for name, value in options.items()},
    )
    for net, opt in zip(nets, (plain, ours), strict=True):
        train(net, opt, range(2))
        opt.param_groups[0]["lr"] = 0.5 if opt is plain else kind(0.5)
        train(net, opt, [2])
    assert equal(*map(held, nets))
    saved = through_file(ours.state_dict())  # with weights_only=True
    assert type(saved["param_groups"][0]["lr"]) is float
    assert saved["param_groups"][0]["lr"] == 0.5


@pytest.mark.parametrize("value", [np.int64(2), np.int32(2), np.bool_(True)])
def test_whole_numbers_and_truths_of_numpy(value):
    name = "maximize" if isinstance(value, np.bool_) else "prediction_steps"
    nets = [network(), network()]
    for net, given in zip(nets, (value, value.item()), strict=True):
        opt = optimizer(net, **{name: given})
        train(net, opt, range(2))
        through_file(opt.state_dict())
    assert equal(*map(held, nets))
