"""Moments in bfloat16 and int8, weights in two halves: what users of the optimizers see."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers import Twins, assert_same_bits, assert_same_training, needs_cpp, set_grad, wide
from models import equal, held, optimizer, randn, snapshot
from rule_table import RULES
from small_states import (
    NUMELS,
    SPLIT,
    SPLITS,
    WAYS,
    everything,
    network,
    set_grads,
    started,
    steps,
    true,
)
from torch import nn

import wpadamw
from wpadamw import WPAdamW
from wpadamw.formats import OF_MOMENTS, join, numbers

each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
each_split = pytest.mark.parametrize("way", SPLITS.values(), ids=SPLITS)


def parameters(dtype, numels=NUMELS):
    return [nn.Parameter(randn(n, seed=i, dtype=dtype)) for i, n in enumerate(numels)]


def laid_out(dtype):
    """Scalars, gaps, transposed and channels-last parameters, and one at an odd address."""
    image = randn(3, 5, 4, 2, seed=1, dtype=dtype).to(memory_format=torch.channels_last)
    return [
        nn.Parameter(randn(dtype=dtype)),
        nn.Parameter(randn(20, 14, dtype=dtype)[:, ::2]),
        nn.Parameter(randn(9, 15, dtype=dtype).T),
        nn.Parameter(image),
        nn.Parameter(randn(131, dtype=dtype)[1:]),
    ]


def values(opt):
    """What parameters hold, in full, and their moments."""
    names = {"remainder", "weight"}
    full = [
        join(p.detach(), s["remainder"]) if "remainder" in s else p for p, s in opt.state.items()
    ]
    kept = [{k: v.clone() for k, v in s.items() if k not in names} for s in opt.state.values()]
    return [held(full), kept]


def assert_near(way, got, want):
    """Equal to the bit, but where true weights are computed back."""
    if way.options.get("backup", True):
        assert equal(got, want)
    elif isinstance(got, torch.Tensor):
        torch.testing.assert_close(got, want, rtol=2e-6, atol=1e-7)
    else:
        for of_param, expected in zip(got[0], want[0], strict=True):
            torch.testing.assert_close(of_param, expected, rtol=2e-6, atol=1e-7)
        assert equal(got[1], want[1])


OPTIONS = {
    "plain": {},
    "amsgrad": {"amsgrad": True},
    "rollout": {"prediction": "rollout", "prediction_steps": 2.5},
    "literal": {"predict_in_step": False},
    "tracked": {"track_prediction": True},
    "averages": {"ema": 0.3},
    "maximize": {"maximize": True, "predict_decay": False},
}


# The same bits from both backends.


@needs_cpp
@each_way
def test_backends_are_equal(way, num_threads, generator):
    pair = Twins(lambda: parameters(way.dtype), lr=0.01, **way.options)
    pair.run_everything(generator, way.dtype)


@needs_cpp
@each_way
def test_threads_change_no_bit(way):
    before, found = torch.get_num_threads(), []
    for num_threads in (1, 2):
        opt = WPAdamW(parameters(way.dtype), lr=0.01, backend="cpp", **way.options)
        for seed in range(2):
            set_grads(opt.param_groups[0]["params"], seed)
            torch.set_num_threads(num_threads)
            opt.step()
            torch.set_num_threads(before)
        found.append(opt)
    assert_same_training(*found)


@needs_cpp
@each_way
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_backends_are_equal_with_options(way, options, generator):
    pair = Twins(lambda: parameters(way.dtype, [65]), lr=0.01, **way.options, **options)
    pair.run_everything(generator, way.dtype)


@needs_cpp
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", ["bfloat16-int8", "split-bfloat16"])
def test_backends_are_equal_for_every_rule(name, case, generator):
    way = WAYS[name]
    options = {**case.options, **way.options, "ema": 0.3, "lr": 0.01}
    pair = Twins(lambda: parameters(way.dtype, [65, 3]), make=case.make, **options)
    pair.run_everything(generator, way.dtype)


@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
@pytest.mark.parametrize("moments", ["bfloat16", "int8"])
def test_rules_store_moments_small_and_all_else_whole(moments, case):
    opt = case.make(parameters(torch.float32, [65]), moments=moments, ema=0.3, **case.options)
    steps(opt, [0])
    (state,) = opt.state.values()
    rule = case.rule()
    assert {*rule.whole_names, "average", *rule.state_names} <= state.keys()
    for name in {*rule.state_names} - {*rule.whole_names}:
        form = OF_MOMENTS[moments][name in rule.squares]
        assert state[name].dtype == form.dtype, name
        assert (f"{name}_scale" in state) == (moments == "int8")
    assert all(state[n].dtype == torch.float32 for n in (*rule.whole_names, "average", "weight"))
    assert ("last_grad" in rule.whole_names) == ("last_grad" in state)


@needs_cpp
@each_way
def test_backends_are_equal_for_every_layout(way, generator):
    pair = Twins(lambda: laid_out(way.dtype), lr=0.01, ema=0.3, **way.options)
    pair.run_everything(generator, way.dtype)


@each_way
def test_layouts_change_no_number(way, generator):
    """Codes are in the order of the elements, whatever that in memory is."""
    params = laid_out(way.dtype)
    plain = [nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format)) for p in params]
    first, second = (WPAdamW(of, lr=0.01, **way.options) for of in (params, plain))
    for _ in range(3):
        for p, q in zip(params, plain, strict=True):
            p.grad = torch.empty_like(p).copy_(wide(p.shape, way.dtype, generator))
            q.grad = p.grad.clone(memory_format=torch.contiguous_format)
        first.step()
        second.step()
    if way.options["moments"] == "int8":
        assert equal(everything(first), everything(second))
    else:  # noise goes by memory
        assert equal(held(params[:1]), held(plain[:1]))


@needs_cpp
@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_of_other_dtypes_and_strides(way, dtype, generator):
    def params():
        return [nn.Parameter(randn(9, 15, dtype=way.dtype)) for _ in range(2)]

    pair = Twins(params, lr=0.01, **way.options)
    for _ in range(2):
        grads = [wide((15, 9), dtype, generator).T, wide((9, 30), dtype, generator)[:, ::2]]
        pair.set_grads(grads)
        pair.run(WPAdamW.step)
    want = [nn.Parameter(p.detach().clone()) for p in params()]
    other = WPAdamW(want, lr=0.01, **way.options)
    generator.manual_seed(1)
    for _ in range(2):
        grads = [wide((15, 9), dtype, generator).T, wide((9, 30), dtype, generator)[:, ::2]]
        for param, grad in zip(want, grads, strict=True):
            set_grad(param, grad.contiguous())
        other.step()
    assert_same_training(pair.by_backend["cpp"], other)


# Modes.


@each_way
def test_ways_between_the_modes_give_the_same_bits(way):
    net, opt = started(way)
    predicted = values(opt)
    opt.eval()
    restored = values(opt)
    for _ in range(3):
        opt.train()
        assert_near(way, values(opt), predicted)
        opt.eval()
        assert_near(way, values(opt), restored)
    if "weight" in opt.state[next(net.parameters())]:
        for param in net.parameters():
            assert_same_bits("true", param, opt.state[param]["weight"].to(way.dtype))


@each_way
def test_true_weights_are_those_of_steps_without_prediction(way):
    _, opt = started(way, 20)
    _, plain = started(way, 20, prediction_steps=0.0)
    for got, want in zip(true(opt), true(plain), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@each_way
def test_steps_from_both_modes_are_the_same(way):
    (_, first), (_, second) = started(way), started(way)
    second.eval()
    steps(first, [7])
    steps(second, [7])
    for got, want in zip(true(first), true(second), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
    names = set(first.state[next(iter(first.state))]) - {"weight", "remainder"}
    pairs = zip(first.state.values(), second.state.values(), strict=True)
    assert all(equal(a[name], b[name]) for a, b in pairs for name in names)


@each_way
def test_attached_models_show_true_weights_to_evaluation(way):
    net, opt = started(way)
    with opt.true_weights():
        want = held(net)
    handle = wpadamw.attach(net, opt)
    inputs = randn(4, 3, dtype=way.dtype)
    net.eval()
    net(inputs)
    assert opt.weights_are == "true"
    assert equal(list(net.state_dict().values()), want)
    net.train()
    net(inputs)
    assert opt.weights_are == "predicted"
    handle.remove()


@each_way
def test_closures_see_predicted_weights(way):
    net, opt = started(way, predict_in_step=False)
    (other_net, other), seen = started(way, predict_in_step=False), []

    def closure():
        seen.extend(held(net))
        return 1.0

    other.predict()
    want = held(other_net)
    assert opt.step(closure) == 1.0
    other.step()
    assert equal(seen, want)
    assert equal(everything(opt), everything(other))


# What else a step may do.


@each_way
def test_frozen_parameters_hold_true_weights(way):
    net, opt = started(way)
    want = true(opt)
    param = next(net.parameters())
    param.requires_grad_(False)
    opt.eval()
    opt.train()
    assert_same_bits("frozen", param, want[0].to(way.dtype))
    param.requires_grad_(True)
    opt.eval()
    for got, expected in zip(true(opt), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)


@each_way
def test_an_overflow_changes_no_bit(way):
    net, opt = started(way, amp=True)
    want = everything(opt)
    for param in net.parameters():
        param.grad = torch.full_like(param, torch.inf)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(1.0)
    opt.step()
    assert equal(everything(opt), want)
    opt.found_inf = torch.tensor(0.0)
    steps(opt, [5])
    assert not equal(everything(opt), want)


@each_way
def test_clipping_is_that_of_clipped_gradients(way):
    (net, opt), (other_net, other) = started(way), started(way)
    steps_of = [(net, opt), (other_net, other)]
    for of, _ in steps_of:
        for i, param in enumerate(of.parameters()):
            param.grad = randn(*param.shape, seed=i, dtype=way.dtype)
    norm = opt.clip_grad_norm_(0.5)
    factor = min(1.0, 0.5 / (norm.item() + 1e-6))
    for param in other_net.parameters():
        grad, param.grad = param.grad.float() * factor, None
        set_grad(param, grad)
    opt.step()
    other.step()
    for a, b in zip(true(opt), true(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-4)


@each_way
def test_no_number_stays_where_it_is(way):
    """It spreads over a block of codes at most, as its scale is no number."""
    param = nn.Parameter(randn(200, dtype=way.dtype))
    opt = WPAdamW([param], lr=0.01, **way.options)
    for bad in (torch.nan, torch.inf):
        param.grad = randn(200, seed=1, dtype=way.dtype)
        param.grad[70] = bad
        opt.step()
    param.grad = randn(200, seed=2, dtype=way.dtype)
    opt.step()
    opt.eval()
    block = way.options["moments"] == "int8"
    is_bad = torch.zeros(200, dtype=torch.bool)
    is_bad[64:128] = block
    is_bad[70] = True
    assert equal(~param.isfinite(), is_bad)


@pytest.mark.filterwarnings("ignore:Parameters were written")
@each_split
def test_pruned_weights_are_zero_in_both_modes(way):
    net, opt = started(way)
    param = next(net.parameters())
    mask = torch.rand(param.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        param.mul_(mask)
    for mode in ("true", "predicted"):
        opt.eval() if mode == "true" else opt.train()
        assert not param[~mask].any()
        assert param[mask].all()


@each_split
def test_writes_without_a_trace_are_the_predicted_weights(way):
    """As without a backup: true weights are computed back from what is there."""
    net, opt = started(way)
    param = next(net.parameters())
    values = (param.detach() * 2).clone()
    param.data = values
    opt.eval()
    opt.train()
    torch.testing.assert_close(param.detach(), values, rtol=0.01, atol=0)


# True weights of other values.


@each_split
@pytest.mark.parametrize("ema", [None, 0.2])
def test_exact_weights_come_back(way, ema):
    """Also such as bfloat16 cannot hold."""
    _, opt = started(way, ema=ema)
    opt.eval()
    want = [randn(*p.shape, seed=i) for i, p in enumerate(opt.state)]
    values = iter(want)
    opt.set_true_weights(lambda param, weight: next(values))
    assert equal(true(opt), want)
    for param, value in zip(opt.state, want, strict=True):
        assert_same_bits("joined", join(param.detach(), opt.state[param]["remainder"]), value)
    opt.train()
    for got, value in zip(true(opt), want, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-6, atol=1e-7)


@each_way
def test_averages_are_shown_and_trained_from(way):
    net, opt = started(way, ema=0.2)
    before = values(opt)
    with opt.averaged_weights():
        for param, state in opt.state.items():
            assert state["average"].dtype == torch.float32
            assert_same_bits("shown", param, state["average"].to(way.dtype))
    assert_near(way, values(opt), before)
    opt.eval()
    opt.switch_to_average()
    assert equal(true(opt), [state["average"] for state in opt.state.values()])
    del net


@each_way
def test_permutations_keep_the_values(way):
    net, opt = started(way, 0)
    matrix = next(net.parameters())
    want = matrix.detach().float().sort(1).values
    laperm = wpadamw.LaPerm(opt, every=2)
    steps(laperm, range(4))
    opt.eval()
    assert_near(way, true(opt)[0].sort(1).values, want)


# Options that change, groups that come.


@pytest.mark.parametrize("before", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("after", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize("options", [{}, {"backup": False}], ids=["backup", "no-backup"])
def test_moments_change_live(before, after, mode, options):
    net = network()
    opt = optimizer(net, moments=before, **options)
    steps(opt, range(3))
    if mode == "true":
        opt.eval()
    want = true(opt)
    for group in opt.param_groups:
        group["moments"] = after
    opt.eval()
    assert equal(true(opt), want)
    steps(opt, [4])
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
    assert all(state["exp_avg"].dtype == dtypes[after] for state in opt.state.values())
    assert all(("exp_avg_scale" in s) == (after == "int8") for s in opt.state.values())


@pytest.mark.filterwarnings("error:Parameters were written")
@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize("layout", ["plain", "gaps"])
def test_masters_change_live(mode, layout):
    def params():
        if layout == "gaps":
            return laid_out(torch.bfloat16)
        return parameters(torch.bfloat16, [65])

    opt = WPAdamW(params(), lr=0.01)
    steps(opt, range(3))
    if mode == "true":
        opt.eval()
    want = true(opt)
    opt.param_groups[0].update(SPLIT)
    assert equal(true(opt), want)
    opt.eval()
    opt.param_groups[0].update(master="float32", backup=True)
    opt.train()
    assert equal(true(opt), want)
    assert all("weight" in s and "remainder" not in s for s in opt.state.values())


def test_mixed_groups_are_split_where_they_can_be():
    opt = WPAdamW([*parameters(torch.bfloat16, [65]), *parameters(torch.float32, [65])], **SPLIT)
    steps(opt, range(2))
    narrow, whole = opt.state.values()
    assert "remainder" in narrow
    assert "remainder" not in whole


@each_way
def test_groups_of_another_format_come_later(way):
    _, opt = started(way)
    new = parameters(torch.float32, [65, 3])
    opt.add_param_group({"params": new, "moments": "int8", "master": "float32", "backup": True})
    steps(opt, [5, 6])
    assert all(opt.state[param]["exp_avg"].dtype == torch.int8 for param in new)
    first = next(iter(opt.state.values()))
    assert ("remainder" in first) == (way.options.get("master") == "split")


def refused(**group):
    params = parameters(group.pop("dtype", torch.float32), [5])
    opt = WPAdamW([nn.Parameter(torch.ones(1))])
    yield lambda: WPAdamW(params, **group)
    yield lambda: opt.add_param_group({"params": params, **group})

    def change():
        dtype_default = {"backup": True, "master": "float32", "moments": "float32"}
        other = WPAdamW(params, **{**dtype_default})
        steps(other, [0])
        before = snapshot(other)
        other.param_groups[0].update(group)
        try:
            steps(other, [1])
        finally:
            assert equal(held(params), before["weights"])
            assert equal([dict(other.state[p]) for p in params], before["state"])

    yield change


@pytest.mark.parametrize(
    "group, reason",
    [
        ({"moments": "int4"}, "moments must be one of"),
        ({"moments": None}, "moments must be one of"),
        ({"moments": torch.tensor(1)}, "moments must be one of"),
        ({"master": "half"}, "master must be one of"),
        ({"moments": "int8", "dtype": torch.float64}, "got torch.float64"),
        ({"moments": "bfloat16", "dtype": torch.complex64}, "got torch.complex64"),
        ({**SPLIT}, "master='split' needs bfloat16 params, got torch.float32"),
        ({**SPLIT, "dtype": torch.float16}, "master='split' needs bfloat16 or wider params"),
        ({"master": "split", "dtype": torch.bfloat16}, "master='split' needs backup=False"),
        ({"backup": False, "dtype": torch.bfloat16}, "backup=False needs float32 or float64"),
    ],
)
def test_options_that_do_not_go_together_are_refused(group, reason):
    for make in refused(**group):
        with pytest.raises(ValueError, match=reason):
            make()


@pytest.mark.parametrize("look", [WPAdamW.eval, WPAdamW.state_dict, WPAdamW.step])
@pytest.mark.parametrize(
    "name, dtype, reason",
    [
        ("split-int8", torch.float32, "master='split' needs bfloat16 params, got torch.float32"),
        ("float32-int8", torch.float64, r"moments=.int8. needs .* got torch.float64"),
        ("float32-no-backup-bfloat16", torch.bfloat16, "backup=False needs float32 or float64"),
    ],
)
def test_models_that_are_cast_are_refused(name, dtype, reason, look):
    net, opt = started(WAYS[name])
    want = true(opt)
    net.to(dtype)
    with pytest.raises(ValueError, match=reason):
        look(opt)
    if dtype != torch.bfloat16:
        net.to(WAYS[name].dtype)
        opt.eval()
        for got, expected in zip(true(opt), want, strict=True):
            torch.testing.assert_close(got, expected, rtol=2e-6, atol=1e-7)


def test_halves_are_not_lost_by_a_cast():
    """Of one parameter among others, which remain split."""
    opt = WPAdamW(parameters(torch.bfloat16, [65, 65]), **SPLIT)
    steps(opt, range(2))
    param = opt.param_groups[0]["params"][0]
    param.data = param.data.float()
    with pytest.raises(RuntimeError, match="must be bfloat16 as its state is"):
        opt.eval()


@pytest.mark.parametrize("look", [WPAdamW.eval, WPAdamW.state_dict])
def test_options_that_cannot_be_are_refused_before_a_step(look):
    params = parameters(torch.float64, [65])
    opt = WPAdamW(params, lr=0.01)
    steps(opt, range(2))
    before = everything(opt)[1]
    opt.param_groups[0]["moments"] = "int8"
    with pytest.raises(ValueError, match="moments='int8' needs float32"):
        look(opt)
    assert equal(everything(opt)[1], before)


def test_muon_has_whole_moments():
    with pytest.raises(ValueError, match="needs a rule of single elements, got rule 'muon'"):
        wpadamw.WPMuon([nn.Parameter(torch.ones(3, 3))], moments="int8")


# States from outside.


@pytest.mark.parametrize("name", ["float32-int8", "float32-no-backup-int8", "split-int8"])
@pytest.mark.parametrize("kind", ["copies", "numbers"])
def test_states_may_be_replaced(name, kind):
    (_, opt), (_, other) = started(WAYS[name]), started(WAYS[name])
    for state in other.state.values():
        for moment in ("exp_avg", "exp_avg_sq"):
            parts = [state[moment].clone(), state.pop(f"{moment}_scale").clone()]
            if kind == "copies":
                state[moment], state[f"{moment}_scale"] = parts
            else:
                state[moment] = numbers(parts)
    steps(opt, [5])
    steps(other, [5])
    assert_same_training(other, opt)


def test_codes_without_scales_are_refused():
    net, opt = started(WAYS["float32-int8"])
    del next(iter(opt.state.values()))["exp_avg_scale"]
    before = held(net)
    with pytest.raises(RuntimeError, match="must have 'exp_avg_scale'"):
        steps(opt, [5])
    assert equal(held(net), before)


# Copies.


@each_way
@pytest.mark.parametrize("mode", ["true", "predicted"])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_copies_go_on_with_the_same_bits(way, mode, copied):
    net, opt = started(way, ema=0.2)
    if mode == "true":
        opt.eval()
    other_net, other = copied((net, opt))
    alone = copied(opt)
    for each in (opt, other, alone):
        steps(each, [5, 6])
    assert_same_training(other, opt)
    assert_same_training(alone, opt)
    assert equal(held(other_net), held(net))
