"""Asynchronous pipeline training: every stage updates after every micro-batch and waits for nobody.

    python -m torch.distributed.run --nproc_per_node 4 examples/pipeline.py

A small GPT, cut into as many stages as there are processes, learns the sources of Python's standard
library. With PipeOptim a stage predicts the weights that it will have when a gradient comes back;
--method has the other ways to be asynchronous. Each evaluation writes a checkpoint, and --resume
goes on from it bit for bit.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

import wpadamw
from wpadamw.bench.study.comparison import cross_entropy, parameter_groups, warmup_cosine
from wpadamw.bench.study.gpt import INIT_STD, Block, Embedding
from wpadamw.bench.study.text import Batch, Corpus, fixed_batches, load_corpus, random_batch
from wpadamw.bench.usage import UsageError, non_negative_float, output_directory, positive_int
from wpadamw.pipeline import Async1F1B, AsyncStage

VOCABULARY, WEIGHT_DECAY, NUM_VALIDATION_BATCHES = 256, 0.1, 4
# Whether stages predict, and which weights their backward passes see.
METHODS: dict[str, tuple[bool, Literal["current", "forward"]]] = {
    "pipeoptim": (True, "current"),
    "predicted": (True, "forward"),
    "pipedream": (False, "forward"),
    "stale": (False, "current"),
}
# What must be the same to go on from a checkpoint, beside the number of stages.
SETTINGS = ("method", "layers", "width", "heads", "context", "microbatches", "lr", "schedule_steps")


def parse_args() -> argparse.Namespace:
    """The options; the defaults make a run of one to two minutes on two CPU cores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH", help="file or directory (the standard library)")
    add("--out", type=Path, metavar="DIR", default=Path("runs/stages"), help="(%(default)s)")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--method", choices=METHODS, default="pipeoptim", help="(%(default)s)")
    for option, default, meaning in (
        ("--steps", 120, "steps of the pipeline, each of --microbatches updates"),
        ("--schedule-steps", None, "steps of the learning-rate schedule"),
        ("--microbatches", 8, "per step, at least one per stage"),
        ("--microbatch-size", 8, "windows per micro-batch"),
        ("--context", 128, "bytes per window"),
        ("--layers", 1, "blocks per stage"),
        ("--width", 128, "width of the model"),
        ("--heads", 4, "attention heads per block"),
        ("--eval-every", 20, "steps between evaluations, each with a checkpoint"),
    ):
        text = f"{meaning} ({default or '--steps'})"
        add(option, type=positive_int, metavar="N", default=default, help=text)
    add("--lr", type=non_negative_float, default=1e-3, help="highest of its schedule (%(default)s)")
    add("--max-norm", type=non_negative_float, default=1.0, help="per stage; 0: any (%(default)s)")
    args = parser.parse_args()
    if args.width % args.heads:
        parser.error(f"--width must divide by --heads, got {args.width} and {args.heads}")
    args.schedule_steps = args.schedule_steps or args.steps
    return args


def own_device() -> torch.device:
    """A GPU for each process of this machine, if there are as many, or else the CPU."""
    if torch.cuda.device_count() < int(os.environ["LOCAL_WORLD_SIZE"]):
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def build_module(args: argparse.Namespace, rank: int, num_stages: int) -> nn.Module:
    """This rank's part of the model; no rank ever holds all of it."""
    torch.manual_seed(rank)  # with one seed for all, stages would begin alike
    module = nn.Sequential(*(Block(args.width, args.heads) for _ in range(args.layers)))
    if rank == 0:
        tables = (nn.Embedding(size, args.width) for size in (VOCABULARY, args.context))
        module.insert(0, Embedding(*tables))
    if rank == num_stages - 1:
        # Its weights cannot be those of the embedding, which another rank updates.
        head = nn.Linear(args.width, VOCABULARY, bias=False)
        module.extend([nn.LayerNorm(args.width), head])
    for weight in module.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=INIT_STD)
    return module


def build_stage(args: argparse.Namespace, device: torch.device) -> AsyncStage:
    """This rank's module, optimizer and learning-rate schedule, as a stage of the pipeline."""
    rank, num_stages = dist.get_rank(), dist.get_world_size()
    module = build_module(args, rank, num_stages).to(device)
    predicts, backward = METHODS[args.method]
    # As many updates as the stage makes between a forward and its backward pass.
    steps = num_stages - 1 - rank if predicts else 0
    opt = wpadamw.WPAdamW(
        parameter_groups(module, WEIGHT_DECAY),
        lr=args.lr,
        prediction_steps=steps,
        backup=steps > 0,  # without a prediction there are no other weights to keep
    )
    factor = functools.partial(warmup_cosine, num_steps=args.schedule_steps * args.microbatches)
    return AsyncStage(
        module,
        rank,
        num_stages,
        device,
        optimizer=opt,
        max_norm=args.max_norm or None,
        backward=backward,
        lr_scheduler=LambdaLR(opt, factor),
    )


def run(call: Callable[..., Any], stage: AsyncStage, batch: Batch) -> list[Tensor]:
    """Call a schedule's ``step`` or ``eval``; the losses of micro-batches, on the last rank.

    The first stage takes the inputs, the last one the targets.
    """
    inputs, targets = (each.to(stage.device) for each in batch)
    losses: list[Tensor] = []
    args = (inputs,) if stage.is_first else ()
    call(*args, target=targets if stage.is_last else None, losses=losses)
    return losses


def train(args: argparse.Namespace, schedule: Async1F1B, corpus: Corpus, start: int) -> float:
    """Train, and return the last validation loss, on the last rank."""
    stage, shape = schedule.stage, (args.microbatches * args.microbatch_size, args.context)
    validation = fixed_batches(corpus.validation, NUM_VALIDATION_BATCHES, *shape)
    steps = range(start + 1, args.steps + 1)
    bar = tqdm(steps, initial=start, total=args.steps, unit="step", disable=not stage.is_last)
    for step in bar:
        # By the number of the step: a resumed run goes on with the same batches.
        generator = torch.Generator().manual_seed(step)
        losses = run(schedule.step, stage, random_batch(corpus.train, *shape, generator))
        if stage.is_last:
            bar.set_postfix(loss=f"{torch.stack(losses).mean():.3f}")
        if step % args.eval_every == 0 or step == args.steps:
            schedule.flush()  # until here the stages have made different numbers of updates
            loss = evaluate(schedule, validation)
            save(args, stage, step)
            say(stage, f"step {step}: validation loss {loss:.4f}")
    return loss


@torch.no_grad()
def evaluate(schedule: Async1F1B, batches: list[Batch]) -> float:
    """The mean loss at the true weights, on the last rank; after a flush."""
    stage = schedule.stage
    stage.submod.eval()
    losses = [loss for batch in batches for loss in run(schedule.eval, stage, batch)]
    stage.submod.train()
    return torch.stack(losses).mean().item() if stage.is_last else float("nan")


def checkpoint_of(args: argparse.Namespace, stage: AsyncStage) -> tuple[Path, dict[str, Any]]:
    """Where a stage is saved, and with which settings."""
    settings = {"stages": stage.num_stages, **{name: getattr(args, name) for name in SETTINGS}}
    return args.out / f"stage-{stage.stage_index}.pt", settings


def parts_of(stage: AsyncStage) -> dict[str, Any]:
    """What training changes."""
    parts = {"module": stage.submod, "optimizer": stage.optimizer}
    return {**parts, "lr_scheduler": stage.lr_scheduler}


def save(args: argparse.Namespace, stage: AsyncStage, step: int) -> None:
    """Write the stage to a file of its own; after a flush."""
    path, settings = checkpoint_of(args, stage)
    with stage.optimizer.true_weights():
        state = {name: part.state_dict() for name, part in parts_of(stage).items()}
        torch.save({"step": step, "settings": settings, **state}, path.with_suffix(".part"))
    dist.barrier()  # nobody gives up the last checkpoint before all have written this one
    path.with_suffix(".part").replace(path)


def resume(args: argparse.Namespace, stage: AsyncStage) -> int:
    """Load the stage and return its step; where one rank cannot, all end and say why."""
    path, settings = checkpoint_of(args, stage)
    exists = path.exists()
    state = torch.load(path, map_location=stage.device, weights_only=True) if exists else {}
    found: list[Any] = [None] * stage.num_stages
    dist.all_gather_object(found, (state.get("step"), state.get("settings")))
    for rank, (step, saved) in enumerate(found):
        if saved is None:
            sys.exit(f"--resume: there is no checkpoint of stage {rank} in {args.out}")
        for name, value in settings.items():
            if saved[name] != value:
                sys.exit(f"--resume: {name} was {saved[name]} in {args.out}, now it is {value}")
        if step != found[0][0]:
            sys.exit(f"--resume: stages 0 and {rank} are of steps {found[0][0]} and {step}")
        if step >= args.steps:
            sys.exit(f"--resume: all {args.steps} steps are made in {args.out}")
    for name, part in parts_of(stage).items():
        part.load_state_dict(state[name])
    return int(state["step"])


def say(stage: AsyncStage, text: str) -> None:
    """Print a line above the progress bar, on the last rank."""
    if stage.is_last:
        tqdm.write(text)
        sys.stdout.flush()


def main() -> None:
    """Train this rank's stage."""
    args = parse_args()
    try:
        corpus = load_corpus(args.data, args.context)
        output_directory(args.out)
    except UsageError as error:
        sys.exit(str(error))
    device = own_device()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    stage = build_stage(args, device)
    schedule = Async1F1B(stage, args.microbatches, cross_entropy)
    start = resume(args, stage) if args.resume else 0
    say(stage, f"{args.method}, {stage.num_stages} stages on {device.type}, from step {start}")
    loss = train(args, schedule, corpus, start)
    say(stage, f"validation loss {loss:.4f}, checkpoint in {args.out}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
