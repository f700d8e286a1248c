"""Averages of the true weights, kept by the steps themselves: what they are, and who sees them."""

from __future__ import annotations

import copy

import pytest
import torch
from attached import attached
from helpers import PLACES, Twins, kinds_and, needs_cpp, random_parameters
from models import (
    backward,
    equal,
    groups_of,
    held,
    network,
    optimizer,
    randn,
    set_grads,
    snapshot,
    started,
    through_file,
    train,
)
from rule_table import RULES
from torch import nn

import wpadamw
from wpadamw import WPAdamW
from wpadamw.rules.averaged import averaged
from wpadamw.rules.rule import shares

EMA = 0.2
ROLLOUT = {"prediction": "rollout", "prediction_steps": 2.5}
WAYS = {**PLACES, "rollout": ROLLOUT, "rollout-no-backup": {**ROLLOUT, "backup": False}}
each_way = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


def averages(opt):
    return [state["average"].clone() for state in opt.state.values()]


def true(opt):
    with opt.true_weights():
        return [param.detach().clone() for param in opt.state]


def moved(average, weight, count, ema=EMA):
    """After a step, in the dtype of the state."""
    past = 1.0 - ema
    share = torch.tensor((1.0 - past) / (1.0 - past**count), dtype=average.dtype)
    return average + (weight - average) * share


def assert_near(got, want, options):
    """Equal to the bit, but where true weights are computed back."""
    if options.get("backup", True):
        assert equal(got, want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)


# What they are.


@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_averages_are_weighted_sums_of_the_true_weights(case):
    param = nn.Parameter(randn(50, dtype=torch.float64))
    opt = case.make([param], lr=0.01, ema=EMA, **case.options)
    seen = []
    for seed in range(9):
        set_grads([param], seed)
        opt.step()
        seen += true(opt)
        past = 1.0 - EMA
        shares_of = [EMA * past**age / (1.0 - past ** len(seen)) for age in range(len(seen))]
        want = sum(share * w for share, w in zip(shares_of, reversed(seen), strict=True))
        torch.testing.assert_close(opt.state[param]["average"], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ema", [1.0, 0.1, 1e-4, 1e-15])
def test_the_first_share_is_all(ema):
    case = RULES["adamw"]
    (group,) = case.make([torch.zeros(1)], ema=ema).param_groups
    rule = averaged(case.rule())
    step, _ = rule.scalars(rule.hyper(group, 0.1), 1, share=shares(group)[0])
    assert step.average_share == 1.0


def test_with_1_averages_are_the_weights():
    _, opt = started(ema=1.0, backup=True)
    for average, state in zip(averages(opt), opt.state.values(), strict=True):
        torch.testing.assert_close(average, state["weight"])


@pytest.mark.parametrize("ema", [0, 0.0, -0.1, 1.5, 1e-20, float("nan"), "0.1", torch.tensor(0.1)])
def test_other_shares_are_refused(ema):
    with pytest.raises(ValueError, match=r"ema must be None or a number in \(0, 1\], got"):
        WPAdamW([nn.Parameter(torch.ones(2))], ema=ema)
    net, opt = started()
    opt.param_groups[0]["ema"] = ema
    before = held(net)
    backward(net, 3)
    with pytest.raises(ValueError, match="ema must be None or a number in"):
        opt.step()
    assert equal(held(net), before)


@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_steps_are_those_without_averages(options):
    plain, plain_opt = started(5, **options)
    net, opt = started(5, ema=EMA, **options)
    assert equal(held(net), held(plain))
    assert equal(true(opt), true(plain_opt))


# The sizes around blocks of the loop, and enough for a second thread.
NUMELS = [1, 31, 33, 2049, 40_000]


@needs_cpp
@pytest.mark.parametrize("dtype, grad_dtype, options", kinds_and(WAYS))
def test_backends_are_equal(dtype, grad_dtype, options, num_threads, generator):
    pair = Twins(lambda: random_parameters(NUMELS, dtype), lr=0.01, ema=EMA, **options)
    pair.run_everything(generator, grad_dtype)


@needs_cpp
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_backends_are_equal_for_every_rule(options, case, generator):
    options = {**case.options, **options}
    pair = Twins(
        lambda: random_parameters([33], torch.float32), make=case.make, ema=EMA, lr=0.01, **options
    )
    pair.run_everything(generator, torch.float32)


@needs_cpp
@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_tensors_with_gaps(options, generator):
    def with_gaps():
        return [nn.Parameter(randn(20, 6)[:, ::2]), nn.Parameter(randn(5, 7).T)]

    pair = Twins(with_gaps, lr=0.01, ema=EMA, **options)
    pair.run_everything(generator, torch.float32)
    for opt in pair.by_backend.values():
        weights = true(opt)
        with opt.averaged_weights():
            assert equal(held(opt.state), averages(opt))
        assert equal(true(opt), weights)


# Where they begin.


@each_way
@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_averages_may_begin_in_mid_training(mode, options):
    net, opt = started(5, **options)
    if mode == "true":
        opt.eval()
    want = true(opt)
    for group in opt.param_groups:
        group["ema"] = EMA
    for count in (6, 7, 8):
        opt.state_dict()
        backward(net, count)
        opt.step()
        want = [moved(a, w, count) for a, w in zip(want, true(opt), strict=True)]
        assert_near(averages(opt), want, options)
    for group in opt.param_groups:
        group["ema"] = None
    train(net, opt, [9])
    assert not any("average" in state for state in opt.state.values())


def loaded(file, load_model, model_first, **options):
    """A network and its optimizer after files of these have been loaded; one saves in between."""
    net = network(seed=1)
    opt = optimizer(net, **options)
    if model_first:
        load_model(net)
    opt.load_state_dict(through_file(file))
    opt.state_dict()
    if not model_first:
        load_model(net)
    return net, opt


@pytest.mark.filterwarnings("ignore:Parameters were written")
@each_way
@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize("model_first", [True, False], ids=["model-first", "optimizer-first"])
def test_files_without_averages_begin_them(model_first, mode, options):
    net, opt = started(5, **options)
    if mode == "true":
        opt.eval()
    file, weights = opt.state_dict(), held(net)

    def load_model(net):
        with torch.no_grad():
            for param, weight in zip(net.parameters(), weights, strict=True):
                param.copy_(weight)

    for group in file["param_groups"]:
        del group["ema"]
    other, other_opt = loaded(file, load_model, model_first, ema=EMA, **options)
    want = true(opt)
    backward(other, 5)
    other_opt.step()
    assert all(group["ema"] == EMA for group in other_opt.param_groups)
    want = [moved(a, w, 6) for a, w in zip(want, true(other_opt), strict=True)]
    assert_near(averages(other_opt), want, options)


@pytest.mark.parametrize("use", ["show", "switch"])
@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_before_a_step_averages_are_the_true_weights(options, use):
    net, opt = started(5, **options)
    file, weights = opt.state_dict(), net.state_dict()
    for group in file["param_groups"]:
        del group["ema"]
    load_model = lambda model: model.load_state_dict(weights)  # noqa: E731
    _, other = loaded(file, load_model, False, ema=EMA, **options)
    want = true(opt)
    if use == "switch":
        other.switch_to_average()
        assert_near(true(other), want, options)
    else:
        with other.averaged_weights():
            assert_near(held(other.state), want, options)


@pytest.mark.filterwarnings("ignore:Parameters were written")
@pytest.mark.parametrize("model_first", [True, False], ids=["model-first", "optimizer-first"])
def test_files_of_torch_begin_averages(model_first):
    net = network()
    theirs = torch.optim.AdamW(groups_of(net))
    for k in range(3):
        backward(net, k)
        theirs.step()
    weights = held(net)
    load_model = lambda model: model.load_state_dict(net.state_dict())  # noqa: E731
    other, opt = loaded(theirs.state_dict(), load_model, model_first, ema=EMA)
    train(other, opt, [3])
    want = [
        moved(a, w, 4)
        for a, w in zip(map(weights.__getitem__, (0, 2, 1, 3)), true(opt), strict=True)
    ]
    assert equal(averages(opt), want)


@each_way
def test_training_resumes_from_files_to_the_bit(options):
    net, opt = started(4, ema=EMA, **options)
    file = through_file([net.state_dict(), opt.state_dict()])
    other = network(seed=1)
    other_opt = optimizer(other, **options)  # the averages come with the file, as its lr does
    other.load_state_dict(file[0])
    other_opt.load_state_dict(file[1])
    for each in ((net, opt), (other, other_opt)):
        train(*each, range(4, 7))
    assert equal(held(other), held(net))
    assert equal(averages(other_opt), averages(opt))


def test_files_of_another_rule_are_refused():
    _, opt = started(ema=EMA)
    other = optimizer(network(), wpadamw.WPAdamW, amsgrad=True, ema=EMA)
    file = opt.state_dict()
    for group in file["param_groups"]:
        group["amsgrad"] = True
        group["rule"] = "amsgrad"
    with pytest.raises(ValueError, match="must have 'max_exp_avg_sq' for rule 'amsgrad'"):
        other.load_state_dict(file)


def test_a_loaded_average_has_the_shape_of_its_parameter():
    _, opt = started(ema=EMA)
    file = copy.deepcopy(opt.state_dict())
    file["state"][1]["average"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"\['average'\] must have shape \(2, 5\)"):
        opt.load_state_dict(file)


@each_way
def test_copies_of_optimizers_have_averages_of_their_own(options):
    net, opt = started(ema=EMA, **options)
    before = averages(opt)
    both = copy.deepcopy((net, opt))
    train(*both, [3])
    assert equal(averages(opt), before)
    train(net, opt, [3])
    assert equal(averages(opt), averages(both[1]))


def test_time_that_begins_anew_begins_averages_anew():
    net, opt = started(ema=EMA)
    opt.reset_time()
    train(net, opt, [3])
    for average, state in zip(averages(opt), opt.state.values(), strict=True):
        torch.testing.assert_close(average, state["weight"])


# Who sees them.


@each_way
@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_inside_parameters_hold_averages_and_afterwards_what_they_held(mode, options):
    net, opt = started(ema=EMA, **options)
    if mode == "true":
        opt.eval()
    before = snapshot(opt)
    with opt.averaged_weights():
        assert equal(held(opt.state), averages(opt))
        with opt.averaged_weights(), torch.inference_mode():
            assert equal(held(opt.state), averages(opt))
        assert equal(held(opt.state), averages(opt))
        with torch.no_grad():
            net[0].weight.zero_()
        if options in (PLACES["backup"], ROLLOUT):
            opt.state_dict()  # which takes note of writes, outside
    assert equal(snapshot(opt), before)
    with pytest.raises(KeyError), opt.averaged_weights():
        raise KeyError
    assert equal(snapshot(opt), before)
    other, other_opt = started(ema=EMA, **options)
    for each in ((net, opt), (other, other_opt)):
        train(*each, range(3, 6))
    assert equal(held(net), held(other)) or options.get("backup") is False


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_averages_are_rounded_to_the_parameters(dtype):
    params = [nn.Parameter(randn(40).to(dtype)), nn.Parameter(torch.ones(3, dtype=dtype))]
    opt = WPAdamW(params, lr=0.1, ema=EMA)
    for seed in range(3):
        set_grads(params[:1], seed)
        opt.step()
    before = held(params)
    average = opt.state[params[0]]["average"]
    assert average.dtype == (torch.complex64 if dtype.is_complex else torch.float32)
    with opt.averaged_weights():
        assert equal(held(params), [average.to(dtype), torch.ones(3, dtype=dtype)])
    assert equal(held(params), before)


def test_groups_without_averages_hold_their_true_weights():
    params = [nn.Parameter(randn(5)) for _ in range(2)]
    opt = WPAdamW([{"params": params[:1], "ema": EMA}, {"params": params[1:]}], lr=0.1)
    set_grads(params, 0)
    opt.step()
    with opt.averaged_weights():
        assert equal(
            held(params), [opt.state[params[0]]["average"], opt.state[params[1]]["weight"]]
        )
    before = true(opt)
    opt.switch_to_average()
    assert equal(true(opt), [opt.state[params[0]]["average"], before[1]])


def test_without_averages_there_is_nothing_to_show():
    _, opt = started()
    with pytest.raises(RuntimeError, match="averaged_weights needs ema"), opt.averaged_weights():
        pytest.fail("entered")
    with pytest.raises(RuntimeError, match="switch_to_average needs ema"):
        opt.switch_to_average()


def step_with_closure(opt):
    opt.step(lambda: pytest.fail("called") if opt._keeping.copies is None else 0.0)


def enter_true_weights(opt):
    with opt.true_weights():
        pytest.fail("entered")


REFUSED = {
    "step": WPAdamW.step,
    "closure": step_with_closure,
    "predict": WPAdamW.predict,
    "restore": WPAdamW.restore,
    "train": WPAdamW.train,
    "eval": WPAdamW.eval,
    "true_weights": enter_true_weights,
    "load_state_dict": lambda opt: opt.load_state_dict({}),
    "set_true_weights": lambda opt: opt.set_true_weights(lambda *_: pytest.fail("called")),
    "switch_to_average": WPAdamW.switch_to_average,
    "deepcopy": copy.deepcopy,
}


@each_way
@pytest.mark.parametrize("call", REFUSED.values(), ids=REFUSED)
def test_what_would_lose_the_averages_is_refused(call, options):
    net, opt = started(ema=EMA, **options)
    backward(net, 3)
    opt.step()
    backward(net, 4)
    before = snapshot(opt)
    with opt.averaged_weights():
        inside = snapshot(opt)
        with pytest.raises(RuntimeError, match=r"inside averaged_weights\(\)"):
            call(opt)
        assert equal(snapshot(opt), inside)
    assert equal(snapshot(opt), before)
    opt.step()


@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_files_that_are_written_inside(options):
    net, opt = started(ema=EMA, **options)
    want = true(opt)
    with opt.averaged_weights():
        if options:
            with pytest.raises(RuntimeError, match="true weights without a backup inside"):
                opt.state_dict()
            return
        model, file = through_file([net.state_dict(), opt.state_dict()])
    other = network(seed=1)
    other.load_state_dict(model)
    other_opt = optimizer(other)
    other_opt.load_state_dict(file)  # which knows the true weights
    assert equal(true(other_opt), want)
    for each in ((net, opt), (other, other_opt)):
        train(*each, range(3, 5))
    assert equal(true(other_opt), true(opt))


def test_attached_models_follow_no_mode_inside():
    model, opt, _ = attached(network, ema=EMA)
    inputs = randn(4, 3)
    with opt.averaged_weights():
        assert equal(held(opt.state), averages(opt))
        for training in (True, False):
            model.train(training)
            want = torch.func.functional_call(
                network(), dict(zip(model.state_dict(), held(model), strict=True)), inputs
            )
            assert torch.equal(model(inputs), want)
            assert equal(held(opt.state), averages(opt))
        saved = {name: value.clone() for name, value in model.state_dict().items()}
        assert equal(list(saved.values()), held(copy.deepcopy(model)))
    assert not equal(saved, {name: value.clone() for name, value in model.state_dict().items()})
    model.train()
    model(inputs)
    assert opt.weights_are == "predicted"


def test_backward_passes_of_forwards_before_are_refused_inside():
    model, opt, _ = attached(network, ema=EMA)
    loss = model(randn(4, 3)).square().mean()
    with opt.averaged_weights(), pytest.raises(RuntimeError, match="switching between modes"):
        loss.backward()


@each_way
@pytest.mark.parametrize("mode", ["true", "predicted"])
def test_training_goes_on_from_averages(mode, options):
    net, opt = started(ema=EMA, **options)
    if mode == "true":
        opt.eval()
    before, moments = averages(opt), [state["exp_avg"].clone() for state in opt.state.values()]
    opt.switch_to_average()
    if options.get("backup", True):
        assert equal(true(opt), before)
    assert equal(averages(opt), before)
    assert equal([state["exp_avg"] for state in opt.state.values()], moments)
    assert all(float(state["step"]) == 3 for state in opt.state.values())
    assert opt.weights_are == (mode if "compute_dtype" not in options else "true")
    train(net, opt, [3])


def test_a_switch_without_a_backup_is_exact_at_true_weights():
    _, opt = started(ema=EMA, backup=False)
    opt.eval()
    opt.switch_to_average()
    assert equal(held(opt.state), averages(opt))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_true_weights_can_be_set_in_both_modes(options):
    net, opt = started(ema=EMA, **options)
    opt.set_true_weights(lambda param, weight: None)
    opt.set_true_weights(lambda param, weight: weight * 0.5)
    train(net, opt, [3, 4])


def test_compute_copies_stay_predictions():
    net, opt = started(ema=EMA, compute_dtype=torch.bfloat16)
    params = list(net.parameters())
    before = [opt.compute_copy(param).clone() for param in params]
    with opt.averaged_weights():
        assert equal([opt.compute_copy(param).clone() for param in params], before)
    assert equal([opt.compute_copy(param).clone() for param in params], before)


def test_states_are_as_large_as_said():
    param = nn.Parameter(randn(1000))
    opt = WPAdamW([param], ema=EMA)
    set_grads([param], 0)
    opt.step()
    assert sum(t.nbytes for t in opt.state[param].values() if t.numel() == 1000) == 16_000
