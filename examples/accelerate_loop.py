"""A loop of accelerate: prepared optimizer, accumulation, clipping, mixed precision, checkpoints.

The loop is as always; `attach` may come before `prepare` or after it.
"""

import tempfile

import torch
from accelerate import Accelerator
from torch import nn

import wpadamw

accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2)
wpadamw.attach(model, opt)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, T_max=30)
x = torch.randn(240, 8)
batches = torch.utils.data.DataLoader([(a, a.prod().tanh()[None]) for a in x], batch_size=8)
model, opt, schedule, batches = accelerator.prepare(model, opt, schedule, batches)


def train():
    """One epoch."""
    model.train()
    for inputs, targets in batches:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.mse_loss(model(inputs), targets))
            opt.clip_grad_norm_(1.0)  # does nothing while gradients accumulate, like step
            opt.step()
            schedule.step()
            opt.zero_grad()


@torch.no_grad()
def evaluate():
    """The loss at the true weights."""
    model.eval()
    return sum(nn.functional.mse_loss(model(a), b).item() for a, b in batches) / len(batches)


with tempfile.TemporaryDirectory() as folder:
    train()
    print(f"loss {evaluate():.4f} at weights that are {opt.weights_are}")
    accelerator.save_state(folder)  # in any mode
    train()
    loss = evaluate()
    accelerator.load_state(folder)
    train()
    print("resumed with the same loss:", evaluate() == loss)
    accelerator.save_model(model, folder)
