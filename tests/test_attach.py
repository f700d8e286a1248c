"""`attach`: the model's own modes decide which weights it holds, and no call of the optimizer's."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from attached import attached as attached_model
from attached import true
from helpers import unpickles
from models import backward, equal, held, network, optimizer, randn, snapshot, started, through_file
from torch import nn

import wpadamw

FORMS = pytest.mark.parametrize("in_step", [True, False], ids=["resident", "literal"])


class Recorder(nn.Module):
    """Notes the weights that each forward sees."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, inputs):
        self.seen.append(held(self.net))
        return self.net(inputs)


def attached(steps=0, **options):
    return attached_model(lambda: Recorder(network()), steps, **options)


def evaluate(model):
    model.eval()
    with torch.no_grad():
        loss = model(randn(4, 3, seed=77)).square().mean()
    model.train()
    return loss


@FORMS
def test_training_sees_predicted_and_evaluation_true_weights(in_step):
    model, opt, _ = attached(3, predict_in_step=in_step)
    twin, twin_opt = started(3, predict_in_step=in_step)
    twin_opt.predict()
    predicted = held(twin)
    twin_opt.restore()
    model(randn(4, 3))
    assert equal(model.seen[-1], predicted)
    evaluate(model)
    assert equal(model.seen[-1], held(twin))
    model(randn(4, 3))
    assert equal(model.seen[-1], predicted)
    assert equal(true(opt, model), held(twin))


@pytest.mark.parametrize("part", [lambda m: m, lambda m: m.net, lambda m: m.net[2]])
@FORMS
def test_state_dict_of_model_and_parts_holds_true_weights(part, in_step):
    model, opt, _ = attached(3, predict_in_step=in_step)
    model(randn(4, 3))
    assert opt.weights_are == "predicted"
    module = part(model)
    saved = through_file(module.state_dict())
    assert equal(list(saved.values()), true(opt, module))


@FORMS
def test_evaluating_and_saving_in_between_changes_no_bit_of_the_training(in_step):
    model, opt, _ = attached(6, predict_in_step=in_step)
    other, other_opt, _ = attached(predict_in_step=in_step)
    files = []
    for k in range(6):
        for group in other_opt.param_groups:
            group["lr"] *= 1.0
        if k % 2:
            evaluate(other)
            files.append(through_file({"model": other.state_dict(), "opt": other_opt.state_dict()}))
        backward(other, k)
        other_opt.step()
    assert equal(snapshot(other_opt), snapshot(opt))
    assert equal(other.seen[-1], model.seen[-1])
    resumed, resumed_opt, _ = attached(predict_in_step=in_step)
    resumed.load_state_dict(files[-1]["model"])
    resumed_opt.load_state_dict(files[-1]["opt"])
    backward(resumed, 5)
    resumed_opt.step()
    assert equal(snapshot(resumed_opt)["weights"], snapshot(opt)["weights"])


def test_lr_set_before_an_evaluation_changes_no_bit_of_the_training():
    runs = []
    for evaluates in (False, True):
        model, opt, _ = attached()
        for k in range(6):
            for group in opt.param_groups:
                group["lr"] = 0.1 / (1 + k)
            if evaluates:
                evaluate(model)
            backward(model, k)
            opt.step()
        runs.append(snapshot(opt))
    assert equal(*runs)


def test_accumulating_gradients_around_an_evaluation_sees_one_set_of_weights():
    model, opt, _ = attached(2)
    model.seen.clear()
    for micro_batch in range(3):
        model(randn(4, 3, seed=micro_batch)).sum().backward()
        evaluate(model)
        model.state_dict()
    opt.step()
    assert equal(model.seen[0], model.seen[2])
    assert equal(model.seen[0], model.seen[4])
    assert equal(model.seen[1], model.seen[3])
    assert not equal(model.seen[0], model.seen[1])


def test_evaluation_between_forward_and_backward_is_an_error_of_autograd():
    model, _, _ = attached(2)
    loss = model(randn(4, 3).requires_grad_()).sum()
    evaluate(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@unpickles
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_of_the_model_are_true_and_inert_and_the_model_is_not(duplicate):
    model, opt, _ = attached(2)
    predicted = held(model)
    twin = duplicate(duplicate(model))
    expected = true(opt, model)
    assert equal(held(twin), expected)
    assert not equal(expected, predicted)
    model(randn(4, 3))
    evaluate(twin)
    twin.state_dict()
    assert opt.weights_are == "predicted"
    assert equal(held(twin), expected)
    assert equal(held(model), predicted)
    evaluate(model)
    assert opt.weights_are == "true"


def test_shallow_copy_of_the_model_is_inert():
    layer = nn.Linear(3, 2)
    opt = wpadamw.WPAdamW(layer.parameters(), lr=0.1)
    wpadamw.attach(layer, opt)
    layer(randn(4, 3)).sum().backward()
    opt.step()
    twin = copy.copy(layer).eval()
    layer(randn(4, 3))
    twin(randn(4, 3))
    twin.state_dict()
    assert opt.weights_are == "predicted"


def test_copies_of_model_and_optimizer_can_be_attached_anew():
    model, opt, _ = attached(2)
    twin, twin_opt = copy.deepcopy((model, opt))
    wpadamw.attach(twin, twin_opt)
    for module, own in [(model, opt), (twin, twin_opt)]:
        evaluate(module)
        backward(module, 2)
        own.step()
    assert equal(snapshot(opt), snapshot(twin_opt))


def test_tied_weights_stay_tied_in_the_state_dict():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    opt = wpadamw.WPAdamW(model.parameters(), lr=0.1)
    wpadamw.attach(model, opt)
    for k in range(2):
        opt.zero_grad()
        model(randn(2, 4, seed=k)).square().sum().backward()
        opt.step()
    saved = model.state_dict()
    assert saved["0.weight"].data_ptr() == saved["1.weight"].data_ptr()
    assert equal(saved["1.weight"], opt.state[model[0].weight]["weight"])


def test_removed_hooks_do_nothing():
    model, opt, handle = attached(2)
    handle.remove()
    before = held(model)
    evaluate(model)
    model.state_dict()
    model.net.state_dict()
    assert opt.weights_are == "predicted"
    assert equal(held(model), before)
    opt.restore()
    model(randn(4, 3))
    assert opt.weights_are == "true"
    handle.remove()


def test_wrapper_with_an_optimizer_inside_is_accepted():
    class Wrapper:
        def __init__(self, inner):
            self.optimizer = inner

    model = network()
    opt = optimizer(model)
    wpadamw.attach(model, Wrapper(opt))
    backward(model, 0)
    opt.step()
    evaluate(model)
    assert opt.weights_are == "true"


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_compiled_model_follows_its_mode():
    model = network()
    opt = optimizer(model)
    wpadamw.attach(model, opt)
    compiled = torch.compile(model, backend="eager")
    plain, plain_opt = started(0)
    wpadamw.attach(plain, plain_opt)
    for k in range(3):
        for module, own in [(compiled, opt), (plain, plain_opt)]:
            backward(module, k)
            own.step()
        assert equal(evaluate(compiled), evaluate(plain))
        assert opt.weights_are == "true"
    assert equal(snapshot(opt), snapshot(plain_opt))


def test_other_types_are_refused_by_name():
    model = network()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        wpadamw.attach(list(model.parameters()), optimizer(model))
    with pytest.raises(TypeError, match="optimizer must be one of wpadamw's, got AdamW"):
        wpadamw.attach(model, optimizer(model, torch.optim.AdamW))
