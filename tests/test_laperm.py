"""LaPerm: initial values in the order that training gives them, whoever calls the step."""

from __future__ import annotations

import copy
import pickle
import types
import warnings

import pytest
import torch
from helpers import BACKENDS, assert_same_bits, assert_same_training, parameters_of, unpickles
from models import equal, held, network, parameter, set_grads, snapshot, through_file, train
from processes import WORLD_SIZE, needs_gloo, run
from torch import nn
from torch.nn import functional as F

import wpadamw
from wpadamw import LaPerm, WPAdamW

HYPER = {"lr": 0.1, "betas": (0.8, 0.9), "weight_decay": 0.1}
FORMS = {
    "linear": {},
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5},
    "literal": {"predict_in_step": False},
    "no-backup": {"backup": False},
    "copies": {"compute_dtype": torch.bfloat16},
}


def parameters(dtype=torch.float32):
    shapes = [(4, 5), (3, 2, 2, 2), (6,), (2, 0), (0, 3), ()]
    return [parameter(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]


def adamw(dtype=torch.float32, **options):
    return WPAdamW(parameters(dtype), **{**HYPER, **options})


def step(opt, k, door=lambda opt: opt.step()):
    set_grads(parameters_of(opt), seed=k)
    return door(opt)


def true_weights(opt):
    """The true weights, in float32 for narrower parameters."""
    found = []
    opt.set_true_weights(lambda param, weight: found.append((param, weight.detach().clone())))
    of = {id(param): weight for param, weight in found}
    return [of[id(param)] for param in parameters_of(opt)]


def reconnected(weight, initial):
    """Row by row: the initial values, in the order of the weights."""
    rows = []
    pairs = zip(weight.flatten(1).tolist(), initial.flatten(1).tolist(), strict=True)
    for row, first in pairs:
        places = sorted(range(len(row)), key=row.__getitem__)
        ranked = dict(zip(places, sorted(first), strict=True))
        rows.append([ranked[place] for place in range(len(row))])
    return torch.tensor(rows, dtype=weight.dtype).reshape(weight.shape)


def reconnect(opt, initial):
    """What LaPerm does, by hand."""
    of = dict(zip(map(id, parameters_of(opt)), initial, strict=True))
    opt.set_true_weights(
        lambda param, weight: reconnected(weight, of[id(param)]) if param.ndim >= 2 else None
    )


# Values.


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_rows_take_their_initial_values_in_the_order_of_the_weights(options, backend):
    opt, plain = (adamw(backend=backend, **options) for _ in range(2))
    initial = held(parameters_of(opt))
    laperm = LaPerm(opt, every=3)
    for k in range(8):
        step(laperm, k)
        step(plain, k)
        if k in (2, 5):
            with_backup = options.get("backup", True)  # else the way back is not exact
            before = true_weights(plain) if with_backup else []
            reconnect(plain, initial)
            now = true_weights(opt) if with_backup else []
            for was, first, found in zip(before, initial, now, strict=with_backup):
                assert_same_bits("weight", found, reconnected(was, first) if was.ndim >= 2 else was)
                assert found.numel() < 2 or not torch.equal(found, first)
        assert_same_training(opt, plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_dtype_keeps_its_values(dtype):
    laperm = LaPerm(adamw(dtype), every=2)
    params = parameters_of(laperm)
    initial = held(params)
    for k in range(4):
        step(laperm, k)
    state = laperm.state_dict()["state"]
    for i, (now, first) in enumerate(zip(true_weights(laperm), initial, strict=True)):
        assert now.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        if now.ndim >= 2:
            rows = first.to(now.dtype).flatten(1).sort(1).values
            assert_same_bits("values", now.flatten(1).sort(1).values, rows)
            assert_same_bits("saved values", state[i]["initial_values"], rows.view(now.shape))
        else:
            assert "initial_values" not in state[i]
            assert not torch.equal(now, first.to(now.dtype))


def test_predictions_go_on_from_the_new_weights():
    opt = adamw()
    laperm = LaPerm(opt, every=2)
    for k in range(2):
        step(laperm, k)
    assert opt.weights_are == "predicted"
    for param, weight in zip(parameters_of(opt), true_weights(opt), strict=True):
        state = opt.state[param]
        m_hat, v_hat = state["exp_avg"] / (1 - 0.8**2), state["exp_avg_sq"] / (1 - 0.9**2)
        update = m_hat / (v_hat.sqrt() + 1e-8) + 0.1 * weight
        torch.testing.assert_close(param.detach(), weight - 0.1 * update)


def test_equal_weights_keep_their_order():
    param = nn.Parameter(torch.tensor([[3.0, 1.0, 2.0, 4.0], [8.0, 7.0, 6.0, 5.0]]))
    laperm = LaPerm(WPAdamW([param], lr=0.0), every=1)
    tied = torch.tensor([[1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 1.0]])
    step(laperm, 0)
    laperm.set_true_weights(lambda param, weight: tied)
    step(laperm, 1)
    want = torch.tensor([[3.0, 1.0, 4.0, 2.0], [6.0, 7.0, 8.0, 5.0]])
    assert_same_bits("weight", laperm.state[param]["weight"], want)


def test_frozen_weights_stay():
    laperm = LaPerm(adamw(), every=2)
    first, *_ = parameters_of(laperm)
    step(laperm, 0)
    frozen = true_weights(laperm)[0]
    first.requires_grad_(False)
    for param in parameters_of(laperm):
        param.grad = None if param is first else torch.ones_like(param)
    laperm.step()
    assert_same_bits("frozen", true_weights(laperm)[0], frozen)
    assert laperm._count == 0


# Counting.


def with_closure(opt):
    opt.zero_grad()

    def closure():
        set_grads(parameters_of(opt), seed=closure.seed)
        return torch.tensor(2.0)

    closure.seed = opt.seed
    assert opt.step(closure) == 2.0


def by_scaler(opt):
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.zeros(()))  # makes its scale
    for param in parameters_of(opt):
        param.grad *= 4.0
    scaler.step(opt)
    scaler.update()


DOORS = {
    "wrapper": lambda laperm: laperm.step(),
    "wrapped": lambda laperm: laperm.optimizer.step(),
    "with-a-closure": with_closure,
    "scaler": by_scaler,
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_updates_count_by_whatever_door(door):
    amp = {"amp": True} if door is by_scaler else {}
    laperm, usual = (LaPerm(adamw(**amp), every=2) for _ in range(2))
    for k in range(5):
        vars(laperm)["seed"] = k
        step(laperm, k, door)
        step(usual, k)
        assert_same_training(laperm.optimizer, usual.optimizer)
        assert laperm._count == usual._count == (k + 1) % 2


def test_steps_that_do_nothing_do_not_count():
    laperm = LaPerm(adamw(amp=True), every=2)
    laperm.step()
    step(laperm, 0)
    laperm.zero_grad()
    laperm.step()
    set_grads(parameters_of(laperm), seed=1)
    laperm.found_inf, laperm.grad_scale = torch.tensor(1.0), torch.tensor(8.0)
    laperm.step()
    del laperm.found_inf, laperm.grad_scale
    assert laperm._count == 1
    assert not hasattr(laperm, "found_inf")
    laperm.step()
    assert laperm._count == 0


def test_every_may_change():
    laperm = LaPerm(adamw(), every=100)
    counts = []
    for k in range(6):
        laperm.every = 2 if k >= 3 else 100
        step(laperm, k)
        counts.append(laperm._count)
    assert counts == [1, 2, 3, 0, 1, 0]


def test_remove_leaves_the_optimizer_as_it_is():
    opt, plain = adamw(), adamw()
    LaPerm(opt, every=1).remove()
    for k in range(3):
        step(opt, k)
        step(plain, k)
    assert_same_training(opt, plain)
    assert equal(opt.state_dict(), plain.state_dict())
    LaPerm(opt, every=1)


def test_a_switch_or_a_context_changes_nothing():
    laperm, usual = (LaPerm(adamw(), every=2) for _ in range(2))
    for k in range(5):
        step(usual, k)
        with laperm.true_weights():
            step(laperm, k)
        laperm.eval()
        laperm.train()
        assert_same_training(laperm.optimizer, usual.optimizer)


# In the place of the optimizer.


def test_it_stands_in_the_place_of_the_optimizer():
    opt = adamw()
    laperm = LaPerm(opt, every=2)
    assert isinstance(laperm, torch.optim.Optimizer)
    assert laperm.optimizer is opt
    assert laperm.param_groups is opt.param_groups
    assert laperm.state is opt.state
    assert laperm.defaults is opt.defaults
    called = []
    laperm.register_step_post_hook(lambda *args: called.append(args[0]))
    step(laperm, 0)
    assert called == [opt]
    assert laperm.weights_are == "predicted"
    laperm.restore()
    assert opt.weights_are == "true"
    laperm.clip_grad_norm_(1.0)
    laperm.zero_grad()
    assert all(param.grad is None for param in parameters_of(opt))
    assert repr(laperm).startswith("LaPerm (")
    with pytest.raises(AttributeError, match="'WPAdamW' object has no attribute 'nothing'"):
        laperm.nothing  # noqa: B018


def test_a_scheduler_of_it_drives_the_optimizer():
    opt = adamw()
    laperm, plain = LaPerm(opt, every=100), adamw()
    schedulers = [torch.optim.lr_scheduler.StepLR(each, 2, 0.5) for each in (laperm, plain)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(5):
            for each, scheduler in zip((laperm, plain), schedulers, strict=True):
                step(each, k)
                scheduler.step()
    assert opt.param_groups[0]["lr"] == 0.025
    assert_same_training(opt, plain)


def test_attached_models_show_the_permuted_true_weights():
    net = network()
    laperm = LaPerm(WPAdamW(net.parameters(), lr=1.0), every=2)
    first = net[0].weight.detach().clone()
    wpadamw.attach(net, laperm)
    net.train()
    for k in range(2):
        set_grads(net.parameters(), seed=k)
        laperm.step()
    assert not torch.equal(net[0].weight.sort(1).values, first.sort(1).values)
    net.eval()
    assert_same_bits("values", net[0].weight.sort(1).values, first.sort(1).values)
    assert not torch.equal(net[0].weight, first)
    wpadamw.attach(net, types.SimpleNamespace(optimizer=laperm))  # in a trainer's wrapper
    wpadamw.attach(net, laperm.optimizer)


def to_the_wrapped(laperm, group):
    laperm.optimizer.add_param_group(group)


@pytest.mark.parametrize("is_saved", [False, True])
@pytest.mark.parametrize("adds", [LaPerm.add_param_group, to_the_wrapped])
def test_new_parameters_begin_with_their_own_values(adds, is_saved):
    laperm = LaPerm(adamw(), every=2)
    step(laperm, 0)
    new = parameter(3, 4, seed=9)
    first = new.detach().sort(1).values
    adds(laperm, {"params": [new]})
    if is_saved:
        assert_same_bits("saved", laperm.state_dict()["state"][6]["initial_values"], first)
    step(laperm, 1)
    assert_same_bits("values", true_weights(laperm)[-1].sort(1).values, first)


def test_it_may_begin_in_the_middle_of_a_training():
    opt = adamw()
    step(opt, 0)
    first = true_weights(opt)
    predicted = held(parameters_of(opt))
    laperm = LaPerm(opt, every=1)
    for param, value in zip(parameters_of(opt), predicted, strict=True):
        assert_same_bits("still predicted", param, value)
    step(laperm, 1)
    assert_same_bits("values", true_weights(opt)[0].sort(1).values, first[0].sort(1).values)


# Copies and files.


def copied(net, laperm):
    return copy.deepcopy((net, laperm))


def pickled(net, laperm):
    return pickle.loads(pickle.dumps((net, laperm)))


@unpickles
@pytest.mark.parametrize("make", [copied, pickled])
def test_copies_permute_their_own_parameters(make):
    net = network()
    laperm = LaPerm(WPAdamW(net.parameters(), lr=0.1), every=3)
    train(net, laperm, range(2))
    before = snapshot(laperm)
    other, theirs = make(net, laperm)
    assert theirs.optimizer is not laperm.optimizer
    assert theirs.param_groups[0]["params"][0] is other[0].weight
    train(other, theirs, range(2, 7))
    assert equal(snapshot(laperm), before)
    train(net, laperm, range(2, 7))
    assert_same_training(theirs.optimizer, laperm.optimizer)
    assert equal(theirs.state_dict(), laperm.state_dict())


@pytest.mark.parametrize("of", [lambda laperm: laperm, lambda laperm: laperm.optimizer])
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_training_goes_on_from_a_file(options, of):
    net, other = network(), network(seed=1)
    laperm, theirs = (
        LaPerm(WPAdamW(each.parameters(), lr=0.1, **options), every=3) for each in (net, other)
    )
    train(net, laperm, range(4))
    saved = through_file({"opt": of(laperm).state_dict(), "net": net.state_dict()})
    of(theirs).load_state_dict(saved["opt"])
    other.load_state_dict(saved["net"])
    for k in range(4, 9):
        train(other, theirs, [k])
        train(net, laperm, [k])
        assert_same_training(theirs.optimizer, laperm.optimizer)
    assert equal(theirs.state_dict(), laperm.state_dict())


def test_a_file_of_the_beginning_has_the_values():
    laperm, theirs = (LaPerm(WPAdamW(network(seed).parameters()), every=1) for seed in range(2))
    theirs.load_state_dict(through_file(laperm.state_dict()))
    assert theirs.state_dict()["state"].keys() == {0, 2}
    assert equal(theirs.state_dict(), laperm.state_dict())


def test_what_is_loaded_is_a_copy():
    laperm = LaPerm(adamw(), every=2)
    saved = laperm.state_dict()
    laperm.load_state_dict(saved)
    before = laperm.state_dict()["state"][0]["initial_values"].clone()
    saved["state"][0]["initial_values"].zero_()
    assert_same_bits("values", laperm.state_dict()["state"][0]["initial_values"], before)


@pytest.mark.filterwarnings("ignore:.*_get_pg_default_device")
def test_torch_distributed_checkpoints_carry_it():
    from torch.distributed.checkpoint import state_dict as dcp

    net, other = network(), network(seed=1)
    laperm, theirs = (LaPerm(WPAdamW(each.parameters(), lr=0.1), every=3) for each in (net, other))
    train(net, laperm, range(4))
    other.load_state_dict(net.state_dict())
    saved = copy.deepcopy(dcp.get_optimizer_state_dict(net, laperm))
    assert "initial_values" in saved["state"]["0.weight"]
    dcp.set_optimizer_state_dict(other, theirs, saved)
    for each in ((net, laperm), (other, theirs)):
        train(*each, range(4, 9))
    assert_same_training(theirs.optimizer, laperm.optimizer)


def trained(make=adamw):
    opt = make()
    step(opt, 0)
    return opt


def test_a_file_without_values_is_refused():
    saved = trained().state_dict()
    laperm = trained(lambda: LaPerm(adamw(), every=2))
    before = copy.deepcopy(laperm.state_dict())
    with pytest.raises(ValueError, match=r"\['state'\]\[0\] must have 'initial_values'"):
        laperm.load_state_dict(saved)
    assert equal(laperm.state_dict(), before)
    opt = adamw()
    opt.load_state_dict(saved)
    LaPerm(opt, every=2)


def test_a_file_with_values_is_refused_by_an_optimizer_without():
    saved = trained(lambda: LaPerm(adamw(), every=2)).state_dict()
    opt = trained()
    before = snapshot(opt)
    with pytest.raises(ValueError, match="must have no entry 'initial_values'"):
        opt.load_state_dict(saved)
    assert equal(snapshot(opt), before)


BAD_FILES = {
    "shape": (
        lambda saved: saved["state"][0].update(initial_values=torch.zeros(5, 4)),
        r"\['state'\]\[0\]\['initial_values'\] must have shape \(4, 5\)",
    ),
    "kind": (
        lambda saved: saved["state"][1].update(initial_values=3),
        r"\['state'\]\[1\]\['initial_values'\] must be a tensor, got int",
    ),
    "count": (
        lambda saved: saved["param_groups"][0].update(laperm_count=-1),
        r"\['laperm_count'\] must be a whole number >= 0, got -1",
    ),
    "no-count": (
        lambda saved: saved["param_groups"][0].pop("laperm_count"),
        r"\['laperm_count'\] must be a whole number >= 0, got None",
    ),
    "state": (lambda saved: saved.update(state=3), r"\['state'\] must be a dict, got int"),
    "groups": (lambda saved: saved.update(param_groups=[3]), "must be a list of dicts"),
    "the-optimizer's": (lambda saved: saved["state"][0].pop("exp_avg"), "must have 'exp_avg'"),
}


@pytest.mark.parametrize("spoil, message", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_does_not_fit_changes_nothing(spoil, message):
    laperm = trained(lambda: LaPerm(adamw(), every=2))
    before = copy.deepcopy(laperm.state_dict())
    saved = copy.deepcopy(before)
    saved["state"][0]["initial_values"] += 1
    spoil(saved)
    with pytest.raises(ValueError, match=message):
        laperm.load_state_dict(saved)
    assert equal(laperm.state_dict(), before)


# Refusals.


@pytest.mark.parametrize("every", [0, -3, 2.5, "7", None, True], ids=str)
def test_every_is_a_whole_number(every):
    opt = adamw()
    with pytest.raises(ValueError, match=f"every must be a whole number >= 1, got {every!r}"):
        LaPerm(opt, every=every)
    laperm = LaPerm(opt, every=3)
    with pytest.raises(ValueError, match="every must be"):
        laperm.every = every
    assert laperm.every == 3


def test_other_optimizers_are_refused():
    with pytest.raises(TypeError, match="optimizer must be one of wpadamw's, got SGD"):
        LaPerm(torch.optim.SGD(parameters()), every=2)
    with pytest.raises(TypeError, match="optimizer must be one of wpadamw's, got NoneType"):
        LaPerm(None, every=2)


def test_a_second_one_is_refused():
    laperm = LaPerm(adamw(), every=2)
    for optimizer in (laperm, laperm.optimizer):
        with pytest.raises(ValueError, match="must have no LaPerm yet"):
            LaPerm(optimizer, every=2)


def test_complex_matrices_are_refused():
    vector, matrix = (nn.Parameter(torch.ones(*s, dtype=torch.complex64)) for s in ((2,), (2, 2)))
    message = r"must be real for LaPerm, got torch.complex64 in param_groups\[0\]\['params'\]\[1\]"
    opt = WPAdamW([vector, matrix])
    with pytest.raises(TypeError, match=message):
        LaPerm(opt, every=2)
    assert not opt._optimizer_step_post_hooks
    laperm = LaPerm(WPAdamW([vector]), every=2)
    with pytest.raises(TypeError, match=r"param_groups\[1\]"):
        laperm.add_param_group({"params": [matrix]})
    assert len(laperm.param_groups) == 1
    step(laperm, 0)


def test_steps_in_a_cuda_graph_are_refused(monkeypatch):
    laperm = LaPerm(adamw(), every=2)
    before = snapshot(laperm)
    monkeypatch.setattr("wpadamw.laperm.is_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="got a step in a CUDA graph"):
        step(laperm, 0)
    assert equal(snapshot(laperm), before)


# Sharded parameters.


def sharded():
    from processes import network
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net, mesh = network(), init_device_mesh("cpu", (WORLD_SIZE,))
    fully_shard(net, mesh=mesh)
    return net, LaPerm(WPAdamW(net.parameters(), lr=0.1), every=3)


def check_shards():
    from processes import train
    from torch.distributed.checkpoint import state_dict as dcp

    net, laperm = sharded()
    first = net[0].weight.to_local().detach().sort(1).values
    train(net, laperm, range(3))
    with laperm.true_weights():
        now = net[0].weight.to_local().detach()
        assert torch.equal(now.sort(1).values, first)
        assert now.numel() == 0 or not torch.equal(now, first)
    train(net, laperm, [3])
    other, theirs = sharded()
    dcp.set_model_state_dict(other, dcp.get_model_state_dict(net))
    dcp.set_optimizer_state_dict(other, theirs, dcp.get_optimizer_state_dict(net, laperm))
    for each in ((net, laperm), (other, theirs)):
        train(*each, range(4, 7))
    for ours, own in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.to_local(), own.to_local())


def check_columns_are_refused():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD_SIZE,))
    param = nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(1)]))
    with pytest.raises(ValueError, match=r"along dimension 0 for LaPerm, got .*Shard\(dim=1\)"):
        LaPerm(WPAdamW([param]), every=2)


@needs_gloo
def test_rows_of_shards_are_whole():
    run(check_shards, check_columns_are_refused)


# Training.


def test_digits_are_learnt_by_reconnecting():
    data = pytest.importorskip("sklearn.datasets").load_digits()
    inputs = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    laperm = LaPerm(WPAdamW(net.parameters(), lr=3e-3), every=250)
    values = net[0].weight.detach().sort(1).values
    generator = torch.Generator().manual_seed(0)

    def evaluate():
        with torch.no_grad(), laperm.true_weights():
            outputs = net(inputs)
        accuracy = (outputs.argmax(1) == labels).float().mean().item()
        return F.cross_entropy(outputs, labels).item(), accuracy

    found = {0: evaluate()}
    for k in range(1, 501):
        batch = torch.randint(len(labels), (64,), generator=generator)
        F.cross_entropy(net(inputs[batch]), labels[batch]).backward()
        laperm.step()
        laperm.zero_grad()
        if k in (249, 250, 499, 500):
            found[k] = evaluate()
    loss = {k: each[0] for k, each in found.items()}
    assert loss[249] < loss[250] < loss[0]  # a permutation disturbs what was learnt
    assert loss[499] < loss[250]  # and training goes on from it
    assert found[500][1] > 0.5 > 3 * found[0][1]
    laperm.eval()
    assert_same_bits("values", net[0].weight.sort(1).values, values)
