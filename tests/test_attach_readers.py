"""Whoever reads or adds to an attached model: `true_weights`, parts that come later, statistics."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from attached import Net, attached, true
from models import (
    backward,
    equal,
    held,
    network,
    optimizer,
    randn,
    snapshot,
    through_file,
    train,
)
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.optim.swa_utils import AveragedModel, update_bn

import wpadamw

FORMS = pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])


# After a mode call.

READERS = {
    "deepcopy": lambda model: held(copy.deepcopy(model)),
    "vector": lambda model: parameters_to_vector(model.parameters()).detach(),
    "named": lambda model: [p.detach().clone() for _, p in model.named_parameters()],
    "dict": lambda model: list(copy.deepcopy(model.state_dict()).values()),
    "functional": lambda model: torch.func.functional_call(
        model, dict(model.named_parameters()), randn(4, 3)
    ).detach(),
    "forward": lambda model: model.forward(randn(4, 3)).detach(),
    "part": lambda model: model.net[0](randn(4, 3)).detach(),
}


@FORMS
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_after_eval_every_reader_reads_true_weights(read, in_step):
    model, opt, _ = attached(predict_in_step=in_step)
    plain = Net()
    plain.load_state_dict(copy.deepcopy(model.state_dict()))
    model(randn(4, 3, seed=5))
    plain.norm.load_state_dict(model.norm.state_dict())
    model(randn(4, 3, seed=6))
    plain.norm.load_state_dict(model.norm.state_dict())
    assert opt.weights_are == "true" or model(randn(4, 3)) is not None
    assert equal(read(model.eval()), read(plain.eval()))


class Scaled(nn.Module):
    """Uses a parameter of its own before it calls a part."""

    def __init__(self):
        super().__init__()
        self.net, self.scale, self.seen = network(), nn.Parameter(torch.ones(3)), None

    def forward(self, inputs):
        self.seen = held(self)
        return self.net(inputs * self.scale)


@FORMS
def test_forward_itself_sees_the_weights_of_the_mode(in_step):
    model, opt, _ = attached(Scaled, predict_in_step=in_step)
    model(randn(4, 3))
    predicted = held(model)
    model.eval().forward(randn(4, 3))
    assert equal(model.seen, true(opt, model))
    model.train().forward(randn(4, 3))
    assert equal(model.seen, predicted)
    assert not equal(predicted, true(opt, model))
    assert inspect.getfullargspec(model.forward).args == ["self", "inputs"]
    assert list(inspect.signature(model.forward).parameters) == ["inputs"]


# true_weights().


@FORMS
def test_training_forwards_inside_true_weights_stay_there(in_step):
    model, opt, _ = attached(predict_in_step=in_step)
    model(randn(4, 3))
    predicted = held(model)
    with opt.true_weights(), opt.true_weights():
        model.train()
        model(randn(4, 3))
        model.net[0](randn(4, 3))
        assert equal(held(model), true(opt, model))
    assert equal(held(model), predicted)
    model(randn(4, 3))
    assert opt.weights_are == "predicted"


def test_true_weights_win_until_the_outermost_ends():
    model, opt, _ = attached()
    with opt.true_weights():
        with pytest.raises(ZeroDivisionError), opt.true_weights():
            raise ZeroDivisionError
        model(randn(4, 3))
        assert opt.weights_are == "true"
    model(randn(4, 3))
    assert opt.weights_are == "predicted"


def test_true_weights_win_after_a_load_inside():
    model, opt, _ = attached()
    with opt.true_weights():
        opt.load_state_dict(opt.state_dict())
        model(randn(4, 3))
        assert opt.weights_are == "true"


@pytest.mark.parametrize("decorated", [True, False])
@pytest.mark.parametrize("use_buffers", [True, False])
def test_averages_of_torch_are_of_true_weights(use_buffers, decorated):
    model, opt, _ = attached()
    average = AveragedModel(model, use_buffers=use_buffers)
    if decorated:
        average.update_parameters = opt.true_weights()(average.update_parameters)
    sums = [torch.zeros_like(param) for param in model.parameters()]
    for k in range(3):
        backward(model, k)
        opt.step()
        assert opt.weights_are == "predicted"
        average.update_parameters(model)
        assert opt.weights_are == ("predicted" if decorated else "true")
        pairs = zip(sums, true(opt, model), strict=True)
        sums = [mean + (weight - mean) / (k + 1) for mean, weight in pairs]
    torch.testing.assert_close(held(average.module), sums)


@pytest.mark.parametrize("read", ["wrapper", "part"])
def test_averages_of_wrappers_and_parts_are_of_true_weights(read):
    model, opt, _ = attached()
    source = nn.DataParallel(model) if read == "wrapper" else model.net
    average = AveragedModel(source)
    backward(model, 0)
    opt.step()
    average.update_parameters(source)
    assert equal(held(average), true(opt, source))


def test_whoever_does_not_average_reads_what_the_parameters_hold():
    model, opt, _ = attached()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert len(list(nn.DataParallel(model).modules())) > 3
    assert opt.weights_are == "predicted"


# Batch normalisation.


class NormNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, inputs):
        return self.norm(self.inner(inputs))


@pytest.mark.parametrize("training", [True, False])
def test_refreshed_statistics_are_those_of_the_true_weights(training):
    model, opt, _ = attached(NormNet)
    loader = [(randn(4, 3, seed=k), None) for k in range(3)]
    twin = copy.deepcopy(model)
    update_bn(loader, twin)
    model.train(training)
    before = opt.weights_are
    wpadamw.refresh_batch_norm(model, loader)
    assert model.training == training and opt.weights_are == before
    assert equal(model.norm.state_dict(), twin.norm.state_dict())


def test_refreshing_a_model_that_is_not_attached_says_what_to_do():
    model = NormNet()
    with pytest.raises(ValueError, match=r"model must be attached: call wpadamw\.attach\(model"):
        wpadamw.refresh_batch_norm(model, [])


# Parts that come later.


def grown(model, opt, order):
    head = nn.Linear(2, 2)
    if order == "group-first":
        opt.add_param_group({"params": head.parameters()})
    model.head = head
    if order == "part-first":
        opt.add_param_group({"params": head.parameters()})
    else:
        model.train()
    return head


@pytest.mark.parametrize("order", ["group-first", "part-first"])
def test_parts_added_later_follow(order):
    model, opt, handle = attached(lambda: nn.Sequential(network()))
    head = grown(model, opt, order)
    for k in range(2):
        backward(model, k)
        opt.step()
    weight = opt.state[head.weight]["weight"]
    assert not torch.equal(head.weight, weight)
    assert torch.equal(head.state_dict()["weight"], weight)
    head(randn(4, 2))
    assert not torch.equal(head.weight, weight)
    assert torch.equal(copy.deepcopy(head).weight, weight)
    model.eval()
    head(randn(4, 2))
    assert torch.equal(head.weight, weight)
    handle.remove()
    assert type(head) is nn.Linear


# Wrappers.


def test_mode_of_the_module_in_a_wrapper_counts():
    wrapper = nn.DataParallel(network())
    opt = optimizer(wrapper)
    wpadamw.attach(wrapper, opt)
    train(wrapper, opt, range(2))
    wrapper.module.eval()
    assert equal(held(wrapper), true(opt, wrapper))
    wrapper.module(randn(4, 3))
    assert equal(held(wrapper), true(opt, wrapper))
    wrapper.train()
    wrapper(randn(4, 3))
    assert opt.weights_are == "predicted"


def test_attaching_a_wrapper_replaces_what_was_attached_inside():
    net = network()
    opt = optimizer(net)
    wpadamw.attach(net, opt)
    handle = wpadamw.attach(nn.DataParallel(net), opt)
    handle.remove()
    assert type(net) is nn.Sequential


# Mistakes.


def test_a_model_of_other_parameters_is_refused():
    with pytest.raises(ValueError, match="model must hold parameters of the optimizer, got one"):
        wpadamw.attach(network(), optimizer(network()))


def test_training_in_eval_mode_is_said_once():
    model, opt, _ = attached(lambda: nn.Sequential(network()))
    model.eval()
    with pytest.warns(UserWarning, match=r"gradients that were computed in eval mode") as caught:
        for k in range(3):
            backward(model, k)
            opt.step()
    assert len(caught) == 1


def test_gradients_in_eval_mode_beside_training_are_no_mistake():
    model, opt, _ = attached(lambda: nn.Sequential(network()))
    for k in range(3):
        inputs = randn(4, 3).requires_grad_()
        model.eval()
        torch.autograd.grad(model(inputs).sum(), inputs)  # an attack
        model.train()
        backward(model, k)
        model.eval()(randn(4, 3))
        opt.step()
        model.train()


def test_training_in_eval_mode_without_prediction_is_no_mistake():
    model, opt, _ = attached(lambda: nn.Sequential(network()), prediction_steps=0)
    backward(model.eval(), 0)
    opt.step()


# Files.


@pytest.mark.parametrize("options", [{}, {"backup": False}], ids=["backup", "no-backup"])
@pytest.mark.parametrize("order", [("model", "opt"), ("opt", "model")], ids="-then-".join)
def test_files_of_model_and_optimizer_are_of_one_mode_in_any_order(order, options):
    net = network()
    opt = optimizer(net, **options)
    wpadamw.attach(net, opt)
    train(net, opt, range(3))
    parts = {"model": net, "opt": opt}
    saved = {name: through_file(parts[name].state_dict()) for name in order}
    twin = network(seed=1)
    twin_opt = optimizer(twin, **options)
    wpadamw.attach(twin, twin_opt)
    twin.load_state_dict(saved["model"])
    twin_opt.load_state_dict(saved["opt"])
    for each, own in ((net, opt), (twin, twin_opt)):
        backward(each, 3)
        own.step()
        each.eval()
    assert equal(snapshot(opt), snapshot(twin_opt))
