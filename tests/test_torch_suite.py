"""torch's own optimizer suite, as it ships in the wheel, on every optimizer.

``torch.testing._internal.common_optimizers`` has the registry entries, the arguments that every
optimizer must accept and those that it must refuse. The wheel leaves out the bodies of the tests in
which torch uses them: these are ours.
"""

from __future__ import annotations

import warnings
from copy import deepcopy

import torch
from torch import nn

import wpadamw
from wpadamw import optimizers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # they import what is installed, numba for one, and it may warn
    from torch.testing._internal import common_optimizers as suite
    from torch.testing._internal.common_device_type import instantiate_device_type_tests
    from torch.testing._internal.common_utils import TestCase

WITHOUT = {"differentiable"}  # refused, with a reason
CLASSES = [getattr(optimizers, name) for name in optimizers.__all__]
OF_TORCH = {info.optim_cls: info for info in suite.optim_db}


def registered(cls):
    """The entry of the original in torch's registry, for our class.

    Muon is not in that of every version; SGD has arguments of the same names.
    """
    is_muon = cls is wpadamw.WPMuon
    info = OF_TORCH[torch.optim.SGD if is_muon else cls.original]
    errors = suite.get_error_inputs_for_all_optims if is_muon else info.optim_error_inputs_func
    without = {"dampening"} if is_muon else set()
    if cls in (wpadamw.WPNAdamW, wpadamw.WPVRAdam, wpadamw.WPMARS):
        without = {"amsgrad"}

    def inputs(device):
        found = info.optim_inputs_func(device)
        return [each for each in found if not without & each.kwargs.keys()]

    return suite.OptimizerInfo(
        cls,
        optim_inputs_func=inputs,
        scheduler_inputs=info.scheduler_inputs,
        supported_impls=tuple(each for each in info.supported_impls if each not in WITHOUT),
        optim_error_inputs_func=errors,
        supports_fused_on=info.supports_fused_on,
        has_capturable_arg=info.has_capturable_arg,
    )


OURS = suite.optims(list(map(registered, CLASSES)))


def configurations(device, dtype, info):
    return suite._get_optim_inputs_including_global_cliquey_kwargs(device, dtype, info)


def problem(device, dtype, seed=0):
    """A small model, its inputs, and what its gradients come from."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 1))
    model.to(device=device, dtype=dtype)
    inputs = torch.randn(5, 2, 4, device=device, dtype=dtype)
    return model, lambda: model(inputs).square().mean()


def trained(optimizer, loss_of, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
    return loss


class TestSuite(TestCase):
    @OURS
    def test_errors(self, device, dtype, optim_info):
        for error in optim_info.optim_error_inputs_func(device, dtype):
            given = error.optimizer_error_input
            params = given.params
            if params is None:
                params = [nn.Parameter(torch.randn(1, 1, device=device, dtype=dtype))]
            context = self.assertRaisesRegex
            if issubclass(error.error_type, Warning):
                context = self.assertWarnsRegex
            with context(error.error_type, error.error_regex):
                optim_info.optim_cls(params, **given.kwargs)

    @OURS
    def test_every_configuration_goes_in_the_right_direction(self, device, dtype, optim_info):
        for given in configurations(device, dtype, optim_info):
            model, loss_of = problem(device, dtype)
            optimizer = optim_info.optim_cls(model.parameters(), **{"lr": 1e-3, **given.kwargs})
            before = loss_of().item()
            trained(optimizer, loss_of, 10)
            optimizer.eval()
            has_fallen = loss_of().item() < before
            assert has_fallen != bool(given.kwargs.get("maximize", False)), given

    @OURS
    def test_schedulers(self, device, dtype, optim_info):
        for makers in optim_info.scheduler_inputs:
            model, loss_of = problem(device, dtype)
            optimizer = optim_info.optim_cls(model.parameters(), lr=1e-3)
            schedulers = [make(optimizer) for make in makers]
            for _ in range(5):
                loss = trained(optimizer, loss_of, 1).detach()
                for scheduler in schedulers:
                    takes_loss = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                    scheduler.step(*([loss] if takes_loss else []))

    @OURS
    def test_all_flags_lead_to_the_same_bits(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device):
            found = []
            for flag in ({}, {"foreach": True}, {"foreach": False}, {"fused": True}):
                if not flag.keys() <= {*optim_info.supported_impls}:
                    continue
                model, loss_of = problem(device, dtype)
                optimizer = optim_info.optim_cls(model.parameters(), **given.kwargs, **flag)
                trained(optimizer, loss_of, 4)
                found.append([*model.parameters()])
            for other in found[1:]:
                assert all(map(torch.equal, found[0], other))

    @OURS
    def test_without_prediction_the_originals_numbers(self, device, dtype, optim_info):
        cls = optim_info.optim_cls
        if cls not in (wpadamw.WPAdam, wpadamw.WPAdamW, wpadamw.WPSGD):
            return  # of these torch has no original: test_adaptive_originals.py
        for given in optim_info.optim_inputs_func(device):
            model, loss_of = problem(device, dtype)
            original, original_loss = problem(device, dtype)
            trained(cls(model.parameters(), **given.kwargs, prediction_steps=0), loss_of, 5)
            trained(cls.original(original.parameters(), **given.kwargs), original_loss, 5)
            self.assertEqual(list(model.parameters()), list(original.parameters()))

    @OURS
    def test_gradients_that_come_and_go(self, device, dtype, optim_info):
        for given in configurations(device, dtype, optim_info):
            model, loss_of = problem(device, dtype)
            optimizer = optim_info.optim_cls(model.parameters(), **given.kwargs)
            for step in range(7):
                optimizer.zero_grad()
                loss_of().backward()
                if step == 3:
                    optimizer.zero_grad()
                before = [param.clone() for param in model.parameters()]
                model[0].requires_grad_(step not in (4, 5))
                optimizer.step()
                if step == 3:
                    assert all(map(torch.equal, before, model.parameters()))
            assert all(entry["step"] >= 4 for entry in optimizer.state.values())

    @OURS
    def test_state_dicts_lead_to_the_same_bits(self, device, dtype, optim_info):
        for given in configurations(device, dtype, optim_info):
            model, loss_of = problem(device, dtype)
            optimizer = optim_info.optim_cls(model.parameters(), **given.kwargs)
            trained(optimizer, loss_of, 3)
            twin, _ = problem(device, dtype, seed=1)
            twin.load_state_dict(deepcopy(model.state_dict()))
            other = optim_info.optim_cls(twin.parameters())  # the file has the options
            other.load_state_dict(deepcopy(optimizer.state_dict()))
            for each, net in ((optimizer, model), (other, twin)):
                for param in net.parameters():
                    param.grad = torch.ones_like(param)
                each.step()
            assert all(map(torch.equal, model.parameters(), twin.parameters()))

    @OURS
    def test_foreign_keys_named_parameters_and_copies(self, device, dtype, optim_info):
        model, loss_of = problem(device, dtype)
        optimizer = optim_info.optim_cls(model.named_parameters(), lr=1e-3)
        optimizer.state["note"] = {"of": "somebody"}
        trained(optimizer, loss_of, 2)
        names = optimizer.state_dict()["param_groups"][0]["param_names"]
        assert names == [name for name, _ in model.named_parameters()]
        twin, twin_optimizer = deepcopy((model, optimizer))
        assert repr(twin_optimizer) == repr(optimizer)
        for param, own in zip(model.parameters(), twin.parameters(), strict=True):
            param.grad, own.grad = torch.ones_like(param), torch.ones_like(own)
        optimizer.step(), twin_optimizer.step()
        assert all(map(torch.equal, model.parameters(), twin.parameters()))

    @OURS
    def test_tiny_rates_stay_and_groups_differ(self, device, dtype, optim_info):
        still, moving = (nn.Parameter(torch.ones(3, device=device)) for _ in range(2))
        groups = [{"params": [still], "lr": 1e-28}, {"params": [moving]}]
        optimizer = optim_info.optim_cls(groups, lr=1e-2)
        for _ in range(3):
            still.grad, moving.grad = torch.ones_like(still), torch.ones_like(moving)
            optimizer.step()
        assert torch.equal(still, torch.ones_like(still))
        assert not torch.equal(moving, torch.ones_like(moving))


instantiate_device_type_tests(TestSuite, globals(), only_for="cpu")


def test_every_optimizer_is_registered():
    names = {info.optim_cls.__name__ for info in OURS.optim_info_list}
    assert names == {name for name in wpadamw.__all__ if name.startswith("WP")}
