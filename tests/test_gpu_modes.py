"""Streams, CUDA graphs, loss scaling and clipping on a GPU, and a host that never waits for it."""

from __future__ import annotations

from contextlib import contextmanager

import gpu_training
import pytest
import torch
from gpu_training import KERNELS, parameter, skip_unless_present
from helpers import (
    BACKUPS,
    Twins,
    assert_same_bits,
    assert_same_training,
    parameters_of,
    random_parameters,
    wide,
)

from wpadamw import WPAdamW

pytestmark = [
    pytest.mark.gpu,
    # Of torch.cuda.set_sync_debug_mode.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

NUMELS = [5, 64, 0, 3000]
# Cycles in which a GPU does nothing else: hundredths of a second, and tenths.
NAP, SLEEP = 50_000_000, 400_000_000


@pytest.fixture(params=KERNELS)
def backend(request):
    skip_unless_present(request.param)
    return request.param


def pair(backend, numels=NUMELS, **options):
    return Twins(
        lambda: random_parameters(numels, torch.float32),
        backends=(backend, "torch"),
        device=gpu_training.DEVICE,
        **{"lr": 0.01, **options},
    )


def refill_gradients(optimizers, generator):
    """New numbers in the gradients where they are."""
    for same in zip(*map(parameters_of, optimizers), strict=True):
        values = wide(same[0].shape, torch.float32, generator)
        for param in same:
            param.grad.copy_(values)


def snapshot(optimizer):
    """Copies of parameters, moments, weights, counts and records."""
    params = parameters_of(optimizer)
    of_state = [value.clone() for param in params for value in optimizer.state[param].values()]
    return [*(param.detach().clone() for param in params), *of_state]


def assert_unchanged(optimizer, before):
    for i, (got, want) in enumerate(zip(snapshot(optimizer), before, strict=True)):
        assert_same_bits(f"tensor {i}", got, want)


# Streams and devices.


def train_after_naps(backend, start, grads):
    """Each gradient arrives late: a kernel on another stream would have read the one before."""
    param = parameter(start)
    optimizer = WPAdamW([param], backend=backend)
    optimizer.step()
    for grad in grads:
        torch.cuda._sleep(NAP)
        param.grad.copy_(grad)
        optimizer.step()
    return optimizer


def test_launches_are_on_the_current_stream(backend, generator):
    start, *grads = (wide(5000, torch.float32, generator).to(gpu_training.DEVICE) for _ in range(4))
    want = train_after_naps("torch", start, grads)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        got = train_after_naps(backend, start, grads)
    torch.cuda.synchronize()
    assert_same_training(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("options", [{}, {"amp": True}, {"capturable": True}], ids=str)
def test_parameters_may_be_on_another_device_than_the_current_one(backend, options, generator):
    twins = Twins(
        lambda: random_parameters(NUMELS, torch.float32),
        backends=(backend, "torch"),
        device="cuda:1",
        **options,
    )
    twins.run_everything(generator, torch.float32)
    assert torch.cuda.current_device() == 0


# CUDA graphs.

GRAPH_OPTIONS = {
    "backup": {},
    "no-backup": {"backup": False},
    "amsgrad": {"amsgrad": True},
    "predict-apart": {"predict_in_step": False},
}


def captured_step(optimizer):
    """A step in a graph, not run yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


@pytest.mark.parametrize("options", GRAPH_OPTIONS.values(), ids=GRAPH_OPTIONS)
def test_capturable_steps_equal_the_specification(backend, options, generator):
    lr = torch.tensor(0.01, device=gpu_training.DEVICE)
    pair(backend, capturable=True, lr=lr, **options).run_everything(generator, torch.float32)


@pytest.mark.parametrize("place", ["of-the-warm-up", "elsewhere"])
@pytest.mark.parametrize("options", GRAPH_OPTIONS.values(), ids=GRAPH_OPTIONS)
def test_replayed_steps_equal_eager_ones(backend, options, place, generator):
    lr = torch.tensor(0.01, device=gpu_training.DEVICE)
    twins = pair(backend, capturable=True, lr=lr, **options)
    twins.set_random_grads(generator, torch.float32)
    for _ in range(2):
        twins.run(WPAdamW.step)
    of_warm_up = [param.grad for opt in twins.by_backend.values() for param in parameters_of(opt)]
    if place == "elsewhere":  # of_warm_up keeps the former places taken
        twins.set_random_grads(generator, torch.float32)
    graph = captured_step(twins.by_backend[backend])
    for rate in (0.01, 0.003, 0.1, 0.1, 0.0):
        lr.fill_(rate)
        refill_gradients(twins.by_backend.values(), generator)
        graph.replay()
        twins.by_backend["torch"].step()
        twins.compare()
    assert len(of_warm_up) == 2 * len(NUMELS)


def test_eager_steps_go_on_after_replays(backend, generator):
    twins = pair(backend, capturable=True)
    twins.set_random_grads(generator, torch.float32)
    twins.run(WPAdamW.step)
    captured_step(twins.by_backend[backend]).replay()
    twins.by_backend["torch"].step()
    twins.run(WPAdamW.restore)
    twins.run_everything(generator, torch.float32)


def test_a_step_that_is_not_capturable_raises_in_a_capture(backend):
    param = parameter(torch.ones(100))
    optimizer = WPAdamW([param], backend=backend)
    optimizer.step()
    before = snapshot(optimizer)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        param.grad.add_(0.0)  # torch warns of graphs without any kernel
        with pytest.raises(RuntimeError, match="capturable=True"):
            optimizer.step()
    assert_unchanged(optimizer, before)
    optimizer.step()


# Loss scaling.


def scaled_step(optimizer, scaler, grads):
    """Backward of a loss with these gradients, and a step, as in mixed precision."""
    optimizer.zero_grad()
    params = parameters_of(optimizer)
    loss = sum((p * g.to(p.device)).sum() for p, g in zip(params, grads, strict=True))
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def scaler_of_8():
    return torch.amp.GradScaler(gpu_training.DEVICE, init_scale=8.0)


def random_gradients(generator):
    return [wide(numel, torch.float32, generator) for numel in NUMELS]


@pytest.mark.parametrize("overflow_at", [0, 2])
@pytest.mark.parametrize("options", BACKUPS.values(), ids=BACKUPS)
def test_scaled_steps_equal_plain_ones_and_overflows_count_nothing(
    backend, options, overflow_at, generator
):
    twins = pair(backend, amp=True, **options)
    plain = WPAdamW(random_parameters(NUMELS, torch.float32), backend="cpp", lr=0.01, **options)
    scalers = {name: scaler_of_8() for name in twins.by_backend}
    for step in range(4):
        grads = random_gradients(generator)
        if step == overflow_at:
            grads[-1][7] = torch.inf
        for name, optimizer in twins.by_backend.items():
            scaled_step(optimizer, scalers[name], grads)
        twins.compare()
        if step != overflow_at:
            for param, grad in zip(parameters_of(plain), grads, strict=True):
                param.grad = grad
            plain.step()
    assert {scaler.get_scale() for scaler in scalers.values()} == {4.0}
    plain.predict()
    assert_same_training(twins.by_backend[backend], plain)


@pytest.mark.parametrize("found_inf", [1.0, 2.0])
@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_any_flag_but_zero_leaves_everything_as_it_is(backend, found_inf, mode, generator):
    twins = pair(backend, amp=True, predict_in_step=mode == "predicted")
    twins.set_random_grads(generator, torch.float32)
    twins.run(WPAdamW.step)
    optimizer = twins.by_backend[backend]
    before = snapshot(optimizer)
    optimizer.grad_scale = None
    optimizer.found_inf = torch.tensor(found_inf, device=gpu_training.DEVICE)
    optimizer.step()
    assert_unchanged(optimizer, before)
    optimizer.found_inf.zero_()
    optimizer.step()
    twins.by_backend["torch"].step()
    twins.compare()


# Clipping.


@pytest.mark.parametrize("max_norm", [0.1, 1e6], ids=["clips", "does-not-clip"])
@pytest.mark.parametrize("norm_type", [2.0, float("inf")], ids=["2-norm", "inf-norm"])
@pytest.mark.parametrize("options", [{}, {"maximize": True}, {"amp": True}], ids=str)
def test_clipping_in_the_step_equals_clipping_before_it(
    backend, options, norm_type, max_norm, generator
):
    # The largest number of an empty gradient is an error in torch.
    twins = pair(backend, numels=[5, 64, 3000], **options)
    inside, before = twins.by_backend.values()
    for _ in range(3):
        twins.set_random_grads(generator, torch.float32)
        norm = inside.clip_grad_norm_(max_norm, norm_type)
        grads = [param.grad for param in parameters_of(before)]
        # Sums have an order of their own, so the last bit may be another than torch's.
        want = torch.linalg.vector_norm(torch.cat(grads), norm_type)
        torch.testing.assert_close(norm, want, rtol=1e-6, atol=0.0)
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for param in parameters_of(before):  # the twins' gradients are the same tensors
            param.grad = param.grad * factor
        twins.run(WPAdamW.step)


def test_clipping_of_bfloat16_by_a_power_of_two_is_exact(backend, generator):
    """The norm of 2^16 ones is 256, so the factor is 1/4."""
    signs = torch.randn(2**16, generator=generator).sign()
    inside, before = (
        WPAdamW([parameter(signs.to(torch.bfloat16))], backend=name) for name in (backend, "torch")
    )
    for optimizer in (inside, before):
        parameters_of(optimizer)[0].grad.copy_(signs)
    assert float(inside.clip_grad_norm_(64.0)) == 256.0
    torch.nn.utils.clip_grad_norm_(parameters_of(before), 64.0)
    for optimizer in (inside, before):
        optimizer.step()
    assert_same_training(inside, before)


def test_clipping_of_bfloat16_is_at_least_as_exact_as_rewriting_gradients(backend, generator):
    grads = wide(5000, torch.bfloat16, generator).to(torch.bfloat16)
    inside, before = (
        WPAdamW([parameter(torch.ones(5000, dtype=torch.bfloat16))], backend=name)
        for name in (backend, "torch")
    )
    for optimizer in (inside, before):
        parameters_of(optimizer)[0].grad.copy_(grads)
    inside.clip_grad_norm_(0.1)
    torch.nn.utils.clip_grad_norm_(parameters_of(before), 0.1)
    for optimizer in (inside, before):
        optimizer.step()
    got, want = (opt.state[parameters_of(opt)[0]]["exp_avg"] for opt in (inside, before))
    torch.testing.assert_close(got, want, rtol=2**-7, atol=0.0)  # a rounding to bfloat16


# The host does not wait.


@contextmanager
def no_waiting():
    """The body fails where torch waits, and where it returns after the device's work."""
    asleep = torch.cuda.Event()
    torch.cuda.synchronize()
    torch.cuda._sleep(SLEEP)
    asleep.record()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not asleep.query(), "the host waited for the device"
    torch.cuda.synchronize()


def renew_gradients(optimizer):
    for param in parameters_of(optimizer):
        param.grad = param.grad.clone()


def clipped_step(optimizer):
    optimizer.clip_grad_norm_(0.1)
    optimizer.step()


def step_after_other_gradients(optimizer):
    renew_gradients(optimizer)
    optimizer.step()


def literal_step(optimizer):
    optimizer.param_groups[0]["predict_in_step"] = False
    optimizer.step()
    optimizer.predict()


ACTIONS = {
    "step": WPAdamW.step,
    "other-gradients": step_after_other_gradients,
    "clipping": clipped_step,
    "literal": literal_step,
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize(
    "options",
    [{}, {"backup": False}, {"capturable": True}, {"amp": True}, {"maximize": True}],
    ids=str,
)
def test_the_host_never_waits(backend, options, action, generator):
    if "capturable" in options:
        options = {**options, "lr": torch.tensor(0.01, device=gpu_training.DEVICE)}
    optimizer = pair(backend, **options).by_backend[backend]
    for param in parameters_of(optimizer):
        param.grad = torch.ones_like(param)
    for _ in range(2):  # state, tables and compiled kernels
        action(optimizer)
    with no_waiting():
        action(optimizer)


def test_the_host_never_waits_for_a_scaler(backend, generator):
    optimizer = pair(backend, amp=True).by_backend[backend]
    scaler = scaler_of_8()
    for _ in range(2):
        scaled_step(optimizer, scaler, random_gradients(generator))
    loss = sum(param.sum() for param in parameters_of(optimizer))
    scaler.scale(loss).backward()
    with no_waiting():
        scaler.step(optimizer)
        scaler.update()
