"""Backward passes of models whose shards are handed over: clipped, computed again, compiled."""

from __future__ import annotations

import functools

import pytest
import torch
from handed import (
    are_equal,
    assert_follows,
    assert_sees,
    evaluation,
    gradients,
    handed,
    inputs,
    loss_of,
    made,
    made_in_parts,
    params_of,
    plain_gradients,
    predicted_weights,
    train,
    true_weights,
    weights_of,
)
from processes import needs_gloo, network, run
from torch import nn
from torch.utils.checkpoint import checkpoint

import wpadamw

pytestmark = needs_gloo


def check_a_backward_pass_after_a_step():
    net, opt = made_in_parts()
    first, second = loss_of(net(inputs())), loss_of(net(inputs()))
    first.backward()
    opt.step()
    with pytest.raises(RuntimeError, match=r"call backward\(\) before step\(\)"):
        second.backward()


def check_mixed_backward():
    net, _ = made_in_parts()
    loss = loss_of(net(inputs()))
    loss += loss_of(net.eval()(inputs()))
    with pytest.raises(RuntimeError, match="true and predicted weights"):
        loss.backward()


def check_accumulation():
    """An evaluation between two backward passes, of which the second reduces, changes nothing."""
    net, opt = made_in_parts()
    for reshards in (True, False):
        found = []
        for evaluates in (True, False):
            net.set_reshard_after_backward(reshards)
            net.set_requires_gradient_sync(False)
            loss_of(net(inputs())).backward()
            if evaluates:
                evaluation(net, opt)
            net.set_requires_gradient_sync(True)
            net.set_reshard_after_backward(True)
            loss_of(net(inputs() * 2)).backward()
            found.append(gradients(opt))
        assert are_equal(*found)
        assert_follows(net, opt)


def check_clipping():
    def clip_own(opt):
        opt.clip_grad_norm_(1e-3)

    def clip_torch(opt):
        nn.utils.clip_grad_norm_(params_of(opt), 1e-3)

    weights = []
    for clip in (clip_own, clip_torch):
        net, opt = made_in_parts()
        loss_of(net(inputs())).backward()
        clip(opt)
        opt.step()
        weights.append(weights_of(opt))
        opt.zero_grad()
        assert_follows(net, opt)
    torch.testing.assert_close(*weights)


def whole_again(net):
    return functools.partial(checkpoint, net, use_reentrant=False)


def whole_again_reentrant(net):
    return lambda x: checkpoint(net, x.requires_grad_(), use_reentrant=True)


def check_checkpoints_in_a_model(use_reentrant):
    net = CheckpointedParts(use_reentrant)
    net, opt = made(net, parts=[net.first, net.second])
    for mode in (True, False):
        weights = (predicted_weights if mode else true_weights)(net, opt)
        net.train(mode)
        loss = loss_of(net(inputs()))
        (evaluation if mode else training)(net, opt)
        assert_sees(net, loss.backward, weights)
        disturbed = gradients(opt)
        net.train(mode)
        loss_of(net(inputs())).backward()
        assert are_equal(disturbed, gradients(opt))


def training(net, opt):
    net.train()
    loss_of(net(inputs())).backward()
    opt.zero_grad()
    net.eval()


class CheckpointedParts(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        torch.manual_seed(0)
        self.use_reentrant = use_reentrant
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 1)

    def forward(self, x):
        x = x.detach().requires_grad_()
        for part in (self.first, self.second):
            x = checkpoint(part, x, use_reentrant=self.use_reentrant)
        return x


def check_checkpoint_wrapper():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net = network()
    net[0], net[2] = checkpoint_wrapper(net[0]), checkpoint_wrapper(net[2])
    net, opt = made(net, parts=[net[0], net[2]])
    assert_follows(net, opt)
    weights = predicted_weights(net, opt)
    loss = loss_of(net(inputs()))
    evaluation(net, opt)
    assert_sees(net, loss.backward, weights)


def check_whole_again(outer):
    net, opt = made_in_parts()
    expected = plain_gradients(predicted_weights(net, opt))
    loss = loss_of(outer(net)(inputs()))
    evaluation(net, opt)
    loss.backward()
    assert are_equal(gradients(opt), expected)


def check_closure():
    net, opt = made_in_parts()
    weights = predicted_weights(net, opt)

    def closure():
        loss = loss_of(net(inputs()))
        loss.backward()
        return loss

    assert_sees(net, lambda: opt.step(closure), weights)
    opt.zero_grad()
    assert_follows(net, opt)


def check_overflow():
    """A step that found an infinite gradient changes nothing."""
    net, opt = made_in_parts(optimizer=functools.partial(wpadamw.WPAdamW, amp=True))
    weights, predicted = weights_of(opt), predicted_weights(net, opt)
    for found_inf in (1.0, 0.0):
        loss_of(net(inputs())).backward()
        opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(found_inf)
        opt.step()
        opt.zero_grad()
        assert are_equal(weights_of(opt), weights) == (found_inf == 1.0)
        if found_inf:
            assert_sees(net, lambda: net(inputs()), predicted)
    assert_follows(net, opt)


# torch.compile.


def check_compiled(when):
    """Blocks, or the whole model, compiled before or after it is sharded and handed over."""
    net = network()
    if when == "before":
        net[0].compile(backend="aot_eager")
    net, opt = made(net, parts=[net[0], net[2]])
    if when == "after":
        net[0].compile(backend="aot_eager")
    call = torch.compile(net, backend="aot_eager") if when == "whole" else net
    for _ in range(2):
        for mode in (True, False, True):
            weights = (predicted_weights if mode else true_weights)(net, opt)
            expected = plain_gradients(weights)
            net.train(mode)
            loss_of(call(inputs())).backward()
            torch.testing.assert_close(gradients(opt), expected, rtol=1e-2, atol=1e-5)
            assert mode == net.training
        train(call, opt, [0])


def check_compiled_model_is_handed_over():
    from wpadamw.integrations.fsdp import hand_over

    net, opt, handle = handed()
    handle.remove()
    call = torch.compile(net, backend="aot_eager")
    hand_over(call, opt)
    train(call, opt, range(3))
    for mode in (True, False, True):
        weights = (predicted_weights if mode else true_weights)(net, opt)
        call.train(mode)
        loss_of(call(inputs())).backward()
        expected = plain_gradients(weights)
        torch.testing.assert_close(gradients(opt), expected, rtol=1e-2, atol=1e-5)


def test_backward_passes():
    run(
        check_a_backward_pass_after_a_step,
        check_accumulation,
        check_clipping,
        *(functools.partial(check_whole_again, of) for of in (whole_again, whole_again_reentrant)),
        *(functools.partial(check_checkpoints_in_a_model, of) for of in (True, False)),
        check_checkpoint_wrapper,
        check_closure,
        check_overflow,
        *(functools.partial(check_compiled, when) for when in ("before", "after", "whole")),
        check_compiled_model_is_handed_over,
    )
    run(check_mixed_backward)
