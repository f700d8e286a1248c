"""Checkpoints of `torch.distributed.checkpoint`: written while training goes on, read elsewhere."""

from __future__ import annotations

import functools

import pytest
import torch
from processes import needs_gloo, network, run, train

import wpadamw

pytestmark = [needs_gloo, pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")]
KINDS = ("replicated", "sharded", "small")
# Parameters of two halves, the lower one and the moments in the state.
SMALL = {"moments": "bfloat16", "master": "split", "backup": False}


def made(kind, seed=0):
    from torch.distributed.fsdp import fully_shard

    is_small = kind == "small"
    net = network().to(torch.bfloat16 if is_small else torch.float32)
    with torch.no_grad():
        for param in net.parameters():
            param += seed
    if kind != "replicated":
        fully_shard(net)
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2, **(SMALL if is_small else {}))
    wpadamw.attach(net, opt)
    return net, opt


def whole(tensor):
    if tensor.dtype == torch.int16:  # which collectives do not know
        tensor = tensor.int()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def contents(net, opt):
    """Everything of a training, whole; the model at its true weights."""
    net.eval()
    own = [value for p in net.parameters() for value in (p, *opt.state[p].values())]
    net.train()
    return [whole(value).detach().clone() for value in own]


def check_saves(kind, folder, load_from=None):
    """Trains three steps, saves while two more are made, and notes what was right then."""
    from torch.distributed import checkpoint, new_group
    from torch.distributed.checkpoint.state_dict import get_state_dict

    net, opt = made(kind)
    if load_from:
        load(net, opt, load_from)
    train(net, opt, range(3))
    model, optim = get_state_dict(net, opt)
    expected = contents(net, opt)
    # In a group of its own: training goes on.
    group = new_group(backend="gloo")
    states = {"model": model, "optim": optim}
    saving = checkpoint.async_save(states, checkpoint_id=folder, process_group=group)
    train(net, opt, range(3, 5))
    saving.result(timeout=60)
    torch.save(expected, f"{folder}/expected.pt")


def load(net, opt, folder):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optim = get_state_dict(net, opt)
    checkpoint.load({"model": model, "optim": optim}, checkpoint_id=folder)
    set_state_dict(net, opt, model_state_dict=model, optim_state_dict=optim)


def check_loads(kind, folder):
    net, opt = made(kind, seed=1)
    load(net, opt, folder)
    expected = torch.load(f"{folder}/expected.pt")
    assert all(map(torch.equal, contents(net, opt), expected))
    train(net, opt, [5])
    assert opt.weights_are == "predicted"


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_move_between_numbers_of_processes(kind, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    run(functools.partial(check_saves, kind, two))
    on_one = functools.partial(check_loads, kind, two)
    run(on_one, functools.partial(check_saves, kind, one, two), world_size=1)
    run(functools.partial(check_loads, kind, one))
