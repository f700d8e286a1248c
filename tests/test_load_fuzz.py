"""State dicts with something wrong in them: refused by ValueError, and nothing has changed."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from models import equal, network, optimizer, snapshot, started, train

NUM_MUTATIONS = 500  # with and without a backup

# Values that somebody may have put into a file.
NUMBERS = [0, 1, -1, 3.5, 1e300, -1e300, float("nan"), float("inf"), 2**24 + 1, True, 1j]
ODD = [None, "text", b"bytes", [], [1.0, 2.0], (), {}, {"a": 1}, object(), torch.float32, len]
TENSORS = [
    lambda: torch.tensor(float("nan")),
    lambda: torch.ones(3, 5),
    lambda: torch.ones(5, 3, dtype=torch.int64),
    lambda: torch.ones(5, 3, dtype=torch.float64),
    lambda: torch.ones(5, 3, dtype=torch.complex64),
    lambda: torch.ones(5, 3).to(torch.float8_e4m3fn),
    lambda: torch.ones(5, 3).to_sparse(),
    lambda: torch.ones(5, 3).to_sparse_csr(),
    lambda: torch.ones(5, 3, device="meta"),
    lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged),
    lambda: torch.ones(0),
    lambda: torch.ones(7),
    lambda: torch.ones(7, dtype=torch.float64) * float("inf"),
    lambda: torch.ones(1, device="meta"),
    lambda: torch.ones(1, 1, 1),
]


def any_value(numbers):
    kind = numbers.randrange(4)
    if kind == 0:
        return numbers.choice(TENSORS)()
    if kind == 1:
        return numbers.choice([np.float32(2.0), np.int64(-3), np.ones(3), np.array("x")])
    return numbers.choice(NUMBERS if kind == 2 else ODD)


def mutate_entry(saved, numbers):
    entry = saved["state"][numbers.choice(list(saved["state"]))]
    name = numbers.choice([*entry, "momentum_buffer"])
    if numbers.random() < 0.2 and name in entry:
        del entry[name]
    else:
        entry[name] = any_value(numbers)


def mutate_numbers(saved, numbers):
    entry = saved["state"][numbers.choice(list(saved["state"]))]
    tensor = entry[numbers.choice([*entry])]
    tensor.view(-1)[numbers.randrange(tensor.numel())] = numbers.choice(
        [0, -1, 3.5, 1e30, float("nan"), float("-inf")]
    )


def mutate_group(saved, numbers):
    group = numbers.choice(saved["param_groups"])
    name = numbers.choice([*group])
    if numbers.random() < 0.2:
        del group[name]
    else:
        group[name] = any_value(numbers)


def mutate_structure(saved, numbers):
    where = numbers.choice(["state", "param_groups", "entry", "params", "key", "whole"])
    if where == "entry":
        saved["state"][numbers.choice(list(saved["state"]))] = any_value(numbers)
    elif where == "params":
        numbers.choice(saved["param_groups"])["params"] = numbers.choice(
            [[0], [0, 0], [[], []], None, "ab", 3, [5, 6], (2, 3)]
        )
    elif where == "key":
        saved["state"][numbers.choice([17, "0", None, (1, 2)])] = saved["state"][0]
    elif where == "whole":
        saved.clear()
        saved.update(numbers.choice([{}, {"state": {}}, {"state": 3, "param_groups": 4}]))
    else:
        saved[where] = any_value(numbers)


MUTATIONS = [
    mutate_entry,
    mutate_entry,
    mutate_numbers,
    mutate_group,
    mutate_group,
    mutate_structure,
]


def is_usable(opt, net):
    """Whether training goes on."""
    train(net, opt, [7])
    opt.eval()
    opt.train()
    copy.deepcopy(opt)
    return all(float(state["step"]) >= 1 for state in opt.state.values())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("options", [{}, {"backup": False}], ids=["backup", "no-backup"])
def test_a_refused_file_changes_nothing_and_an_accepted_one_can_be_used(options):
    numbers = random.Random(5)
    net, opt = started(**options)
    _, running_opt = started(2, **options)
    refused = 0
    for k in range(NUM_MUTATIONS):
        saved = copy.deepcopy(running_opt.state_dict())
        mutation = numbers.choice(MUTATIONS)
        mutation(saved, numbers)
        before, groups, state = snapshot(opt), list(opt.param_groups), opt.state
        try:
            opt.load_state_dict(saved)
        except ValueError as error:
            refused += 1
            assert len(str(error)) > 10
            assert equal(snapshot(opt), before), (k, mutation, str(error))
            assert all(a is b for a, b in zip(opt.param_groups, groups, strict=True))
            assert opt.state is state
        except Exception as error:
            raise AssertionError(f"mutation {k}: {mutation.__name__}: {error!r}") from error
        else:
            usable_or_refused(opt, net, k)
            net, opt = started(**options)
    assert refused > NUM_MUTATIONS // 2
    assert is_usable(opt, net)


def usable_or_refused(opt, net, k):
    """What was taken as good trains, or the hyper-parameter in it is refused before a write."""
    before = snapshot(opt)
    try:
        assert is_usable(opt, net)
    except ValueError:
        assert equal(snapshot(opt)["weights"], before["weights"]), k


@pytest.mark.parametrize(
    "data",
    [torch.ones(5, 3, device="meta"), torch.zeros(1, 1).expand(5, 3)],
    ids=["meta", "expanded"],
)
def test_a_model_that_cannot_be_loaded_into_is_named(data):
    _, running_opt = started()
    saved = copy.deepcopy(running_opt.state_dict())
    net = network()
    opt = optimizer(net)
    opt.param_groups[0]["params"][0] = spoiled = torch.nn.Parameter(data)
    before = copy.deepcopy(opt.param_groups[0]["lr"]), dict(opt.state)
    with pytest.raises(ValueError, match=r"state_dict\['state'\]\[0\] is of a parameter that must"):
        opt.load_state_dict(saved)
    assert (opt.param_groups[0]["lr"], dict(opt.state)) == before
    assert spoiled.shape == (5, 3)
    opt.param_groups[0]["params"][0] = net[0].weight
    opt.load_state_dict(saved)
    assert is_usable(opt, net)
