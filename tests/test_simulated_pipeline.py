"""The simulation of a pipeline is what one writes down by hand: losses, weights and delays."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import wpadamw
from wpadamw.bench.study.pipeline import one_at_a_time
from wpadamw.bench.study.simulated_pipeline import (
    SimulatedStage,
    one_forward_one_backward,
    simulate,
)

loss_fn = nn.functional.mse_loss
DELAYED = [*itertools.product((False, True), ("current", "forward"))]
WIDTH, NUM_BATCHES, MAX_NORM = 5, 12, 0.3


def optimizer(module, steps=0):
    return wpadamw.WPAdamW(module.parameters(), lr=0.05, prediction_steps=steps)


def falling(opt):
    return LambdaLR(opt, lambda number: 0.5 ** (number // 4))


def stages_of(parts, predicts=False):
    found = []
    for rank, module in enumerate(parts):
        opt = optimizer(module, (len(parts) - 1 - rank) * predicts)
        found.append(SimulatedStage(module, opt, MAX_NORM, falling(opt)))
    return found


def batches(number=NUM_BATCHES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 6, WIDTH, generator=generator).unbind() for _ in range(number)]


def simulated(parts, predicts=False, **options):
    """The losses of a training after which the parts have true weights."""
    stages = stages_of(parts, predicts)
    losses = simulate(stages, batches(), loss_fn, **options)
    for stage in stages:
        stage.optimizer.restore()
    return losses


def equal(ours, theirs):
    pairs = zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


# Losses and weights.


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH, bias=False), nn.Tanh(), nn.Linear(WIDTH, WIDTH, bias=False)
    )


def with_buffers():
    return nn.Sequential(perceptron(), nn.BatchNorm1d(WIDTH), perceptron())


def with_tied_weights():
    tied = perceptron()
    tied[2].weight = tied[0].weight
    return tied


def update(opt, schedule):
    opt.clip_grad_norm_(MAX_NORM)
    opt.step()
    opt.zero_grad()
    schedule.step()


@pytest.mark.parametrize("backward", ["current", "forward"])
@pytest.mark.parametrize("make", [perceptron, with_buffers, with_tied_weights])
def test_a_single_stage_is_a_plain_training(make, backward):
    ours, plain = make(), make()
    opt = optimizer(plain)
    schedule, losses = falling(opt), []
    for inputs, targets in batches():
        losses.append(loss_fn(plain(inputs), targets))
        losses[-1].backward()
        update(opt, schedule)
    found = simulated([ours], backward=backward)
    assert torch.equal(torch.stack(found), torch.stack(losses))
    assert equal(ours, plain)


def delayed_by_hand(first, last, predicts, backward):
    """Two stages, the first one's backward written out: a forward of the next lies before it."""
    opts = [optimizer(first, int(predicts)), optimizer(last)]
    schedules, held, losses = [*map(falling, opts)], [], []
    inner, outer = first[0].weight, first[2].weight
    for number in range(NUM_BATCHES + 1):
        opts[0].predict()
        with torch.no_grad():
            for inputs, targets in batches()[number : number + 1]:
                hidden = torch.tanh(inputs @ inner.T)
                held.append((inputs, targets, hidden, hidden @ outer.T, outer.clone()))
        if number == 0:
            continue
        inputs, targets, hidden, sent, outer_then = held.pop(0)
        losses.append(loss_fn(last(sent.requires_grad_()), targets))
        losses[-1].backward()
        opts[0].restore()
        with torch.no_grad():
            grad = sent.grad @ (outer if backward == "current" else outer_then)
            outer.grad = sent.grad.T @ hidden
            inner.grad = (grad * (1 - hidden**2)).T @ inputs
        for opt, schedule in zip(opts, schedules, strict=True):
            update(opt, schedule)
    opts[0].restore()
    return losses


@pytest.mark.parametrize(("predicts", "backward"), DELAYED)
def test_two_stages_are_a_delayed_training_by_hand(predicts, backward):
    ours, theirs = ([perceptron(), nn.Linear(WIDTH, WIDTH)] for _ in range(2))
    theirs[1].load_state_dict(ours[1].state_dict())
    wanted = delayed_by_hand(*theirs, predicts, backward)
    found = simulated(ours, predicts, backward=backward)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted))
    for part, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(part.state_dict(), other.state_dict())


def test_ways_with_delays_differ_from_each_other_and_from_none():
    orders = one_at_a_time(3, NUM_BATCHES)
    losses = [simulated([perceptron() for _ in range(3)], orders=orders)]
    for predicts, backward in DELAYED:
        parts = [perceptron() for _ in range(3)]
        losses.append(simulated(parts, predicts, backward=backward))
    found = [tuple(torch.stack(each).tolist()) for each in losses]
    assert len(set(found)) == 5
    # The first update of any stage is yet to come.
    assert len({each[0] for each in found}) == 1


# Orders and delays.


class Watched(nn.Module):
    """Says when it runs; a copy says so too."""

    def __init__(self, note):
        super().__init__()
        self.linear, self.note = nn.Linear(WIDTH, WIDTH), note

    def forward(self, inputs):
        self.note()
        return self.linear(inputs)


@pytest.mark.parametrize("num_stages", [1, 2, 4, 8])
def test_delays_grow_to_the_number_of_stages_behind(num_stages):
    num_updates = [[] for _ in range(num_stages)]  # at each forward
    stages = []
    for rank in range(num_stages):
        module = Watched(lambda rank=rank: num_updates[rank].append(len(updated[rank])))
        stages.append(SimulatedStage(module, optimizer(module)))
    updated = [[] for _ in range(num_stages)]
    losses = simulate(
        stages, batches(), loss_fn, after_update=lambda rank, number: updated[rank].append(number)
    )
    assert len(losses) == NUM_BATCHES and not any(loss.requires_grad for loss in losses)
    for rank, stage in enumerate(stages):
        assert updated[rank] == list(range(NUM_BATCHES))
        delays = [number - made for number, made in enumerate(num_updates[rank])]
        expected = [min(number, num_stages - 1 - rank) for number in range(NUM_BATCHES)]
        assert delays == stage.delays == expected
        assert stage.num_updates == NUM_BATCHES and stage.under_way == {}


def test_orders_are_one_forward_one_backward():
    orders = one_forward_one_backward(3, 4)
    assert ["".join(f"{kind}{number}" for kind, number in order) for order in orders] == [
        "F0F1F2B0F3B1B2B3",
        "F0F1B0F2B1F3B2B3",
        "F0B0F1B1F2B2F3B3",
    ]
    assert one_forward_one_backward(4, 1) == [[("F", 0), ("B", 0)]] * 4


BEFORE, LATER_BEFORE = ([("B", number), ("F", number)] for number in (0, 1))
AFTER, LATER_AFTER = ([("F", number), ("B", number)] for number in (0, 1))


@pytest.mark.parametrize(
    ("orders", "reason"),
    [
        ([AFTER, BEFORE], "stages stuck at {0: 'B0', 1: 'B0'}"),
        ([AFTER + LATER_BEFORE, AFTER + LATER_AFTER], "stages stuck at {0: 'B1', 1: 'F1'}"),
        ([AFTER], "one per stage, got 1 for 2"),
        ([AFTER, AFTER[:1]], "once, got for stage 1"),
        ([AFTER, AFTER + AFTER], "once, got for stage 1"),
    ],
)
def test_orders_that_cannot_be_executed_are_refused_before_anything_runs(orders, reason):
    parts = [perceptron(), perceptron()]
    with pytest.raises(ValueError) as error:
        simulate(stages_of(parts), batches(len(orders[0]) // 2), loss_fn, orders=orders)
    assert reason in str(error.value)
    assert all(equal(part, perceptron()) for part in parts)
