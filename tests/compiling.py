"""What the tests under torch.compile share."""

from __future__ import annotations

import pytest
from torch import _dynamo as dynamo

MARKS = [
    pytest.mark.usefixtures("fresh_dynamo"),
    # Of torch's own, which it hides unless warnings are errors.
    pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script"),
]


def forget():
    """Has Dynamo begin anew."""
    dynamo.reset()
    dynamo.utils.counters.clear()


def graph_breaks():
    return sum(dynamo.utils.counters["graph_break"].values())


def train_step(net, opt, inputs):
    opt.zero_grad()
    loss = net(inputs).square().mean()
    loss.backward()
    opt.step()
    return loss
