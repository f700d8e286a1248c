"""A training with Lightning's Trainer: validation, an average of the weights, checkpoints, resume.

What is new beside AdamW: `WeightPredictionCallback()`, and the optimizer's name.
"""

import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import wpadamw
from wpadamw.integrations.lightning import WeightPredictionCallback

torch.manual_seed(0)
inputs = torch.randn(192, 8)
data = TensorDataset(inputs, (inputs.prod(dim=1) > 0).long())
train = DataLoader(data, batch_size=32)
validation = DataLoader(data, batch_size=192)


class Classifier(pl.LightningModule):
    """As always: nothing in it knows of predictions."""

    def __init__(self):
        super().__init__()
        layers = torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2)
        self.net = torch.nn.Sequential(*layers)

    def loss(self, batch):
        """The cross entropy of a batch."""
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        """At the predicted weights."""
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        """At the average of the true weights."""
        self.log("loss", self.loss(batch))

    def configure_optimizers(self):
        """The one line that names the optimizer."""
        return wpadamw.WPAdamW(self.parameters(), lr=1e-2, weight_decay=0.1)


def trainer(folder, epochs):
    """Callbacks in any order."""
    saving = ModelCheckpoint(folder, "{epoch}", monitor="loss", save_top_k=-1)
    callbacks = [EMAWeightAveraging(decay=0.9), saving, WeightPredictionCallback()]
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(accelerator="cpu", max_epochs=epochs, callbacks=callbacks, **quiet)


with tempfile.TemporaryDirectory() as folder:
    whole, model = trainer(folder, epochs=6), Classifier()
    whole.fit(model, train, validation)
    print("loss of the average:", whole.validate(model, validation, verbose=False))

    path, resumed = Path(folder) / "epoch=2.ckpt", Classifier()
    trainer(folder, epochs=6).fit(resumed, train, validation, ckpt_path=path)
    pairs = zip(model.parameters(), resumed.parameters(), strict=True)
    print("resumed with the same bits:", all(torch.equal(a, b) for a, b in pairs))
