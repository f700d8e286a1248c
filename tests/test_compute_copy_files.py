"""Files, copies and pickles of optimizers whose predictions are in copies of the parameters."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import BACKENDS, needs_cpp, unpickles
from models import equal, held, network, optimizer, set_grads, snapshot, through_file

from wpadamw import WPAdamW

pytestmark = needs_cpp
COPIES = {"compute_dtype": torch.bfloat16}
ORDERS = pytest.mark.parametrize("is_model_first", [True, False], ids=["model", "optimizer"])
STEPS = range(3)


def train(opt, steps):
    for k in steps:
        set_grads(params_of(opt), k)
        opt.step()


def started(steps=3, **options):
    net = network()
    opt = optimizer(net, **options)
    train(opt, range(steps))
    return net, opt


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def copies_of(opt):
    return [opt.compute_copy(param).clone() for param in params_of(opt)]


def expected_after(steps):
    """Weights, predictions and states of the resident form."""
    net, opt = started(steps)
    predicted = [param.detach().bfloat16() for param in params_of(opt)]
    opt.restore()
    return held(net), predicted, states(opt)


def states(opt):
    """All but the backup."""
    entries = [opt.state[param] for param in params_of(opt)]
    return [{k: v.clone() for k, v in entry.items() if k != "weight"} for entry in entries]


def found(net, opt):
    copies = copies_of(opt)
    return held(net), copies, states(opt)


def fresh(kind=WPAdamW, **options):
    net = network(seed=7)
    opt = optimizer(net, kind, **options)
    opt.train = getattr(opt, "train", lambda: None)
    return net, opt


def load(net, opt, files, is_model_first):
    loads = [lambda: net.load_state_dict(files[0]), lambda: opt.load_state_dict(files[1])]
    for each in loads if is_model_first else reversed(loads):
        each()


# Files of every form, saved in every mode.


def files_of_own():
    net, opt = started(**COPIES)
    return net, opt


def files_of_resident(mode, **options):
    net, opt = started(**options)
    opt.predict() if mode == "predicted" else opt.restore()
    return net, opt


SAVED = {
    "own": files_of_own,
    "own-without-backup": lambda: started(**COPIES, backup=False),
    "predicted": lambda: files_of_resident("predicted"),
    "true": lambda: files_of_resident("true"),
    "predicted-without-backup": lambda: files_of_resident("predicted", backup=False),
    "true-without-backup": lambda: files_of_resident("true", backup=False),
}


def saved(form):
    net, opt = SAVED[form]()
    return copy.deepcopy(net.state_dict()), through_file(opt.state_dict())


def same(form, got, expected):
    """Whether two trainings are the same: without a backup weights come back to a few ulp."""
    if form != "predicted-without-backup":
        return equal(got, expected)
    pairs = zip(got[0], expected[0], strict=True)
    return equal(got[2], expected[2]) and all(torch.allclose(a, b) for a, b in pairs)


@ORDERS
@pytest.mark.parametrize("form", SAVED)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("asks_between", [False, True])
def test_files_of_every_form_continue_with_copies(form, is_model_first, backend, asks_between):
    net, opt = fresh(**COPIES, backend=backend)
    kept = [opt.compute_copy(param) for param in params_of(opt)]
    load(net, opt, saved(form), is_model_first)
    if asks_between:
        assert same(form, found(net, opt), expected_after(3))
        assert opt.weights_are == "true"
        assert equal([each.clone() for each in kept], copies_of(opt))
    train(opt, range(3, 5))
    assert same(form, found(net, opt), expected_after(5))
    assert opt.weights_are == "true"
    for param, each in zip(params_of(opt), kept, strict=True):
        assert opt.compute_copy(param).data_ptr() == each.data_ptr()


@ORDERS
@pytest.mark.parametrize("backup", [True, False])
@pytest.mark.parametrize("form", ["own", "own-without-backup"])
def test_own_files_continue_in_the_resident_form(form, is_model_first, backup):
    net, opt = fresh(backup=backup)
    load(net, opt, saved(form), is_model_first)
    assert opt.param_groups[0]["backup"] == backup
    assert opt.weights_are == "true"
    train(opt, range(3, 5))
    expected, _, of_state = expected_after(5)
    opt.restore()
    assert equal(states(opt), of_state) or not backup
    assert all(map(torch.equal if backup else torch.allclose, held(net), expected))


@pytest.mark.parametrize("form", SAVED)
def test_own_files_have_no_backup(form):
    net, opt = fresh(**COPIES)
    load(net, opt, saved(form), True)
    train(opt, [3] if "own" not in form else [])
    file = opt.state_dict()
    assert [group["weights_are"] for group in file["param_groups"]] == ["true"] * 2
    assert [group["backup"] for group in file["param_groups"]] == [None] * 2
    names = {name for entry in file["state"].values() for name in entry}
    assert names == {"step", "exp_avg", "exp_avg_sq", "prediction"}


@ORDERS
@pytest.mark.parametrize("form", SAVED)
def test_files_that_are_saved_again_at_once(form, is_model_first):
    net, opt = fresh(**COPIES)
    load(net, opt, saved(form), is_model_first)
    again = copy.deepcopy(net.state_dict()), through_file(opt.state_dict())
    net, opt = fresh(**COPIES)
    load(net, opt, again, is_model_first)
    assert same(form, found(net, opt), expected_after(3))


@pytest.mark.parametrize("backup", [True, None])
@pytest.mark.parametrize("options", [{}, {"backup": False}, COPIES], ids=str)
def test_predicted_weights_without_their_backup_are_refused(options, backup):
    """As distributed checkpoints read them that ask for what the optimizer has itself."""
    file = saved("predicted")[1]
    for entry in file["state"].values():
        del entry["weight"]
    for group in file["param_groups"]:
        group["backup"] = backup
    opt = fresh(**options)[1]
    with pytest.raises(ValueError, match="must have 'weight'"):
        opt.load_state_dict(file)
    assert not opt.state


@ORDERS
def test_files_of_plain_adamw_continue_with_copies(is_model_first):
    running, plain = fresh(torch.optim.AdamW)
    train(plain, STEPS)
    files = copy.deepcopy(running.state_dict()), through_file(plain.state_dict())
    net, opt = fresh(**COPIES)
    load(net, opt, files, is_model_first)
    resident_net, resident = fresh()
    load(resident_net, resident, files, is_model_first)
    resident.predict()
    predicted = [param.detach().bfloat16() for param in params_of(resident)]
    assert equal(held(net), held(running))
    assert equal(copies_of(opt), predicted)
    assert not equal(predicted, [param.detach().bfloat16() for param in params_of(plain)])


@ORDERS
def test_own_files_continue_under_plain_adamw(is_model_first):
    net, plain = fresh(torch.optim.AdamW)
    load(net, plain, saved("own"), is_model_first)
    assert equal(held(net), expected_after(3)[0])
    assert {float(state["step"]) for state in plain.state.values()} == {3.0}
    train(plain, [3])
    torch.testing.assert_close(held(net), expected_after(4)[0], rtol=1e-6, atol=1e-7)


def test_weights_that_come_later_are_the_new_true_ones():
    net, opt = fresh(**COPIES)
    load(net, opt, saved("predicted"), True)
    newer = {name: value + 1.0 for name, value in net.state_dict().items()}
    net.load_state_dict(newer)
    with pytest.warns(UserWarning, match="written to from outside"):
        opt.predict()
    assert equal(dict(net.state_dict()), newer)
    assert opt.weights_are == "true"


def test_a_file_of_the_literal_form_is_refused_by_name():
    opt = started(**COPIES)[1]
    before = snapshot(opt), copies_of(opt)
    file = started(predict_in_step=False)[1].state_dict()
    with pytest.raises(ValueError, match="predict_in_step must be True"):
        opt.load_state_dict(file)
    assert equal((snapshot(opt), copies_of(opt)), before)


# Copies and pickles.


@unpickles
@pytest.mark.parametrize("how", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_copies_and_pickles_train_on(how, is_loaded):
    net, opt = started(**COPIES)
    if is_loaded:
        load(net, opt, saved("predicted"), False)
    copies = copies_of(opt)
    twin_net, twin = how((net, opt))
    assert equal(copies_of(twin), copies)
    kept = [twin.compute_copy(param) for param in params_of(twin)]
    train(opt, range(3, 5))
    assert equal([each.clone() for each in kept], copies)
    train(twin, range(3, 5))
    assert equal(found(twin_net, twin), found(net, opt))
    assert equal([each.clone() for each in kept], copies_of(opt))


def test_a_backward_pass_through_copies_that_were_written_to_is_refused():
    net, opt = started(**COPIES)
    leaf = opt.compute_copy(net[0].weight).detach().requires_grad_()
    loss = leaf.square().sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
