"""No order of messages in which the stages of a pipeline wait for each other crosswise.

The model is the strictest that backends have: a batch of messages begins when the one before has
ended, and each message waits until its counterpart has begun, too.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from wpadamw.pipeline import Async1F1B, schedule

NUM_CHUNKS, NUM_STEPS = 9, 3


class Stage:
    """Does nothing, and says what it would send and receive: (from, to, kind, micro-batch)."""

    def __init__(self, index, num_stages):
        self.stage_index, self.num_stages = index, num_stages
        self.is_first, self.is_last = index == 0, index == num_stages - 1
        self.in_flight = SimpleNamespace(begin=list, end=list, working=nullcontext)
        self.optimizer = SimpleNamespace(restore=list)
        self.update = self.compute_gradients = self.forward_one_chunk = lambda *_, **__: None

    def get_fwd_recv_ops(self, chunk):
        return [] if self.is_first else [(self.stage_index - 1, self.stage_index, "F", chunk)]

    def get_fwd_send_ops(self, chunk):
        return [] if self.is_last else [(self.stage_index, self.stage_index + 1, "F", chunk)]

    def get_bwd_recv_ops(self, chunk):
        return [] if self.is_last else [(self.stage_index + 1, self.stage_index, "B", chunk)]

    def get_bwd_send_ops(self, chunk):
        return [] if self.is_first else [(self.stage_index, self.stage_index - 1, "B", chunk)]


def recorded(index, num_stages, monkeypatch):
    """What a stage posts and waits for: steps, a flush and steps again."""
    calls = []

    def start(ops):
        calls.append(("post", list(ops)))
        return [len(calls) - 1] if ops else []

    monkeypatch.setattr(schedule, "_start", start)
    monkeypatch.setattr(schedule, "_wait", lambda works: calls.append(("wait", list(works))))
    made = object.__new__(Async1F1B)
    vars(made).update(
        {"stage": Stage(index, num_stages), "num_chunks": NUM_CHUNKS, "has_failed": False},
        loss_fn=lambda *_: None,
        delay=num_stages - 1 - index,
        num_forwards=0,
        num_backwards=0,
        sending=[],
    )
    for _ in range(2):
        for _ in range(NUM_STEPS):
            made._run([((), {}, None)] * NUM_CHUNKS, True, {}, [])
        made.flush()
    return calls


class Rank:
    """A process of the model, and what it has posted."""

    def __init__(self, calls):
        self.calls, self.position = calls, 0
        self.posted, self.left = [], {}  # batches by their call; messages that have not gone

    def advance(self):
        """Posts until it has to wait."""
        start = self.position
        while self.position < len(self.calls):
            kind, what = self.calls[self.position]
            if kind == "wait" and any(self.left[call] for call in what):
                break
            if kind == "post":
                self.posted.append(self.position)
                self.left[self.position] = set(what)
            self.position += 1
        return self.position > start

    def active(self):
        """The messages of the batch whose turn it is."""
        return next((self.left[call] for call in self.posted if self.left[call]), set())


def ends(programs):
    ranks = [Rank(calls) for calls in programs]
    while any([rank.advance() for rank in ranks] + [exchange(ranks)]):
        pass
    return all(rank.position == len(rank.calls) for rank in ranks)


def exchange(ranks):
    """Messages go whose both ends are ready for them."""
    active = [rank.active() for rank in ranks]
    ready = [
        (a, b, message)
        for a, b in itertools.combinations(range(len(ranks)), 2)
        for message in active[a] & active[b]
    ]
    for a, b, message in ready:
        active[a].discard(message)
        active[b].discard(message)
    return bool(ready)


def one_by_one(calls):
    """The same with batches of one message each."""
    unfused, places = [], {}
    for position, (kind, what) in enumerate(calls):
        if kind == "wait":
            unfused.append(("wait", [place for call in what for place in places[call]]))
        else:
            places[position] = range(len(unfused), len(unfused) + len(what))
            unfused += [("post", [message]) for message in what]
    return unfused


@pytest.mark.parametrize("num_stages", range(2, 9))
def test_stages_never_wait_crosswise(num_stages, monkeypatch):
    programs = [recorded(index, num_stages, monkeypatch) for index in range(num_stages)]
    assert ends(programs)
    # The model tells: with messages one by one they would.
    assert not ends([one_by_one(calls) for calls in programs])


@pytest.mark.parametrize("num_stages", range(2, 9))
def test_messages_are_one_for_each_pass(num_stages, monkeypatch):
    total = 2 * NUM_STEPS * NUM_CHUNKS
    for index in range(num_stages):
        calls = recorded(index, num_stages, monkeypatch)
        messages = [message for kind, what in calls if kind == "post" for message in what]
        neighbours = (index > 0) + (index < num_stages - 1)
        assert len(messages) == 2 * total * neighbours
        assert max(len(what) for kind, what in calls if kind == "post") == 2
