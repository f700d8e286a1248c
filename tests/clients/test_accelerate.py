"""Loops of accelerate: prepared optimizers, accumulation, checkpoints, two processes."""

from __future__ import annotations

import copy
import os
import pickle

import accelerate
import pytest
import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from models import equal, held, network, optimizer, randn, snapshot
from processes import free_port, needs_gloo
from safetensors.torch import load_file
from test_averages import Recorder, evaluate, outcome, true
from torch import multiprocessing, nn

import wpadamw
from wpadamw.accelerated import NAMES, answer_through_accelerate


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerators share a state, which others may not inherit."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def accelerator(**options):
    return accelerate.Accelerator(cpu=True, **options)


def prepared(attach="after", steps=0, make=Recorder, **options):
    """An accelerator, a model, an optimizer and a schedule after a few steps."""
    acc, model = accelerator(**options), make()
    opt = optimizer(model)
    schedule = torch.optim.lr_scheduler.StepLR(opt, 2, gamma=0.5)
    if attach == "before":
        wpadamw.attach(model, opt)
    model, opt, schedule = acc.prepare(model, opt, schedule)
    if attach == "after":
        wpadamw.attach(model, opt)
    run = (acc, model, opt, schedule)
    for k in range(steps):
        train(run, k)
    return run


def batch(k, rows=slice(None)):
    return randn(8, 3, seed=2 * k)[rows], randn(8, 2, seed=2 * k + 1)[rows]


def train(run, k, clip=0.5):
    acc, model, opt, schedule = run
    inputs, targets = batch(k)
    with acc.accumulate(model):
        acc.backward((model(inputs) - targets).square().mean())
        opt.clip_grad_norm_(clip)
        opt.step()
        schedule.step()
        opt.zero_grad()


def without(steps, **options):
    """The outcome of the same training with nothing in between."""
    _, _, opt, _ = prepared(steps=steps, **options)
    return outcome(opt)


# Names.


def test_prepared_optimizer_answers_to_the_names_of_ours():
    _, model, opt, _ = prepared(steps=3)
    assert type(opt) is AcceleratedOptimizer
    assert opt.weights_are == "predicted"
    predicted = held(model)
    with opt.true_weights():
        assert opt.weights_are == "true"
        assert equal(held(model), true(opt, model))
    assert equal(held(model), predicted)
    opt.restore()
    assert equal(held(model), true(opt, model))
    opt.predict()
    assert equal(held(model), predicted)
    opt.reset_time()
    assert all(state["step"] == 0 for state in opt.state.values())


def test_other_prepared_optimizers_have_no_such_names():
    model = network()
    optimizer(model)  # by now the class has the names
    opt = accelerator().prepare(torch.optim.AdamW(model.parameters()))
    for name in NAMES:
        assert not hasattr(opt, name)
    with pytest.raises(AttributeError, match="'AcceleratedOptimizer' object has no attribute"):
        opt.true_weights()


def test_names_that_the_class_has_are_left_alone(monkeypatch):
    monkeypatch.setattr(AcceleratedOptimizer, "predict", "theirs")
    answer_through_accelerate()
    assert AcceleratedOptimizer.predict == "theirs"


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda opt: pickle.loads(pickle.dumps(opt))]
)
def test_prepared_optimizer_is_copied_and_pickled(duplicate):
    _, _, opt, _ = prepared(steps=2)
    twin = duplicate(opt)
    assert twin.weights_are == "predicted"
    assert equal(snapshot(twin), snapshot(opt))


# Training and evaluation.


@pytest.mark.parametrize("attach", ["before", "after"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_training_sees_predicted_and_evaluation_true_weights(attach, precision):
    run = prepared(attach, steps=3, mixed_precision=precision)
    acc, model, opt, _ = run
    for _ in range(2):
        evaluate(model)
        assert equal(model.seen[-1], true(opt, model))
        train(run, 3)
        assert not equal(model.seen[-1], model.seen[-2])
    assert acc.unwrap_model(model) is model


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("attach", ["before", "after"])
def test_evaluating_and_saving_in_between_changes_no_bit(attach, precision, tmp_path):
    options = {"attach": attach, "mixed_precision": precision}
    run = prepared(**options)
    acc, model, opt, _ = run
    for k in range(6):
        train(run, k)
        evaluate(model)
        acc.save_model(model, tmp_path)
        acc.get_state_dict(model)
        with opt.true_weights():
            acc.save_state(tmp_path)
    assert equal(outcome(opt), without(6, **options))


def test_accumulated_micro_batches_are_those_of_a_plain_loop():
    acc, model, opt, _ = prepared(gradient_accumulation_steps=2)
    plain = Recorder()
    plain_opt = optimizer(plain)
    wpadamw.attach(plain, plain_opt)
    torch.optim.lr_scheduler.StepLR(plain_opt, 2)  # leaves a note in the groups
    for k in range(4):
        for half in (slice(4), slice(4, None)):
            inputs, targets = batch(k, half)
            with acc.accumulate(model):
                acc.backward((model(inputs) - targets).square().mean())
                norm = opt.clip_grad_norm_(0.5)
                opt.step()
                opt.zero_grad()
            if half == slice(4):
                assert norm is None
                evaluate(model)  # between the micro-batches of a step
            ((plain(inputs) - targets).square().mean() / 2).backward()
        assert equal(norm, plain_opt.clip_grad_norm_(0.5))
        plain_opt.step()
        plain_opt.zero_grad()
    assert equal(model.seen[::3][-2:], plain.seen[::2][-2:])
    assert equal(outcome(opt), outcome(plain_opt))


def test_clipping_during_accumulation_leaves_nothing_for_a_later_step():
    outcomes = []
    for clips in (True, False):
        acc, model, opt, _ = prepared(gradient_accumulation_steps=2)
        for k in range(4):
            with acc.accumulate(model):
                acc.backward(model(batch(k)[0]).square().mean())
                if clips and not acc.sync_gradients:
                    assert opt.clip_grad_norm_(1e-3) is None
                opt.step()
                opt.zero_grad()
        outcomes.append(outcome(opt))
    assert equal(*outcomes)


def test_clipping_in_the_step_equals_that_of_the_accelerator():
    acc, model, opt, _ = prepared(steps=2)
    acc.backward(model(batch(2)[0]).square().mean())
    norm = opt.clip_grad_norm_(1e-3)
    gradients = [param.grad.clone() for param in model.parameters()]
    assert norm > 1e-3
    torch.testing.assert_close(norm, acc.clip_grad_norm_(model.parameters(), 1e-3))
    assert not equal(gradients, [param.grad for param in model.parameters()])


@pytest.mark.parametrize("amp", [False, True])
def test_clipping_with_a_scaler_clips_unscaled_gradients(amp):
    accelerator()  # there must be one
    outcomes = []
    for scale in (1.0, 64.0):
        model = Recorder()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100)
        opt = AcceleratedOptimizer(optimizer(model, amp=amp), scaler=scaler)
        wpadamw.attach(model, opt)
        for k in range(3):
            scaler.scale(model(batch(k)[0]).square().mean()).backward()
            assert opt.clip_grad_norm_(1e-3) > 1e-3
            opt.step()
            assert not opt.step_was_skipped
            opt.zero_grad()
        outcomes.append(outcome(opt))
    assert equal(*outcomes)


def test_scaled_overflow_is_a_step_that_was_skipped():
    accelerator()
    model = Recorder()
    opt = AcceleratedOptimizer(optimizer(model), scaler=torch.amp.GradScaler("cpu"))
    wpadamw.attach(model, opt)
    opt.scaler.scale(model(batch(0)[0]).square().mean() * torch.inf).backward()
    before = held(model)
    opt.clip_grad_norm_(1.0)
    opt.step()
    assert opt.step_was_skipped
    assert equal(held(model), before)


# Checkpoints.


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("safe", [True, False])
def test_all_that_is_saved_holds_true_weights(mode, safe, tmp_path):
    acc, model, opt, _ = prepared(steps=3)
    assert opt.weights_are == "predicted"
    getattr(model, mode)()
    weights = true(opt, model)
    names = [name for name, _ in model.named_parameters()]

    def of(state):
        return [state[name] for name in names]

    def load(path):
        if safe:
            return load_file(path.with_suffix(".safetensors"))
        return torch.load(path.with_name("pytorch_model.bin"), weights_only=True)

    assert equal(of(acc.get_state_dict(model)), weights)
    opt.predict()
    assert equal(of(acc.unwrap_model(model).state_dict()), weights)
    opt.predict()
    acc.save_model(model, tmp_path / "model", safe_serialization=safe)
    assert equal(of(load(tmp_path / "model" / "model")), weights)
    opt.predict()
    acc.save_state(tmp_path / "state", safe_serialization=safe)
    assert equal(of(load(tmp_path / "state" / "model")), weights)
    assert equal(true(opt, model), weights)


@pytest.mark.parametrize("saved_in", ["train", "eval", "opt.predict"])
@pytest.mark.parametrize("loaded_in", ["fresh", "train", "eval"])
@pytest.mark.parametrize("attach", ["before", "after"])
def test_resumed_run_ends_with_the_same_bits(saved_in, loaded_in, attach, tmp_path):
    first = prepared(attach, steps=4)
    if saved_in == "opt.predict":
        first[2].predict()
    else:
        getattr(first[1], saved_in)()
    first[0].save_state(tmp_path)
    AcceleratorState._reset_state(True)
    resumed = prepared(attach, steps=0 if loaded_in == "fresh" else 2)
    getattr(resumed[1], "eval" if loaded_in == "eval" else "train")()
    for _ in range(2):  # resuming twice is resuming once
        resumed[0].load_state(tmp_path)
    assert equal(true(resumed[2], resumed[1]), true(first[2], first[1]))
    resumed[1].train()
    for k in range(4, 7):
        train(resumed, k)
    assert resumed[3].get_last_lr() == [1e-2 / 8, 3e-2 / 8]
    assert equal(outcome(resumed[2]), without(7))


def test_resume_with_a_schedule_that_is_registered_for_checkpoints(tmp_path):
    def started(steps):
        acc, model = accelerator(), Recorder()
        opt = optimizer(model)
        model, opt = acc.prepare(model, opt)
        wpadamw.attach(model, opt)
        schedule = torch.optim.lr_scheduler.StepLR(opt, 2, gamma=0.5)
        acc.register_for_checkpointing(schedule)
        run = (acc, model, opt, schedule)
        for k in range(steps):
            train(run, k)
        return run

    started(3)[0].save_state(tmp_path)
    resumed = started(0)
    resumed[0].load_state(tmp_path)
    for k in range(3, 6):
        train(resumed, k)
    assert equal(outcome(resumed[2]), outcome(started(6)[2]))


def test_without_attach_the_model_file_holds_predicted_weights(tmp_path):
    """What the recipe is for. The optimizer's file has the true ones all the same."""
    acc, model, opt, _ = prepared(attach=None, steps=3)
    with pytest.warns(UserWarning, match="hold predicted weights"):
        acc.save_state(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    names = [name for name, _ in model.named_parameters()]
    assert not equal([saved[name] for name in names], true(opt, model))


def test_error_in_the_middle_leaves_a_run_that_can_be_saved_and_resumed(tmp_path):
    run = prepared(steps=3)
    acc, model, _, _ = run

    def fail(*_):
        raise KeyboardInterrupt

    handle = model.register_forward_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        train(run, 3)
    handle.remove()
    acc.save_state(tmp_path)
    resumed = prepared()
    resumed[0].load_state(tmp_path)
    for k in range(3, 5):
        train(resumed, k)
    assert equal(outcome(resumed[2]), without(5))


# Two processes.


class Net(nn.Module):
    """Without batch norm: FSDP cannot sum statistics, and nothing else differs between ranks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))

    def forward(self, inputs):
        return self.body(inputs)


def in_process(rank, port, path):
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update(environment, WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    for attach in ("before", "after"):
        check_ranks_stay_equal(attach, rank, f"{path}/ddp-{attach}")
        AcceleratorState._reset_state(False)
    for attach in ("before", "after"):
        check_sharded(attach, f"{path}/fsdp-{attach}")
        AcceleratorState._reset_state(False)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # as in processes.py


def train_rank(run, rank, k):
    acc, model, opt, _ = run
    inputs, targets = batch(k, slice(4 * rank, 4 * rank + 4))
    acc.backward((model(inputs) - targets).square().mean())
    opt.clip_grad_norm_(0.5)
    opt.step()
    opt.zero_grad()


def check_ranks_stay_equal(attach, rank, path):
    run = acc, model, opt, _ = prepared(attach, make=Net)
    assert isinstance(model, nn.parallel.DistributedDataParallel)
    for k in range(5):
        train_rank(run, rank, k)
        assert opt.weights_are == "predicted"
        if k == 2:
            acc.save_state(path)
            acc.wait_for_everyone()
            acc.load_state(path)
        if k == 3 and rank == 0:  # one rank alone evaluates
            unwrapped = acc.unwrap_model(model)
            unwrapped.eval()
            assert opt.weights_are == "true"
            unwrapped(batch(0)[0])
            assert opt.weights_are == "true"
            unwrapped.train()
    opt.predict()
    for tensor in [*held(model), *true(opt, model)]:
        others = acc.gather(tensor[None].contiguous())
        assert torch.equal(others[0], others[1])
    model.eval()
    assert equal(held(model), true(opt, model))


def check_sharded(attach, path):
    """What accelerate does with FSDP2, which it offers for other devices only."""
    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, cpu_ram_efficient_loading=False, auto_wrap_policy="no_wrap"
    )
    plain = Net()
    plain_opt = optimizer(plain)
    acc, model = accelerator(), Net()
    opt = optimizer(model)
    if attach == "before":
        wpadamw.attach(model, opt)
    fsdp = {"distributed_type": DistributedType.FSDP}
    PartialState._shared_state.update(fsdp)
    AcceleratorState._shared_state.update(fsdp, fsdp_plugin=plugin)
    model, opt = acc.prepare(model, opt)
    assert acc.is_fsdp2
    if attach == "after":
        wpadamw.attach(model, opt)
    run = (acc, model, opt, None)
    for k in range(4):
        train_rank(run, acc.process_index, k)
        assert opt.weights_are == "predicted"
        plain_opt.zero_grad()
        inputs, targets = batch(k)
        (plain(inputs) - targets).square().mean().backward()
        plain_opt.clip_grad_norm_(0.5)
        plain_opt.step()
        if k == 2:
            before = [local(tensor) for tensor in [*model.parameters(), *true(opt, model)]]
            acc.save_state(path)
            acc.wait_for_everyone()
            acc.load_state(path)
            opt.predict()
            assert equal(before, [local(t) for t in [*model.parameters(), *true(opt, model)]])
    plain_opt.restore()
    whole = acc.get_state_dict(model)
    for name, param in plain.named_parameters():
        if acc.is_main_process:
            torch.testing.assert_close(whole[name], param.detach(), rtol=1e-5, atol=1e-6)
    assert equal([local(p) for p in model.parameters()], [local(w) for w in true(opt, model)])


def local(tensor):
    return tensor.to_local().detach().clone()


@needs_gloo
def test_two_processes(tmp_path):
    multiprocessing.spawn(in_process, args=(str(free_port()), str(tmp_path)), nprocs=2)
