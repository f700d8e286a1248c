"""Forwards of models whose shards are handed over: in parts, compiled, computed again, repeated."""

from __future__ import annotations

import functools

import pytest
import torch
from handed import (
    are_equal,
    assert_follows,
    assert_same,
    assert_sees,
    evaluation,
    gradients,
    inputs,
    loss_of,
    made,
    made_in_parts,
    params_of,
    plain_gradients,
    predicted_weights,
    seen_by,
    train,
    true_weights,
)
from processes import needs_gloo, network, run
from torch import nn

pytestmark = needs_gloo


# Calls of parts, and gathering by hand.


def check_a_part_alone():
    net, opt = made_in_parts()
    true, predicted = true_weights(net, opt), predicted_weights(net, opt)
    net(inputs())  # FSDP wants the root first
    with opt.true_weights(), torch.no_grad():
        assert_sees(net, lambda: net[0](inputs()), true)
    assert_sees(net, lambda: net[0](inputs()), predicted)
    net.training = False
    assert_sees(net, lambda: net[0](inputs()), true)


def check_a_method():
    from torch.distributed.fsdp import register_fsdp_forward_method

    net = network()
    net.outputs_of = lambda x: net[2](net[1](net[0](x)))
    net, opt = made(net, parts=[net[0]])
    register_fsdp_forward_method(net, "outputs_of")
    true, predicted = true_weights(net, opt), predicted_weights(net, opt)
    expected = plain_gradients(true)
    for _ in range(2):
        assert_sees(net, lambda: net.outputs_of(inputs()), predicted)
        net.training = False
        assert_sees(net, lambda: loss_of(net.outputs_of(inputs())).backward(), true)
        assert are_equal(gradients(opt), expected)
        net.training = True


def check_writes_before_a_part():
    net, opt = made_in_parts()
    net(inputs())
    for param in params_of(opt):
        opt.state[param]["exp_avg"].zero_()
    found = seen_by(net, lambda: net[0](inputs()))
    predicted = predicted_weights(net, opt)
    assert_same(found, {name: predicted[name] for name in found})


def check_gathered_before():
    net, opt = made_in_parts()
    for is_async in (True, False):
        true, predicted = true_weights(net, opt), predicted_weights(net, opt)
        for gathers_in, computes_in in ((True, False), (False, True), (True, True)):
            net.train(gathers_in)
            for module in (net, net[0], net[2]):
                module.unshard(async_op=is_async)
            net.train(computes_in)
            assert_sees(net, lambda: net(inputs()), predicted if computes_in else true)


def check_read_by_hand():
    net, opt = made_in_parts()
    true, predicted = true_weights(net, opt), predicted_weights(net, opt)
    net(inputs())
    for mode in (False, True, False):
        net.train(mode)
        for module in (net, net[0], net[2]):
            module.unshard()
        found = {name: param.detach().clone() for name, param in net.named_parameters()}
        assert_same(found, predicted if mode else true)


def check_prefetching():
    net, opt = made_in_parts()
    net.set_modules_to_forward_prefetch([net[0], net[2]])
    net[2].set_modules_to_backward_prefetch([net[0]])
    assert_follows(net, opt)
    loss = loss_of(net(inputs()))
    expected = plain_gradients(predicted_weights(net, opt))
    evaluation(net, opt)
    loss.backward()
    assert are_equal(gradients(opt), expected)


def check_a_step_while_gathered():
    """Without a backward pass modules keep what they gathered; a step makes it stale."""
    for is_training in (True, False):
        net, opt = made_in_parts(reshard_after_forward=False)
        net(inputs()).float().square().mean().backward()
        with torch.no_grad():
            net.train(is_training)(inputs())
        opt.step()
        opt.zero_grad()
        found = seen_by(net, lambda net=net: net(inputs()))
        weights = predicted_weights if is_training else true_weights
        assert_same(found, weights(net, opt))


def check_no_reshard_after_backward():
    net, opt = made_in_parts()
    net.set_reshard_after_backward(False)
    for step in range(3):
        train(net, opt, [step])
        assert_follows(net, opt)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer = nn.Linear(7, 7), nn.Linear(7, 1)

    def forward(self, x):
        return self.outer(self.inner(self.inner(x).tanh()))


def check_a_module_used_twice(reshards):
    net = Twice()
    net, opt = made(net, parts=[net.inner], reshard_after_forward=reshards)
    assert_follows(net, opt)
    loss = loss_of(net(inputs()))
    evaluation(net, opt)
    loss.backward()
    disturbed = gradients(opt)
    loss_of(net(inputs())).backward()
    assert are_equal(disturbed, gradients(opt))


class Switching(nn.Module):
    """Switches its mode in its forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 1)

    def forward(self, x):
        mode = self.training
        x = self.first(x)
        self.train(not mode)
        x = self.second(x)
        self.train(mode)
        return x


def check_modes_that_change_in_a_forward():
    for reshards in (True, False):
        net = Switching()
        parts = [net.first, net.second]
        assert_follows(*made(net, parts=parts, reshard_after_forward=reshards))


class Fails(nn.Module):
    is_failing = False

    def forward(self, x):
        if self.is_failing:
            raise ZeroDivisionError
        return x


def check_failed_forwards():
    net = network()
    net.append(Fails())
    net, opt = made(net, parts=[net[0]], reshard_after_forward=False)
    true = true_weights(net, opt)
    net[3].is_failing = True
    with pytest.raises(ZeroDivisionError):
        net(inputs())
    net[3].is_failing = False
    net.eval()
    with torch.no_grad():
        assert_sees(net, lambda: net(inputs()), true)


def check_parts_in_eval():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 7), nn.BatchNorm1d(7), nn.Dropout(0.5), nn.Linear(7, 1))
    net, opt = made(net, parts=[net[0]], dtype=torch.float32)
    predicted = predicted_weights(net, opt, torch.float32)
    for part in (net[0], net[1], net[2]):
        part.eval()
    assert_sees(net, lambda: net(inputs()), predicted)


def test_parts_and_gathering():
    run(
        check_a_part_alone,
        check_a_method,
        check_writes_before_a_part,
        check_gathered_before,
        check_read_by_hand,
        check_prefetching,
        check_a_step_while_gathered,
        check_no_reshard_after_backward,
        *(functools.partial(check_a_module_used_twice, of) for of in (True, False)),
        check_modes_that_change_in_a_forward,
        check_failed_forwards,
        check_parts_in_eval,
    )
