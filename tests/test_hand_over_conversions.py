"""Checkpoints move between handed-over models, resident predictions and `torch.optim.AdamW`.

Each file is read by an optimizer of the kind that saved it; what comes next takes over its state.
"""

from __future__ import annotations

import copy
import functools

import handed
import pytest
import torch
import torch.distributed as dist
from processes import needs_gloo, network, run
from test_hand_over_checkpoints import SAVED_AT, load, made, save, start
from torch.func import functional_call

pytestmark = [needs_gloo, pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")]
BFLOAT16 = torch.bfloat16


def trained_elsewhere(folder, form, **options):
    """Saves a training of another form; its weights and moments."""
    net, opt, _ = start(form, **options)
    handed.train(net, opt, range(SAVED_AT))
    save(net, opt, folder)
    return moments(net, opt)


def moments(net, opt):
    """What all forms have: true weights, which a model's state dict holds, and moments."""
    names = ("step", "exp_avg", "exp_avg_sq")
    states = [opt.state[param][name] for param in net.parameters() for name in names]
    return [handed.whole(value) for value in [*net.state_dict().values(), *states]]


def predictions(net, opt):
    """What the resident form predicts from the same weights and state."""
    twin_net, twin, _ = made("resident")
    twin_net.load_state_dict(net.state_dict())
    twin.load_state_dict(opt.state_dict())
    twin.predict()
    return [handed.whole(param).bfloat16() for param in twin_net.parameters()]


def copies(net, opt):
    return [handed.whole(opt.compute_copy(param)) for param in net.parameters()]


def check_plain_continues_handed_over(folder):
    expected = trained_elsewhere(folder, "plain")
    net, opt, _ = made()
    plain = torch.optim.AdamW(net.parameters())
    load(net, plain, folder)
    opt.load_state_dict(plain.state_dict())
    assert handed.are_equal(moments(net, opt), expected)
    assert handed.are_equal(copies(net, opt), predictions(net, plain))
    handed.train(net, opt, [SAVED_AT])
    assert not handed.are_equal(moments(net, opt), expected)


def check_handed_over_continues_plain(folder):
    expected = trained_elsewhere(folder, "handed")
    net, opt, handle = made()
    load(net, opt, folder)
    handle.remove()
    plain = torch.optim.AdamW(net.parameters())
    plain.load_state_dict(opt.state_dict())
    assert handed.are_equal(moments(net, plain), expected)
    handed.train(net, plain, [SAVED_AT])
    assert {float(state["step"]) for state in plain.state.values()} == {SAVED_AT + 1.0}


def check_resident_continues_handed_over(backup, folder):
    from wpadamw.integrations.fsdp import hand_over

    expected = trained_elsewhere(folder, "resident", backup=backup)
    net, opt, _ = made("resident", backup=backup)
    load(net, opt, folder)
    hand_over(net, opt)
    assert handed.are_equal(moments(net, opt), expected)
    assert handed.are_equal(copies(net, opt), predictions(net, opt))
    net, opt, _ = made()
    load(net, opt, folder)  # as it was saved at true weights
    assert handed.are_equal(moments(net, opt), expected)


def check_handed_over_continues_resident(backup, folder):
    expected = trained_elsewhere(folder, "handed", backup=backup)
    net, opt, handle = made(backup=backup)
    load(net, opt, folder)
    handle.remove()
    assert handed.are_equal(moments(net, opt), expected)
    opt.train()
    assert opt.weights_are == "predicted"
    predicted = [handed.whole(param).bfloat16() for param in net.parameters()]
    opt.eval()
    assert handed.are_equal(predicted, predictions(net, opt))
    assert handed.are_equal(moments(net, opt), expected) or not backup


def check_predicted_weights_are_told_apart():
    """Loaded after the optimizer's file, they are taken back before an evaluation, too."""
    running, running_opt, handle = start()
    handle.remove()
    handed.train(running, running_opt, range(SAVED_AT))
    running_opt.restore()
    expected = handed.weights_of(running_opt)
    running_opt.predict()
    net, opt, _ = made()
    opt.load_state_dict(copy.deepcopy(running_opt.state_dict()))
    net.load_state_dict(running.state_dict())
    net.eval()
    inputs = handed.batch(9, dist.get_rank(), BFLOAT16)
    found = net(inputs)
    assert handed.are_equal(handed.weights_of(opt), expected)
    weights = dict(zip(dict(network().named_parameters()), expected, strict=True))
    cast = {name: weight.to(BFLOAT16) for name, weight in weights.items()}
    assert torch.equal(found, functional_call(network(), cast, inputs))


def test_checkpoints_of_other_forms(tmp_path):
    checks = [check_plain_continues_handed_over, check_handed_over_continues_plain]
    for each in (check_resident_continues_handed_over, check_handed_over_continues_resident):
        checks += [functools.partial(each, backup) for backup in (True, False)]
    folders = [tmp_path / str(i) for i in range(len(checks))]
    bound = [functools.partial(c, folder) for c, folder in zip(checks, folders, strict=True)]
    run(*bound, check_predicted_weights_are_told_apart)
