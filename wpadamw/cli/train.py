"""``python -m wpadamw train``: a small GPT on bytes, trained with AdamW and another optimizer."""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import wpadamw
from wpadamw.bench import registry
from wpadamw.bench.report import plots, training
from wpadamw.bench.study.comparison import (
    Record,
    Trainee,
    build,
    parameter_groups,
    to_device,
    train_side_by_side,
)
from wpadamw.bench.study.gpt import GPT
from wpadamw.bench.study.text import Batch, Corpus, fixed_batches, load_corpus, random_batch
from wpadamw.bench.usage import (
    UsageError,
    non_negative_float,
    optional_module,
    output_directory,
    positive_int,
    usable_device,
)

NUM_VALIDATION_BATCHES = 8
ENTRANTS = registry.entrants("train")
REFERENCE = next(iter(ENTRANTS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; defaults make a job of about two minutes on two CPU cores."""
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH", help="file or directory (the standard library)")
    add("--out", type=Path, metavar="DIR", default=Path("runs/train"), help="(%(default)s)")
    add("--device", type=usable_device, default="cpu", help="torch device (%(default)s)")
    add(
        "--optimizer",
        choices=[name for name in ENTRANTS if name != REFERENCE],
        default=registry.OURS,
        help=f"to train beside {REFERENCE} (%(default)s)",
    )
    for option, default, meaning in (
        ("--steps", 400, "updates by each optimizer"),
        ("--seeds", 1, "repetitions, each with its own initialisation and batches"),
        ("--batch-size", 16, "windows per batch"),
        ("--context", 128, "bytes per window"),
        ("--layers", 4, "blocks of the model"),
        ("--width", 128, "width of the model"),
        ("--heads", 4, "attention heads per block"),
        ("--eval-every", 25, "steps between validations"),
    ):
        add(option, type=positive_int, metavar="N", default=default, help=f"{meaning} ({default})")
    for option, default_value, meaning in (
        ("--lr", 2e-3, "highest learning rate of the schedule"),
        ("--weight-decay", 0.1, "decay of the matrices, for both optimizers"),
        ("--prediction-steps", 1.0, "steps ahead, of optimizers that predict"),
    ):
        add(
            option,
            type=non_negative_float,
            metavar="X",
            default=default_value,
            help=f"{meaning} ({default_value})",
        )


def run(args: argparse.Namespace) -> int:
    """Train with both optimizers, print the table, write the files."""
    if args.width % args.heads:
        raise UsageError(
            f"--width must be a multiple of --heads, got {args.width} and {args.heads}"
        )
    if (why := ENTRANTS[args.optimizer].missing) is not None:
        raise UsageError(f"--optimizer must be one that is here, got {args.optimizer}: {why}")
    # Asked for before the training: a missing package should not cost a run its picture.
    optional_module("matplotlib", "train")
    progress = optional_module("tqdm", "train").tqdm
    corpus = load_corpus(args.data, args.context)
    out = output_directory(args.out)
    print(describe_job(args, corpus), flush=True)
    with progress(total=args.seeds * args.steps, unit="step") as bar:
        records = [
            record for seed in range(args.seeds) for record in train_seed(args, corpus, seed, bar)
        ]
    runs = [asdict(record) for record in records]
    results = {"setting": describe_setting(args, corpus), "runs": runs}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    training.draw(runs).savefig(out / "curves.png", dpi=plots.DPI)
    print(training.table(runs, quarters(args.steps)))
    print(f"written: {out / 'results.json'}, {out / 'curves.png'}")
    return 0


def train_seed(args: argparse.Namespace, corpus: Corpus, seed: int, bar: Any) -> list[Record]:
    """Train both optimizers from the initialisation and on the batches of one seed."""
    trainees = start_trainees(args, seed)
    validation = fixed_batches(
        corpus.validation, NUM_VALIDATION_BATCHES, args.batch_size, args.context
    )
    rounds = train_side_by_side(
        trainees,
        draw_batches(args, corpus, seed),
        [to_device(batch, args.device) for batch in validation],
        evaluated_steps={*range(0, args.steps, args.eval_every), *quarters(args.steps)},
    )
    for _ in rounds:
        losses = {t.record.optimizer: f"{t.record.train_losses[-1]:.3f}" for t in trainees}
        bar.set_postfix({"seed": seed, **losses}, refresh=False)
        bar.update()
    return [trainee.finish() for trainee in trainees]


def start_trainees(args: argparse.Namespace, seed: int) -> list[Trainee]:
    """Build one model and give a copy of it to each optimizer."""
    torch.manual_seed(seed)
    model = GPT(args.context, args.layers, args.width, args.heads).to(args.device)
    names = (REFERENCE, args.optimizer)
    return [start_trainee(args, name, seed, copy.deepcopy(model)) for name in names]


def start_trainee(args: argparse.Namespace, name: str, seed: int, model: nn.Module) -> Trainee:
    """Build an optimizer; the model's mode chooses between predicted and true weights."""
    entrant = ENTRANTS[name]
    options = {"prediction_steps": args.prediction_steps} if entrant.predicts else {}
    groups = parameter_groups(model, args.weight_decay)
    optimizer, lr_factor = build(entrant, groups, args.lr, args.steps, **options)
    if entrant.predicts:
        wpadamw.attach(model, optimizer)
    return Trainee(Record(name, seed), model, optimizer, lr_factor)


def draw_batches(args: argparse.Namespace, corpus: Corpus, seed: int) -> Iterator[Batch]:
    """Yield the training batches of one seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(args.steps):
        batch = random_batch(corpus.train, args.batch_size, args.context, generator)
        yield to_device(batch, args.device)


def quarters(num_steps: int) -> list[int]:
    """Return the steps at which a quarter, half, three quarters and all of them are done."""
    return sorted({math.ceil(num_steps * part / 4) for part in (1, 2, 3, 4)})


def describe_job(args: argparse.Namespace, corpus: Corpus) -> str:
    """Say in a line what will be trained, on what and where."""
    return (
        f"{corpus.origin}: {len(corpus.train):,} bytes to train on, "
        f"{len(corpus.validation):,} held out; {args.steps} steps of {args.batch_size} x "
        f"{args.context} bytes per optimizer, {args.seeds} seed(s), on {args.device}"
    )


def describe_setting(args: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """Gather what the results depend on: arguments, corpus, versions, threads."""
    arguments = {name: value for name, value in vars(args).items() if name != "run"}
    return {
        "arguments": {
            name: str(value) if isinstance(value, (Path, torch.device)) else value
            for name, value in arguments.items()
        },
        "corpus": {
            "origin": corpus.origin,
            "train_bytes": len(corpus.train),
            "validation_bytes": len(corpus.validation),
        },
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
