"""The study of pipelines: ways to train, the command, and what is written about them."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from test_cli import refusal
from test_study_run import in_this_process

from wpadamw.bench.registry import PIPELINED, entrants
from wpadamw.bench.report import documents, pipeline_losses, plots
from wpadamw.bench.study import pipeline, trainings
from wpadamw.bench.study.contests import PIPELINES, STUDY
from wpadamw.bench.study.gpt import GPT, in_stages
from wpadamw.bench.study.run import DEFAULT_TASKS
from wpadamw.bench.study.trainings import Job, posed, train
from wpadamw.cli import main

REFERENCE, *OTHERS = WAYS = [*entrants(*PIPELINED)]


# Ways to train.


def problem(task="pipeline-4"):
    return posed(pipeline.TASKS[task], pipeline.QUICK)


def built(way, num_microbatches=16, task="pipeline-4", **options):
    torch.manual_seed(0)
    model = problem(task).build_model()
    options = {"lr": 0.01, "weight_decay": 0.1, **options}
    return model, entrants(*PIPELINED)[way].build(
        model, num_microbatches=num_microbatches, **options
    )


def microbatches(number=16):
    generator = torch.Generator().manual_seed(0)
    return [problem().draw_batch(generator) for _ in range(number)]


def test_stages_of_a_gpt_are_the_gpt():
    torch.manual_seed(0)
    model = GPT(context=8, layers=4, width=8, heads=2, is_tied=False)
    tokens = torch.randint(256, (2, 8))
    expected = model(tokens)
    for num_stages in (1, 2, 4):
        stages = in_stages(model, num_stages)
        assert len(stages) == num_stages
        assert torch.equal(stages(tokens), expected)
        assert len(list(stages.parameters())) == len(list(model.parameters()))
    with pytest.raises(ValueError, match="multiple of 3 stages, got 4"):
        in_stages(model, 3)


def test_stages_predict_as_many_steps_as_there_are_stages_behind():
    for way in WAYS:
        _, found = built(way)
        steps = [stage.optimizer.param_groups[0]["prediction_steps"] for stage in found.stages]
        is_predicted = way in ("PipeOptim", "predicted for both")
        assert steps == ([3, 2, 1, 0] if is_predicted else [0, 0, 0, 0])


def test_ways_have_delays_and_as_many_updates_as_they_should():
    ends = set()
    for way in WAYS:
        _, found = built(way)
        (kept,) = found.train(microbatches(), after=(16,)).values()
        ends.add(tuple(value.double().sum().item() for part in kept for value in part.values()))
        delays = [stage.delays[-1] for stage in found.stages]
        assert delays == ([0] * 4 if way.startswith("synchronous") else [3, 2, 1, 0])
        number = 4 if way == "synchronous, D micro-batches" else 16
        assert {stage.num_updates for stage in found.stages} == {number}
        # Schedules have the length of the training.
        factors = [stage.lr_scheduler.lr_lambdas[0](number) for stage in found.stages]
        assert factors == pytest.approx([0.1] * 4)
    assert len(ends) == len(WAYS)


def test_a_way_that_has_no_delay_is_a_plain_training():
    _, found = built(REFERENCE)
    kept = found.train(microbatches(), after=(16,))[16]
    _, plain = built(REFERENCE)
    for inputs, targets in microbatches():
        hidden = inputs
        for stage in plain.stages:
            hidden = stage.module(hidden)
        pipeline.cross_entropy(hidden, targets).backward()
        for stage in plain.stages:
            stage.optimizer.clip_grad_norm_(1.0)
            stage.optimizer.step()
            stage.optimizer.zero_grad()
            stage.lr_scheduler.step()
    assert all(map(has_weights, plain.stages, kept))


def has_weights(stage, values):
    return all(map(torch.equal, stage.module.state_dict().values(), values.values()))


def test_joined_micro_batches_have_the_mean_of_their_gradients():
    model, _ = built(REFERENCE)
    parts = microbatches(4)
    (whole,) = pipeline.joined(parts, 4)
    loss = pipeline.mean_cross_entropy(model, whole)
    losses = [pipeline.mean_cross_entropy(model, part) for part in parts]
    params = list(model.parameters())
    ours = torch.autograd.grad(loss, params)
    theirs = torch.autograd.grad(torch.stack(losses).mean(), params)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("way", ["PipeOptim", "predicted for both"])
def test_looking_at_a_training_does_not_change_it(way):
    _, watched = built(way)
    kept = watched.train(microbatches(), after=range(1, 17))
    _, alone = built(way)
    assert [*alone.train(microbatches(), after=(16,))] == [16]
    for ours, theirs, values in zip(watched.stages, alone.stages, kept[16], strict=True):
        assert has_weights(ours, theirs.module.state_dict())
        ours.optimizer.restore()
        assert has_weights(ours, values)
    assert len(kept) == 16 and all(len(weights) == 4 for weights in kept.values())


def test_busy_shares_are_those_of_equal_slots():
    four, eight = pipeline.facts()["busy_shares"].values()
    assert [four[way] for way in WAYS[:3]] == [0.25, pytest.approx(4 / 7, abs=1e-4), 1.0]
    assert [eight[way] for way in WAYS[:3]] == [0.125, pytest.approx(8 / 15, abs=1e-4), 1.0]
    assert {four[way] for way in WAYS[2:]} == {1.0}


def test_losses_are_taken_after_whole_updates_of_every_way():
    for task in PIPELINES.tasks.values():
        num_stages = pipeline.NUM_STAGES[task.name]
        for number in (task.num_steps, task.steps_at(task.quick_scale), 25 * num_stages):
            found = pipeline.evaluated_after(number, num_stages)
            assert found[-1] == number and len(found) == min(16, number // num_stages)
            assert all(after % num_stages == 0 for after in found)


# Trainings.


def job(way=REFERENCE, lr=0.01, task="pipeline-4", seed=0):
    return Job(task, way, lr, seed, 16, pipeline.QUICK, "cpu", (torch.__version__,))


def test_training_records_losses_and_follows_its_seed():
    first, second, other = (train(job("PipeOptim", seed=s), pipeline.follow) for s in (1, 1, 2))
    assert first["why"] is None and first["evaluated_steps"] == [4, 8, 12, 16]
    assert first["validation_losses"] == second["validation_losses"] != other["validation_losses"]
    assert first["validation_losses"][-1] < first["validation_losses"][0]


def test_all_ways_start_from_the_same_weights():
    # With a learning rate of 0 nothing else can differ.
    found = [
        train(job(way, lr=0.0, task=task), pipeline.follow)
        for way, task in itertools.product(WAYS[:4:2], PIPELINES.tasks)
    ]
    assert len({training["validation_losses"][-1] for training in found}) == 1


def test_training_that_diverges_says_when():
    training = train(job("stale gradients", lr=1e30), pipeline.follow)
    assert training["why"].startswith("diverged before micro-batch ")
    assert len(training["evaluated_steps"]) == len(training["validation_losses"]) < 4


# The command.


def test_pipelines_are_a_contest_of_their_own(capsys, tmp_path):
    assert not PIPELINES.chosen(DEFAULT_TASKS)
    assert [task.name for task in PIPELINES.chosen(["pipeline"])] == [*pipeline.NUM_STAGES]
    assert [task.name for task in PIPELINES.chosen(["pipeline-8"])] == ["pipeline-8"]
    assert not STUDY.chosen(["pipeline"])
    out = ("--out", str(tmp_path))
    text = refusal(capsys, "study", *out, "--tasks", "pipeline", "gpt")
    assert "--tasks must not mix those of study with those of pipeline" in text
    text = refusal(capsys, "study", *out, "--tasks", "pipeline", "--entrants", "AdamW")
    assert "--entrants must name some of synchronous, 1 micro-batch" in text


@pytest.fixture(scope="module")
def quick_study(tmp_path_factory):
    out = tmp_path_factory.mktemp("pipeline")
    arguments = ["--quick", "--tasks", "pipeline", "--seeds", "1", "--entrants", "PipeOptim"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "_train_missing", in_this_process)
        assert main(["study", "--out", str(out), *arguments]) == 0
    return out


def test_quick_study_writes_results_table_and_plot(quick_study):
    (section,) = json.loads((quick_study / "pipeline.json").read_text()).items()
    name, found = section
    assert (name, found["quick"], found["reference"]) == ("study", True, REFERENCE)
    assert [*found["tasks"]] == ["pipeline-4", "pipeline-8"]
    assert [(run["optimizer"], run["seed"]) for run in found["runs"]] == 2 * [
        (REFERENCE, 0),
        ("PipeOptim", 0),
    ]
    assert found["busy_shares"]["pipeline-8"]["PipeOptim"] == 1
    assert "| PipeOptim | 100 % |" in (quick_study / "pipeline.md").read_text()
    for file in pipeline_losses.PLOTS:
        assert (quick_study / file).read_bytes().startswith(b"\x89PNG")


def test_results_of_pipelines_can_be_gathered_alone(quick_study, capsys):
    before = (quick_study / "pipeline.json").read_text()
    arguments = ["study", "--out", str(quick_study), "--quick", "--collect"]
    assert main([*arguments, "--tasks", "pipeline"]) == 0
    assert (quick_study / "pipeline.json").read_text() == before
    # The study's optimizers trained nothing here.
    assert "got no training" in refusal(capsys, *arguments)


# The report.

STEPS = [10, 20, 30, 40]
SETTING = {"device": "Example 9", "python": "3.12.1", "torch": "2.9.0", "wpadamw": "0.1.0"}


def results(**by):
    """Ways to train that end so much above the reference, with five seeds."""
    found = {
        **{"quick": False, "reference": REFERENCE, "setting": SETTING, "minutes": 12.0},
        **{"tasks": {"pipeline-4": "GPT in 4 stages"}, "optimizers": [], "left_out": {}},
        **{"trials": [], "best": [], "runs": [], **pipeline.facts()},
    }
    for way, above in {REFERENCE: 0.0, **by}.items():
        about = {"task": "pipeline-4", "optimizer": way, "lr": 0.004}
        found["optimizers"].append(way)
        found["best"].append(about)
        for seed in range(5):
            loss = 2.0 + above + seed / 10 + (0.001 * seed if above else 0)
            run = {**about, "seed": seed, "evaluated_steps": STEPS}
            found["runs"].append({**run, "validation_losses": [5.0, 4.0, 3.0, loss]})
            found["trials"].append({**about, "seed": seed, "loss": loss, "why": None})
    return found


def cells(text, name):
    (found,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in found.strip("|").split("|")][1:]


def test_table_shows_busy_share_loss_difference_and_corrected_p():
    text = pipeline_losses.losses([results(PipeOptim=0.1, PipeDream=0.2)])
    assert cells(text, REFERENCE) == ["25.0 %", "0.004", "5", "2.2000 ± 0.0707", "", ""]
    found = cells(text, "PipeOptim")
    assert found[:4] == ["100 %", "0.004", "5", "2.3020 ± 0.0714"]
    assert found[4] == "+0.1020 ± 0.0007, **worse**"
    assert found[5] == "< 0.0001"
    head = "| busy share, computed | lr | seeds | loss | minus synchronous, 1 micro-batch | p |"
    assert head in text.splitlines()[2]
    assert "for all 2 comparisons" in text and "Holm 1979" in text
    assert "Example 9, 5 seeds" in text


def test_p_is_corrected_for_all_comparisons():
    one = results(PipeOptim=0.1)
    for trial in one["trials"]:
        trial["loss"] += 0.08 * (trial["seed"] - 2) * (trial["optimizer"] == "PipeOptim")
    alone = float(cells(pipeline_losses.losses([one]), "PipeOptim")[5])
    several = [one, {**results(), "setting": {**SETTING, "device": "Example G"}}]
    assert 0.01 < alone < 0.5
    beside = results(PipeOptim=0.1, PipeDream=0.1)
    beside["trials"] = one["trials"] + [
        {**trial, "optimizer": "PipeDream"}
        for trial in one["trials"]
        if trial["optimizer"] == "PipeOptim"
    ]
    both = float(cells(pipeline_losses.losses([beside]), "PipeOptim")[5])
    assert both == pytest.approx(2 * alone, abs=2e-4)
    assert "Example G" in pipeline_losses.losses(several)


def test_ways_that_failed_or_were_not_trained_say_so():
    found = results(PipeOptim=0.1)
    for trial in found["trials"]:
        if trial["optimizer"] == "PipeOptim" and trial["seed"] == 1:
            trial |= {"loss": None, "why": "diverged before micro-batch 20"}
    found["left_out"] = {"PipeDream": "nobody had time"}
    text = pipeline_losses.losses([found])
    assert "1 of 5 failed: diverged" in cells(text, "PipeOptim")[1]
    assert cells(text, "PipeDream")[1] == "not run: nobody had time"


def test_plot_shows_the_mean_losses_of_every_way():
    found = results(**{way: 0.1 for way in OTHERS})
    (panel,) = pipeline_losses.source([found])
    assert [*panel["losses"]] == WAYS
    assert panel["losses"]["PipeOptim"] == {
        **{"x": STEPS, "mean": [5.0, 4.0, 3.0, 2.302], "error": [0, 0, 0, 0.071418]},
    }
    (axes,) = pipeline_losses.PLOTS["pipeline-losses.png"].draw([panel]).axes
    assert len(axes.lines) == len(WAYS) and axes.get_ylim()[1] < 4


PAGE = "<!-- bench:begin {0} -->\n<!-- bench:end {0} -->\n"
IMAGE = "![losses](images/pipeline-losses.png)\n"


@pytest.fixture
def project(tmp_path):
    (tmp_path / "bench" / "results" / "example").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    page = PAGE.format("pipeline-losses") + PAGE.format("pipeline-rates") + IMAGE
    (tmp_path / "docs" / "pipeline.md").write_text(page)
    return tmp_path


@pytest.mark.parametrize("content", [None, {"costs": {}}], ids=["no file", "another section"])
def test_documents_say_that_nothing_was_measured(project, content):
    if content is not None:
        path = project / "bench" / "results" / "example" / "pipeline.json"
        path.write_text(json.dumps(content))
    assert documents.main([], project) == 0
    assert (project / "docs" / "pipeline.md").read_text().count("\n\nnot measured\n\n") == 2
    assert plots.is_current(project / "docs" / "images" / "pipeline-losses.png", [])


def test_documents_show_the_section_of_the_study(project):
    path = project / "bench" / "results" / "example" / "pipeline.json"
    found = results(PipeOptim=0.1)
    path.write_text(json.dumps({"study": found, "costs": {"anything": 1}}))
    assert documents.main([], project) == 0
    text = (project / "docs" / "pipeline.md").read_text()
    assert pipeline_losses.losses([found]) in text
    assert pipeline_losses.rates([found]) in text
    assert documents.main(["--check"], project) == 0
    path.write_text(json.dumps({"study": {**found, "quick": True}}))
    assert documents.main(["--check"], project) == 1
