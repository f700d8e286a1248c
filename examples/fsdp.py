"""Sharded training with FSDP2: the gathered bfloat16 weights are predicted, the shards stay true.

    torchrun --nproc-per-node 2 examples/fsdp.py --folder runs/fsdp --steps 40

Trains a small GPT on the sources of Python's standard library. A second start, with any number of
processes, goes on from the last checkpoint. What is new beside AdamW: the optimizer's name and
`hand_over`.
"""

import argparse
import functools
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import wpadamw
from wpadamw.bench.study.gpt import GPT
from wpadamw.bench.study.text import fixed_batches, load_corpus, random_batch
from wpadamw.integrations.fsdp import hand_over

CONTEXT, BATCH_SIZE, SAVE_EVERY = 64, 16, 20  # the ranks share a batch

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--folder", type=Path, default=Path("runs/fsdp"), help="of checkpoints")
parser.add_argument("--steps", type=int, default=40, help="updates of this start")
args = parser.parse_args()

rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
device = "cuda" if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]) else "cpu"
if device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
mesh = init_device_mesh(device, (world_size,))  # NCCL or gloo

torch.manual_seed(0)
model = GPT(CONTEXT, layers=2, width=64, heads=4).to(device)
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
for module in [*model.blocks, model]:
    fully_shard(module, mesh=mesh, mp_policy=policy)
opt = wpadamw.WPAdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
hand_over(model, opt)

corpus = load_corpus(None, CONTEXT)
validation = fixed_batches(corpus.validation, 4, BATCH_SIZE, CONTEXT)


def loss_of(batch):
    """The loss of this rank's part of a batch."""
    x, y = (each[rank::world_size].to(device) for each in batch)
    return torch.nn.functional.cross_entropy(model(x).float().flatten(0, 1), y.flatten())


def mean(losses):
    """The mean over all ranks."""
    total = torch.stack(losses).detach().mean() / world_size
    dist.all_reduce(total)
    return total.item()


@torch.no_grad()
def evaluate():
    """The loss at the true weights."""
    model.eval()
    loss = mean([loss_of(batch) for batch in validation])
    model.train()
    return loss


say = functools.partial(print, flush=True) if rank == 0 else lambda text: None

start = 0
# The metadata is written last: without it a checkpoint is not complete.
if saved := sorted(args.folder.glob("step-*/.metadata")):
    start = int(saved[-1].parent.name.removeprefix("step-"))
    model_state, opt_state = get_state_dict(model, opt)
    checkpoint.load({"model": model_state, "opt": opt_state}, checkpoint_id=saved[-1].parent)
    set_state_dict(model, opt, model_state_dict=model_state, optim_state_dict=opt_state)
say(f"{world_size} processes on {device}, step {start}: validation loss {evaluate():.4f}")

for step in range(start + 1, start + args.steps + 1):
    batch = random_batch(corpus.train, BATCH_SIZE, CONTEXT, torch.Generator().manual_seed(step))
    loss = loss_of(batch)  # at the predicted weights
    loss.backward()
    opt.clip_grad_norm_(1.0)
    opt.step()
    opt.zero_grad()
    say(f"step {step}: loss {mean([loss]):.4f}")
    if step % SAVE_EVERY == 0 or step == start + args.steps:
        say(f"step {step}: validation loss {evaluate():.4f}")
        model_state, opt_state = get_state_dict(model, opt)
        folder = args.folder / f"step-{step:06}"
        checkpoint.save({"model": model_state, "opt": opt_state}, checkpoint_id=folder)

dist.destroy_process_group()
