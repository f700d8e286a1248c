"""Races: who takes part and what is measured; the machine's memory and caches."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch

from wpadamw.bench import machine, registry
from wpadamw.bench.registry import COPY, FUSED, IN_PLACE, PLAIN, Entrant
from wpadamw.bench.speed import entry, measure, memory_probe, progress, shapes

CPU = torch.device("cpu")
FP32 = registry.entrants("fp32")


# Measuring.


def noted(log, name, event):
    return lambda: log.append((event, name))


def race_of(timer=measure.host_time_ms, **runs):
    race = measure.Race(timer)
    for name, action in runs.items():
        race.enter(name, lambda action=action: measure.Contestant(action))
    return race


def test_race_runs_each_contestant_once_a_round_from_every_place():
    log = []
    race = measure.Race(measure.host_time_ms)
    for name in "abc":
        runner = measure.Contestant(noted(log, name, "run"), prepare=noted(log, name, "prepare"))
        race.enter(name, lambda runner=runner: runner)
    log.clear()
    for _ in range(6):
        race()
    assert log[::2] == [("prepare", name) for _, name in log[1::2]]
    ran = [name for _, name in log[1::2]]
    rounds = ["".join(ran[i : i + 3]) for i in range(0, len(ran), 3)]
    assert rounds == ["abc", "cba", "bca", "acb", "cab", "bac"]


def test_race_does_not_count_its_warm_up():
    assert race_of(a=lambda: None).samples == {"a": []}


def table_of(times, moved):
    race = race_of(**dict.fromkeys(times, lambda: None))
    race.contestants = {n: measure.Contestant(lambda: None, moved[n]) for n in times}
    race.samples = times
    return race


def test_table_rows_are_medians_ratios_and_shares():
    times = {"fused": [1.0, 2.0, 3.0, 2.0], "ours": [4.0, 4.0, 4.0, 9.0], "copy": [1.0] * 4}
    moved = {"fused": 28_000_000, "ours": None, "copy": 28_000_000}
    rows = measure.table_rows(table_of(times, moved), reference="fused", roof="copy")
    assert rows["ours"] == {
        **{"median_ms": 4.0, "iqr_ms": 1.25, "n": 4, "ratio": 2.0},
        **{"bytes_moved": None, "gb_per_s": None, "share_of_copy": None},
    }
    assert (rows["fused"]["gb_per_s"], rows["fused"]["share_of_copy"]) == (14.0, 0.5)


# Who cannot take part.


def crash(at):
    """Something that runs a number of times."""
    calls = itertools.count()

    def run():
        if next(calls) >= at:
            raise RuntimeError("out of order\nsee the log")

    return run


@pytest.mark.parametrize("at", [0, measure.NUM_WARMUP_ROUNDS + 1], ids=["first-step", "later"])
def test_who_crashes_is_a_row_with_the_reason_and_the_rest_goes_on(at):
    race = race_of(a=lambda: None, b=crash(at), c=lambda: None)
    for _ in range(4):
        race()
    rows = measure.table_rows(race, reference="b", roof="c")
    assert list(rows) == ["a", "b", "c"]
    assert rows["b"] == {"why": "out of order"}
    assert rows["a"]["n"] == rows["c"]["n"] == 4
    assert rows["a"]["ratio"] is None


def test_a_race_without_contestants_is_a_table_of_reasons():
    race = measure.Race(measure.host_time_ms)
    race.enter("a", lambda: None, why_not="no room")
    race()
    assert measure.table_rows(race, reference="a", roof="b") == {"a": {"why": "no room"}}


def entered(those, **options):
    race = measure.Race(measure.host_time_ms)
    entry.enter(race, those, shapes.Shape.equal(2, 1000, torch.float32, CPU), **options)
    return race


PEER_MODULE = """
class Optimizer:
    def __init__(self, params, **options):
        built.append(self)
        self.params = params
    def step(self):
        for param in self.params:
            param.grad = None
class Crashing:
    def __init__(self, params, **options):
        raise ValueError("wants another device\\nand more")
built = []
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
    (tmp_path / "fake_peer.py").write_text(PEER_MODULE)
    (tmp_path / "broken_peer.py").write_text("import fake_library_of_peer")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda factory: Entrant("Fake", factory, {}, ("peers",), package="fake-peer")


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("fake_peer_2.optim:Optimizer", "fake-peer is not installed"),
        ("broken_peer:Optimizer", "No module named 'fake_library_of_peer'"),
        ("fake_peer:Crashing", "wants another device"),
    ],
)
def test_a_peer_that_cannot_be_had_is_a_row_with_the_reason(factory, why, peer):
    race = entered([FP32[FUSED], peer(factory)])
    assert race.left_out == {"Fake": why}
    assert FUSED in race.contestants


def test_a_peer_that_drops_gradients_gets_them_back(peer):
    race = entered([peer("fake_peer:Optimizer")])
    assert race.left_out == {}
    (params,) = [optimizer.params for optimizer in sys.modules["fake_peer"].built]
    assert params[0].grad is None
    race.contestants["Fake"].prepare()
    assert params[0].grad is not None


@pytest.mark.parametrize(("is_warm", "num_steps"), [(False, 0), (True, 1)])
def test_a_warm_step_follows_another_one_that_is_not_timed(is_warm, num_steps):
    shape = shapes.Shape.equal(1, 8, torch.float32, torch.device("cpu"))
    trained = entry.Trained(FP32[FUSED], shape, has_new_gradients=True, is_warm=is_warm)
    (param,) = trained.params
    before = param.grad.data_ptr()
    trained.prepare()
    optimizer = trained.step.__self__
    assert optimizer.state[param].get("step", 0) == num_steps
    assert param.grad.data_ptr() != before


def test_what_does_not_fit_into_memory_is_a_row_with_the_reason(monkeypatch):
    free = FP32[FUSED].held_bytes * 2000 + 3 * 14 * 2000
    monkeypatch.setattr(machine, "free_bytes", lambda device: free)
    race = entered([FP32[FUSED], FP32[PLAIN]])
    assert list(race.left_out) == [PLAIN]
    assert race.left_out[PLAIN].startswith("needs 0.0 GiB of memory, got")
    monkeypatch.setattr(machine, "free_bytes", lambda device: 1000)
    assert set(entered([*FP32.values()]).left_out) == {*FP32, COPY, IN_PLACE}


def test_after_the_deadline_nobody_is_built():
    race = entered([FP32[FUSED]], deadline=0.0)
    assert race.left_out == {FUSED: "no time was left"}


def test_memory_probe_tells_why_nothing_was_probed(monkeypatch):
    shape = shapes.Shape.equal(1, 1000, torch.float32, CPU)
    entrant = FP32[FUSED]
    assert memory_probe.row(entrant._replace(why_not="no driver"), shape) == {"why": "no driver"}
    assert memory_probe.row(entrant._replace(factory="math:no"), shape)["why"].startswith(
        "module 'math'"
    )
    monkeypatch.setattr(machine, "free_bytes", lambda device: 0)
    assert "got 0.0 GiB" in memory_probe.row(entrant, shape)["why"]


# Memory and caches.


def test_a_small_limit_of_a_control_group_counts(tmp_path):
    (tmp_path / "self").write_text("0::/a/b\n")
    (tmp_path / "fs" / "a" / "b").mkdir(parents=True)
    for folder, limit, used in (("a/b", "max", "5"), ("a", "100", "60"), (".", "max", "7")):
        (tmp_path / "fs" / folder / "memory.max").write_text(limit + "\n")
        (tmp_path / "fs" / folder / "memory.current").write_text(used + "\n")
    (tmp_path / "fs" / "a" / "memory.stat").write_text("anon 1\ninactive_file 20\n")
    found = machine._cgroup_free_bytes(tmp_path / "self", tmp_path / "fs")
    assert list(found) == [60]


def test_a_control_group_of_version_1_counts_where_a_container_shows_only_its_root(tmp_path):
    (tmp_path / "self").write_text("4:memory:/outside/x\n3:cpu:/\n0::/\n")
    (tmp_path / "fs" / "memory").mkdir(parents=True)
    (tmp_path / "fs" / "memory" / "memory.limit_in_bytes").write_text("100\n")
    (tmp_path / "fs" / "memory" / "memory.usage_in_bytes").write_text("30\n")
    assert list(machine._cgroup_free_bytes(tmp_path / "self", tmp_path / "fs")) == [70]


def test_available_memory_is_read_where_linux_tells(tmp_path):
    (tmp_path / "meminfo").write_text("MemFree:  1 kB\nMemAvailable:    2 kB\n")
    assert machine._available_bytes(tmp_path / "meminfo") == 2048
    assert machine._available_bytes(tmp_path / "missing") is None


def test_all_caches_of_the_last_level_count_once(tmp_path):
    for cpu, index, level, size, shared in (
        *((0, 0, 1, "32K", "0"), (0, 3, 3, "32768K", "0-1"), (1, 3, 3, "32768K", "0-1")),
        *((2, 0, 1, "64M", "2"), (2, 3, 3, "16M", "2-3"), (3, 3, 3, "", "2-3")),
    ):
        cache = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
        cache.mkdir(parents=True)
        for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
            (cache / name).write_text(f"{text}\n")
    assert machine._last_level_bytes(tmp_path) == (32 + 16) * 2**20
    assert machine._last_level_bytes(tmp_path / "missing") == 0


@pytest.mark.parametrize(
    ("footprint", "copies"), [(200, 1), (300, 1), (199, 3), (100, 3), (1, 201)]
)
def test_twice_the_cache_lies_between_two_rounds_on_a_copy(footprint, copies):
    assert entry.num_copies(footprint, cache=100) == copies
    assert copies == 1 or (copies - 1) * footprint >= 2 * 100


def test_a_rotation_takes_every_copy_in_turn():
    taken = []

    class Copy:
        def __init__(self, i):
            self.i = i

        def prepare(self):
            taken.append(("prepare", self.i))

        def step(self):
            taken.append(("step", self.i))

    rotation = entry.Rotation(map(Copy, range(2)))
    for _ in range(3):
        rotation.prepare()
        rotation.run()
    assert taken == [(what, i) for i in (0, 1, 0) for what in ("prepare", "step")]


def test_rotated_inputs_are_all_warmed_up_and_counted_in_memory(monkeypatch):
    build, built = Entrant.build, []
    monkeypatch.setattr(Entrant, "build", lambda *args: built.append(build(*args)) or built[-1])
    race = entered([FP32[FUSED]], copies=4)
    assert len(built) == 4
    for optimizer in built:
        (state, _) = optimizer.state.values()
        assert state["step"] == measure.NUM_WARMUP_ROUNDS
    monkeypatch.setattr(machine, "free_bytes", lambda device: 4 * (20 + 3 * 14) * 2000 - 1)
    assert FUSED in entered([FP32[FUSED]], copies=4).left_out
    assert race.left_out == {}


class FakeBar:
    def __init__(self):
        self.n, self.text = 0, ""

    def update(self, thousandths):
        self.n += thousandths

    def set_description(self, text):
        self.text = text


def test_the_bar_follows_a_process_and_ends_with_it():
    code = (
        "import os, sys; fd = int(sys.argv[1].partition('=')[2]); "
        "os.write(fd, b'250\\n500\\n'); print('hello'); sys.exit(3)"
    )
    bar = FakeBar()
    assert progress.watch([sys.executable, "-c", code], bar, "suite") == (3, "hello\n")
    assert (bar.n, bar.text) == (1000, "suite")


def test_machine_slug_is_a_directory_name():
    facts = {"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 4}
    assert machine.machine_slug(facts) == "intel-xeon-cpu-2-20ghz-4-cores"
