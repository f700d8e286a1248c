"""Theory on a quadratic against simulation, curvatures against dense ones, and their report."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from wpadamw.bench.report import curvature_plot, curvature_report, plots
from wpadamw.bench.report.quadratic import (
    best_prediction_steps,
    decay,
    determinant,
    largest_stable,
    noise_loss,
    q_of_noise_ratio,
    step_matrix,
)
from wpadamw.bench.study import curvature, switching, tasks
from wpadamw.bench.study.comparison import mean_cross_entropy
from wpadamw.bench.study.landscape import Landscape, along_step, look, swing

BETA = 0.9
STEPS = (0.0, 0.5, 1.0, 2.0, 3.0)


def simulated(q, s, num_steps, noise=0.0):
    """The weights of momentum with prediction on ``q*w**2/2``, as docs/algorithm.md has it."""
    generator = torch.Generator().manual_seed(0)
    disturbances = (noise * torch.randn(num_steps, generator=generator).double()).tolist()
    w, y, weights = 1.0, 0.0, []
    for disturbance in disturbances:
        predicted = w - s * y
        y = BETA * y + (1 - BETA) * (q * predicted + disturbance)
        w -= y
        weights.append(w)
    return weights


# Theory.


@pytest.mark.parametrize("s", STEPS)
def test_steps_grow_from_the_largest_stable_curvature_on(s):
    edge = largest_stable(s)
    assert abs(simulated(0.98 * edge, s, 2000)[-1]) < 1e-6
    assert abs(simulated(1.02 * edge, s, 2000)[-1]) > 1e6


def test_largest_stable_curvatures_are_the_known_ones():
    assert [round(largest_stable(s), 1) for s in (0, 1, 2)] == [38.0, 12.7, 7.6]


@pytest.mark.parametrize("s", STEPS)
@pytest.mark.parametrize("q", [0.01, 0.5, 2.0, 5.0])
def test_decay_is_the_spectral_radius_and_that_of_a_simulation(q, s):
    radius = torch.linalg.eigvals(torch.tensor(step_matrix(q, s)).double()).abs().max().item()
    assert decay(q, s) == pytest.approx(radius, rel=1e-6)
    # Oscillations hide the decay of single weights; the largest of many steps shows it.
    weights = simulated(q, s, 400)
    early, late = (max(map(abs, weights[start : start + 100])) for start in (100, 300))
    assert (late / early) ** (1 / 200) == pytest.approx(radius, rel=0.02)


def test_oscillations_decay_as_the_root_of_the_determinant():
    assert decay(1.0, 0.0) == pytest.approx(math.sqrt(BETA))
    assert decay(1.0, 1.0) == pytest.approx(math.sqrt(BETA - (1 - BETA)))
    matrix = torch.tensor(step_matrix(3.0, 2.0)).double()
    assert determinant(3.0, 2.0) == pytest.approx(torch.linalg.det(matrix).item())


@pytest.mark.parametrize("s", STEPS)
@pytest.mark.parametrize("q", [0.5, 3.0])
def test_noise_keeps_up_the_loss_that_a_simulation_has(q, s):
    weights = torch.tensor(simulated(q, s, 60_000, noise=1.0))[1000:]
    assert q * weights.square().mean().item() / 2 == pytest.approx(noise_loss(q, s) / 4, rel=0.1)


def test_best_prediction_steps_have_less_noise_than_their_neighbours():
    for q in (1.0, 3.0, 5.0):
        best = best_prediction_steps(q)
        around = [noise_loss(q, best + shift) for shift in (-0.05, 0.0, 0.05)]
        assert min(around) == around[1]


# What is seen of a loss.


@pytest.fixture
def small():
    """A model, its weights and a preconditioner; the loss has its whole Hessian in reach."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    batch = torch.randn(32, 3), torch.randint(2, (32,))
    weights = torch.cat([param.detach().flatten() for param in model.parameters()])
    return Landscape(model, batch), weights, torch.rand(len(weights)) + 0.1


def dense_hessian(landscape, weights):
    return torch.autograd.functional.hessian(landscape._loss, weights)


def test_landscape_is_the_loss_of_the_model(small):
    landscape, weights, _ = small
    own = mean_cross_entropy(landscape.model, landscape.batch).item()
    assert landscape.loss(weights) == pytest.approx(own)
    assert landscape.loss(weights + 1) != pytest.approx(own)


def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(small):
    landscape, weights, preconditioner = small
    scale = preconditioner.rsqrt()
    scaled = scale[:, None] * dense_hessian(landscape, weights) * scale
    largest = torch.linalg.eigvalsh(scaled)[-1].item()
    assert landscape.gradient(weights).sharpness(preconditioner) == pytest.approx(largest, rel=0.02)


def test_parabola_along_a_step_is_that_of_the_dense_hessian(small):
    landscape, weights, preconditioner = small
    step = 0.1 * torch.randn(len(weights))
    bend = (step @ dense_hessian(landscape, weights) @ step).item()
    slope = landscape.gradient(weights)
    seen = along_step(slope, step, preconditioner)
    assert seen["bend"] == pytest.approx(bend, rel=1e-4)
    assert seen["step_curvature"] == pytest.approx(
        bend / (preconditioner * step.square()).sum().item(), rel=1e-4
    )
    ahead, behind = (landscape.loss(weights + t * step) for t in (0.01, -0.01))
    assert seen["slope"] == pytest.approx((ahead - behind) / 0.02, rel=1e-2)


def test_swing_is_half_the_trace_of_hessian_times_covariance(small):
    landscape, weights, _ = small
    path = [weights + 0.01 * torch.randn(len(weights)) for _ in range(20)]
    deviations = torch.stack(path) - torch.stack(path).mean(dim=0)
    covariance = deviations.T @ deviations / len(path)
    expected = (dense_hessian(landscape, weights) @ covariance).trace().item() / 2
    assert swing(landscape, path)["swing"] == pytest.approx(expected, rel=0.1)


def test_zigzag_has_a_negative_cosine_and_a_straight_path_has_one(small):
    landscape, weights, _ = small
    there = torch.randn(len(weights))
    assert swing(landscape, [weights + i * there for i in range(4)])["cosine"] == pytest.approx(1)
    zigzag = [weights, weights + there, weights, weights + there]
    assert swing(landscape, zigzag)["cosine"] == pytest.approx(-1)


def test_attention_has_second_derivatives():
    problem = tasks.TASKS["gpt"].pose(tasks.QUICK)
    landscape = Landscape(problem.build_model(), problem.validation[0])
    weights = torch.cat([param.detach().flatten() for param in landscape.model.parameters()])
    path = [weights, weights + 1e-3]
    seen = look(landscape, [*path, weights + 3e-3], weights, torch.ones(len(weights)))
    assert all(map(math.isfinite, seen.values()))


# Trainings.


def run_of(task="signals", optimizer="WPAdamW, s = 1", seed=0, lr=0.01, num_steps=8):
    about = {"task": task, "optimizer": optimizer, "lr": lr, "seed": seed}
    return {**about, "num_steps": num_steps}


@pytest.mark.parametrize("optimizer", curvature.OPTIMIZERS)
def test_training_goes_on_as_if_nobody_looked(optimizer, monkeypatch):
    followed = []
    start = curvature.start

    def remembered(*args):
        followed.append(start(*args))
        return followed[-1]

    monkeypatch.setattr(curvature, "start", remembered)
    run = run_of(optimizer=optimizer)
    problem = curvature.posed("signals", True)
    curvature.observe(run, problem)
    alone = start(problem, run)
    generator = torch.Generator().manual_seed(run["seed"])
    for _ in range(run["num_steps"]):
        alone.train_step(problem.draw_batch(generator))
    assert alone.record.train_losses == followed[0].record.train_losses
    alone.evaluate(8, problem.validation)
    pairs = zip(alone.model.parameters(), followed[0].model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_preconditioner_is_what_the_first_moment_is_divided_by():
    trainee = curvature.start(curvature.posed("signals", True), run_of(optimizer="AdamW"))
    problem = curvature.posed("signals", True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        before = curvature.weights_of(trainee, "eval")
        group = trainee.optimizer.param_groups[0]
        lr, decay_rate = group["lr"], group["weight_decay"]
        trainee.train_step(problem.draw_batch(generator))
    params = list(trainee.model.parameters())
    states = [trainee.optimizer.state[param] for param in params]
    momentum = torch.cat([state["exp_avg"].flatten() for state in states]) / (1 - BETA**3)
    decays = torch.cat([torch.full((p.numel(),), decay_rate * (p.dim() > 1)) for p in params])
    used = curvature.preconditioner_of(trainee.optimizer, params)
    expected = before * (1 - lr * decays) - lr * momentum / used
    torch.testing.assert_close(curvature.weights_of(trainee, "eval"), expected)


def test_predicted_weights_differ_from_true_ones_with_prediction_only():
    for optimizer in curvature.OPTIMIZERS:
        seen = curvature.observe(run_of(optimizer=optimizer), curvature.posed("signals", True))
        is_same = seen["predicted_loss"] == seen["loss"]
        assert is_same == (optimizer == "AdamW")


def test_training_that_diverges_has_no_loss():
    seen = curvature.observe(run_of(lr=1e30), curvature.posed("signals", True))
    assert seen["validation_loss"] is None


def test_points_are_spread_to_the_end():
    assert curvature.points(1000) == [125, 250, 375, 500, 625, 750, 875, 1000]
    assert curvature.points(8) == [3, 4, 5, 6, 7, 8]


@pytest.fixture(scope="module")
def quick_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("curvature") / "new" / "curvature.json"
    arguments = ["--quick", "--tasks", "signals", "gpt", "--seeds", "1", "--out", str(path)]
    assert curvature.main(arguments) == 0
    return path


def test_command_trains_each_optimizer_at_each_rate(quick_file):
    results = json.loads(quick_file.read_text())
    assert results["quick"] is True
    found = {(run["task"], run["lr"], run["optimizer"]) for run in results["runs"]}
    assert found == {
        (task, lr, optimizer)
        for task in ("signals", "gpt")
        for lr in curvature.RATES[task]
        for optimizer in curvature.OPTIMIZERS
    }
    assert [run["task"] for run in results["switches"]] == ["signals", "gpt"]
    for run in results["runs"]:
        assert len(run["steps"]) == len(run["sharpness"]) == len(run["lr_then"]) == 6


def test_command_goes_on_where_it_was_interrupted(quick_file, monkeypatch):
    results = json.loads(quick_file.read_text())
    lost = results["runs"].pop(4)
    quick_file.write_text(json.dumps(results))
    made, observe = [], curvature.observe
    monkeypatch.setattr(curvature, "observe", lambda run, _: made.append(run) or observe(run, _))
    arguments = ["--quick", "--tasks", "signals", "gpt", "--seeds", "1"]
    assert curvature.main([*arguments, "--out", str(quick_file)]) == 0
    assert made == [{key: lost[key] for key in run_of()}]
    assert lost in json.loads(quick_file.read_text())["runs"]


def test_trainings_of_another_version_do_not_count(quick_file):
    assert curvature.kept(quick_file, {"torch": "0"}) == {"runs": [], "switches": []}
    assert all(curvature.kept(quick_file, {"quick": True}).values())


def test_copy_goes_on_like_its_original():
    problem = curvature.posed("signals", True)
    old = curvature.start(problem, run_of())
    switching.predict(old, 0.0)
    generator = torch.Generator().manual_seed(0)
    switching.walk(old, problem, generator, 4)
    new = switching.copied(old, curvature.start(problem, run_of()))
    states = [torch.Generator().set_state(generator.get_state()) for _ in range(2)]
    ours, theirs = (
        switching.walk(each, problem, state, 4)
        for each, state in zip((old, new), states, strict=True)
    )
    assert all(map(torch.equal, ours, theirs))


def test_switch_follows_each_copy_on_the_same_batches(monkeypatch):
    problem = curvature.posed("signals", True)
    monkeypatch.setattr(switching, "SWITCHED_TO", (0.0, 0.0, 1.0))
    monkeypatch.setattr(switching, "NUM_WINDOWS", 2)
    walked, walk = [], switching.walk
    monkeypatch.setattr(switching, "walk", lambda *args: walked.append(walk(*args)) or walked[-1])
    seen = switching.switch(run_of(lr=0.1), problem, 3)
    ends = [path[-1] for path in walked[1::2]]
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert all(len(found["swing"]) == 2 for found in seen["followed"].values())


# The report.


@pytest.fixture
def results():
    """Three seeds, of numbers that are easy to follow."""
    lists = {"steps": [4, 8], "lr_then": [0.5, 0.25], "sharpness": [20.0, 8.0]}
    lists |= {"step_curvature": [2.0, 2.0], "cosine": [0.5, 0.9], "slope": [0.1, 0.0]}
    lists |= {"bend": [0.2, 0.1], "loss": [2.0, 1.0], "predicted_loss": [2.5, 1.0]}
    lists |= {"gradient_norm": [1.0, 1.0], "predicted_gradient_norm": [1.5, 1.0]}
    runs = []
    for seed in range(3):
        for i, optimizer in enumerate(curvature.OPTIMIZERS):
            ended = {"validation_loss": 1.0 + seed - 0.1 * i}
            path = {"middle_loss": [2.0 - 0.2 * i, 1.0], "swing": [0.3 - 0.1 * i, 0.01]}
            runs.append({**run_of(optimizer=optimizer, seed=seed), **lists, **path, **ended})
    return {"runs": runs}


def row(text, optimizer):
    (found,) = [line for line in text.splitlines() if f"| {optimizer} |" in line]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_sharpness_stands_beside_its_threshold(results):
    cells = row(curvature_report.sharpness([results]), "WPAdamW, s = 1")
    assert cells[:4] == ["signals", "0.01", "WPAdamW, s = 1", "12.7"]
    assert cells[4:] == ["10.0 ± 0.0", "2.0 ± 0.0", "1.00 ± 0.00"]


def test_differences_in_loss_are_taken_apart_seed_by_seed(results):
    cells = row(curvature_report.swings([results]), "WPAdamW, s = 2")
    assert cells[3:7] == ["0.1000 ± 0.0000", *(f"-0.{n}000 ± 0.0000" for n in (6, 2, 4))]
    assert cells[-1] == "-0.2000 ± 0.0000"
    assert row(curvature_report.swings([results]), "AdamW")[-1] == ""


def test_swings_with_one_s_tell_those_with_another(results):
    q = 0.8
    for run in results["runs"]:
        s = curvature_report.PREDICTION_STEPS[run["optimizer"]]
        run["swing"] = [noise_loss(q, s), 0.0]
    row = curvature_report.fit([results]).splitlines()[2]
    task, _, _, found, expected, measured = row.strip("| ").split(" | ")
    assert (task, found) == ("signals", "0.8")
    assert float(measured.removesuffix(" ± 0.00")) == pytest.approx(float(expected), abs=0.011)


def test_q_of_a_ratio_is_where_theory_has_it():
    assert q_of_noise_ratio(noise_loss(2.0, 1.0) / noise_loss(2.0, 0.0), 1.0) == pytest.approx(
        2.0, abs=0.02
    )
    assert q_of_noise_ratio(0.001, 1.0) is None
    assert q_of_noise_ratio(1.1, 1.0) is None


def test_steps_tell_how_far_they_went_too_far(results):
    cells = row(curvature_report.steps([results]), "WPAdamW, s = 1")
    assert cells[3:] == [
        *("0.500 ± 0.000", "0.50 ± 0.00", "+0.5000 ± 0.0000", "1.500 ± 0.000"),
    ]


def test_trainings_that_diverged_are_no_rows(results):
    for run in results["runs"]:
        if run["optimizer"] == "AdamW":
            run["validation_loss"] = None
    text = curvature_report.swings([results])
    assert "| AdamW |" not in text
    assert row(text, "WPAdamW, s = 1")[4] == ""


def test_tables_tell_how_many_seeds_they_have(results):
    assert "standard error of 3 seeds." in curvature_report.steps([results])
    del results["runs"][-1]
    assert "standard error of 2 to 3 seeds." in curvature_report.steps([results])


def test_theory_has_a_row_per_s():
    text = curvature_report.theory([])
    assert "| 1 | 12.7 |" in text
    assert text.splitlines()[-1].startswith("| best s |")


def test_switches_are_compared_with_going_on_without_prediction():
    switches = [
        {
            **run_of(seed=seed),
            "window": 20,
            "followed": {
                "0": {"swing": [0.5] * 10, "middle_loss": [2.0 + seed] * 10},
                "1": {"swing": [0.4] * 10, "middle_loss": [2.0 + seed, *[1.7 + seed] * 9]},
            },
        }
        for seed in range(3)
    ]
    _, _, swing_row, middle_row = curvature_report.switches([{"switches": switches}]).splitlines()[
        :4
    ]
    assert swing_row.count("-0.1000 ± 0.0000") == 3
    assert "| s = 1 | the middle | +0.0000 ± 0.0000 | -0.3000 ± 0.0000 |" in middle_row


def test_plot_has_lines_with_their_thresholds_and_names(results, tmp_path):
    rows = curvature_plot.source([results])
    figure = curvature_plot.draw(rows)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "s = 1: stable below 12.7" in texts
    assert "s = 1" in texts
    levels = {round(line.get_ydata()[0], 1) for line in figure.axes[0].lines}
    assert {38.0, 12.7, 7.6, 10.0} <= levels
    plots.save(figure, tmp_path / "plot.png", rows)
    assert plots.is_current(tmp_path / "plot.png", rows)


def test_command_needs_a_file(capsys):
    with pytest.raises(SystemExit):
        curvature.main([])
    assert "arguments are required: --out" in capsys.readouterr().err
