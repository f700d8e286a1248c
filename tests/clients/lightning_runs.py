"""Small trainings with Lightning's trainers, and the same written out as plain loops."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from models import held, network, optimizer, randn
from torch import nn

from wpadamw.integrations.lightning import WeightPredictionCallback

# What Lightning itself says in these tests.
quiet = [
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to"),
    pytest.mark.filterwarnings("ignore:It is recommended to use .*sync_dist=True"),
    pytest.mark.filterwarnings(r"ignore:.*fit\(ckpt_path=.*\)"),  # of OnExceptionCheckpoint
]

EPOCH = 4  # batches


def data(k):
    return randn(4, 3, seed=2 * k), randn(4, 2, seed=2 * k + 1)


def loss_of(call, batch):
    return (call(batch[0]) - batch[1]).square().mean()


class Batches:
    """A loader that can be resumed in mid-epoch."""

    def __init__(self, count=EPOCH, first=0):
        self.count, self.first, self.position = count, first, 0

    def __len__(self):
        return self.count

    def __iter__(self):
        self.position %= self.count
        while self.position < self.count:
            self.position += 1
            yield data(self.first + self.position - 1)

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


VALIDATION = 77


def validation():
    return Batches(1, first=VALIDATION)


class Steps:
    """What a LightningModule of either package does here."""

    def __init__(self, call="root", make=network, **options):
        super().__init__()
        self.net, self.call, self.options, self.evaluated = make(), call, options, []

    def forward(self, inputs):
        return self.net(inputs)

    def called(self):
        calls = {"root": self, "part": self.net, "forward": self.net.forward}
        return calls.get(self.call, self.without_a_call)

    def without_a_call(self, inputs):
        first, _, last = self.net
        hidden = nn.functional.linear(inputs, first.weight, first.bias).tanh()
        return nn.functional.linear(hidden, last.weight, last.bias)

    def training_step(self, batch, batch_idx):
        return loss_of(self.called(), batch)

    def validation_step(self, batch, batch_idx):
        loss = loss_of(self.called(), batch)
        self.evaluated.append((self.trainer.global_step, loss.detach().clone()))
        self.log("loss", loss)

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self.called()(batch[0])

    def configure_optimizers(self):
        return optimizer(self, **self.options)


class Module(Steps, pl.LightningModule):
    pass


def trainer(path, *callbacks, package=pl, **options):
    return package.Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "devices": 1, **options},
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
    )


def fit(path, *callbacks, module=None, **options):
    module = module or Module()
    own = trainer(path, WeightPredictionCallback(), *callbacks, **options)
    own.fit(module, Batches(), validation())
    return module, own, own.optimizers[0]


class ByHand:
    """The same training in a plain loop; the true weights after each step."""

    def __init__(self, steps, accumulate=1, clip=None, dtype=torch.float32, mixed=False, **options):
        self.net = network(dtype=dtype)
        self.opt = optimizer(self.net, **options)
        self.weights = [held(self.net)]
        for k in range(steps):
            self.opt.train()
            self.opt.zero_grad()
            for batch in range(k * accumulate, (k + 1) * accumulate):
                inputs = [tensor.to(dtype) for tensor in data(batch % EPOCH)]
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    loss = loss_of(self.net, inputs)
                (loss / accumulate).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(self.net.parameters(), clip)
            self.opt.step()
            with self.opt.true_weights():
                self.weights.append(held(self.net))
        self.opt.eval()

    def losses(self, steps, batch=VALIDATION):
        """What an evaluation after each of these steps finds."""
        return [(step, loss_at(self.weights[step], batch)) for step in steps]


def loss_at(weights, batch=VALIDATION):
    net = network()
    with torch.no_grad():
        for param, weight in zip(net.parameters(), weights, strict=True):
            param.copy_(weight)
        return loss_of(net, data(batch))


def read(path):
    return torch.load(path, weights_only=True)
