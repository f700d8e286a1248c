"""What programs do to the modules of an attached model: copy, wrap, script, convert them."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from attached import Net, attached, is_inert
from models import HYPER, backward, equal, held, network, optimizer, randn
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import wpadamw

# The class.


def test_attached_classes_look_like_the_classes_below_them():
    model = Net()
    before = repr(model), [type(module) for module in model.modules()]
    handle = wpadamw.attach(model, optimizer(model))
    assert repr(model) == before[0]
    for module, plain in zip(model.modules(), before[1], strict=True):
        assert isinstance(module, plain)
        assert type(module).__name__ == plain.__name__
        assert type(module).__module__ == plain.__module__
    handle.remove()
    assert [type(module) for module in model.modules()] == before[1]
    assert not [key for module in model.modules() for key in vars(module) if "wpadamw" in key]


def test_registry_of_subclasses_is_not_told():
    known = []

    class Registry(nn.Module):
        def __init_subclass__(cls, *, key):
            known.append(key)

    class Model(Registry, key="model"):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, inputs):
            return self.net(inputs)

    model, opt, _ = attached(Model)
    assert known == ["model"]
    model.eval()
    assert opt.weights_are == "true"


def test_module_that_copies_its_own_attributes_gives_inert_copies():
    model, opt, _ = attached(Shallow)
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert type(twin) is Shallow
    for part in ("net", "norm"):
        assert vars(model)["_modules"][part] is not None
    assert is_inert(copy.deepcopy(model), opt)


class Shallow(Net):
    def __getstate__(self):
        return self.__dict__


def test_saved_model_needs_no_wpadamw():
    layer = nn.Sequential(nn.Linear(3, 2))
    opt = wpadamw.WPAdamW(layer.parameters(), lr=0.1)
    wpadamw.attach(layer, opt)
    file = io.BytesIO()
    torch.save(layer, file)
    assert b"wpadamw" not in file.getvalue()
    assert b"wpadamw" not in pickle.dumps(layer[0])
    program = """
import sys, io, torch
sys.modules["wpadamw"] = None
model = torch.load(io.BytesIO(sys.stdin.buffer.read()), weights_only=False)
assert type(model) is torch.nn.Sequential, type(model)
"""
    done = subprocess.run([sys.executable, "-c", program], input=file.getvalue())
    assert done.returncode == 0


def test_attaching_again_replaces():
    model, opt, handle = attached()
    model.more = nn.Linear(2, 2)
    opt.add_param_group({"params": list(model.more.parameters())})
    second = wpadamw.attach(model, opt)
    handle.remove()
    opt.eval()
    model.more(randn(4, 2))
    assert opt.weights_are == "predicted"
    second.remove()
    assert is_inert(model, opt)
    assert type(model) is Net


def test_new_optimizer_replaces_the_old_one():
    model, old, _ = attached()
    old.eval()
    new = optimizer(model)
    wpadamw.attach(model, new)
    backward(model, 5)
    new.step()
    model.eval()
    model(randn(4, 3))
    assert (old.weights_are, new.weights_are) == ("true", "true")
    model.train()
    model(randn(4, 3))
    assert (old.weights_are, new.weights_are) == ("true", "predicted")


def test_several_optimizers_on_one_model():
    model = Net()
    opts = [wpadamw.WPAdamW(part.parameters(), **HYPER) for part in (model.net, model.norm)]
    handles = [wpadamw.attach(model, opt) for opt in opts]
    backward(model, 0)
    for opt in opts:
        opt.step()
    model.eval()
    assert [opt.weights_are for opt in opts] == ["true"] * 2
    model.train()
    model.net(randn(4, 3))
    assert [opt.weights_are for opt in opts] == ["predicted", "true"]
    model(randn(4, 3))
    assert [opt.weights_are for opt in opts] == ["predicted"] * 2
    handles[0].remove()
    model.eval()
    assert [opt.weights_are for opt in opts] == ["predicted", "true"]


def test_several_models_under_one_optimizer():
    models = [network(0), network(1)]
    params = [param for model in models for param in model.parameters()]
    opt = wpadamw.WPAdamW(params, **HYPER)
    for model in models:
        wpadamw.attach(model, opt)
    sum(model(randn(4, 3)).square().sum() for model in models).backward()
    opt.step()
    before = held(params)
    models[1].eval()
    assert opt.weights_are == "true"
    models[0](randn(4, 3))
    assert equal(held(params), before)
    models[1](randn(4, 3))
    assert opt.weights_are == "true"


def test_attachment_keeps_no_model_alive():
    model, opt, handle = attached()
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None
    handle.remove()
    opt.eval()


# What torch makes of modules.


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("make", [Net, network], ids=["own-class", "torch-class"])
def test_torchscript_compiles_an_attached_model(make):
    model, opt, _ = attached(make)
    scripted = torch.jit.script(model)
    model.eval(), scripted.eval()
    assert opt.weights_are == "true"
    assert equal(scripted(randn(4, 3)).detach(), model(randn(4, 3)).detach())
    traced = torch.jit.trace(model, randn(4, 3))
    assert equal(traced(randn(4, 3)).detach(), model(randn(4, 3)).detach())
    model.train()
    model(randn(4, 3))
    assert is_inert(scripted, opt)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_scripted_model_can_be_attached():
    model, opt, handle = attached(lambda: torch.jit.script(Net()))
    assert opt.weights_are == "predicted"
    model.eval()
    assert opt.weights_are == "true"
    model.train()
    model(randn(4, 3))
    assert opt.weights_are == "predicted"
    handle.remove()


def test_fx_sees_the_modules_and_traced_models_can_be_attached():
    model, opt, handle = attached()
    handle.remove()
    graph = torch.fx.symbolic_trace(model)
    opt = optimizer(graph)
    wpadamw.attach(graph, opt)
    again = torch.fx.symbolic_trace(graph)
    assert [n.op for n in again.graph.nodes] == [n.op for n in graph.graph.nodes]
    for edit in (lambda: None, graph.recompile):
        edit()
        graph.train()
        backward(graph, 0)
        opt.step()
        graph.eval()
        assert opt.weights_are == "true"
        graph.train()
        graph(randn(4, 3))
        assert opt.weights_are == "predicted"
    assert is_inert(copy.deepcopy(graph), opt)
    assert is_inert(pickle.loads(pickle.dumps(graph)), opt)


def normed():
    model = Net()
    parametrizations.weight_norm(model.net[0])
    return model


@pytest.mark.parametrize("early", [True, False], ids=["before-attach", "after-attach"])
def test_parametrizations_come_and_go(early):
    model = normed() if early else Net()
    opt = wpadamw.WPAdamW(model.parameters(), **HYPER)
    handle = wpadamw.attach(model, opt)
    if not early:
        parametrizations.weight_norm(model.net[0])
    backward(model, 0)
    opt.step()
    twin = copy.deepcopy(model)
    assert is_inert(twin, opt)
    opt.eval()
    model.net[0](randn(4, 3))
    assert opt.weights_are == "predicted"
    parametrize.remove_parametrizations(model.net[0], "weight")
    assert isinstance(model.net[0], nn.Linear)
    model.eval()
    model(randn(4, 3))
    assert opt.weights_are == "true"
    handle.remove()
    assert type(model.net[0]) is nn.Linear


def test_converted_batch_norms_leave_the_rest_attached():
    model, opt, _ = attached()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert type(model.norm) is nn.SyncBatchNorm
    opt.eval()
    model.net(randn(4, 3))
    assert opt.weights_are == "predicted"
    model.eval()
    assert opt.weights_are == "true"


def test_replica_of_data_parallel_refuses_weights_of_another_mode():
    model, opt, _ = attached()
    model._replicate_for_data_parallel()(randn(4, 3))
    opt.eval()
    replica = model._replicate_for_data_parallel()
    before = held(model)
    with pytest.raises(RuntimeError, match=r"attach the nn\.DataParallel itself"):
        replica(randn(4, 3))
    assert equal(held(model), before)


@pytest.mark.parametrize("who", ["model", "wrapper"])
def test_data_parallel_wrapper(who):
    model = Net()
    wrapper = nn.DataParallel(model)
    opt = optimizer(model)
    wpadamw.attach(model if who == "model" else wrapper, opt)
    backward(wrapper, 0)
    opt.step()
    wrapper.eval()
    assert opt.weights_are == "true"
    wrapper.train()
    wrapper(randn(4, 3))
    assert opt.weights_are == "predicted"
    model.state_dict()
    assert opt.weights_are == "true"
