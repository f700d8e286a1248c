"""What can be tested of ``make gpu`` without a GPU: its steps, their time, what it writes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_bench_report import GPU_MEASURED

from wpadamw.bench import ROOT, steps
from wpadamw.bench.gpu import probe
from wpadamw.bench.gpu import run as gpu
from wpadamw.bench.report import gpu_tables


def step(name, code, limit_s=20.0, **options):
    return steps.Step(name, [sys.executable, "-c", code], limit_s, **options)


def run_code(code, limit_s=20.0, **options):
    return steps.run(step("one", code, **options), ROOT, limit_s)


@pytest.fixture
def short_grace(monkeypatch):
    monkeypatch.setattr(steps, "GRACE_S", 0.5)


# Steps.


def test_a_step_tells_how_it_ended_and_what_it_printed():
    outcome = run_code("import sys; print('out'); print('err', file=sys.stderr)")
    assert (outcome.verdict, outcome.is_good) == ("passed", True)
    assert sorted(outcome.output.split()) == ["err", "out"]
    assert run_code("raise SystemExit(3)").verdict == "failed with exit code 3"


def test_a_step_runs_in_the_root_and_sees_its_variables():
    code = "import os; print(os.getcwd(), os.environ['WHICH'], 'HOME' in os.environ)"
    outcome = run_code(code, environment={"WHICH": "this"})
    assert outcome.output.split() == [str(ROOT.resolve()), "this", str("HOME" in os.environ)]


def test_a_program_that_is_missing_is_named():
    outcome = steps.run(steps.Step("one", ["no-such-program"], 5.0), ROOT, 5.0)
    assert outcome.verdict.startswith("cannot be started")
    assert "no-such-program" in outcome.output
    assert not outcome.is_good


def test_a_step_that_need_not_pass_is_good_whatever_happens():
    assert run_code("raise SystemExit(3)", is_required=False).is_good


def test_a_step_ends_with_its_time_and_keeps_what_it_printed(short_grace):
    code = "import time; print('begun', flush=True); time.sleep(60)"
    outcome = run_code(code, limit_s=2.5)
    assert (outcome.verdict, outcome.is_good) == ("out of time", False)
    assert outcome.seconds < 10
    assert outcome.output.startswith("begun")


def test_a_step_may_write_its_report_when_interrupted(short_grace):
    code = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('report')"
    assert run_code(code, limit_s=2.5).output == "report\n"


def test_a_step_that_ignores_the_interrupt_ends_too(short_grace):
    code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
    outcome = run_code(code, limit_s=2.5)
    assert outcome.verdict == "out of time"
    assert outcome.seconds < 10


def is_running(process_id):
    """Whether a process lives; one that waits for its parent to ask for its end does not."""
    path = Path(f"/proc/{process_id}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
@pytest.mark.parametrize("limit_s", [2.5, 20.0], ids=["out-of-time", "passed"])
def test_what_a_step_started_ends_with_it(limit_s, short_grace):
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    code = f"import subprocess; child = subprocess.Popen({sleep}); print(child.pid, flush=True)"
    outcome = run_code(code + ("; child.wait()" if limit_s < 20 else ""), limit_s=limit_s)
    child = int(outcome.output.split()[0])
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(child)


def test_only_the_end_of_a_long_output_is_kept(monkeypatch):
    monkeypatch.setattr(steps, "MAX_OUTPUT_BYTES", 10)
    assert run_code("print('a' * 100 + 'end')").output == "aaaaaaend\n"


def test_steps_run_whatever_became_of_those_before():
    seen = []
    plan = [step("a", "raise SystemExit(1)"), step("b", "print('b')"), step("c", "print('c')")]
    outcomes = steps.run_all(plan, ROOT, lambda done: seen.append([o.step.name for o in done]))
    assert [o.verdict for o in outcomes] == ["failed with exit code 1", "passed", "passed"]
    assert seen == [["a"], ["a", "b"], ["a", "b", "c"]]


def test_a_step_may_use_the_time_that_others_left(monkeypatch):
    limits = []
    monkeypatch.setattr(
        steps, "run", lambda step, root, limit_s: limits.append(limit_s) or time.sleep(0.2)
    )
    steps.run_all([step("a", "", 10.0), step("b", "", 20.0)], ROOT, lambda done: None)
    assert limits == [pytest.approx(10, abs=0.1), pytest.approx(29.8, abs=0.1)]


# The plan.


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "gpu_architecture", lambda: "90-real")
    return {step.name: step for step in gpu.plan(tmp_path)}


def test_the_plan_takes_less_than_nine_minutes(plan):
    assert sum(step.limit_s for step in plan.values()) < 9 * 60
    assert list(plan) == [
        *("machine", "build", "tests", "benchmarks", "memcheck", "racecheck", "ncu")
    ]


def test_steps_can_be_chosen(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "plan", lambda out: [step("a", ""), step("b", "raise SystemExit(1)")])
    assert gpu.main([str(tmp_path), "--only", "a"]) == 0
    assert "b" not in [
        row["name"] for row in json.loads((tmp_path / "gpu.json").read_text())["steps"]
    ]
    with pytest.raises(SystemExit):
        gpu.main([str(tmp_path), "--only", "a", "c"])
    assert "--only must name some of a, b, got c" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils")
def test_the_plan_names_modules_that_exist(plan):
    words = [step.command for step in plan.values()]
    modules = {
        command[i + 1] for command in words for i, word in enumerate(command) if word == "-m"
    }
    assert {"wpadamw", "wpadamw.bench.gpu.probe"} < modules
    assert all(map(importlib.util.find_spec, modules - {"gpu"}))


def test_the_build_needs_no_network_and_compiles_for_the_gpu_alone(plan):
    build = plan["build"]
    assert {"--no-index", "--no-build-isolation", "--no-deps"} < set(build.command)
    assert build.environment["WPADAMW_CUDA"] == "on"
    assert build.environment["WPADAMW_CUDA_ARCHITECTURES"] == "90-real"


def test_sanitizers_see_allocations_as_they_are(plan):
    for name in ("memcheck", "racecheck"):
        assert plan[name].environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        assert plan[name].command[:3] == ["compute-sanitizer", "--tool", name]


def test_programs_of_this_python_and_of_cuda_are_found(monkeypatch):
    monkeypatch.setenv("CUDA_HOME", "/opt/example")
    found = gpu.tool_path().split(os.pathsep)
    assert found[0] == str(Path(sys.executable).parent)
    assert "/opt/example/bin" in found


@pytest.mark.parametrize(
    ("printed", "architecture"),
    [("9.0\n", "90-real"), ("8.0\n9.0\n9.0\n", "80-real;90-real")],
)
def test_architecture_is_that_of_the_gpus(printed, architecture, monkeypatch):
    done = subprocess.CompletedProcess([], 0, stdout=printed)
    monkeypatch.setattr(gpu.subprocess, "run", lambda *_, **__: done)
    assert gpu.gpu_architecture() == architecture


def test_architecture_is_unknown_without_nvidia_smi(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert gpu.gpu_architecture() is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_machine_without_a_gpu_does_not_pass(plan):
    assert steps.run(plan["machine"], ROOT, 60.0).verdict.startswith("failed")


# Results.

JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_gpu" name="test_a[cuda]"/>
<testcase classname="tests.test_gpu" name="test_b[cuda]"><failure message="bits"/></testcase>
<testcase classname="tests.test_gpu" name="test_c"><skipped message="one GPU"/></testcase>
</testsuite></testsuites>"""

NCU = """==PROF== Connected to process 7
"ID","Kernel Name","Block Size","dram__bytes_read.sum","dram__bytes_write.sum",\
"gpu__time_duration.sum","sm__warps_active.avg.pct_of_peak_sustained_active",\
"launch__registers_per_thread","smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio",\
"smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio"
"","","","byte","byte","ns","%","register/thread","inst","inst"
"0","bucket_kernel","(256, 1, 1)","1,073,741,824","1073741824","1000000","87.5","40","0.1","9.25"
"1","adamw","(256, 1, 1)","n/a","1","1000","50","32","n/a","2"
==PROF== Disconnected
"""


def write_files(out):
    (out / "tests.xml").write_text(JUNIT)
    (out / "ncu.csv").write_text(NCU)
    (out / "cuda.json").write_text(json.dumps(GPU_MEASURED))


def outcomes(tmp_path):
    make = lambda name, verdict, output: steps.Outcome(step(name, ""), verdict, 1.2, output)  # noqa: E731
    return [make("build", "passed", "ok"), make("tests", "failed with exit code 1", "why\nbecause")]


def test_everything_is_written_into_few_small_files(tmp_path):
    write_files(tmp_path)
    gpu.write(outcomes(tmp_path), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == set(gpu.RESULT_FILES) - {"cuda.failed.json", "report.md", "step-times.png"}
    assert len(set(gpu.RESULT_FILES) - {"cuda.failed.json"}) <= 8
    assert 7 * steps.MAX_OUTPUT_BYTES < 2**24  # log.txt
    assert "because" in (tmp_path / "log.txt").read_text()


def test_the_summary_says_what_failed_and_what_was_measured(tmp_path):
    write_files(tmp_path)
    gpu.write(outcomes(tmp_path), tmp_path)
    text = (tmp_path / "summary.txt").read_text()
    assert "| build | 1 | 20 | passed |" in text
    assert "3 tests: 1 failed, 1 skipped\nfailed: tests.test_gpu::test_b[cuda]" in text
    assert "---- the end of tests (failed with exit code 1):\nwhy\nbecause" in text
    assert "the end of build" not in text
    assert "| ≤ 1.10 | 1.040 |" in text
    assert "**GPT-2**" in text
    row = (
        "| Triton's bucket_kernel | 1 | 1,000 | 1,074 | 1,074 | 2,147 | 87.5 | 40 | long_scoreboard"
    )
    assert row in text


def launch(name, **measured):
    known = {"duration_us": 100.0, "bytes_read": 2e8, "bytes_written": 1e8}
    rest = {"occupancy_percent": 50.0, "registers": 64.0, "stalls": {}}
    return {"name": name, **known, **rest, **measured}


def test_launches_of_one_step_are_added_up_and_small_ones_left_out():
    fused = "void multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4, 1, 0>>"
    ours = "void wpadamw::<unnamed>::bucket_kernel<adamw::Rule, float, float, 1, 1>(wpadamw::<un"
    found = [launch(fused), launch(fused), launch("fill", duration_us=2.0), launch(ours)]
    rows = gpu_tables.table([*found, launch(ours, bytes_read=None)]).splitlines()[2:]
    assert rows[0].startswith("| torch's FusedAdam | 2 | 200 | 400.0 | 200.0 | 3,000 |")
    assert rows[1].startswith("| bucket_kernel<adamw, float, float, 1, 1> | 1 | 100 |")
    assert len(rows) == 3 and rows[2].split("|")[4].strip() == "-"


def test_the_record_holds_steps_tests_and_kernels(tmp_path):
    write_files(tmp_path)
    gpu.write(outcomes(tmp_path), tmp_path)
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert [found["verdict"] for found in results["steps"]] == ["passed", "failed with exit code 1"]
    assert results["tests"]["failure"] == ["tests.test_gpu::test_b[cuda]"]
    assert results["kernels"][0]["stalls"] == {"long_scoreboard": 9.25, "barrier": 0.1}
    assert results["kernels"][1]["gb_per_s"] is None


def test_a_summary_needs_no_results(tmp_path):
    gpu.write(outcomes(tmp_path), tmp_path)
    (tmp_path / "tests.xml").write_text("<cut")
    (tmp_path / "ncu.csv").write_text("==ERROR== no permission\n")
    gpu.write(outcomes(tmp_path), tmp_path)
    assert "| build |" in (tmp_path / "summary.txt").read_text()


def test_results_of_failed_benchmarks_are_shown_too(tmp_path):
    (tmp_path / "cuda.failed.json").write_text(json.dumps(GPU_MEASURED))
    assert gpu.read_benchmarks(tmp_path) == GPU_MEASURED


@pytest.mark.parametrize("code, expected", [("", 0), ("raise SystemExit(5)", 1)])
def test_exit_code_is_that_of_the_steps_that_matter(code, expected, tmp_path, monkeypatch, capsys):
    optional = step("ncu", "raise SystemExit(1)", is_required=False)
    monkeypatch.setattr(gpu, "plan", lambda out: [step("tests", code), optional])
    out = tmp_path / "new" / "folder"
    assert gpu.main([str(out)]) == expected
    assert capsys.readouterr().out.startswith("| step | seconds | limit | verdict |")


def test_results_of_a_former_run_are_removed(tmp_path, monkeypatch, capsys):
    write_files(tmp_path)
    monkeypatch.setattr(gpu, "plan", lambda out: [step("build", "")])
    assert gpu.main([str(tmp_path)]) == 0
    assert "1.040" not in capsys.readouterr().out


def test_it_starts_where_nothing_is_built(tmp_path):
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    code = "import sys, bench.gpu.run; print([name for name in sys.modules if 'wpadamw' in name])"
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# The program that the tools watch.


def test_the_probe_runs_every_backend():
    command = [sys.executable, "-m", "wpadamw.bench.gpu.probe", "check", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("check: ")
    assert "torch" in done.stdout


def test_the_probe_steps_with_every_kind_but_those_that_say_nothing():
    done = probe.profile(torch.device("cpu"), numel=100)
    assert [name for name in done if name.startswith("WPAdamW")] == [
        "WPAdamW over torch.float32",
        "WPAdamW(backup=False) over torch.float32",
        'WPAdamW(prediction="rollout") over torch.float32',
        "WPAdamW over torch.bfloat16",
        "WPAdamW(compute_dtype=torch.bfloat16) over torch.float32",
        'WPAdamW(compute_dtype=torch.bfloat16, moments="bfloat16") over torch.float32',
        'WPAdamW(moments="bfloat16") over torch.float32',
        'WPAdamW(moments="int8") over torch.float32',
        'WPAdamW(master="split") over torch.float32',
        'WPAdamW(master="split", moments="bfloat16") over torch.float32',
        'WPAdamW(master="split", moments="int8") over torch.float32',
    ]
