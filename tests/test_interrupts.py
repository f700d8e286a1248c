"""An exception that arrives anywhere: the optimizer knows what the parameters hold all the same.

KeyboardInterrupt is raised at every line of the package that an action runs, and by real signals.
"""

from __future__ import annotations

import copy
import itertools
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from models import HYPER, Reference, equal, held, randn, set_grads
from torch import nn

import wpadamw

PACKAGE = str(Path(wpadamw.__file__).parent)

# Options of the optimizer, and whether its true weights come back exactly.
VARIANTS = {
    "backup": ({}, torch.float32, True),
    "no-backup": ({"backup": False}, torch.float32, False),
    "bfloat16": ({}, torch.bfloat16, True),
    "literal": ({"predict_in_step": False}, torch.float32, True),
    "copies": ({"compute_dtype": torch.bfloat16}, torch.float32, True),
}


def parameters(dtype):
    gaps = nn.Parameter(randn(3, 4, seed=2, dtype=dtype)[:, ::2])
    return [nn.Parameter(randn(5, seed=i, dtype=dtype)) for i in range(2)] + [gaps]


def optimizer_after(steps, options, dtype, mode="predicted", idle=True):
    """A fresh optimizer over two groups; with ``idle`` its second parameter has no gradient."""
    params = parameters(dtype)
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 3e-2}]
    opt = wpadamw.WPAdamW(groups, **{**HYPER, **options})
    for k in range(steps):
        set_grads(params, seed=k)
        opt.step()
    set_grads(params, seed=steps)
    if idle:
        params[1].grad = None
    opt.predict() if mode == "predicted" else opt.restore()
    return opt


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def closure(opt):
    def evaluate():
        set_grads(params_of(opt), seed=9)
        return 0.0

    return evaluate


def within_true_weights(opt):
    with opt.true_weights():
        pass


ACTIONS = {
    "step": lambda opt: opt.step(),
    "predict": lambda opt: opt.predict(),
    "restore": lambda opt: opt.restore(),
    "closure": lambda opt: opt.step(closure(opt)),
    "true-weights": within_true_weights,
    "state-dict": lambda opt: opt.state_dict(),
    "copy": copy.deepcopy,
    "load": lambda opt: opt.load_state_dict(copy.deepcopy(opt.saved)),
    "option": lambda opt: (opt.param_groups[0].update(capturable=True), opt.step()),
}


class Lines:
    """Notes the lines of the package that run, as code and number, in their order."""

    def __init__(self):
        self.seen = []

    def __enter__(self):
        sys.settrace(self.call)
        return self

    def __exit__(self, *exception):
        sys.settrace(None)

    def call(self, frame, event, argument):
        return self.line if frame.f_code.co_filename.startswith(PACKAGE) else None

    def line(self, frame, event, argument):
        if event == "line":
            self.seen.append((frame.f_code, frame.f_lineno))
        return self.line


class Interrupter(Lines):
    """Raises KeyboardInterrupt before a line runs for a certain time, counted from 1."""

    def __init__(self, code, number, time):
        self.code, self.number, self.left = code, number, time

    def call(self, frame, event, argument):
        # Other functions run without a trace of their lines: that takes most of the time.
        return self.line if frame.f_code is self.code else None

    def line(self, frame, event, argument):
        if event == "line" and frame.f_lineno == self.number:
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self.line


def moments(opt):
    """Of each parameter: its count and moments, which belong together."""
    names = ("step", "exp_avg", "exp_avg_sq", "momentum_buffer", "direction")
    states = [opt.state.get(param) or {} for param in params_of(opt)]
    return [tuple(state[name].clone() for name in names if name in state) for state in states]


def trues(opt):
    twin = copy.deepcopy(opt)
    twin.restore()
    return held(params_of(twin))


class Allowed:
    """What each parameter may be found with: all of before an action, or all of after it."""

    def __init__(self, make, action):
        before, after = make(), make()
        self.before = list(zip(moments(before), trues(before), strict=True))
        action(after)
        self.after = list(zip(moments(after), trues(after), strict=True))

    def check(self, opt, is_exact):
        for i, (state, weight) in enumerate(zip(moments(opt), held(params_of(opt)), strict=True)):
            assert any(
                (equal(state, its_state) or starts(state, its_state))
                and same(weight, its_weight, is_exact)
                for its_state, its_weight in (self.before[i], self.after[i])
            ), f"parameter {i}"

    def check_weights(self, opt, is_exact):
        for i, weight in enumerate(held(params_of(opt))):
            allowed = (self.before[i][1], self.after[i][1])
            assert any(same(weight, true, is_exact) for true in allowed), f"parameter {i}"


def same(a, b, is_exact):
    return equal(a, b) if is_exact else torch.allclose(a, b)


def starts(found, allowed):
    """Whether a state of zeros stands for none."""
    return not allowed and not any(value.any() for value in found)


def goes_on(opt):
    """Two more steps equal those of an optimizer that is built from what was saved."""
    saved = copy.deepcopy(opt.state_dict())
    twins = [nn.Parameter(param.detach().clone()) for param in params_of(opt)]
    pairs = zip(opt.param_groups, (twins[:2], twins[2:]), strict=True)
    other = type(opt)([{**group, "params": params} for group, params in pairs])
    other.load_state_dict(saved)
    for k in range(2):
        for each in (opt, other):
            set_grads(params_of(each), seed=20 + k)
            each.step()
    for each in (opt, other):
        each.eval()
    assert equal(held(params_of(opt)), held(twins))


def check_copies(opt):
    """Copies, if it keeps some, are what the resident form predicts from the same weights."""
    if opt._keeping.copies is not None:
        copies = [opt.compute_copy(param).clone() for param in params_of(opt)]
        twins = [nn.Parameter(weight) for weight in held(params_of(opt))]
        resident = type(opt)([{"params": twins[:2]}, {"params": twins[2:], "lr": 3e-2}])
        resident.load_state_dict(copy.deepcopy(opt.state_dict()))
        resident.predict()
        assert equal(copies, [twin.detach().bfloat16() for twin in twins])


def moments_of(make, action):
    """The first and the last time that each line runs, in the middle of an action."""
    opt = make()
    with Lines() as lines:
        action(opt)
    times = Counter(lines.seen)
    return [(*line, time) for line in times for time in sorted({1, times[line]})]


def check_everywhere(make, action, is_exact):
    """Interrupts an action at every line."""
    allowed = Allowed(make, action)
    chosen = moments_of(make, action)
    assert len(chosen) > 10
    for k, moment in enumerate(chosen):
        opt = make()
        with pytest.raises(KeyboardInterrupt), Interrupter(*moment):
            action(opt)
        if all(group["weights_are"] == "true" for group in opt.param_groups):
            allowed.check_weights(opt, is_exact)  # what a model file would hold now
        opt.eval()
        assert opt.weights_are == "true"
        allowed.check(opt, is_exact)
        opt.train()
        check_copies(opt)
        opt.eval()
        allowed.check(opt, is_exact)
        if k % 16 == 0:
            goes_on(opt)


@pytest.fixture(autouse=True)
def _clean_up():
    """A signal may also find torch in the middle of a change of its grad mode."""
    handler = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)
    torch.set_grad_enabled(True)


@pytest.fixture
def backend(request):
    if request.param == "cuda":
        request.getfixturevalue("cuda_on_host")
    return request.param


def maker(variant, mode, **options):
    def make():
        opt = optimizer_after(2, {**VARIANTS[variant][0], **options}, VARIANTS[variant][1], mode)
        opt.saved = opt.state_dict()
        return opt

    return make


# From where an action has something to do.
SWITCHES = [("step", "true"), ("step", "predicted"), ("predict", "true"), ("restore", "predicted")]


def cases():
    """All with backend cpp; with torch every variant, and every switch, once.

    The kernels of CUDA are launched from one place.
    """
    for (i, variant), (k, switch) in itertools.product(enumerate(VARIANTS), enumerate(SWITCHES)):
        if variant == "copies" and "restore" in switch:
            continue  # does nothing
        yield "cpp", variant, *switch
        if (i + k) % 4 == 0:
            yield "torch", variant, *switch
        if variant in ("backup", "no-backup") and "predicted" in switch:
            yield "cuda", variant, *switch


@pytest.mark.parametrize(
    ("backend", "variant", "action", "mode"), list(cases()), indirect=["backend"]
)
def test_interrupt_at_every_line_of_an_operation(variant, action, mode, backend):
    make = maker(variant, mode, backend=backend)
    check_everywhere(make, ACTIONS[action], VARIANTS[variant][2])


@pytest.mark.parametrize("action", [name for name in ACTIONS if name not in dict(SWITCHES)])
@pytest.mark.parametrize("variant", ["backup", "no-backup", "copies"])
def test_interrupt_at_every_line_of_a_call(variant, action):
    check_everywhere(maker(variant, "predicted"), ACTIONS[action], VARIANTS[variant][2])


@pytest.mark.parametrize("variant", VARIANTS)
def test_interrupt_at_every_line_of_a_first_step(variant):
    options, dtype, is_exact = VARIANTS[variant]
    check_everywhere(lambda: optimizer_after(0, options, dtype), ACTIONS["step"], is_exact)


def interrupted(opt, seconds):
    """Whether a signal after so long found an optimizer at work."""
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        for _ in range(10):
            opt.step()
            opt.restore()
            opt.predict()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    return False


def test_real_signals_in_the_middle_of_training():
    """A timer's signals, raised by Python between any two of its instructions."""
    opt = optimizer_after(0, {}, torch.float32)
    references = list(map(Reference, params_of(opt)))
    caught = 0
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for k in range(300):
        caught += interrupted(opt, 1e-5 * (1 + k % 40))
        opt.eval()
    assert caught > 100
    for group in opt.param_groups:
        for param in group["params"]:
            state, reference = opt.state.get(param) or {"step": 0}, references.pop(0)
            for _ in range(int(state["step"])):
                reference.update(param.grad, group)
            assert equal(state.get("exp_avg_sq", reference.exp_avg_sq), reference.exp_avg_sq)
            assert equal(param.detach(), reference.true())
