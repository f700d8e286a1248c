"""Steps that the host does not wait for: counts, scalars and overflow on the device.

Run on CPU tensors that are taken for a device's; `tests/test_gpu.py` has what needs a GPU.
"""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import (
    NARROW,
    assert_same_bits,
    assert_same_training,
    bucket_of,
    needs_cpp,
    parameters_of,
    random_parameters,
    set_grad,
    wide,
)
from rule_table import RULES

from wpadamw import WPAdamW, WPVRAdam, _backends, layout
from wpadamw.device_ledger import DeviceLedger
from wpadamw.ledger import Ledger
from wpadamw.rules.rule import Settings
from wpadamw.scaling import Scaling

NUMELS = [5, 64, 0, 3000]
OPTIONS = {
    "defaults": {},
    "no-backup": {"backup": False},
    "amsgrad": {"amsgrad": True},
    "amsgrad-no-backup": {"amsgrad": True, "backup": False},
    "maximize": {"maximize": True},
    "undecayed-prediction": {"predict_decay": False, "weight_decay": 0.3},
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5, "weight_decay": 0.3},
    "rollout-no-backup": {"prediction": "rollout", "prediction_steps": 2.5, "backup": False},
    "averages": {"ema": 0.3},
    "averages-no-backup": {"ema": 0.3, "backup": False},
    "averages-rollout-no-backup": {"ema": 0.3, "prediction": "rollout", "backup": False},
    "predict-apart": {"predict_in_step": False},
    "predict-apart-no-backup": {"predict_in_step": False, "backup": False},
}


@pytest.fixture(autouse=True)
def _not_waiting(monkeypatch):
    monkeypatch.setattr(layout, "host_must_not_wait", lambda device: True)


@pytest.fixture(params=["torch", "cuda"])
def backend(request):
    """The specification, and the CUDA kernels as loops on the host."""
    if request.param == "cuda":
        request.getfixturevalue("cuda_on_host")
    return request.param


class Reading(AssertionError):
    """The host waited for the device."""


@pytest.fixture
def no_reading(monkeypatch):
    def read(tensor, *args):
        raise Reading

    def forbid():
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu"):
            monkeypatch.setattr(torch.Tensor, name, read)

    return forbid


class Pair:
    """An optimizer that counts on the host, and one that counts on the device."""

    def __init__(
        self, backend, dtype=torch.float32, numels=NUMELS, amp=False, make=WPAdamW, **options
    ):
        self.eager = make(random_parameters(numels, dtype), backend="torch", **options)
        extra = {"amp": True} if amp else {"capturable": True}
        params = random_parameters(numels, dtype)
        self.device = make(params, backend=backend, **{**options, **extra})
        self.generator = torch.Generator().manual_seed(3)

    def set_grads(self, chosen=None):
        params = parameters_of(self.eager)
        for i, pair in enumerate(zip(params, parameters_of(self.device), strict=True)):
            grad = wide(pair[0].shape, pair[0].dtype, self.generator)
            for param in pair:
                set_grad(param, grad.clone() if chosen is None or chosen[i] else None)

    def run(self, action):
        for optimizer in (self.eager, self.device):
            action(optimizer)
        self.check()

    def check(self):
        # Powers differ in the last bit of float64; predictions are made in float32.
        assert_same_training(self.device, self.eager, record_dtype=torch.float32)

    def ledgers(self):
        (plan,) = self.device._plans.by_group.values()
        return [bucket.ledger for bucket in plan.buckets]


@pytest.mark.parametrize(
    "dtype, options",
    [
        pytest.param(dtype, options, id=f"{str(dtype).removeprefix('torch.')}-{name}")
        for dtype in (torch.float32, torch.bfloat16)
        for name, options in OPTIONS.items()
        if options.get("backup", True) or dtype not in NARROW
    ],
)
def test_capturable_equals_the_eager_run(backend, dtype, options):
    pair = Pair(backend, dtype, lr=0.01, **options)
    for chosen in (None, [1, 0, 1, 1], [0, 1, 1, 0], None):
        pair.set_grads(chosen)
        pair.run(WPAdamW.step)
        for action in (WPAdamW.restore, WPAdamW.restore, WPAdamW.predict):
            pair.run(action)
        pair.run(lambda optimizer: optimizer.param_groups[0].update(lr=0.02))
    assert all(isinstance(ledger, DeviceLedger) for ledger in pair.ledgers())


@pytest.mark.parametrize("amp", [False, True], ids=["capturable", "amp"])
@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_every_rule_equals_the_eager_run(backend, case, backup, amp):
    pair = Pair(backend, amp=amp, make=case.make, lr=0.01, backup=backup, **case.options)
    for chosen in (None, [1, 0, 1, 1], None):
        pair.set_grads(chosen)
        pair.run(WPAdamW.step)
        pair.run(WPAdamW.restore)
        pair.run(WPAdamW.predict)


def test_counts_are_exact_for_many_steps(backend):
    pair = Pair(backend, numels=[3], lr=0.01, betas=(0.9, 0.95))
    for _ in range(300):
        pair.set_grads()
        pair.eager.step()
        pair.device.step()
    pair.check()
    (param,) = parameters_of(pair.device)
    assert pair.device.state[param]["step"].item() == 300


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_host_reads_nothing(backend, options, no_reading):
    pair = Pair(backend, lr=torch.tensor(0.01), **options)
    pair.set_grads()
    pair.device.step()
    no_reading()
    for action in (WPAdamW.step, WPAdamW.restore, WPAdamW.predict, WPAdamW.step):
        action(pair.device)


def test_reading_is_noticed(no_reading):
    no_reading()
    with pytest.raises(Reading):
        float(torch.ones(()))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_learning_rate_on_the_device_may_change_between_steps(backend, options):
    lr = torch.tensor(0.25)
    pair = Pair(backend, **options)
    pair.device.param_groups[0]["lr"] = lr
    for value in (0.25, 0.125, 0.5):
        lr.fill_(value)
        pair.eager.param_groups[0]["lr"] = value
        pair.set_grads()
        pair.run(WPAdamW.step)
    pair.run(WPAdamW.restore)
    pair.run(WPAdamW.predict)


def test_a_checkpoint_moves_between_host_and_device_counts(backend):
    pair = Pair(backend, lr=0.01)
    for _ in range(3):
        pair.set_grads()
        pair.run(WPAdamW.step)
    files = [copy.deepcopy(optimizer.state_dict()) for optimizer in (pair.eager, pair.device)]
    for file in files:
        file["param_groups"][0].pop("capturable")
    pair.eager.load_state_dict(files[1])
    pair.device.load_state_dict(files[0])
    pair.set_grads()
    pair.run(WPAdamW.step)
    assert all(isinstance(ledger, DeviceLedger) for ledger in pair.ledgers())


def test_capturable_may_be_switched_on_and_off(backend):
    pair = Pair(backend, lr=0.01)
    for is_capturable in (True, False, True):
        pair.device.param_groups[0]["capturable"] = is_capturable
        pair.set_grads()
        pair.run(WPAdamW.step)
        kind = {isinstance(ledger, DeviceLedger) for ledger in pair.ledgers()}
        assert kind == {is_capturable}


def test_writes_from_outside_are_noticed(backend):
    pair = Pair(backend, lr=0.01)
    pair.set_grads()
    pair.run(WPAdamW.step)
    for optimizer in (pair.eager, pair.device):
        with torch.no_grad():
            parameters_of(optimizer)[1].add_(1.0)
        with pytest.warns(UserWarning, match="written to from outside"):
            optimizer.restore()
    pair.check()
    pair.run(WPAdamW.predict)


# Mixed precision.


def scale(optimizer, grad_scale, found_inf):
    """What `torch.amp.GradScaler` does to an optimizer before its step."""
    optimizer.grad_scale = None if grad_scale is None else torch.tensor(grad_scale)
    optimizer.found_inf = torch.tensor(found_inf)


def snapshot(optimizer):
    params = parameters_of(optimizer)
    state = [copy.deepcopy(dict(optimizer.state[param])) for param in params]
    return [param.detach().clone() for param in params], state


def assert_same_snapshot(optimizer, before):
    params, states = before
    for param, held, state in zip(parameters_of(optimizer), params, states, strict=True):
        assert_same_bits("param", param, held)
        for name, value in optimizer.state[param].items():
            assert_same_bits(name, value, state[name])


@pytest.mark.parametrize("flag", [1.0, 2.0])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_overflow_leaves_everything_as_it_was(backend, options, flag, no_reading):
    pair = Pair(backend, amp=True, lr=0.01, **options)
    pair.set_grads()
    pair.run(WPAdamW.step)
    before = snapshot(pair.device)
    for param in parameters_of(pair.device):
        param.grad.fill_(float("inf"))
    scale(pair.device, 1024.0, flag)
    pair.device.step()
    assert_same_snapshot(pair.device, before)

    scale(pair.device, None, 0.0)
    pair.set_grads()
    pair.run(WPAdamW.step)
    scale(pair.device, None, 1.0)
    no_reading()
    pair.device.step()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_overflow_in_the_first_step_and_in_the_other_mode(backend, options):
    pair = Pair(backend, amp=True, lr=0.01, **options)
    pair.set_grads()
    scale(pair.device, None, 1.0)
    pair.device.step()
    scale(pair.device, None, 0.0)
    pair.run(WPAdamW.step)
    other = WPAdamW.predict if options.get("predict_in_step") is False else WPAdamW.restore
    pair.run(other)

    scale(pair.device, None, 1.0)
    pair.device.step()  # void, but it ends in its usual mode
    pair.eager.restore() if options.get("predict_in_step") is False else pair.eager.predict()
    pair.check()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_step_unscales(backend, options):
    pair = Pair(backend, amp=True, lr=0.01, **options)
    for grad_scale in (2.0**16, 2.0**10):
        pair.set_grads()
        for param in parameters_of(pair.device):
            param.grad.mul_(grad_scale)
        scale(pair.device, grad_scale, 0.0)
        pair.run(WPAdamW.step)


# Clipping.


def clipped(pair, max_norm, **options):
    """The norm; gradients of the first are rewritten as torch does it, those of the other not."""
    before = [param.grad.clone() for param in parameters_of(pair.device)]
    grads = [param.grad for param in parameters_of(pair.eager)]
    want = torch.nn.utils.get_total_norm(grads, **options)
    got = pair.device.clip_grad_norm_(max_norm, **options)
    torch.testing.assert_close(got, want, rtol=2e-6, atol=0.0)
    torch.nn.utils.clip_grads_with_norm_(parameters_of(pair.eager), max_norm, got)
    for param, grad in zip(parameters_of(pair.device), before, strict=True):
        assert_same_bits("grad", param.grad, grad)
    return got


@pytest.mark.parametrize("amp", [False, True], ids=["host-counts", "device-counts"])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_clipping_equals_that_of_torch(backend, options, norm_type, amp, no_reading):
    pair = Pair(backend, numels=[5, 64, 3000], lr=0.01, **options)
    if not amp:
        pair.device.param_groups[0]["capturable"] = False
    for max_norm in (1e9, 1e-3, 1e9):  # the last: a factor serves one step
        pair.set_grads()
        clipped(pair, max_norm, norm_type=norm_type)
        pair.run(WPAdamW.step)
    no_reading()
    pair.device.clip_grad_norm_(1.0)
    pair.device.step()


@needs_cpp
def test_clipping_on_the_cpu_equals_that_of_torch(monkeypatch):
    monkeypatch.setattr(layout, "host_must_not_wait", lambda device: False)
    pair = Pair("cpp", numels=[5, 64, 3000], lr=0.01, maximize=True)
    for max_norm in (1e-3, 1e9):
        pair.set_grads()
        clipped(pair, max_norm)
        pair.run(WPAdamW.step)


def test_clipping_without_gradients_has_norm_0(backend):
    pair = Pair(backend, lr=0.01)
    assert pair.device.clip_grad_norm_(1.0).item() == 0.0


def test_an_infinite_norm_is_an_error_where_asked_for(backend):
    pair = Pair(backend, lr=0.01)
    pair.set_grads()
    parameters_of(pair.device)[0].grad[0] = float("inf")
    with pytest.raises(RuntimeError, match="non-finite"):
        pair.device.clip_grad_norm_(1.0, error_if_nonfinite=True)
    assert pair.device._plans.clipping is None


@pytest.mark.parametrize("waits", [False, True], ids=["device", "host"])
def test_factors_are_the_same_numbers_on_host_and_device(waits, monkeypatch):
    monkeypatch.setattr(layout, "host_must_not_wait", lambda device: not waits)
    scaling = Scaling(grad_scale=torch.tensor(3.0), clip_factor=torch.tensor(0.7))
    factor = scaling.factor(-1.0, torch.device("cpu"))
    assert isinstance(factor, float) == waits
    assert float(factor) == -1.0 / 3.0 * float(torch.tensor(0.7))


# Scalars.


@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_scalars_rounded_to_float32_are_those_of_the_host(backend, case):
    num_counts, rule = 5000, case.rule()
    counts = range(1, num_counts + 1)
    settings = Settings(case.hyper(lr=1e-3), (1.5,))
    looks = [rule.row(settings, k, 1)[1] for k in range(1, num_counts)]
    records = [(0.0, *[0.0] * len(rule.Look._fields)), *((1.0, *look) for look in looks)]
    host = Ledger(rule, [{"step": k, "prediction": row} for k, row in enumerate(records)], 1)
    kernels = {"torch": _backends.torch, "cuda": _backends.cuda}[backend].Kernels(
        bucket_of(torch.zeros(1), torch.zeros(1), rule)
    )
    device = DeviceLedger(host, torch.device("cpu"), kernels)

    rows = device.begin_step(settings, None, [True] * num_counts, True)

    own = [(*step, *look) for step, look in (rule.row(settings, k, 1) for k in counts)]
    assert_same_bits("own", rows.scalars[:num_counts].float(), torch.tensor(own).float())
    held = rows.scalars[num_counts + 1 :, len(rule.Step._fields) :]
    assert torch.equal(held, torch.tensor(looks, dtype=torch.float64))
    assert rows.index[1].tolist() == [-1, *range(num_counts + 1, 2 * num_counts)]


def test_frozen_parameters_hold_true_weights_until_they_are_trained_again(backend):
    params = random_parameters(NUMELS, torch.float32)
    opt = WPAdamW(params, lr=0.1, capturable=True, backend=backend)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param) if param.requires_grad else None
        opt.step()
        params[0].requires_grad_(False)
    weight = opt.state[params[0]]["weight"]
    assert torch.equal(params[0], weight)
    params[0].requires_grad_(True)
    opt.eval()
    opt.train()
    assert not torch.equal(params[0], weight)


@pytest.mark.parametrize("scope", ["group", "global", "tensor"])
def test_sums_over_several_buckets_reach_the_device(scope, backend):
    found = []
    for name in (backend, "torch"):
        params = [
            *random_parameters(NUMELS, torch.float32),
            *random_parameters([70], torch.bfloat16),
        ]
        groups = [{"params": params[::2]}, {"params": params[1::2]}]
        opt = WPVRAdam(groups, norm_scope=scope, beta3=1e-3, amp=True, backend=name)
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            for param in params:
                set_grad(param, wide(param.shape, param.dtype, generator))
            opt.step()
        found.append([param.detach().clone() for param in params])
    for own, want in zip(*found, strict=True):
        assert_same_bits("weights", own, want)
