"""Gradients that are used and freed in the backward pass: the bits of the usual loop."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import assert_same_bits, assert_same_training, parameters_of, unpickles
from models import HYPER, equal, groups_of, held, network, randn, snapshot, through_file
from pipelines import group_of_one, part, stage_of
from processes import needs_gloo
from rule_table import OF_MATRICES, RULES
from test_interrupts import Interrupter, Lines
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import wpadamw
from wpadamw import WPSGD, WPAdamW, WPVRAdam, release_gradients

FORMS = {
    "backup": {},
    "no-backup": {"backup": False},
    "literal": {"predict_in_step": False},
    "literal-no-backup": {"predict_in_step": False, "backup": False},
    "averages": {"ema": 0.1},
    "averages-no-backup": {"ema": 0.1, "backup": False},
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5},
    "copies": {"compute_dtype": torch.bfloat16},
    "torch": {"backend": "torch"},
    "maximize": {"maximize": True},
    "no-prediction": {"prediction_steps": 0},
}
every_form = pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)


def loss_of(net, k):
    dtype = next(net.parameters()).dtype
    inputs, targets = randn(4, 3, seed=2 * k, dtype=dtype), randn(4, 2, seed=2 * k + 1, dtype=dtype)
    return (net(inputs) - targets).abs().square().mean()


def iterate(net, opt, k, loss_of=loss_of):
    opt.predict()
    loss_of(net, k).backward()
    opt.step()
    opt.zero_grad()


def iterations(net, opt, steps, loss_of=loss_of):
    for k in steps:
        iterate(net, opt, k, loss_of)


def optimizer(net, kind=WPAdamW, **options):
    return kind(groups_of(net), **{**HYPER, **options})


def pair(make_net=network, make=optimizer, **options):
    """The same training twice; the gradients of the first one are released."""
    nets = [make_net(), make_net()]
    opts = [make(net, **options) for net in nets]
    release_gradients(nets[0], opts[0])
    return list(zip(nets, opts, strict=True))


def run(twins, act):
    """Does the same with both, and compares everything."""
    for net, opt in twins:
        act(net, opt)
    assert_same_twins(twins)


def assert_same_twins(twins):
    (_, ours), (_, theirs) = twins
    assert [set(p) for p in map(ours.state.get, parameters_of(ours)) if p] == [
        set(p) for p in map(theirs.state.get, parameters_of(theirs)) if p
    ]
    assert_same_training(ours, theirs)
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert {**group, "params": 0} == {**other, "params": 0}


class Shared(nn.Module):
    """With a tied weight, a frozen one, one without a gradient and odd shapes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(randn(3, 3, seed=1))
        self.frozen = nn.Parameter(randn(3, seed=2), requires_grad=False)
        self.idle = nn.Parameter(randn(4, seed=3))
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.scale = nn.Parameter(randn(seed=4))
        self.gaps = nn.Parameter(randn(3, 6, seed=5)[:, ::3])

    def forward(self, x):
        x = torch.tanh(F.linear(x, self.table)) + self.frozen
        x = torch.cat([x, F.linear(x, self.empty)], dim=1)
        return self.scale * (x @ self.table) @ self.gaps


# The same bits.


@pytest.mark.parametrize("backup", [True, False], ids=["backup", "no-backup"])
@pytest.mark.parametrize("case", {**RULES, **OF_MATRICES}.values(), ids={**RULES, **OF_MATRICES})
def test_every_rule_trains_like_the_usual_loop(case, backup):
    twins = pair(make=lambda net: case.make(groups_of(net), lr=1e-2, backup=backup, **case.options))
    run(twins, lambda net, opt: iterations(net, opt, range(4)))


@every_form
def test_every_form_trains_like_the_usual_loop(options):
    twins = pair(Shared, lambda net: WPAdamW(net.parameters(), **{**HYPER, **options}))
    for k in range(4):
        run(twins, lambda net, opt, k=k: iterate(net, opt, k))
    assert twins[0][1].state[twins[0][0].table]["step"] == 4
    assert not twins[0][1].state.get(twins[0][0].idle)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64])
def test_every_dtype_trains_like_the_usual_loop(dtype):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (nn.Parameter(randn(5, seed=k).to(dtype)) for k in range(2))

    twins = pair(Product, lambda net: WPAdamW(net.parameters(), **HYPER))
    run(
        twins,
        lambda net, opt: iterations(
            net, opt, range(3), lambda net, k: (net.left * net.right).abs().square().sum()
        ),
    )


def test_parameters_of_several_dtypes_train_together():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.dtypes = (torch.float32, torch.bfloat16, torch.float64)
            self.parts = nn.ParameterList(randn(4, seed=1).to(dtype) for dtype in self.dtypes)

    twins = pair(Mixed, lambda net: WPAdamW(net.parameters(), **HYPER))
    loss = lambda net, k: sum((part.double() ** 2).sum() for part in net.parts)  # noqa: E731
    run(twins, lambda net, opt: iterations(net, opt, range(3), loss))


@every_form
def test_released_and_removed_in_mid_training_nothing_changes(options):
    def train_in_parts(net, opt):
        iterations(net, opt, range(2))
        if opt is ours:
            with release_gradients(net, opt):
                iterations(net, opt, range(2, 4))
        else:
            iterations(net, opt, range(2, 4))
        iterations(net, opt, range(4, 6))

    nets = [network(), network()]
    opts = [optimizer(net, **options) for net in nets]
    ours = opts[0]
    run(list(zip(nets, opts, strict=True)), train_in_parts)
    assert type(ours._plans.of(ours.param_groups[0])) is type(
        opts[1]._plans.of(opts[1].param_groups[0])
    )
    iterations(nets[0], ours, [6])
    loss_of(nets[0], 7).backward()
    assert all(param.grad is not None for param in nets[0].parameters())


@every_form
def test_schedules_closures_and_evaluations_are_as_ever(options):
    twins = pair(**options)

    def train(net, opt):
        if opt.compute_dtype is None:
            wpadamw.attach(net, opt)
        schedule = torch.optim.lr_scheduler.StepLR(opt, 1, gamma=0.5)
        for k in range(4):
            net.train()
            loss_of(net, k).backward()
            opt.step()
            schedule.step()
            opt.zero_grad()
            net.eval()
            net.evaluated = loss_of(net, k).detach()
            saved = through_file(net.state_dict())
            assert equal(list(saved.values()), held(net))
        assert schedule.last_epoch == 4

        def closure():
            opt.zero_grad()
            loss = loss_of(net.train(), 9)
            loss.backward()
            return loss

        net.last = opt.step(closure).detach()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(twins, train)
    for name in ("evaluated", "last"):
        assert_same_bits(name, *(getattr(net, name) for net, _ in twins))


@every_form
def test_checkpoints_in_between_go_on_either_way(options):
    ours, theirs = pair(**options)
    iterations(*ours, range(2))
    saved = through_file({"net": ours[0].state_dict(), "opt": ours[1].state_dict()})
    fresh = pair(lambda: network(seed=1), **options)
    for net, opt in [*fresh, ours]:
        net.load_state_dict(saved["net"])
        opt.load_state_dict(saved["opt"])
    iterations(*theirs, range(2))
    for twin in (*fresh, ours, theirs):
        iterations(*twin, range(2, 4))
    for twin in fresh:
        assert_same_training(twin[1], ours[1])
    if options.get("backup", True):  # restoring is exact then
        assert_same_training(ours[1], theirs[1])


def test_frozen_parameters_are_released_when_they_are_trained_again():
    def freeze(net, opt):
        net[0].weight.requires_grad_(False)
        iterations(net, opt, range(2, 4))

    def thaw(net, opt):
        net[0].weight.requires_grad_(True)
        iterations(net, opt, range(4, 6))

    twins = pair()
    run(twins, lambda net, opt: iterations(net, opt, range(2)))
    run(twins, freeze)
    run(twins, thaw)
    loss_of(twins[0][0], 6).backward()
    assert twins[0][0][0].weight.grad is None


@pytest.mark.parametrize("options", [FORMS["backup"], FORMS["no-backup"], FORMS["rollout"]])
def test_frozen_parameters_keep_their_predictions_over_a_release(options):
    nets = [network(), network()]
    opts = [optimizer(net, **options) for net in nets]
    twins = list(zip(nets, opts, strict=True))
    run(twins, lambda net, opt: iterations(net, opt, range(2)))
    for net in nets:
        net[0].weight.requires_grad_(False)
    run(twins, lambda net, opt: iterations(net, opt, [2]))
    for opt in opts:
        opt.param_groups[0]["prediction_steps"] = 1.0
    with release_gradients(*twins[0]):
        run(twins, lambda net, opt: iterations(net, opt, [3]))
    for net in nets:
        net[0].weight.requires_grad_(True)
    run(twins, lambda net, opt: (opt.restore(), opt._follow_freezing(), opt.predict()))
    run(twins, lambda net, opt: iterations(net, opt, [4]))


def test_averages_and_set_true_weights_work_in_between():
    twins = pair(ema=0.2)

    def act(net, opt):
        iterations(net, opt, range(2))
        with opt.averaged_weights():
            net.seen = held(net)
        opt.set_true_weights(lambda param, weight: weight.clamp(-0.5, 0.5))
        iterations(net, opt, range(2, 4))
        opt.switch_to_average()
        opt.reset_time(0)
        iterations(net, opt, range(4, 6))

    run(twins, act)
    assert equal(twins[0][0].seen, twins[1][0].seen)


def test_weights_from_outside_are_noticed_as_ever():
    twins = pair()
    run(twins, lambda net, opt: iterations(net, opt, range(2)))
    with torch.no_grad():
        for net, _ in twins:
            net[0].weight.clamp_(-0.3, 0.3)
    for net, opt in twins:
        with pytest.warns(UserWarning, match="written to from outside"):
            iterations(net, opt, [2])
    assert_same_twins(twins)


def test_options_may_change_between_iterations():
    twins = pair()

    def act(net, opt):
        iterations(net, opt, range(2))
        opt.param_groups[0].update(prediction_steps=2.0, weight_decay=0.3)
        iterations(net, opt, range(2, 4))
        opt.param_groups[1].update(backup=False)
        iterations(net, opt, range(4, 6))

    run(twins, act)


def test_models_may_be_cast_between_iterations():
    twins = pair()

    def act(net, opt):
        iterations(net, opt, range(2))
        net.double()
        iterations(net, opt, range(2, 4))

    run(twins, act)
    loss_of(twins[0][0], 4).backward()
    assert all(param.grad is None for param in twins[0][0].parameters())


def test_laperm_counts_iterations():
    twins = pair()
    twins = [(net, wpadamw.LaPerm(opt, every=2)) for net, opt in twins]
    for k in range(5):
        for net, laperm in twins:
            iterate(net, laperm, k)
        assert_same_twins([(net, laperm.optimizer) for net, laperm in twins])
    assert twins[0][1].state_dict()["param_groups"][0]["laperm_count"] == 1


def test_a_laperm_may_be_released():
    net = network()
    laperm = wpadamw.LaPerm(optimizer(net), every=2)
    with release_gradients(net, laperm):
        assert laperm.optimizer.releases_gradients
    assert not laperm.optimizer.releases_gradients


# One iteration.


def test_step_is_counted_once_and_by_its_hooks():
    (net, opt), _ = pair()
    calls = []
    opt.register_step_pre_hook(lambda *_: calls.append("before"))
    opt.register_step_post_hook(lambda *_: calls.append("after"))
    loss_of(net, 0).backward()
    assert (calls, opt._plans.updates) == ([], 0)
    assert all(opt.state[param]["step"] == 1 for param in net.parameters())
    opt.step()
    assert (calls, opt._plans.updates) == (["before", "after"], 1)
    opt.step()
    assert opt._plans.updates == 1
    assert all(opt.state[param]["step"] == 1 for param in net.parameters())


@every_form
def test_parts_of_a_model_may_have_passes_of_their_own(options):
    def act(net, opt):
        for k in range(3):
            opt.predict()
            for i, layer in enumerate(net):
                layer(randn(2, 3, seed=3 * k + i)).square().sum().backward()
            opt.step()
            opt.zero_grad()

    def make():
        torch.manual_seed(0)
        return nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 4)])

    run(pair(make, lambda net: WPAdamW(net.parameters(), **{**HYPER, **options})), act)


@pytest.mark.parametrize("options", [FORMS["backup"], FORMS["no-backup"], FORMS["literal"]])
def test_a_second_gradient_is_refused_and_changes_nothing(options):
    (net, opt), (other, theirs) = pair(**options)
    iterations(net, opt, range(2))
    iterations(other, theirs, range(2))
    opt.predict()
    loss_of(net, 2).backward()
    before = snapshot(opt)
    with pytest.raises(RuntimeError, match=r"2\.\w+ has a second gradient before step\(\)"):
        loss_of(net, 3).backward()
    assert equal(snapshot(opt), before)
    with pytest.raises(RuntimeError, match="second gradient"):
        opt.step()  # would use what is left of it
    assert equal(snapshot(opt), before)
    opt.zero_grad()
    opt.step()
    iterate(other, theirs, 2)
    assert_same_training(opt, theirs)


def test_parameters_may_go_to_true_weights_before_the_step():
    for options in (FORMS["backup"], FORMS["literal"], FORMS["literal-no-backup"]):
        nets = [network(), network()]
        ours, theirs = (optimizer(net, **options) for net in nets)
        release_gradients(nets[0], ours)
        for k in range(3):
            ours.predict()
            loss_of(nets[0], k).backward()
            ours.restore()
            seen = held(nets[0])
            ours.step()
            ours.zero_grad()
            iterate(nets[1], theirs, k)
        assert_same_training(ours, theirs)
        theirs.restore()
        assert equal(seen, held(nets[1]))


def test_predictions_before_the_step_are_refused_in_the_literal_form():
    (net, opt), _ = pair(predict_in_step=False)
    iterations(net, opt, range(2))
    opt.predict()
    loss_of(net, 2).backward()
    with pytest.raises(RuntimeError, match=r"predict\(\) before step\(\)"):
        opt.predict()
    opt.step()
    opt.predict()
    assert opt.weights_are == "predicted"


def test_loading_ends_an_iteration():
    twins = pair()
    run(twins, lambda net, opt: iterations(net, opt, range(2)))
    saved = [copy.deepcopy((net.state_dict(), opt.state_dict())) for net, opt in twins]
    loss_of(twins[0][0], 2).backward()
    for (net, opt), (weights, states) in zip(twins, saved, strict=True):
        net.load_state_dict(weights)
        opt.load_state_dict(states)
    run(twins, lambda net, opt: iterations(net, opt, range(3, 5)))


@every_form
@pytest.mark.parametrize("order", ["omr", "orm", "rom", "mro", "rmo"])
def test_released_anywhere_between_loads_it_goes_on(order, options):
    source = network()
    opt = optimizer(source, **options)
    iterations(source, opt, range(2))
    saved = through_file({"net": source.state_dict(), "opt": opt.state_dict()})
    twins = []
    for is_released in (True, False):
        net = network(seed=1)
        opt = optimizer(net, **options)
        acts = {
            "o": lambda opt=opt: opt.load_state_dict(saved["opt"]),
            "m": lambda net=net: net.load_state_dict(saved["net"]),
            "r": lambda net=net, opt=opt: is_released and release_gradients(net, opt),  # noqa: B023
        }
        for letter in order:
            acts[letter]()
        twins.append((net, opt))
    run(twins, lambda net, opt: iterations(net, opt, range(2, 4)))


def test_threads_may_have_backward_passes_of_their_own():
    def act(net, opt):
        for k in range(3):
            opt.predict()
            losses = [layer(randn(2, 3, seed=k)).square().sum() for layer in net]
            threads = [threading.Thread(target=loss.backward) for loss in losses]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            opt.step()
            opt.zero_grad()

    def make():
        torch.manual_seed(0)
        return nn.ModuleList(nn.Linear(3, 2) for _ in range(8))

    run(pair(make, lambda net: WPAdamW(net.parameters(), **HYPER)), act)


def test_dropped_gradients_are_noticed():
    (net, opt), _ = pair()
    loss_of(net, 0).backward()
    opt.zero_grad()
    with pytest.raises(RuntimeError, match="nor dropped"):
        loss_of(net, 1).backward()


def test_a_reentrant_checkpoint_that_shares_a_weight_is_refused():
    layer = nn.Linear(3, 3)
    opt = WPAdamW(layer.parameters())
    release_gradients(layer, opt)
    x = randn(2, 3).requires_grad_()
    for _ in range(2):
        x = checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(RuntimeError, match="second gradient"):
        x.sum().backward()


@pytest.mark.parametrize("use_reentrant", [True, False])
@every_form
def test_activation_checkpoints_see_the_weights_of_their_forward(options, use_reentrant):
    def loss(net, k):
        x = randn(4, 3, seed=k).requires_grad_()
        for layer in net:
            x = checkpoint(layer, x, use_reentrant=use_reentrant)
        return x.square().mean()

    def act(net, opt):
        wpadamw.attach(net, opt)
        iterations(net, opt, range(3), loss)

    run(pair(**options), act)


def test_gradients_of_gradients_are_as_ever():
    def loss(net, k):
        x = randn(4, 3, seed=k).requires_grad_()
        (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        return grad.square().sum()

    run(pair(), lambda net, opt: iterations(net, opt, range(3), loss))


def test_step_updates_what_backward_does_not():
    def act(net, opt):
        iterations(net, opt, range(2))
        net.late = nn.Parameter(randn(2, seed=7))
        opt.add_param_group({"params": [net.late], "lr": 1e-3})
        late = lambda net, k: loss_of(net, k) + net.late.square().sum()  # noqa: E731
        for k in range(2, 5):
            opt.predict()
            late(net, k).backward()
            assert net.late.grad is not None
            opt.step()
            opt.zero_grad()
        net.late.grad = randn(2, seed=8)
        opt.step()  # without a backward pass

    run(pair(), act)


def test_parameters_of_others_keep_their_gradients():
    net = network()
    opt = WPAdamW(net[0].parameters())
    release_gradients(net, opt)
    before = held(net[2])
    loss_of(net, 0).backward()
    assert all(param.grad is None for param in net[0].parameters())
    assert all(param.grad is not None for param in net[2].parameters())
    assert equal(held(net[2]), before)


def test_hooks_of_users_come_before():
    def act(net, opt):
        net[0].weight.register_hook(lambda grad: 3 * grad)

        def clip(param):
            if param.grad is not None:
                param.grad.clamp_(-0.01, 0.01)

        handle = net[2].weight.register_post_accumulate_grad_hook(clip)
        if opt is ours:
            release_gradients(net, opt)
        iterations(net, opt, range(3))
        handle.remove()

    nets = [network(), network()]
    opts = [optimizer(net) for net in nets]
    ours = opts[0]
    run(list(zip(nets, opts, strict=True)), act)


def test_a_gradient_that_was_there_is_added_to():
    def act(net, opt):
        for param in net.parameters():
            param.grad = torch.ones_like(param)
        loss_of(net, 0).backward()
        opt.step()

    run(pair(), act)


def test_gradients_are_not_all_in_memory_at_once():
    def most_bytes(released):
        net = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(8)))
        opt = WPAdamW(net.parameters())
        grads, peaks = [], []

        def note(param):
            storage = param.grad.untyped_storage()
            grads.append((StorageWeakRef(storage), storage.nbytes()))
            peaks.append(sum(size for grad, size in grads if not grad.expired()))

        for param in net.parameters():
            param.register_post_accumulate_grad_hook(note)
        if released:
            release_gradients(net, opt)
        for k in range(2):
            net(randn(4, 64, seed=k)).sum().backward()
            opt.step()
            opt.zero_grad()
        return max(peaks)

    of_one = 64 * 64 * 4
    assert most_bytes(released=False) == 8 * of_one
    assert most_bytes(released=True) == of_one


# The end.


def test_remove_ends_an_iteration_and_may_be_called_again():
    net, other = network(), network()
    opt, theirs = optimizer(net, predict_in_step=False), optimizer(other, predict_in_step=False)
    handle = release_gradients(net, opt)
    loss_of(net, 0).backward()
    handle.remove()
    handle.remove()
    assert not opt.releases_gradients
    loss_of(other, 0).backward()
    theirs.step()
    opt.step()
    assert_same_training(opt, theirs)
    assert opt._plans.updates == 1


def test_released_again_after_remove():
    net = network()
    opt = optimizer(net)
    for k in range(2):
        handle = release_gradients(net, opt)
        iterate(net, opt, k)
        handle.remove()
    assert opt.state[net[0].weight]["step"] == 2


def test_a_dropped_optimizer_leaves_gradients_alone():
    net = network()
    opt = optimizer(net)
    release_gradients(net, opt)
    alive = weakref.ref(opt)
    del opt
    assert alive() is None  # without a garbage collection
    before = held(net)
    loss_of(net, 0).backward()
    assert equal(held(net), before)
    assert all(param.grad is not None for param in net.parameters())
    opt = optimizer(net)
    with release_gradients(net, opt):
        assert opt.releases_gradients


@unpickles
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "file"]
)
def test_copies_train_in_the_usual_way(copied):
    (net, opt), (other, theirs) = pair()
    iterations(net, opt, range(2))
    twin, its = copied((net, opt))
    assert opt.releases_gradients
    assert not its.releases_gradients
    loss_of(twin, 2).backward()
    assert all(param.grad is not None for param in twin.parameters())
    its.step()
    its.zero_grad()
    iterate(net, opt, 2)
    iterations(other, theirs, range(3))
    for each in (opt, its):
        assert_same_training(each, theirs)


# Errors on the way.


@every_form
def test_a_backward_that_fails_leaves_all_in_order(options):
    net = network()
    opt = optimizer(net, **options)
    release_gradients(net, opt)
    iterations(net, opt, range(2))
    counts = {param: float(opt.state[param]["step"]) for param in net.parameters()}
    opt.predict()

    def fail(grad):
        raise KeyboardInterrupt

    handle = net[0].weight.register_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        loss_of(net, 2).backward()
    handle.remove()
    assert opt.state[net[2].weight]["step"] == counts[net[2].weight] + 1
    assert opt.state[net[0].weight]["step"] == counts[net[0].weight]
    opt.step()
    opt.restore()
    saved = through_file({"net": net.state_dict(), "opt": opt.state_dict()})
    twin = network(seed=1)
    its = optimizer(twin, **options)
    twin.load_state_dict(saved["net"])
    its.load_state_dict(saved["opt"])
    iterations(net, opt, range(3, 5))
    iterations(twin, its, range(3, 5))
    assert_same_training(opt, its)


FILES = ("release", "iteration", "apart")


def interrupts(options):
    """The first and the last time that lines of the release run in an iteration."""
    net, opt = after_two(options)
    with Lines() as lines:
        iterate(net, opt, 2)
    ours = [key for key in lines.seen if Path(key[0].co_filename).stem in FILES]
    return [(*key, time) for key in dict.fromkeys(ours) for time in {1, ours.count(key)}]


def after_two(options):
    net = network()
    opt = optimizer(net, **options)
    release_gradients(net, opt)
    iterations(net, opt, range(2))
    return net, opt


def true_weights(opt):
    twin = copy.deepcopy(opt)
    twin.restore()
    return held(parameters_of(twin))


def counts(opt):
    return [int(opt.state[param]["step"]) for param in parameters_of(opt)]


@pytest.mark.parametrize("name", ["backup", "no-backup", "literal", "torch"])
def test_an_interrupt_at_any_line_updates_a_parameter_once_or_not(name):
    options = FORMS[name]
    net, opt = after_two(options)
    before = true_weights(opt)
    iterate(net, opt, 2)
    after = true_weights(opt)
    moments = interrupts(options)
    assert len(moments) > 60
    for code, number, time in moments:
        net, opt = after_two(options)
        with pytest.raises(KeyboardInterrupt), Interrupter(code, number, time):
            iterate(net, opt, 2)
        opt.step()
        rows = zip(counts(opt), true_weights(opt), before, after, strict=True)
        for count, weight, old, new in rows:
            same = torch.allclose if name == "no-backup" else equal
            assert same(weight, {2: old, 3: new}[count]), (code, number, time)
        numbers = counts(opt)
        iterate(net, opt, 3)
        assert counts(opt) == [number + 1 for number in numbers]


def test_sparse_gradients_are_refused_and_nothing_is_started():
    table = nn.Embedding(5, 3, sparse=True)
    opt = WPAdamW(table.parameters())
    release_gradients(table, opt)
    before = held(table)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        table(torch.tensor([1, 2])).sum().backward()
    assert equal(held(table), before)
    table.weight.grad = None
    opt.step()
    table.weight.grad = torch.ones(5, 3)
    opt.step()
    assert opt.state[table.weight]["step"] == 1


# Refusals.


def refused(error, match, net, opt):
    before = snapshot(opt)
    with pytest.raises(error, match=match):
        release_gradients(net, opt)
    assert equal(snapshot(opt), before)
    assert not opt.releases_gradients


@pytest.mark.parametrize(
    "options", [{"amp": True}, {"capturable": True}, {"track_prediction": True}]
)
def test_options_that_need_all_gradients_are_refused(options):
    net = network()
    (name,) = options
    refused(
        ValueError,
        f"{name} must be False with released gradients, got True",
        net,
        optimizer(net, **options),
    )


@pytest.mark.parametrize("scope", ["group", "global"])
def test_sums_over_several_tensors_are_refused(scope):
    net = network()
    opt = WPVRAdam(net.parameters(), norm_scope=scope)
    refused(ValueError, f"'vradam' must sum over each tensor .* norm_scope='{scope}'", net, opt)


@pytest.mark.parametrize(
    "options",
    [{"norm_scope": "group"}, {"track_prediction": True}, {"capturable": True}, {"lr": "x"}],
)
def test_options_that_change_to_what_is_refused_are_refused(options):
    net = network()
    opt = WPVRAdam(net.parameters(), norm_scope="tensor")
    release_gradients(net, opt)
    iterate(net, opt, 0)
    (name,) = options
    former = opt.param_groups[0][name]
    opt.param_groups[0].update(options)
    before = snapshot(opt)
    with pytest.raises((ValueError, TypeError), match=name):
        loss_of(net, 1).backward()
    assert equal(snapshot(opt), before)
    opt.zero_grad()
    opt.param_groups[0][name] = former
    iterate(net, opt, 1)
    assert opt.state[net[0].weight]["step"] == 2


def test_other_arguments_are_refused():
    net = network()
    opt = optimizer(net)
    with pytest.raises(TypeError, match="optimizer must be one of wpadamw's, got AdamW"):
        release_gradients(net, torch.optim.AdamW(net.parameters()))
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        release_gradients(list(net.parameters()), opt)
    refused(ValueError, "model must hold parameters of the optimizer", network(), opt)
    release_gradients(net, opt)
    with pytest.raises(ValueError, match=r"releases gradients already: call remove\(\)"):
        release_gradients(net, opt)
    refused(
        ValueError, r"0\.weight must be released to one optimizer", net, WPSGD(net.parameters())
    )
    iterate(net, opt, 0)
    assert opt.state[net[0].weight]["step"] == 1


def test_clipping_of_all_gradients_is_refused():
    net = network()
    opt = optimizer(net)
    with (
        release_gradients(net, opt),
        pytest.raises(RuntimeError, match="clip_grad_norm_ needs all gradients"),
    ):
        opt.clip_grad_norm_(1.0)
    loss_of(net, 0).backward()
    assert opt.clip_grad_norm_(1.0) > 0


def test_gradient_scalers_raise():
    (net, opt), _ = pair()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(net, 0)).backward()
    with pytest.raises(AssertionError, match="No inf checks"):
        scaler.step(opt)


def test_averages_are_no_place_for_updates():
    (net, opt), _ = pair(ema=0.1)
    iterations(net, opt, range(2))
    with opt.averaged_weights():
        before = held(net)
        with pytest.raises(RuntimeError, match="averaged_weights"):
            loss_of(net, 2).backward()
        assert equal(held(net), before)
    other = network()
    its = optimizer(other, ema=0.1)
    with its.averaged_weights(), pytest.raises(RuntimeError, match="averaged_weights"):
        release_gradients(other, its)


alone = pytest.fixture(group_of_one)


REPLICAS = {
    "plain": {},
    "static": {"static_graph": True},
    "view": {"gradient_as_bucket_view": True},
}


@needs_gloo
@pytest.mark.parametrize("options", REPLICAS.values(), ids=REPLICAS)
def test_replicated_models_are_refused(alone, options):
    net = network()
    opt = optimizer(net)
    replicated = DistributedDataParallel(net, **options)
    refused(TypeError, "model must not be replicated, got one in Distributed", replicated, opt)
    refused(TypeError, "model must not be replicated, got one in Distributed", net, opt)


@needs_gloo
@pytest.mark.parametrize("options", REPLICAS.values(), ids=REPLICAS)
def test_models_that_are_replicated_later_are_refused_by_the_first_backward(alone, options):
    net = network()
    opt = optimizer(net)
    release_gradients(net, opt)
    before = snapshot(opt)
    replicated = DistributedDataParallel(net, **options)
    with pytest.raises(TypeError, match="model must not be replicated"):
        loss_of(replicated, 0).backward()
    assert equal(snapshot(opt), before)


@needs_gloo
def test_models_that_are_replicated_in_mid_training_are_noticed(alone):
    net = network()
    opt = optimizer(net)
    release_gradients(net, opt)
    iterate(net, opt, 0)
    replicated = DistributedDataParallel(net)
    loss_of(replicated, 1).backward()
    with pytest.raises(RuntimeError, match=r"second gradient .* DistributedDataParallel"):
        opt.step()


@needs_gloo
def test_sharded_parameters_are_refused(alone):
    tensors = pytest.importorskip("torch.distributed.tensor", exc_type=ImportError)
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    net = nn.Linear(2, 2)
    net.weight = nn.Parameter(tensors.distribute_tensor(net.weight.detach(), mesh))
    refused(TypeError, "weight must not be sharded, got a DTensor", net, WPAdamW(net.parameters()))


@needs_gloo
def test_optimizers_of_pipelines_are_refused(alone):
    module = part(0)
    opt = WPAdamW(module.parameters())
    with release_gradients(module, opt), pytest.raises(ValueError, match="must not release"):
        stage_of(module, opt=opt)
    assert stage_of(module, opt=opt).optimizer is opt
