"""The hand-over of shards: what it refuses, what leaves it, what it costs."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from handed import (
    alone,
    are_equal,
    assert_follows,
    assert_same,
    handed,
    inputs,
    params_of,
    predicted_weights,
    seen_by,
    sharded,
    train,
    weights_of,
)
from processes import needs_gloo, network, run
from torch import nn

import wpadamw
from wpadamw.integrations.fsdp import hand_over

pytestmark = needs_gloo


# Bad input.


def assert_refused(error, match, net, opt):
    """An error by name, and everything goes on as if nobody had asked."""
    modes, hooks = opt.weights_are, len(net._forward_pre_hooks)
    before = weights_of(opt)
    with pytest.raises(error, match=match):
        hand_over(net, opt)
    assert opt.weights_are == modes
    assert len(net._forward_pre_hooks) == hooks
    assert "train" not in vars(net)
    assert are_equal(weights_of(opt), before)
    assert not any(hasattr(getattr(p, "_local_tensor", p), "fsdp_pre_all_gather") for p in before)


def check_no_shards():
    net = network()
    assert_refused(
        ValueError, "must be sharded by fully_shard", net, wpadamw.WPAdamW(net.parameters())
    )


def check_sharded_after_the_optimizer():
    net = network()
    opt = wpadamw.WPAdamW(net.parameters())
    assert_refused(ValueError, "4 of 4 parameters that are none", sharded(net), opt)


def check_other_parameters():
    net, other = sharded(network()), network()
    opt = wpadamw.WPAdamW([*net.parameters(), *other.parameters()])
    assert_refused(ValueError, "4 of 8 parameters that are none", net, opt)
    opt = wpadamw.WPAdamW(sharded(other).parameters())
    assert_refused(ValueError, "4 of 4 parameters that are none", net, opt)


def check_twice():
    net, opt, _ = handed()
    train(net, opt, range(2))
    with pytest.raises(ValueError, match="handed over already"):
        hand_over(net, opt)
    with pytest.raises(ValueError, match="handed over once"):
        hand_over(net, wpadamw.WPAdamW(net.parameters()))
    assert_follows(net, opt)


def check_offloaded():
    from torch.distributed.fsdp import CPUOffloadPolicy

    net = sharded(network(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    assert_refused(ValueError, "CPUOffloadPolicy", net, wpadamw.WPAdamW(net.parameters()))


def check_dtypes():
    net = sharded(network().bfloat16())
    assert_refused(TypeError, "must be float32", net, wpadamw.WPAdamW(net.parameters()))


def check_options():
    net = sharded(network())
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2, predict_in_step=False)
    train(net, opt, range(2))
    opt.predict()
    assert_refused(ValueError, "predict_in_step", net, opt)
    opt = wpadamw.WPAdamW(net.parameters(), compute_dtype=torch.bfloat16)
    assert_refused(ValueError, "constructed with compute_dtype", net, opt)


def check_types():
    net, opt = sharded(network()), torch.optim.AdamW(network().parameters())
    with pytest.raises(TypeError, match="optimizer must be one of wpadamw's, got AdamW"):
        hand_over(net, opt)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        hand_over("net", opt)


def check_another_policy():
    from torch.distributed.fsdp import MixedPrecisionPolicy

    net, opt, _ = handed()
    train(net, opt, range(2))
    for module in (net, net[0]):
        for shard in module._get_fsdp_state()._fsdp_param_group.fsdp_params:
            shard.mp_policy = MixedPrecisionPolicy(param_dtype=torch.float16)
    with pytest.raises(RuntimeError, match=r"must keep param_dtype torch.bfloat16, got .*float16"):
        net(inputs())


def check_assigned_parameters():
    net, opt, _ = handed()
    train(net, opt, range(2))
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    with pytest.raises(RuntimeError, match=r"load_state_dict\(assign=True\)"):
        net(inputs())


def test_bad_input():
    run(
        check_no_shards,
        check_sharded_after_the_optimizer,
        check_other_parameters,
        check_twice,
        check_offloaded,
        check_dtypes,
        check_options,
        check_types,
        check_assigned_parameters,
        check_another_policy,
    )


# In and out.


def check_a_late_hand_over():
    """What was trained in resident form goes on with the same bits."""
    net = sharded(network())
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2)
    train(net, opt, range(5))
    handle = hand_over(net, opt)
    train(net, opt, range(5, 10))
    handle.remove()
    opt.predict()
    train(net, opt, range(10, 15))
    opt.restore()
    hand_over(net, opt)
    train(net, opt, range(15, 20))
    assert are_equal(weights_of(opt), alone(range(20), dist.get_world_size())[1])
    assert_follows(net, opt)


def check_removed():
    net, opt, handle = handed()
    train(net, opt, range(3))
    net(inputs())
    true, predicted = weights_of(opt), predicted_weights(net, opt)
    handle.remove()
    handle.remove()
    assert opt.weights_are == "true"
    assert are_equal(weights_of(opt), true)
    opt.predict()
    assert opt.weights_are == "predicted"
    assert_same(seen_by(net, lambda: net(inputs())), predicted)
    assert not hasattr(params_of(opt)[0]._local_tensor, "fsdp_pre_all_gather")
    assert "train" not in vars(net)


def copied(thing):
    """A deep copy, a pickle and a file of a thing, all read again."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return [
        copy.deepcopy(thing),
        pickle.loads(pickle.dumps(thing)),
        torch.load(file, weights_only=False),
    ]


def check_copies_and_pickles():
    net, opt, _ = handed()
    train(net, opt, range(3))
    before = weights_of(opt)
    for name, param in net.named_parameters():
        for other in copied(param) + [values[name] for values in copied(net.state_dict())]:
            assert not vars(other._local_tensor), name
            assert torch.equal(other._local_tensor, param._local_tensor)
    assert b"wpadamw" not in pickle.dumps(net.state_dict())
    for twin in copied(opt):
        assert twin.weights_are == "true"
        assert twin._keeping.copies is None
        assert are_equal(weights_of(twin), before)
    assert_follows(net, opt)


def check_a_file_of_shards():
    net, opt, _ = handed()
    train(net, opt, range(3))
    file = io.BytesIO()
    torch.save({name: param._local_tensor for name, param in net.named_parameters()}, file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    assert all(torch.equal(found[n], p._local_tensor) for n, p in net.named_parameters())


def check_meta_device():

    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))
    sharded(net)
    net.to_empty(device="cpu")
    with torch.no_grad():
        for param in net.parameters():
            param.fill_(0.5)
    opt = wpadamw.WPAdamW(net.parameters(), lr=1e-2)
    hand_over(net, opt)
    train(net, opt, range(3))
    assert_follows(net, opt)


def check_moved_models():
    """Module._apply may put other tensors in the place of shards."""
    net, opt, _ = handed()
    train(net, opt, range(3))
    net.to("cpu").float()
    assert_follows(net, opt)
    train(net, opt, range(3))
    assert_follows(net, opt)


# Operations.


def operations(call):
    """How often each operation ran, of those that are none of the profiler's or FSDP's ranges."""
    with torch.profiler.profile() as profile:
        call()
    counts = {event.key: event.count for event in profile.key_averages()}
    return {key: count for key, count in counts.items() if "::" in key and "FSDP" not in key}


def check_operations():
    net, opt, _ = handed()
    plain = sharded(network())
    resident = wpadamw.WPAdamW(plain.parameters(), lr=1e-2)
    for each in ((net, opt), (plain, resident)):
        train(*each, range(3))
    x = inputs().bfloat16()
    trained, expected = operations(lambda: net(x)), operations(lambda: plain(x))
    assert "aten::_to_copy" not in trained
    # By one of these FSDP casts the shards of a group, by another it packs them to be gathered.
    assert trained["aten::_foreach_copy_"] == expected["aten::_foreach_copy_"] / 2
    more = {key for key in trained if trained[key] > expected.get(key, 0)}
    assert more <= {"aten::view"}, {key: (trained[key], expected.get(key)) for key in more}
    net.eval()
    assert operations(lambda: net(x))["aten::_to_copy"] == len(params_of(opt))


def test_in_and_out():
    run(
        check_a_late_hand_over,
        check_removed,
        check_copies_and_pickles,
        check_a_file_of_shards,
        check_meta_device,
        check_moved_models,
        check_operations,
    )
