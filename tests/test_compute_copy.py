"""Predictions in copies are those of the resident form, rounded once; parameters stay true."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers import BACKENDS, needs_cpp
from models import HYPER, equal, held, parameter, randn, set_grads, snapshot
from rule_table import RULES
from torch import nn

import wpadamw
from wpadamw import WPAdamW

pytestmark = needs_cpp
NARROW = (torch.bfloat16, torch.float16)
STEPS = range(4)
RATE = {"lr": 1e-2, "weight_decay": 0.1}


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def plain():
    return [parameter(4, 3, seed=1), parameter(70, seed=2), parameter(5, seed=3)]


def odd():
    """Gaps, channels last, transposed, at an odd address, without elements and dimensions."""
    numbers = bytearray(b"\0" + randn(6, seed=4).numpy().tobytes())
    tensors = [
        randn(3, 4, seed=1)[:, ::2],
        randn(2, 3, 4, 4, seed=2).to(memory_format=torch.channels_last),
        randn(3, 5, seed=3).t(),
        torch.frombuffer(numbers, dtype=torch.float32, offset=1).view(2, 3),
        torch.empty(0, 3),
        torch.tensor(0.5),
        randn(9, seed=6)[1:4],
    ]
    return list(map(nn.Parameter, tensors))


class Pair:
    """The same training with copies, which a program keeps, and in the resident form."""

    def __init__(self, dtype=torch.bfloat16, make=WPAdamW, params=plain, like=None, **options):
        options = {**RATE, **options}
        self.dtype, self.ours, self.theirs = dtype, params(), params()
        for of in (self.ours, self.theirs):
            for param in of:
                param.data = param.data.to(like or param.dtype)
        self.opt = make(self.ours, compute_dtype=dtype, **options)
        self.resident = make(self.theirs, **options)
        self.kept = [self.opt.compute_copy(param) for param in params_of(self.opt)]

    def run(self, action):
        for opt in (self.opt, self.resident):
            action(opt)
        self.compare()

    def step(self, seed, without=()):
        self.run(lambda opt: (self.gradients(opt, seed, without), opt.step()))

    def gradients(self, opt, seed, without=()):
        set_grads(params_of(opt), seed)
        for i in without:
            params_of(opt)[i].grad = None

    def compare(self):
        """What the copies hold that are kept, before anybody asks for them anew."""
        resident, true = predicted_and_true(self.resident)
        assert equal([copy.clone() for copy in self.kept], [p.to(self.dtype) for p in resident])
        assert equal(held(params_of(self.opt)), true)
        assert equal(states(self.opt), states(self.resident))
        assert self.opt.weights_are == "true"
        self.compare_places()

    def compare_places(self):
        for param, kept in zip(params_of(self.opt), self.kept, strict=True):
            again = self.opt.compute_copy(param)
            assert again.data_ptr() == kept.data_ptr()
            assert torch.equal(again, kept)


def predicted_and_true(resident):
    modes = [group["weights_are"] for group in resident.param_groups]
    resident.restore()  # what is frozen by now has no prediction any more
    resident.predict()
    predicted = held(params_of(resident))
    resident.restore()
    true = held(params_of(resident))
    resident._return_to(modes)
    return predicted, true


def states(opt):
    """All but the backup."""
    entries = [opt.state.get(param, {}) for param in params_of(opt)]
    return [{k: v for k, v in entry.items() if k != "weight"} for entry in entries]


# Every rule, and every option of predictions.


def kinds():
    """Dtypes of parameters and their copies."""
    return [(torch.float32, d) for d in (*NARROW, torch.float32)] + [(torch.float64,) * 2]


@pytest.mark.parametrize(("like", "dtype"), kinds(), ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_copies_are_the_resident_predictions_rounded_once(case, backend, like, dtype):
    pair = Pair(dtype, case.make, like=like, backend=backend, **case.options)
    for seed in STEPS:
        pair.step(seed)


PREDICTIONS = [
    {"prediction_steps": 0.0},
    {"prediction_steps": 0.5},
    {"prediction_steps": 40.0},
    {"prediction": "rollout", "prediction_steps": 3.0},
    {"prediction": "rollout", "prediction_steps": 2.5},
    {"predict_decay": False},
    {"maximize": True},
    {"capturable": True},
]


@pytest.mark.parametrize("options", PREDICTIONS, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("make", [WPAdamW, wpadamw.WPSGD, wpadamw.WPAdaBelief])
def test_options_of_predictions(make, backend, options):
    if make is wpadamw.WPSGD:
        options = {k: v for k, v in options.items() if k != "capturable"}
    for dtype, params in itertools.product(NARROW, (plain, odd)):
        pair = Pair(dtype, make, params, backend=backend, **options)
        for seed in STEPS:
            pair.step(seed)


def test_without_prediction_copies_are_the_rounded_weights():
    pair = Pair(prediction_steps=0.0)
    for seed in STEPS:
        pair.step(seed)
        assert equal([copy.clone() for copy in pair.kept], [p.bfloat16() for p in pair.ours])


# What happens between steps.


@pytest.mark.parametrize("params", [plain, odd])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_are_missing_or_come_later(backend, params):
    pair = Pair(params=params, backend=backend)
    for seed, without in enumerate([(0, 2), (0,), (0, 1), (), (2,), (0, 1, 2), (1,)]):
        pair.step(seed, without)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_that_differ_and_one_that_is_added(backend):
    def groups():
        first, *others = plain()
        return [{"params": [first], "lr": 0.1}, {"params": others, "prediction_steps": 2.0}]

    pair = Pair(params=plain, backend=backend)
    pair.opt, pair.resident = (
        WPAdamW(groups(), backend=backend, **HYPER, **more)
        for more in ({"compute_dtype": pair.dtype}, {})
    )
    pair.kept = list(map(pair.opt.compute_copy, params_of(pair.opt)))
    pair.step(0)
    new = [parameter(6, seed=8) for _ in range(2)]
    for opt, param in zip((pair.opt, pair.resident), new, strict=True):
        opt.add_param_group({"params": [param], "weight_decay": 0.5})
    pair.kept.append(pair.opt.compute_copy(new[0]))
    for seed in STEPS:
        pair.step(1 + seed, without=[3] if seed == 0 else [])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fails", [False, True])
def test_closures_see_the_copies_of_the_last_step(fails, backend):
    pair = Pair(backend=backend)
    pair.step(0)

    def closure():
        before = [copy.clone() for copy in pair.kept]
        assert equal(before, [p.bfloat16() for p in predicted_and_true(pair.resident)[0]])
        pair.gradients(pair.opt, 1)
        if fails:
            raise ZeroDivisionError
        return 3.0

    if fails:
        with pytest.raises(ZeroDivisionError):
            pair.opt.step(closure)
    else:
        assert pair.opt.step(closure) == 3.0
        pair.gradients(pair.resident, 1)
        pair.resident.step()
    pair.compare()


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping(backend):
    pair = Pair(backend=backend)
    for seed in STEPS:
        for opt in (pair.opt, pair.resident):
            pair.gradients(opt, seed)
            opt.clip_grad_norm_(0.1)
            opt.step()
        pair.compare()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_overflowed_changes_nothing(backend):
    pair = Pair(backend=backend, amp=True)
    for seed, found_inf in enumerate([1.0, 0.0, 1.0, 0.0]):
        before = snapshot(pair.opt)
        for opt in (pair.opt, pair.resident):
            opt.grad_scale, opt.found_inf = torch.tensor(4.0), torch.tensor(found_inf)
        pair.step(seed)
        assert equal(snapshot(pair.opt), before) == bool(found_inf)


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_parameters_have_the_rounded_weights_until_they_are_trained_again(backend):
    pair = Pair(backend=backend)
    pair.step(0)
    for is_trained in (False, True):
        for of in (pair.ours, pair.theirs):
            of[1].requires_grad_(is_trained)
        pair.opt.predict()  # for who keeps copies
        copy = pair.opt.compute_copy(pair.ours[1])
        assert torch.equal(copy, pair.ours[1].bfloat16()) != is_trained
        pair.run(lambda opt: opt.train())
        pair.step(1, without=[] if is_trained else [1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_that_is_reset_and_rates_that_change(backend):
    pair = Pair(backend=backend)
    for seed in STEPS:
        pair.step(seed)
        pair.run(lambda opt: opt.reset_time())
        for opt in (pair.opt, pair.resident):
            opt.param_groups[0]["lr"] *= 0.5
        pair.compare()
