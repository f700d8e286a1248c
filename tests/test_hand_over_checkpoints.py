"""Checkpoints of models that were handed over: true weights at any time, resumed bit for bit."""

from __future__ import annotations

import functools
import os
import signal

import handed
import pytest
import torch
import torch.distributed as dist
from processes import needs_gloo, network, run
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

import wpadamw

pytestmark = [needs_gloo, pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")]
SAVED_AT, END = 3, 6


def start(form="handed", shift=0.0, **options):
    """A model, its optimizer, and the handle if its shards are handed over."""
    from wpadamw.integrations.fsdp import hand_over

    net = network()
    with torch.no_grad():
        for param in net.parameters():
            param += shift
    handed.sharded(net)
    make = torch.optim.AdamW if form == "plain" else wpadamw.WPAdamW
    opt = make(net.parameters(), lr=1e-2, **options)
    if form == "resident":
        wpadamw.attach(net, opt)
    return net, opt, hand_over(net, opt) if form == "handed" else None


def made(form="handed", **options):
    """The same with other weights, so that what is not loaded is noticed."""
    return start(form, shift=1.0, **options)


def contents(net, opt):
    """Everything of a training, whole: true weights, moments, counts, records and copies."""
    opt.eval()
    states = [value for param in net.parameters() for value in opt.state[param].values()]
    copies = [opt.compute_copy(param) for param in net.parameters()]
    return [handed.whole(value) for value in [*net.parameters(), *states, *copies]]


def save(net, opt, folder):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optim = get_state_dict(net, opt)
    checkpoint.save({"model": model, "optim": optim}, checkpoint_id=folder)


def load(net, opt, folder):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optim = get_state_dict(net, opt)
    checkpoint.load({"model": model, "optim": optim}, checkpoint_id=folder)
    set_state_dict(net, opt, model_state_dict=model, optim_state_dict=optim)


# True weights at any time.


def check_model_files_hold_true_weights():
    net, opt, _ = start()
    for step in range(3):
        _, expected = handed.alone(range(step), dist.get_world_size())
        loss = handed.loss_of(net(handed.batch(step, dist.get_rank())))
        for _ in range(2):  # after the forward, and after the backward pass
            saved = net.state_dict().values()
            assert handed.are_equal([handed.whole(value) for value in saved], expected)
            if loss.requires_grad:
                loss.backward()
                loss = loss.detach()
        opt.step()
        opt.zero_grad()
        expected = handed.alone(range(step + 1), dist.get_world_size())[1]
        assert net.training
        assert handed.are_equal([handed.whole(v) for v in net.state_dict().values()], expected)
        assert not any("weight" in entry for entry in opt.state.values())


def uninterrupted():
    """The losses of this rank, and the weights at the end."""
    net, opt, _ = start()
    losses = handed.train(net, opt, range(END))
    expected, weights = handed.alone(range(END), dist.get_world_size())
    assert losses == expected or dist.get_rank() > 0
    assert handed.are_equal(handed.weights_of(opt), weights)
    return losses, weights


OPTIONS = [
    {},
    {"full_state_dict": True},
    {"full_state_dict": True, "cpu_offload": True, "broadcast_from_rank0": True},
    {"cpu_offload": True},
    {"flatten_optimizer_state_dict": True},
]


def state_dicts_after(steps, options):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    net, opt, _ = start()
    handed.train(net, opt, steps)
    return get_state_dict(net, opt, options=options)


def check_state_dicts_resume_bit_for_bit():
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    losses, weights = uninterrupted()
    for chosen in OPTIONS:
        options = StateDictOptions(**chosen)
        model, optim = state_dicts_after(range(SAVED_AT), options)
        net, opt, _ = made()
        # Not by `set_state_dict`: it hangs where rank 0 alone has one (torch 2.13, for AdamW too).
        set_model_state_dict(net, model, options=options)
        set_optimizer_state_dict(net, opt, optim, options=options)
        assert handed.train(net, opt, range(SAVED_AT, END)) == losses[SAVED_AT:], chosen
        assert handed.are_equal(handed.weights_of(opt), weights), chosen
        names = {name for entry in opt.state.values() for name in entry}
        assert names == {"step", "exp_avg", "exp_avg_sq", "prediction"}


def check_saved_while_training_goes_on(folder):
    from torch.distributed import checkpoint, new_group
    from torch.distributed.checkpoint.state_dict import get_state_dict

    net, opt, _ = start()
    losses = handed.train(net, opt, range(SAVED_AT))
    expected = contents(net, opt)
    net.train()
    model, optim = get_state_dict(net, opt)
    group = new_group(backend="gloo")
    states = {"model": model, "optim": optim}
    saving = checkpoint.async_save(states, checkpoint_id=folder, process_group=group)
    losses += handed.train(net, opt, range(SAVED_AT, END))
    saving.result(timeout=60)
    assert losses == uninterrupted()[0]
    resumed, resumed_opt, _ = made()
    load(resumed, resumed_opt, folder)
    assert handed.are_equal(contents(resumed, resumed_opt), expected)
    resumed.train()
    assert handed.train(resumed, resumed_opt, range(SAVED_AT, END)) == losses[SAVED_AT:]
    assert handed.are_equal(contents(resumed, resumed_opt), contents(net, opt))


def check_resumes(folder):
    """From a checkpoint as if training had never stopped."""
    losses, weights = uninterrupted()
    net, opt, _ = made()
    load(net, opt, folder)
    assert handed.train(net, opt, range(SAVED_AT, END)) == losses[SAVED_AT:]
    assert handed.are_equal(handed.weights_of(opt), weights)


def test_state_dicts_and_checkpoints(tmp_path):
    run(
        check_model_files_hold_true_weights,
        check_state_dicts_resume_bit_for_bit,
        functools.partial(check_saved_while_training_goes_on, tmp_path),
        functools.partial(check_resumes, tmp_path),
    )


def check_is_killed(folder):
    net, opt, _ = start()
    handed.train(net, opt, range(SAVED_AT))
    save(net, opt, folder)
    handed.train(net, opt, range(SAVED_AT, END), after=lambda step: kill(dist.get_rank()))


def kill(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def test_training_goes_on_after_a_rank_was_killed(tmp_path):
    with pytest.raises((ProcessExitedException, ProcessRaisedException)):
        run(functools.partial(check_is_killed, tmp_path))
    run(functools.partial(check_resumes, tmp_path))


# Other numbers of processes.


def check_saves(folder):
    net, opt, _ = start()
    handed.train(net, opt, range(SAVED_AT))
    save(net, opt, folder)
    expected = contents(net, opt)
    if dist.get_rank() == 0:
        torch.save(expected, f"{folder}/expected.pt")


def check_loads(folder, to=None):
    """What was saved by other processes; saves it again."""
    net, opt, _ = made()
    load(net, opt, folder)
    expected = torch.load(f"{folder}/expected.pt")
    assert handed.are_equal(contents(net, opt), expected)
    if to is not None:
        save(net, opt, to)
        torch.save(expected, f"{to}/expected.pt")
    net.train()
    handed.train(net, opt, [SAVED_AT])
    assert not handed.are_equal(contents(net, opt), expected)


def test_four_processes_become_two_and_four_again(tmp_path):
    four, two = tmp_path / "four", tmp_path / "two"
    run(functools.partial(check_saves, four), world_size=4)
    run(functools.partial(check_loads, four, two))
    run(functools.partial(check_loads, two), world_size=4)
