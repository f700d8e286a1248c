"""Steps after which nothing but gradients has changed go a shorter way, to the same bits."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import PLACES, assert_same_training, needs_cpp
from models import through_file
from rule_table import RULES

from wpadamw import WPAdamW
from wpadamw.standing import Standing

pytestmark = [needs_cpp, pytest.mark.filterwarnings("ignore:Parameters were written")]


def start(case, **options):
    generator = torch.Generator().manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (12, 5, 64, 1000)]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.03}]
    options = {"lr": 0.01, "backend": "cpp", **case.options, **options}
    return params, case.make(groups, **options)


def set_grads(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def step(params, opt, which, seed):
    set_grads(params, seed)
    opt.step()


def step_without_one(params, opt, which, seed):
    set_grads(params, seed)
    params[which].grad = None
    opt.step()


def step_with_clipping(params, opt, which, seed):
    set_grads(params, seed)
    opt.clip_grad_norm_(0.5)
    opt.step()


def step_with_strided_gradient(params, opt, which, seed):
    set_grads(params, seed)
    params[which].grad = torch.randn(params[which].numel() * 2)[::2].fill_(0.5)
    opt.step()


def go_to_true_weights(params, opt, which, seed):
    opt.restore()


def write_to_a_parameter(params, opt, which, seed):
    if opt.param_groups[0]["backup"]:
        with torch.no_grad():
            params[which].mul_(1.01)


def move_a_parameter(params, opt, which, seed):
    params[which].data = params[which].data.clone()


def write_to_the_state(params, opt, which, seed):
    for name, value in opt.state.get(params[which], {}).items():
        if name in ("exp_avg", "momentum_buffer"):
            value.mul_(0.5)


def count_one_more(params, opt, which, seed):
    if params[which] in opt.state:
        opt.state[params[which]]["step"] += 1


def replace_the_state(params, opt, which, seed):
    if params[which] in opt.state:
        state = opt.state[params[which]]
        opt.state[params[which]] = {name: value.clone() for name, value in state.items()}


def change_the_rate(params, opt, which, seed):
    opt.param_groups[which % 2]["lr"] = 0.01 + seed * 1e-9


def change_a_flag(params, opt, which, seed):
    group = opt.param_groups[which % 2]
    name = ("maximize", "predict_in_step")[seed % 2]
    if name == "maximize" or opt._keeping.copies is None:  # with copies every step predicts
        group[name] = not group[name]


def begin_or_end_averages(params, opt, which, seed):
    group = opt.param_groups[which % 2]
    group["ema"] = None if group["ema"] else 0.2


def go_through_a_checkpoint(params, opt, which, seed):
    opt.load_state_dict(through_file(opt.state_dict()))


ACTIONS = [
    step_without_one,
    step_with_clipping,
    step_with_strided_gradient,
    go_to_true_weights,
    write_to_a_parameter,
    move_a_parameter,
    write_to_the_state,
    count_one_more,
    replace_the_state,
    change_the_rate,
    change_a_flag,
    go_through_a_checkpoint,
]


@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_both_ways_lead_to_the_same_bits(case, options):
    check_both_ways(case, options, ACTIONS)


@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_both_ways_lead_to_the_same_averages(options):
    rollout = {"prediction": "rollout"} if options.get("backup") is False else {}
    actions = [*ACTIONS, begin_or_end_averages]
    check_both_ways(RULES["adamw"], {"ema": 0.2, **rollout, **options}, actions)


def check_both_ways(case, options, actions):
    dice = random.Random(1)
    short, long = start(case, **options), start(case, **options)
    long[1]._standing_plans = lambda: []
    for _ in range(150):
        action = dice.choice([step] * 12 + actions)
        which, seed = dice.randrange(4), dice.randrange(10**6)
        for params, opt in (short, long):
            action(params, opt, which, seed)
        assert_same_training(short[1], long[1])


@pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)
def test_steps_that_follow_one_another_go_the_short_way(options, monkeypatch):
    taken = []
    run = Standing.step
    monkeypatch.setattr(Standing, "step", lambda *args: (taken.append(args), run(*args)))
    params, opt = start(RULES["adamw"], **options)
    for seed in range(5):
        opt.param_groups[0]["lr"] = 0.01 + 0.001 * seed  # as a scheduler does
        step(params, opt, 0, seed)
    # State comes into being in the first step, and the second one sees it for the first time.
    assert len(taken) == 2 * 3


def test_a_parameter_that_never_has_a_gradient_does_not_matter(monkeypatch):
    params, opt = start(RULES["adamw"])
    frozen = torch.nn.Parameter(torch.ones(3), requires_grad=False)
    opt.add_param_group({"params": [frozen, torch.nn.Parameter(torch.ones(3))]})
    for seed in range(3):
        opt.param_groups[2]["params"][1].grad = torch.ones(3)
        if seed == 2:
            monkeypatch.setattr(WPAdamW, "_long_update", lambda opt: pytest.fail("the long way"))
        step(params, opt, 0, seed)
