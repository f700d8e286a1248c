"""What an optimizer says to the programs that call it: refusals, advice, and no false alarm."""

from __future__ import annotations

import copy
import pickle

import pytest
from attached import attached
from models import backward, equal, network, optimizer, snapshot, started, train

from wpadamw.clients import SAVED_PREDICTED

WRAPPERS = (
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.bf16_optimizer",
    "deepspeed.runtime.fp16.unfused_optimizer",
    "fairscale.optim.oss",
    "megatron.core.optimizer.distrib_optimizer",
    "torch.distributed.optim.zero_redundancy_optimizer",
)
LOOKAHEADS = ("timm.optim.lookahead", "pytorch_optimizer.optimizer.lookahead")
TRAINERS = {
    "transformers.trainer": "wpadamw.integrations.transformers",
    "lightning.pytorch.loops.optimization.automatic": "wpadamw.integrations.lightning",
    "pytorch_lightning.strategies.strategy": "wpadamw.integrations.lightning",
}


def called_from(module, function):
    """Calls a function as a module of this name would."""
    names = {"__name__": module}
    exec("def call(function): return function()", names)
    return names["call"](function)


def ready(**options):
    net = network()
    opt = optimizer(net, **options)
    backward(net, 0)
    return net, opt


@pytest.mark.parametrize("module", [*WRAPPERS, *LOOKAHEADS])
def test_programs_with_weights_of_their_own_are_refused_before_anything_is_written(module):
    _, opt = ready()
    before = snapshot(opt)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"keeps weights of its own beside .* Use "):
            called_from(module, opt.step)
        assert equal(snapshot(opt), before)
    assert not opt.state


@pytest.mark.parametrize("module", WRAPPERS)
def test_without_prediction_they_are_served_until_someone_switches_it_on(module):
    _, opt = ready(prediction_steps=0)
    called_from(module, opt.step)
    opt.param_groups[1]["prediction_steps"] = 1.0
    with pytest.raises(RuntimeError, match="prediction_steps=0"):
        opt.step()


@pytest.mark.parametrize("module", LOOKAHEADS)
def test_lookahead_is_refused_without_prediction_too(module):
    _, opt = ready(prediction_steps=0)
    with pytest.raises(RuntimeError, match="Lookahead keeps weights of its own"):
        called_from(module, opt.step)


@pytest.mark.parametrize("module", TRAINERS)
def test_trainers_without_attach_are_told_of_the_callback_once(module):
    net, opt = ready()
    with pytest.warns(UserWarning, match=rf"{TRAINERS[module]}\.WeightPredictionCallback") as found:
        for k in range(3):
            backward(net, k)
            called_from(module, opt.step)
    assert len(found) == 1


@pytest.mark.parametrize("module", TRAINERS)
def test_trainers_with_attach_or_without_prediction_hear_nothing(module):
    model, opt, _ = attached()
    backward(model, 0)
    called_from(module, opt.step)
    _, opt = ready(prediction_steps=0)
    called_from(module, opt.step)


@pytest.mark.parametrize("module", ["deepspeed.runtime.engine", "transformers.trainers", "timm"])
def test_programs_that_keep_no_weights_hear_nothing(module):
    _, opt = ready()
    called_from(module, opt.step)


# Saving.

ALARM = pytest.mark.filterwarnings("error:state_dict")


@ALARM
def test_saving_at_predicted_weights_is_said_once():
    _, opt = started()
    with pytest.warns(UserWarning) as caught:
        opt.state_dict()
        opt.state_dict()
    assert [str(each.message) for each in caught] == [SAVED_PREDICTED]


def test_the_warning_shows_the_line_that_saves():
    _, opt = started()
    with pytest.warns(UserWarning) as caught:
        opt.state_dict()
    assert caught[0].filename == __file__


def _evaluated(opt):
    opt.eval()
    opt.train()


def _in_context(opt):
    with opt.true_weights():
        pass


@ALARM
@pytest.mark.parametrize("look", [_evaluated, _in_context])
def test_no_alarm_where_true_weights_were_shown_since_the_last_update(look):
    net, opt = started()
    look(opt)
    opt.state_dict()
    train(net, opt, [3])
    with pytest.warns(UserWarning, match="predicted weights"):
        opt.state_dict()


@ALARM
def test_no_alarm_where_nothing_is_predicted_or_a_model_is_attached():
    for options in ({"prediction_steps": 0}, {"predict_in_step": False}):
        _, opt = started(**options)
        opt.state_dict()
    attached()[1].state_dict()


@ALARM
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps])
def test_no_alarm_for_copies(duplicate):
    _, opt = started()
    duplicate(opt)
    assert opt.weights_are == "predicted"


@ALARM
def test_alarm_comes_again_for_a_detached_model():
    model, opt, handle = attached()
    handle.remove()
    backward(model, 3)
    opt.step()
    with pytest.warns(UserWarning, match="predicted weights"):
        opt.state_dict()


@ALARM
def test_no_alarm_between_a_checkpoint_and_the_next_update():
    net, opt = started()
    with pytest.warns(UserWarning, match="predicted weights"):
        saved = copy.deepcopy(opt.state_dict())
    twin = optimizer(copy.deepcopy(net))
    twin.load_state_dict(saved)
    twin.load_state_dict(twin.state_dict())  # as programs do that move a state between devices
    assert twin.weights_are == "predicted"
