"""Gradients and parameters that change behind their addresses: kernels are told what is so."""

from __future__ import annotations

import itertools

import pytest
import torch
from models import HYPER, Reference, equal, randn
from torch import nn

import wpadamw

# Changes of a gradient that leave the object in place, or that come back at its address.


def transposed_in_place(param):
    param.grad.t_()


def other_strides(param):
    param.grad.data = param.grad.t().contiguous().t()


def new_data(param):
    param.grad.data = torch.randn(param.shape)


def other_storage(param):
    numbers = torch.randn(3 * param.numel(), dtype=param.grad.dtype)
    param.grad.set_(numbers[7 : 7 + param.numel()].view(param.shape))


def strided_storage(param):
    param.grad.set_(torch.randn(4, 12, dtype=param.grad.dtype)[:, 1::3])


def other_dtype(param):
    param.grad.data = param.grad.double()


def half(param):
    param.grad.data = param.grad.half()


def negated(param):
    param.grad = torch._neg_view(param.grad.to(param.dtype))


def expanded(param):
    param.grad.data = torch.randn(1, 4).expand(4, 4)


def at_an_odd_address(param):
    numbers = torch.zeros(4 * param.numel() + 1, dtype=torch.uint8)
    param.grad = torch.frombuffer(numbers.numpy(), dtype=torch.float32, offset=1).view(param.shape)


def at_the_same_address(param):
    param.grad = None
    param.grad = torch.randn(4, 4).t()


def shorter(param):
    param.grad.data = param.grad[:2]


def longer(param):
    param.grad.data = torch.randn(4, 5)


def freed(param):
    if param.grad.untyped_storage().resizable():
        param.grad.untyped_storage().resize_(0)


def none(param):
    param.grad = None


def as_it_is(param):
    pass


# Changes of a parameter. What it holds afterwards is right: predicted weights if it still does,
# otherwise new true ones.


def param_copied(param):
    param.data = param.data.clone()


def param_transposed(param):
    param.data = param.data.t()


def param_other_strides(param):
    param.data = param.data.t().contiguous().t()


def param_with_gaps(param):
    wide = torch.zeros(4, 8)
    wide[:, ::2] = param.data
    param.data = wide[:, ::2]


def param_in_a_larger_storage(param):
    flat = torch.zeros(64)
    flat[9:25] = param.data.flatten()
    param.data = flat[9:25].view(4, 4)


def param_written(param):
    with torch.no_grad():
        param.mul_(0.5)


REFUSED = {shorter, longer, freed}
OF_GRADIENTS = [
    transposed_in_place,
    other_strides,
    new_data,
    other_storage,
    strided_storage,
    other_dtype,
    half,
    negated,
    expanded,
    at_an_odd_address,
    at_the_same_address,
    shorter,
    longer,
    freed,
    none,
    as_it_is,
]
OF_PARAMETERS = [
    param_copied,
    param_transposed,
    param_other_strides,
    param_with_gaps,
    param_in_a_larger_storage,
    param_written,
]
CHANGES = [*OF_GRADIENTS, *OF_PARAMETERS]


class Trial:
    """A parameter, its optimizer, and the algorithm written out for it."""

    def __init__(self, seed, **options):
        self.param = nn.Parameter(randn(4, 4, seed=seed))
        self.other = nn.Parameter(randn(3, seed=seed + 1))
        self.opt = wpadamw.WPAdamW([self.param, self.other], **HYPER, **options)
        self.reference = Reference(self.param)
        self.step()

    @property
    def group(self):
        return self.opt.param_groups[0]

    def new_gradients(self):
        self.param.grad = torch.randn(4, 4)
        self.other.grad = torch.randn(3)

    def change(self, change):
        if self.param.grad is None:
            self.new_gradients()
        change(self.param)

    def take_note(self):
        """What an optimizer can see when it looks again."""
        held = self.param.detach()
        if not equal(held, self.reference.predicted(self.group)):
            self.reference.adopt(held, "predicted")

    def step(self):
        if self.param.grad is None and self.reference.count == 0:
            self.new_gradients()
        grad = None if self.param.grad is None else self.param.grad.float().resolve_neg().clone()
        self.opt.step()
        if grad is not None:
            self.reference.update(grad, self.group)
        self.check()

    def check_refused(self):
        before = self.param.detach().clone()
        with pytest.raises(RuntimeError, match="gradient of params"):
            self.opt.step()
        assert equal(self.param.detach(), before)
        self.new_gradients()

    def check(self):
        assert equal(self.param.detach(), self.reference.predicted(self.group))
        assert equal(self.opt.state[self.param]["exp_avg"], self.reference.exp_avg)


def run_pair(trial, changes):
    for change in changes:
        trial.change(change)
    trial.take_note()
    if is_refused(trial.param):
        trial.check_refused()
    trial.step()
    trial.new_gradients()
    trial.step()


def is_refused(param):
    grad = param.grad
    return grad is not None and (grad.shape != param.shape or grad.untyped_storage().nbytes() == 0)


def applies(changes):
    """Whether the second change can be made to what the first has left."""
    first, second = changes
    return (first not in REFUSED and not (first is none and second in OF_GRADIENTS)) or second in (
        as_it_is,
        *OF_PARAMETERS,
    )


@pytest.mark.filterwarnings("ignore:Parameters were written to from outside")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
# Writers of Python and the extension ask for layouts by other ways.
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_pairs_of_changes(backend):
    torch.manual_seed(1)
    for k, changes in enumerate(filter(applies, itertools.product(CHANGES, repeat=2))):
        names = [change.__name__ for change in changes]
        trial = Trial(k, backend=backend)
        try:
            run_pair(trial, changes)
        except Exception as error:
            raise AssertionError(f"pair {k}: {names}") from error


@pytest.mark.filterwarnings("ignore:Parameters were written to from outside")
@pytest.mark.parametrize("change", CHANGES)
def test_without_the_extension_tensors_are_asked_in_python(change, monkeypatch):
    from wpadamw import gradients, tensors, watch

    for module in (watch, gradients):
        monkeypatch.setattr(module, "layouts", tensors.PythonLayouts)
    run_pair(Trial(3), (change, as_it_is))


def test_no_weak_reference_to_a_gradient_or_parameter_remains():
    param = nn.Parameter(torch.randn(3))
    opt = wpadamw.WPAdamW([param], **HYPER)
    for _ in range(2):
        param.grad = torch.randn(3)
        opt.step()
        opt.clip_grad_norm_(1.0)
        opt.restore()
        torch.utils.swap_tensors(param, nn.Parameter(param.detach().clone()))


@pytest.mark.filterwarnings("error")
def test_module_moves_by_swapping():
    net = nn.Linear(3, 2)
    opt = wpadamw.WPAdamW(net.parameters(), **HYPER)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            net(torch.randn(4, 3, dtype=net.weight.dtype)).sum().backward()
            opt.step()
            net.to(dtype)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    opt.restore()
    assert opt.weights_are == "true"
