"""torch's averages of weights, SWA and EMA: they average true weights, not predicted ones.

`AveragedModel` is known: it reads the true weights of an attached model. An average of your own
reads what the parameters hold: update it inside `opt.true_weights()`, a context or a decorator.
"""

import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import wpadamw

torch.manual_seed(0)
teacher = nn.Linear(8, 1)
inputs = torch.randn(64, 32, 8)
batches = [(x, teacher(x).detach().tanh()) for x in inputs]

model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
opt = wpadamw.WPAdamW(model.parameters(), lr=1e-2)
wpadamw.attach(model, opt)
schedule = SWALR(opt, swa_lr=2e-3, anneal_epochs=2)

swa = AveragedModel(model)
ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98), use_buffers=True)
by_hand = [param.detach().clone() for param in model.parameters()]


@opt.true_weights()
def update_averages():
    """The averages of a step together: the weights move once."""
    ema.update_parameters(model)
    for average, param in zip(by_hand, model.parameters(), strict=True):
        average.lerp_(param.detach(), 0.02)


for epoch in range(4):
    for x, y in batches:
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        opt.step()
        opt.zero_grad()
        update_averages()
    if epoch > 1:
        swa.update_parameters(model)  # one that is known
    schedule.step()

update_bn(inputs, swa)  # a plain copy: nothing to consider
wpadamw.refresh_batch_norm(model, inputs)  # the statistics of the true weights

with torch.no_grad():
    for name, trained in [("model", model), ("swa", swa), ("ema", ema)]:
        trained.eval()  # from here on the model holds true weights
        loss = sum(nn.functional.mse_loss(trained(x), y) for x, y in batches) / len(batches)
        print(f"{name:5} loss {loss:.5f}")
