"""Random lives of an optimizer, against the algorithm written out for each parameter."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models import Reference, equal, randn, through_file
from torch import nn

import wpadamw

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
SHAPES = [(), (0,), (1,), (7,), (3, 4), (2, 3, 2, 2), (70,)]
LAYOUTS = ["dense", "transposed", "channels-last", "gaps", "odd-address"]
KINDS = st.tuples(
    st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(LAYOUTS), st.integers(0, 99)
)
OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-3, 0.1]),
        "betas": st.sampled_from([(0.9, 0.999), (0.0, 0.5), (0.8, 0.0)]),
        "eps": st.sampled_from([1e-8, 1e-2]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "prediction_steps": st.sampled_from([0.0, 1.0, 2.5]),
        "predict_decay": st.booleans(),
        "predict_in_step": st.booleans(),
        "maximize": st.booleans(),
    }
)
SEEDS = st.integers(0, 2**20)


def laid_out(kind):
    """A parameter of some shape, dtype and layout."""
    shape, dtype, layout, seed = kind
    values = randn(*shape, seed=seed, dtype=dtype)
    if layout == "transposed" and values.ndim >= 2:
        values = values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels-last" and values.ndim == 4:
        values = values.to(memory_format=torch.channels_last)
    if layout == "gaps" and values.ndim:
        values = values.repeat_interleave(2, dim=-1)[..., ::2]
    if layout == "odd-address":
        values = torch.cat([values.new_zeros(1), values.flatten()])[1:].view(shape)
    return nn.Parameter(values)


class OptimizerLife(RuleBasedStateMachine):
    """Steps, switches, edits, copies and checkpoints in any order."""

    @initialize(
        first=st.lists(KINDS, min_size=1, max_size=4),
        second=st.lists(KINDS, max_size=3),
        options=st.tuples(OPTIONS, OPTIONS),
        amsgrad=st.booleans(),
        backend=st.sampled_from(["cpp", "torch"]),
    )
    def construct(self, first, second, options, amsgrad, backend):
        self.amsgrad, self.backend = amsgrad, backend
        self.params = [laid_out(kind) for kind in first + second]
        self.references = [Reference(param, amsgrad) for param in self.params]
        self.opt = self.make([len(first), len(second)], options)
        self.modes = ["true", "true"]

    def make(self, sizes, options):
        groups, start = [], 0
        for size, values in zip(sizes, options, strict=True):
            groups.append({"params": self.params[start : start + size], **values})
            start += size
        return wpadamw.WPAdamW(groups, amsgrad=self.amsgrad, backend=self.backend)

    def members(self):
        """Group, its mode, parameter and reference of each parameter."""
        position = {id(param): i for i, param in enumerate(self.params)}
        for group, mode in zip(self.opt.param_groups, self.modes, strict=True):
            for param in group["params"]:
                yield group, mode, param, self.references[position[id(param)]]

    def switch_to(self, mode):
        for group, former, param, reference in self.members():
            if former != mode == "predicted":
                self.follow_freezing(param, reference)
                reference.predicted(group)
        self.modes = [mode] * len(self.modes)

    def follow_freezing(self, param, reference):
        if reference.count:
            reference.follow_freezing(not param.requires_grad)

    @rule(pattern=st.integers(0, 2**8 - 1), seed=SEEDS)
    def step(self, pattern, seed):
        for i, param in enumerate(self.params):
            has_grad = param.requires_grad and pattern >> i & 1
            grad = randn(*param.shape, seed=seed + i, dtype=param.dtype)
            param.grad = grad if has_grad else None
        self.opt.step()
        if all(param.grad is None for param in self.params):
            return
        for group, former, param, reference in self.members():
            is_next = group["predict_in_step"]
            if param.grad is not None:
                reference.update(param.grad, group)
            if is_next and (param.grad is not None or former == "true"):
                reference.predicted(group)
            self.follow_freezing(param, reference)
        self.modes = [
            "predicted" if group["predict_in_step"] else "true" for group in self.opt.param_groups
        ]

    @rule()
    def predict(self):
        self.opt.train()
        self.switch_to("predicted")

    @rule()
    def restore(self):
        self.opt.eval()
        self.switch_to("true")

    @rule()
    def look_at_true_weights(self):
        with self.opt.true_weights():
            for _, _, param, reference in self.members():
                assert equal(param.detach(), reference.true())
        for _, mode, param, reference in self.members():
            if mode == "predicted":
                self.follow_freezing(param, reference)

    @rule(options=OPTIONS, which=st.integers(0, 5))
    def change_options(self, options, which):
        self.opt.param_groups[which % len(self.opt.param_groups)].update(options)

    @rule(which=st.integers(0, 9), trainable=st.booleans())
    def freeze_or_thaw(self, which, trainable):
        self.params[which % len(self.params)].requires_grad_(trainable)

    @precondition(lambda self: len(self.modes) < 4)
    @rule(kinds=st.lists(KINDS, max_size=2), options=OPTIONS)
    def add_group(self, kinds, options):
        added = [laid_out(kind) for kind in kinds]
        self.modes.append("predicted" if "predicted" in self.modes else "true")
        self.params += added
        self.references += [Reference(param, self.amsgrad) for param in added]
        self.opt.add_param_group({"params": added, **options})

    @rule(which=st.integers(0, 9), seed=SEEDS)
    def write_from_outside(self, which, seed):
        chosen = self.params[which % len(self.params)]
        with torch.no_grad():
            chosen.copy_(randn(*chosen.shape, seed=seed, dtype=chosen.dtype))
        self.opt.state_dict()
        for _, mode, param, reference in self.members():
            if param is chosen and param.numel():
                reference.adopt(param, mode if reference.count else "true")

    @rule()
    def copy_everything(self):
        self.params, self.opt = copy.deepcopy((self.params, self.opt))
        self.opt.state_dict()
        self.forget_aside()

    def forget_aside(self):
        """A new optimizer knows what is saved."""
        for reference in self.references:
            reference.set_aside = None

    @rule(into_new=st.booleans())
    def go_through_a_checkpoint(self, into_new):
        saved = through_file(self.opt.state_dict())
        if into_new:
            self.params = [
                nn.Parameter(param.detach().clone(), param.requires_grad) for param in self.params
            ]
            sizes = [len(group["params"]) for group in self.opt.param_groups]
            self.opt = self.make(sizes, [{}] * len(sizes))
        self.opt.load_state_dict(saved)
        self.forget_aside()

    @invariant()
    def holds_what_the_algorithm_says(self):
        for group, mode, param, reference in self.members():
            assert group["weights_are"] == mode
            expected = reference.predicted(group) if mode == "predicted" else reference.true()
            assert equal(param.detach(), expected)
            if state := self.opt.state.get(param):
                assert float(state["step"]) == reference.count
                assert equal(state["weight"], reference.weight)
                assert equal(state["exp_avg"], reference.exp_avg)
                assert equal(state["exp_avg_sq"], reference.exp_avg_sq)

    def teardown(self):
        if hasattr(self, "opt"):
            self.restore()
            self.holds_what_the_algorithm_says()


# Without shrinking, which takes minutes: a life of 20 steps can be read as it is.
OptimizerLife.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
test_random_lives_equal_the_algorithm = pytest.mark.filterwarnings(
    "ignore:Parameters were written"
)(OptimizerLife.TestCase)


@given(
    seed=SEEDS,
    options=OPTIONS.filter(lambda options: options["betas"][1] > 0.9),
    backup=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_true_weights_are_within_a_few_ulp_of_float64(seed, options, backup):
    steps, param = 6, nn.Parameter(randn(50, seed=seed))
    exact = Reference(nn.Parameter(param.detach().double()))
    opt = wpadamw.WPAdamW([param], backup=backup, **options)
    for k in range(steps):
        param.grad = randn(50, seed=seed + k + 1)
        opt.step()
        exact.update(param.grad, opt.param_groups[0])
    opt.restore()
    eps = np.finfo(np.float32).eps
    # One rounding of the weight and a few of the update in each step; without a backup some more.
    per_step = (4 if backup else 16) * eps * (exact.weight.abs() + 8 * options["lr"])
    assert ((param.detach().double() - exact.weight).abs() <= steps * per_step).all()
