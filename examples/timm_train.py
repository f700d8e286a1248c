"""A training as timm's train.py has it: optimizer by name, schedule, average, checkpoints, resume.

What is new beside AdamW: `register()` and `attach`.
"""

import tempfile
from pathlib import Path

import timm
import torch
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import CheckpointSaver, ModelEmaV3

import wpadamw
from wpadamw.integrations.timm import register

register()  # "wpadamw", "wpsgd", ... in timm's registry

EPOCHS = 3
torch.manual_seed(0)
labels = torch.randint(3, (8, 16))
images = torch.randn(8, 16, 3, 32, 32)
images += 2 * torch.nn.functional.one_hot(labels)[..., None, None]  # one channel is brighter


def create():
    """A model, its optimizer, schedule and average."""
    model = timm.create_model("test_resnet", num_classes=3)
    opt = create_optimizer_v2(model, "wpadamw", lr=3e-3, weight_decay=0.05, layer_decay=0.8)
    wpadamw.attach(model, opt)  # evaluation, checkpoints and averages see the true weights
    schedule, _ = create_scheduler_v2(opt, sched="cosine", num_epochs=EPOCHS, warmup_epochs=1)
    ema = ModelEmaV3(model, decay=0.95, use_warmup=True, exclude_buffers=True)
    return model, opt, schedule, ema


def train(model, opt, schedule, ema, epochs):
    """As always: nothing in the loop knows of predictions."""
    for epoch in epochs:
        model.train()
        for i, (x, y) in enumerate(zip(images, labels, strict=True)):
            opt.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            opt.step()
            ema.update(model, step=epoch * len(images) + i)
        schedule.step(epoch + 1)


@torch.no_grad()
def accuracy(model):
    """The share of images that a model names right."""
    model.eval()
    hits = [model(x).argmax(dim=1) == y for x, y in zip(images, labels, strict=True)]
    return torch.cat(hits).float().mean().item()


with tempfile.TemporaryDirectory() as folder:
    model, opt, schedule, ema = parts = create()
    saver = CheckpointSaver(model, opt, model_ema=ema, checkpoint_dir=folder, recovery_dir=folder)
    train(*parts, range(2))
    saver.save_checkpoint(epoch=1)  # in training mode: the file has the true weights all the same
    train(*parts, range(2, EPOCHS))
    print(f"accuracy {accuracy(model):.3f}, of the average {accuracy(ema.module):.3f}")

    resumed, resumed_opt, resumed_schedule, resumed_ema = others = create()
    path = str(Path(folder) / "last.pth.tar")
    epoch = resume_checkpoint(resumed, path, resumed_opt)
    load_checkpoint(resumed_ema.module, path, use_ema=True)
    resumed_schedule.step(epoch)
    train(*others, range(epoch, EPOCHS))
    is_same = accuracy(resumed) == accuracy(model) and all(
        torch.equal(a, b)
        for pair in [(resumed, model), (resumed_ema, ema)]
        for a, b in zip(*(part.state_dict().values() for part in pair), strict=True)
    )
    print("resumed with the same bits:", is_same)
