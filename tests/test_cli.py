"""The command line: what ``train`` writes and refuses, what ``info`` says."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import runpy
import sys
import sysconfig

import matplotlib.image
import pytest
import torch

import wpadamw
from wpadamw.bench import registry
from wpadamw.bench.report import training
from wpadamw.bench.study import text
from wpadamw.bench.study.comparison import Record, optimizer_state_bytes, warmup_cosine
from wpadamw.bench.study.gpt import GPT
from wpadamw.cli import COMMANDS, main, train

BOTH = ("AdamW(fused=True)", "WPAdamW")
TINY = (
    *("--steps", "6", "--batch-size", "2", "--context", "8", "--eval-every", "4"),
    *("--layers", "1", "--width", "8", "--heads", "2"),
)


@pytest.fixture(scope="module")
def prose(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "prose.txt"
    path.write_text("It was a bright cold day, and the clocks were striking. " * 40)
    return path


def run_train(prose, out, *arguments):
    assert main(["train", "--data", str(prose), "--out", str(out), *TINY, *arguments]) == 0
    runs = json.loads((out / "results.json").read_text())["runs"]
    return {(run["optimizer"], run["seed"]): run for run in runs}


@pytest.fixture(scope="module")
def two_seeds(prose, tmp_path_factory):
    out = tmp_path_factory.mktemp("two_seeds")
    return out, run_train(prose, out, "--seeds", "2")


def train_arguments(*arguments):
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args([*TINY, *arguments])


def refusal(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_train_records_finite_losses_of_both_optimizers_and_all_seeds(two_seeds):
    _, runs = two_seeds
    assert set(runs) == {(name, seed) for name in BOTH for seed in (0, 1)}
    for run in runs.values():
        assert run["evaluated_steps"] == [0, 2, 3, 4, 5, 6]
        assert len(run["validation_losses"]) == 6
        assert len(run["train_losses"]) == len(run["step_times_ms"]) == 6
        assert all(map(math.isfinite, run["validation_losses"] + run["train_losses"]))
        assert min(run["step_times_ms"]) > 0


def test_train_starts_both_optimizers_from_the_same_weights_and_seeds_from_others(two_seeds):
    _, runs = two_seeds
    first = {key: run["validation_losses"][0] for key, run in runs.items()}
    assert first["WPAdamW", 0] == first["AdamW(fused=True)", 0]
    assert first["WPAdamW", 1] == first["AdamW(fused=True)", 1]
    assert first["WPAdamW", 0] != first["WPAdamW", 1]


def test_train_gives_both_optimizers_the_same_batches(two_seeds):
    _, runs = two_seeds
    assert runs["WPAdamW", 0]["train_losses"][0] == runs["AdamW(fused=True)", 0]["train_losses"][0]


def test_train_predicts_by_default(two_seeds):
    _, runs = two_seeds
    assert (
        runs["WPAdamW", 0]["train_losses"][1:] != runs["AdamW(fused=True)", 0]["train_losses"][1:]
    )


def test_train_without_prediction_is_adamw(prose, tmp_path):
    runs = run_train(prose, tmp_path, "--prediction-steps", "0")
    expected = runs["AdamW(fused=True)", 0]["validation_losses"]
    assert runs["WPAdamW", 0]["validation_losses"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", [*registry.entrants("train")][1:])
def test_train_chooses_its_optimizer_from_the_registry(prose, tmp_path, name):
    runs = run_train(prose, tmp_path, "--optimizer", name)
    assert set(runs) == {(BOTH[0], 0), (name, 0)}
    assert runs[name, 0]["train_losses"][0] == runs[BOTH[0], 0]["train_losses"][0]


def test_train_refuses_an_optimizer_that_is_unknown_or_not_installed(capsys, monkeypatch):
    assert "--optimizer: invalid choice: 'Nothing'" in refusal(
        capsys, "train", "--optimizer", "Nothing"
    )
    monkeypatch.setattr(registry, "why_missing", lambda module, package: f"no {package}")
    error = refusal(capsys, "train", "--optimizer", "AdamWScheduleFree")
    assert "got AdamWScheduleFree: no schedulefree" in error


def test_train_draws_curves(two_seeds):
    out, _ = two_seeds
    pixels = matplotlib.image.imread(out / "curves.png")
    assert pixels.shape[0] > 300
    assert pixels.shape[1] > 500
    assert len({tuple(pixel) for pixel in pixels[::4, ::4].reshape(-1, pixels.shape[2])}) > 5


def test_train_prints_table_and_where_files_are(prose, tmp_path, capsys):
    run_train(prose, tmp_path)
    printed = capsys.readouterr()
    for name in (*BOTH, "loss @ 6", "step ms", "state bytes"):
        assert name in printed.out
    assert str(tmp_path / "results.json") in printed.out
    assert str(tmp_path / "curves.png") in printed.out
    assert "6/6" in printed.err


def test_train_reads_all_files_of_a_directory(prose, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "late.txt").write_bytes(b"2" * 30)
    (tmp_path / "a.txt").write_bytes(b"1" * 30)
    corpus = text.load_corpus(tmp_path, context=8)
    assert bytes(torch.cat([corpus.train, corpus.validation])) == b"1" * 30 + b"2" * 30


def test_train_refuses_missing_data(tmp_path, capsys):
    error = refusal(capsys, "train", "--data", str(tmp_path / "nowhere"))
    assert f"--data must be a file or a directory, got {tmp_path / 'nowhere'}" in error


@pytest.mark.parametrize("size", [0, 17], ids=["empty", "shorter-than-two-windows"])
def test_train_refuses_too_short_data(tmp_path, capsys, size):
    (tmp_path / "short").write_bytes(b"x" * size)
    error = refusal(
        capsys,
        *("train", "--data", str(tmp_path / "short"), "--context", "8", "--out", str(tmp_path)),
    )
    assert "--data must hold at least 18 bytes for --context 8" in error
    assert f"got {size} bytes in {tmp_path / 'short'}" in error


def test_train_refuses_empty_directory(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    error = refusal(
        capsys, "train", "--data", str(tmp_path / "empty"), "--out", str(tmp_path / "out")
    )
    assert "got 0 bytes in" in error


def test_train_accepts_the_shortest_data_it_asks_for():
    corpus = text.split_stream("18 bytes", b"x" * 18, context=8)
    assert (len(corpus.train), len(corpus.validation)) == (9, 9)
    inputs, targets = text.random_batch(corpus.train, 3, 8, torch.Generator())
    assert inputs.shape == targets.shape == (3, 8)


def test_train_refuses_out_that_is_a_file(prose, capsys):
    error = refusal(capsys, "train", "--data", str(prose), "--out", str(prose))
    assert f"--out must be a directory that can be written, got {prose}" in error


@pytest.mark.parametrize("device", ["quantum", "cuda:1000"])
def test_train_refuses_device_that_is_not_there(capsys, device):
    error = refusal(capsys, "train", "--device", device)
    assert f"argument --device: must be a device torch can use here, got '{device}'" in error


@pytest.mark.parametrize(
    ("option", "value"),
    [("--steps", "0"), ("--seeds", "two"), ("--lr", "-1"), ("--prediction-steps", "nan")],
)
def test_train_refuses_number_out_of_range(capsys, option, value):
    error = refusal(capsys, "train", option, value)
    assert f"argument {option}: must be a" in error
    assert f"got '{value}'" in error


def test_train_refuses_width_that_heads_do_not_divide(capsys):
    error = refusal(capsys, "train", "--width", "10", "--heads", "4")
    assert "--width must be a multiple of --heads, got 10 and 4" in error


@pytest.mark.parametrize("package", ["matplotlib", "tqdm"])
def test_train_names_the_package_that_is_missing(monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    error = refusal(capsys, "train")
    assert f"the package '{package}' is needed" in error
    assert "pip install 'wpadamw[train]'" in error


def test_evaluation_sees_true_weights_and_training_predicted_ones():
    args = train_arguments("--prediction-steps", "2")
    trainee = train.start_trainees(args, seed=0)[1]
    optimizer = trainee.optimizer
    seen = []
    trainee.model.blocks[0].register_forward_pre_hook(
        lambda module, inputs: seen.append((module.training, optimizer.weights_are))
    )
    batch = text.random_batch(torch.arange(64, dtype=torch.uint8), 2, 8, torch.Generator())
    trainee.train_step(batch)
    for step in (1, 2):
        trainee.evaluate(step, [batch])
        trainee.train_step(batch)
    assert seen[1:] == [(False, "true"), (True, "predicted")] * 2


def test_corpus_parts_are_disjoint_and_in_order():
    content = bytes(i % 251 for i in range(1000))
    corpus = text.split_stream("counting", content, context=8)
    assert bytes(corpus.train) + bytes(corpus.validation) == content
    assert len(corpus.validation) == 100


def test_corpus_of_the_standard_library_is_the_same_each_time(monkeypatch, tmp_path):
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "aaa.py").write_bytes(b"!" * 40)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "test_a.py").write_bytes(b"?" * 40)
    (tmp_path / "b.py").write_bytes(b"b" * 40)
    (tmp_path / "a.py").write_bytes(b"a" * 40)
    (tmp_path / "a.txt").write_bytes(b"#" * 40)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(text, "STDLIB_BYTES", 60)
    corpora = [text.load_corpus(None, context=8) for _ in range(2)]
    for corpus in corpora:
        assert bytes(torch.cat([corpus.train, corpus.validation])) == b"a" * 40 + b"b" * 20


def test_fixed_batches_span_the_stream_and_shift_targets_by_one():
    stream = torch.arange(100, dtype=torch.uint8)
    batches = text.fixed_batches(stream, num_batches=3, batch_size=2, context=8)
    inputs = torch.cat([inputs for inputs, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    assert torch.equal(targets, inputs + 1)
    assert (inputs[0, 0], targets[-1, -1]) == (0, 99)
    assert len(inputs) == 6


def test_random_batch_reaches_both_ends_of_the_stream():
    stream = torch.arange(12, dtype=torch.uint8)
    inputs, targets = text.random_batch(stream, 200, 8, torch.Generator())
    assert inputs.min() == 0
    assert targets.max() == 11


def test_gpt_logits_do_not_depend_on_later_tokens():
    torch.manual_seed(0)
    model = GPT(context=8, layers=2, width=16, heads=4)
    tokens = torch.randint(256, (1, 8))
    changed = tokens.clone()
    changed[0, 5:] = 0
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_gpt_head_is_the_embedding():
    model = GPT(context=8, layers=1, width=16, heads=4)
    assert model.head.weight is model.token.weight


def test_schedule_rises_to_one_and_falls():
    factors = [warmup_cosine(step, 100) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert max(factors) == factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0.1 <= factors[-1] < 0.11


def test_state_bytes_count_elements_not_storage():
    buffer = torch.zeros(64)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3))])
    optimizer.state["any"] = {"exp_avg": buffer[:3], "exp_avg_sq": buffer[8:11], "step": 1}
    assert optimizer_state_bytes(optimizer) == 24


def test_table_shows_means_standard_errors_and_paired_differences():
    losses = {("A", 0): 2.0, ("A", 1): 4.0, ("B", 0): 1.5, ("B", 1): 3.5}
    runs = [
        dataclasses.asdict(Record(name, seed, 10, 80, [5], [loss], [loss], [0.5]))
        for (name, seed), loss in losses.items()
    ]
    lines = training.table(runs, steps=[5]).splitlines()
    assert lines[2] == "| A | 3.0000 ± 1.0000 | 0.500 | 8.00 | 80 |"
    assert lines[3].startswith("| B | 2.5000 ± 1.0000 |")
    assert lines[4].startswith("| difference | -0.5000 ± 0.0000 |")


def test_info_names_every_backend_and_why_it_is_missing(monkeypatch, capsys):
    devices = {
        "cpu": {"cpp": None, "torch": None},
        "cuda": {"cuda": "no CUDA device", "torch": "torch has no CUDA"},
    }
    monkeypatch.setattr("wpadamw.backends", lambda: devices)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert 'cpu: backend="auto" takes cpp' in printed
    assert "cuda: no backend" in printed
    assert "missing: no CUDA device" in printed
    assert "missing: torch has no CUDA" in printed


def test_info_shows_versions_and_the_backends_of_this_machine(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__.split("+")[0] in printed
    for device, backends in wpadamw.backends().items():
        assert f"{device}: " in printed
        for name, reason in backends.items():
            assert f"  {name}" in printed
            assert reason is None or reason in printed


def test_commands_are_listed_and_one_is_required(capsys):
    assert "required: COMMAND" in refusal(capsys)
    error = refusal(capsys, "nothing")
    assert all(name in error for name in COMMANDS)


def test_module_runs_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wpadamw", "info"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("wpadamw", run_name="__main__")
    assert stop.value.code == 0
    assert "python" in capsys.readouterr().out
