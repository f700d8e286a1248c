"""examples/pipeline.py on two ranks. (tests/clients launches it as a program.)"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import WORLD_SIZE, needs_gloo, run

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "pipeline.py"
STEPS, HALF, NUM_MICROBATCHES = 6, 3, 2
OPTIONS = {
    "steps": STEPS,
    "schedule-steps": STEPS,
    "eval-every": HALF,
    "microbatches": NUM_MICROBATCHES,
    "microbatch-size": 2,
    "context": 8,
    "width": 16,
    "heads": 2,
    "lr": 0.02,
}


def start(out, *more, **options):
    """Runs the example in the group of this process; returns the lines that it prints."""
    given = {**OPTIONS, "out": out, "data": out.parent / "fox.txt", **options}
    spec = importlib.util.spec_from_file_location("example", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    words = [f"--{name}={value}" for name, value in given.items()]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as said:
        patch.setattr(sys, "argv", [str(EXAMPLE), *words, *more])
        patch.setenv("LOCAL_WORLD_SIZE", str(WORLD_SIZE))
        patch.setattr(torch.cuda, "device_count", int)
        for name in ("init_process_group", "destroy_process_group"):
            patch.setattr(dist, name, lambda *_: None)
        example.main()
    return said.getvalue().splitlines()


def checkpoints(folder):
    dist.barrier()
    paths = [folder / f"stage-{rank}.pt" for rank in range(WORLD_SIZE)]
    assert sorted(folder.iterdir()) == paths
    return [torch.load(path, weights_only=True) for path in paths]


def check_training(folder):
    lines, is_last = start(folder), dist.get_rank() == WORLD_SIZE - 1
    assert bool(lines) == is_last
    if is_last:
        begin, half, full, end = lines
        assert begin == f"pipeoptim, {WORLD_SIZE} stages on cpu, from step 0"
        assert half.startswith(f"step {HALF}: validation loss ")
        first, last = (float(line.split()[-1]) for line in (half, full))
        assert last < first - 0.1
        assert end == f"validation loss {last:.4f}, checkpoint in {folder}"
    for rank, saved in enumerate(checkpoints(folder)):
        assert saved["step"] == STEPS
        assert saved["lr_scheduler"]["last_epoch"] == STEPS * NUM_MICROBATCHES
        group = saved["optimizer"]["param_groups"][0]
        assert group["weights_are"] == "true"
        assert group["prediction_steps"] == WORLD_SIZE - 1 - rank
    return lines


def check_resumed(whole, lines, folder):
    first = start(folder, steps=HALF)
    second = start(folder, "--resume")
    if lines:
        assert second[0].endswith(f"from step {HALF}")
        assert [first[1], second[1]] == lines[1:3]
    for found, saved in zip(checkpoints(folder), checkpoints(whole), strict=True):
        for part, name in (("module", None), ("optimizer", "state"), ("lr_scheduler", "_last_lr")):
            pair = [file[part][name] if name else file[part] for file in (found, saved)]
            torch.testing.assert_close(*pair, rtol=0, atol=0)


def check_another_model(folder):
    with pytest.raises(SystemExit) as raised:
        start(folder, "--resume", width=32)
    assert str(raised.value) == f"--resume: width was 16 in {folder}, now it is 32"


def check_example(root):
    lines = check_training(root / "whole")
    check_resumed(root / "whole", lines, root / "halves")
    check_another_model(root / "whole")


@needs_gloo
def test_it_trains_and_goes_on_bit_for_bit(tmp_path):
    (tmp_path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog. " * 20)
    run(functools.partial(check_example, tmp_path))
