"""Order, statistics and scopes of the timing; and one real run."""

import gc
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from repq.bench import Runner, TimedModel, bench
from repq.errors import RepqError
from repq.machine.cpu import cpu_cores
from repq.machine.environment import capture_environment
from repq.machine.load import OtherLoad
from repq.machine.turns import time_in_turns
from repq.recipe import BenchConfig
from repq.report.numbers import ABSENT
from repq.report.sections.timing import bench_blocks
from repq.results import BenchReport, Environment, ModelInfo


def model_info(name: str) -> ModelInfo:
    return ModelInfo(model=name, engine="fake", variant="float32", precision="float32", size_bytes=10)


class FakeMachine:
    """A clock that moves only while a model runs, and a log of who ran."""

    def __init__(self) -> None:
        self.now = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now

    def work(self, name: str, milliseconds: float) -> None:
        self.log.append(name)
        self.now += round(milliseconds * 1e6)

    def model(self, name: str, milliseconds: float, **more: object) -> TimedModel:
        def infer(images: np.ndarray) -> int:
            assert images.dtype == np.float32
            self.work(name, milliseconds * len(images))
            return len(images)

        def preprocess(pictures) -> np.ndarray:
            self.work(f"{name}:pre", 1)
            return np.stack([picture.transpose(2, 0, 1) for picture in pictures]).astype(np.float32)

        def postprocess(count: int) -> None:
            self.work(f"{name}:post", 2)

        runner = Runner(infer, preprocess, postprocess)
        return TimedModel(model_info(name), lambda threads: runner, **more)


ENVIRONMENT = capture_environment()
PICTURES = [np.full((32, 32, 3), value, np.uint8) for value in (1, 2, 3)]


def test_turns_alternate_in_direction():
    machine = FakeMachine()
    config = BenchConfig(warmup=2, rounds=2, runs_per_round=1, settle_ms=0)
    runs = [lambda name=name: machine.work(name, 1) for name in "abc"]
    time_in_turns(runs, config, machine.clock)
    # two warm-up calls each, then a forward and a backward round of one uncounted and one counted call
    assert "".join(machine.log) == "aabbcc" + "aabbcc" + "ccbbaa"


def test_nothing_is_counted_while_the_threads_of_others_spin():
    machine = FakeMachine()
    ends = {"a": 0.0, "b": 0.0}  # when the threads of each are at rest

    def run(name: str) -> None:
        other = ends["b" if name == "a" else "a"]
        machine.work(name, 8 if machine.now / 1e6 < other else 4)
        ends[name] = machine.now / 1e6 + 30

    config = BenchConfig(warmup=1, rounds=4, runs_per_round=3)
    samples = time_in_turns([partial(run, name) for name in "ab"], config, machine.clock)
    assert samples == [[4.0] * 12] * 2
    machine.log.clear()
    time_in_turns([lambda: machine.work("slow", 80)], BenchConfig(warmup=0, rounds=1, runs_per_round=1), machine.clock)
    assert machine.log == ["slow"] * 2, "one run fills the time"


def test_rows_hold_what_the_clock_said():
    machine = FakeMachine()
    config = BenchConfig(batches=(1, 4), threads=(1, 2), warmup=0, rounds=3, runs_per_round=2)
    models = [machine.model("slow", 8), machine.model("fast", 2)]
    report = bench(models, (32, 32), config, images=PICTURES, clock=machine.clock, environment=ENVIRONMENT)
    assert len(report.rows) == 2 * 2 * 2 * 2  # batches, threads, scopes, models
    for row in report.rows:
        own = {"slow": 8, "fast": 2}[row.model] * row.batch + (3 if row.scope == "end_to_end" else 0)
        assert row.latency_ms_median == pytest.approx(own)
        assert row.latency_ms_p95 is None, "of so few runs it would be the slowest one"
        assert row.images_per_s == pytest.approx(1e3 * row.batch / own)
        assert row.runs == len(row.samples_ms) == 6
    infer = {row.model: row for row in report.rows if row.scope == "infer" and row.batch == 4}
    assert infer["slow"].speedup == pytest.approx(1)
    assert infer["fast"].speedup == pytest.approx(4)
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("runs", [1, 19, 20, 40])
def test_a_row_has_a_95th_percentile_where_a_run_may_lie_above_it(runs):
    machine = FakeMachine()
    config = BenchConfig(warmup=0, rounds=1, runs_per_round=runs)
    (row,) = bench([machine.model("x", 4)], (32, 32), config, clock=machine.clock, environment=ENVIRONMENT).rows
    assert row.latency_ms_p95 == (None if runs < 20 else pytest.approx(4)) and row.runs == runs
    drawn, table = bench_blocks(BenchReport(rows=(row,), environment=ENVIRONMENT, imgsz=(32, 32), rounds=1))[-2:]
    assert "<svg" in drawn.svg
    columns = zip(table.columns, table.rows[0], strict=True)
    (shown,) = (cell for column, cell in columns if column.title.startswith("95th"))
    assert (shown.text == ABSENT) == (runs < 20)


def test_median_and_p95_of_uneven_times():
    machine = FakeMachine()
    times = iter([0.0, *range(1, 101)])
    runs = [lambda: machine.work("x", next(times))]
    [samples] = time_in_turns(runs, BenchConfig(warmup=0, rounds=1, runs_per_round=100, settle_ms=0), machine.clock)
    assert samples == pytest.approx(list(range(1, 101)))


def test_end_to_end_runs_see_the_images_in_turn_and_without_images_there_are_none():
    seen: list[int] = []

    def runner(threads: int) -> Runner:
        return Runner(lambda images: images, lambda pictures: seen.extend(int(p[0, 0, 0]) for p in pictures), id)

    config = BenchConfig(batches=(2,), warmup=0, rounds=1, runs_per_round=3, settle_ms=0)
    report = bench([TimedModel(model_info("x"), runner)], (32, 32), config, images=PICTURES, environment=ENVIRONMENT)
    assert seen == [1, 2, 3, 1, 2, 3, 1, 2]  # the first call of a turn is not counted
    assert report.images == 3
    bare = bench([TimedModel(model_info("x"), runner)], (32, 32), config, environment=ENVIRONMENT)
    assert ([row.scope for row in bare.rows], bare.images) == (["infer"], 0)


def test_without_pre_and_postprocessing_there_is_no_end_to_end_row():
    machine = FakeMachine()
    bare = TimedModel(model_info("bare"), lambda threads: Runner(lambda images: machine.work("bare", 1)))
    config = BenchConfig(warmup=0, rounds=1, runs_per_round=1)
    models = [bare, machine.model("whole", 1)]
    report = bench(models, (32, 32), config, images=PICTURES, clock=machine.clock, environment=ENVIRONMENT)
    rows = {(row.model, row.scope): row for row in report.rows}
    assert set(rows) == {("bare", "infer"), ("whole", "infer"), ("whole", "end_to_end")}
    assert rows["whole", "end_to_end"].speedup is None  # the first model has no such row


def test_collector_is_off_in_the_timed_part_and_on_after():
    seen = []
    config = BenchConfig(warmup=0, rounds=1, runs_per_round=3, settle_ms=0)
    time_in_turns([lambda: seen.append(gc.isenabled())], config)
    assert seen == [False] * 4
    assert gc.isenabled()


def test_collector_comes_back_after_a_failure():
    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        time_in_turns([fail], BenchConfig(warmup=0))
    assert gc.isenabled()


def test_settings_that_cannot_be_are_refused():
    machine = FakeMachine()
    with pytest.raises(RepqError, match="nothing to time"):
        bench([], (32, 32))
    with pytest.raises(RepqError, match="one label"):
        bench([machine.model("a", 1), machine.model("a", 2)], (32, 32))
    with pytest.raises(RepqError, match="batches of 1 only"):
        bench([machine.model("a", 1, batch=1)], (32, 32), BenchConfig(batches=(1, 8)))


@pytest.mark.parametrize(
    ("others", "threads", "crowded"),
    [(0.0, 4, False), (0.2, 4, False), (0.3, 4, True), (2.0, 2, False), (2.3, 2, True), (3.0, 1, False)],
)
def test_times_taken_while_others_had_the_cores_are_marked(monkeypatch, others, threads, crowded):
    monkeypatch.setattr(OtherLoad, "cores", lambda self: others)
    monkeypatch.setattr("repq.machine.load.bound_cores", lambda: 4)
    machine = FakeMachine()
    config = BenchConfig(threads=(1, threads) if threads > 1 else (1,), end_to_end=False)
    report = bench([machine.model("a", 1)], (32, 32), config, clock=machine.clock, environment=ENVIRONMENT)
    assert (report.others, report.crowded) == (others, crowded)


def test_a_process_that_computes_beside_the_models_is_seen():
    code = "import time\nend = time.monotonic() + 60\nwhile time.monotonic() < end: pass"
    values = np.ones((256, 256), np.float32)
    model = TimedModel(model_info("product"), lambda threads: Runner(lambda images: values @ values))
    config = BenchConfig(rounds=4, runs_per_round=4, settle_ms=100, end_to_end=False, threads=(cpu_cores(),))
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        report = bench([model], (32, 32), config)
        child.kill()
    assert report.others > 0.25
    assert report.crowded


def test_real_work_takes_real_time():
    def product(size: int) -> TimedModel:
        values = np.ones((size, size), np.float32)
        return TimedModel(model_info(str(size)), lambda threads: Runner(lambda images: values @ values))

    report = bench([product(1024), product(64)], (32, 32), BenchConfig(rounds=2, runs_per_round=3, end_to_end=False))
    large, small = report.rows
    assert large.latency_ms_median > small.latency_ms_median > 0
    assert small.speedup is not None
    assert small.speedup > 1


def test_environment_names_this_machine():
    environment = capture_environment()
    assert environment.cores >= 1
    assert environment.memory_gib > 0
    assert environment.cpu
    assert {"numpy", "onnx", "onnxruntime"} <= set(environment.libraries)
    assert Environment.model_validate_json(environment.model_dump_json()) == environment
