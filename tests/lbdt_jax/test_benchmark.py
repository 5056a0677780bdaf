"""What the benchmark counts and times, what it does without memory, time or data, and how it reports."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver
from jax.sharding import PartitionSpec
from paths import ROOT
from tiny import WORD_VECTOR_SIZE, tiny_config

from input_pipeline.batch import random_batch
from input_pipeline.errors import UserError
from lbdt_jax.benchmark import measure
from lbdt_jax.benchmark.__main__ import main
from lbdt_jax.benchmark.report import COLUMNS, chart, compare, load, table_line
from lbdt_jax.chart import Panel, Point, line_chart, round_step
from lbdt_jax.cpu.convolution import LAYOUT, convolve
from lbdt_jax.parallel import DATA_AXIS, make_mesh, shard_batch
from lbdt_jax.visualization.render import PALETTE


@pytest.fixture(scope="module")
def result(fast_compilation: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run, on one device; for a batch of 16 there is not enough memory."""

    def limited_batch(size: int, *arguments: Any, **more: Any) -> Any:
        if size == 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return random_batch(size, *arguments, **more)

    config = tiny_config()
    config.model.transfer_layers = 0  # compiles faster
    config.data_dir = str(tmp_path_factory.mktemp("empty"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SECONDS", 0.0)
        patch.setattr(measure, "WORD_VECTOR_SIZE", WORD_VECTOR_SIZE)
        patch.setattr(measure, "random_batch", limited_batch)
        patch.setattr(measure, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
        patch.setattr(measure, "matrix_ceiling", lambda mesh, dtype: {"float32": 0.5, "bfloat16": 2.0}[dtype])
        *_, last = measure.benchmark(config, [8, 16], [1, 2], minutes=10)
    return last


def rows_of(result: dict[str, Any]) -> dict[tuple[str, int, int], dict[str, Any]]:
    return {(row["program"], row["batch_size"], row["sentences_per_frame"]): row for row in result["rows"]}


def test_every_row_is_measured_or_says_why_not(result: dict[str, Any]) -> None:
    rows = rows_of(result)
    assert [*rows] == [
        ("training step", 8, 1),
        ("training step", 16, 1),
        ("forward", 8, 1),
        ("forward", 16, 1),
        ("forward", 16, 2),
        ("input pipeline", 8, 1),
        ("end to end", 8, 1),
    ]
    # 16 sentences about 8 frames are a batch of 16 as well.
    for key in (("training step", 16, 1), ("forward", 16, 1), ("forward", 16, 2)):
        assert rows[key]["not_measured"] == "out of memory"
    for key in (("input pipeline", 8, 1), ("end to end", 8, 1)):
        assert rows[key]["not_measured"].startswith("No records of a2d_sentences in ")
    for key in (("training step", 8, 1), ("forward", 8, 1)):
        row = rows[key]
        seconds = row["seconds"]
        assert 0 < seconds["lower_quartile"] <= seconds["median"] <= seconds["upper_quartile"] < 10
        assert seconds["timings"] == measure.FEWEST
        assert row["samples_per_second"] == pytest.approx(8 / seconds["median"])
        assert row["tflops_per_second"] == pytest.approx(row["flop"] / seconds["median"] / 1e12)
        assert row["share_of_ceiling"] == pytest.approx(row["tflops_per_second"] / 0.5)
    # A step is the forward pass, and about twice as much backwards.
    assert 2.5 < rows["training step", 8, 1]["flop"] / rows["forward", 8, 1]["flop"] < 3.5
    assert rows["training step", 8, 1]["memory_bytes"] > rows["forward", 8, 1]["memory_bytes"] > 8 * 64 * 64 * 6


def test_products_are_counted_and_weighed() -> None:
    mesh = make_mesh(jax.devices()[:2])
    parts = PartitionSpec(DATA_AXIS)
    both = shard_batch({"matrix": np.ones((2, 32, 32), np.float32)}, mesh)["matrix"]
    product = measure.over_devices(jnp.matmul, mesh, (parts, parts))
    program, row = measure.compile_program(product, (both, both), mesh)
    np.testing.assert_array_equal(program(both, both), np.full((2, 32, 32), 32, np.float32))
    assert row["flop"] == pytest.approx(2 * 2 * 32**3, rel=1e-4)
    assert row["memory_bytes"] == 3 * 4 * 32 * 32
    assert row["compile_seconds"] > 0


def test_arithmetic_is_that_of_accelerators_too() -> None:
    mesh = make_mesh(jax.devices()[:1])

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return convolve(x, kernel, (1, 1), ((0, 0), (0, 0)), dimension_numbers=LAYOUT).sum()

    # On the CPU a loop over the pictures, of which the compiler's analysis counts one turn.
    _, row = measure.compile_program(
        jax.jit(jax.grad(loss)), (jnp.ones((3, 3, 64, 64)), jnp.ones((9, 25, 25, 64))), mesh
    )
    assert row["flop"] == pytest.approx(2 * 9 * 23 * 23 * 3 * 3 * 64 * 64, rel=0.1)


def test_several_sentences_are_related_to_one_on_as_many_frames() -> None:
    def forward(size: int, together: int, seconds: float) -> dict[str, Any]:
        return measure.describe_row("forward", size, together) | {"seconds": {"median": seconds}}

    rows = [measure.describe_row("training step", 8, 1) | {"seconds": {"median": 9.0}}, forward(16, 1, 4.0)]
    rows += [forward(8, 1, 2.0), forward(16, 2, 3.0)]
    for row in rows:
        measure.relate_to_one_sentence(row, rows)
    assert [row.get("cost_of_one") for row in rows] == [None, 1.0, 1.0, 1.5]


def test_the_ceiling_is_the_fastest_of_a_few_products(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def measured(run: Any, row: dict[str, Any], samples: int) -> dict[str, Any]:
        sides.append(round((row["flop"] / 2) ** (1 / 3)))
        rate, seconds = {1024: (1.0, 0.01), 2048: (3.0, 0.03)}.get(sides[-1], (2.0, 0.06))
        return row | {"tflops_per_second": rate, "seconds": {"median": seconds}}

    monkeypatch.setattr(measure, "measure_program", measured)
    assert measure.matrix_ceiling(make_mesh(jax.devices()[:1]), "bfloat16") == 3.0
    assert sides == [1024, 2048, 4096]


def test_calls_are_timed_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SECONDS", 0.0)
    calls = []

    def run() -> None:
        calls.append(None)
        time.sleep(1.0 if len(calls) == 1 else 0.05)

    row = measure.measure(run, samples=4)
    assert 0.05 <= row["seconds"]["median"] < 0.5
    assert row["samples_per_second"] == pytest.approx(4 / row["seconds"]["median"])
    assert len(calls) == 2 + measure.FEWEST * 2  # two together last 0.1 s


def test_nothing_is_begun_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    minute, now = 60.0, [0.0]

    def job(minutes: float) -> dict[str, Any]:
        now[0] += minutes * minute
        return {}

    plan = [("training step", 2), ("training step", 1), ("training step", 1), ("forward", 1), ("forward", 1)]
    rows = [(measure.describe_row(name, 8, 1), lambda minutes=minutes: job(minutes)) for name, minutes in plan]
    monkeypatch.setattr(measure, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(measure, "matrix_ceiling", lambda mesh, dtype: 1.0)
    monkeypatch.setattr(measure, "jobs", lambda *_: iter(rows))
    *_, last = measure.benchmark(tiny_config(), [8], [1], minutes=4.5)
    # The third step might take two minutes, as the first did; the second forward pass would end at 5.
    assert ["not_measured" in row for row in last["rows"]] == [False, False, True, False, True]
    assert last["rows"][2]["not_measured"] == "no time left: --minutes=4.5"
    assert chart(last | {"rows": [last["rows"][2]]}) is None


def test_without_tensorflow_only_the_input_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("input_pipeline.pipeline")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("tensorflow", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = [measure.attempt(job) for _, job in measure.pipeline_jobs(tiny_config(), make_mesh())]
    assert len(rows) == 2 and all("tensorflow" in row["not_measured"] for row in rows)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", 12, "A batch of 12 can't be divided among 8 devices"),
        ("model.dtype", "float64", "config.model.dtype is float64; choose one of float32, bfloat16"),
    ],
)
def test_what_can_not_be_measured_is_refused_at_once(field: str, value: Any, message: str) -> None:
    config = tiny_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        next(measure.benchmark(config, [8], [1], minutes=10))


def test_other_errors_are_not_taken_for_too_little_memory() -> None:
    def broken() -> dict[str, Any]:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        measure.attempt(broken)


def test_a_table_lines_up(result: dict[str, Any]) -> None:
    lines = [table_line(row) for row in result["rows"]]
    asked = table_line(result["rows"][0] | {"cost_of_one": 1.5})
    assert len(asked) == len(COLUMNS) and asked.endswith("     1.50")
    assert len(lines[0]) == len(lines[2]) == len(COLUMNS) - len("     1.50")
    assert table_line({**result["rows"][1], "not_measured": "one\n  two"}).endswith("  not measured: one two")
    assert lines[1] == "training step      16         1  not measured: out of memory"


def test_two_results_are_compared(result: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(result))
    first = load(tmp_path / "a.json")
    assert first == result
    same = compare(first, first)
    assert same.startswith("Same device, JAX, environment and configuration.")
    assert same.count("1.00    1.00  within the spread") == 2

    second = copy.deepcopy(first)
    second["config"]["model"]["dtype"] = "bfloat16"
    step = second["rows"][0]
    step["samples_per_second"] *= 3
    step["seconds"] = {name: value / 3 for name, value in step["seconds"].items()}
    second["environment"] = {"LBDT_JAX_ONEDNN": "1"}
    del second["rows"][2]
    second["rows"].append(step | {"batch_size": 32})
    lines = compare(first, second).splitlines()
    assert lines[0] == "config.model.dtype: float32 -> bfloat16"
    assert lines[1] == "environment.LBDT_JAX_ONEDNN: None -> 1"
    assert lines[4].split()[-2:] == ["3.00", "1.00"]
    assert lines[5].endswith("not measured in the first and the second")
    assert lines[6].endswith("not measured in the second")
    assert lines[-1].split() == "training step 32 1 not measured in the first".split()


NO_CEILING = '{"rows": [], "jax": "1", "device": {}, "config": {"model": {}}, "ceiling": []}'


@pytest.mark.parametrize("content", [None, "{", "[]", NO_CEILING, '{"rows": [{"program": "forward"}]}'])
def test_files_that_hold_no_result_are_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="a.json can't be read as a result"):
        load(path)


def test_the_plot_shows_both_throughputs(result: dict[str, Any]) -> None:
    alone = chart(result)
    asked = copy.deepcopy(result)
    forward = rows_of(asked)["forward", 8, 1]
    asked["rows"].append(forward | {"batch_size": 32, "sentences_per_frame": 4})
    both = chart(asked)
    assert (alone.height, 2 * alone.width) == (both.height, both.width)


def test_points_lie_where_their_values_are() -> None:
    points = [Point(8, 50.0, 50.0, 50.0), Point(16, 100.0, 100.0, 100.0)]
    picture = np.asarray(line_chart("title", [Panel("heading", "across", {"line": points})]))
    blue = (picture == PALETTE[6]).all(axis=-1)
    blue[:120] &= False  # the legend
    rows, columns = np.nonzero(blue)
    assert np.ptp(rows) == pytest.approx(150 + 8, abs=2)  # half of the axis, and a dot
    assert np.ptp(columns) == pytest.approx(240 + 12, abs=2)
    assert rows[columns.argmax()] < rows[columns.argmin()]
    with pytest.raises(ValueError, match="nothing to show"):
        line_chart("title", [])


@pytest.mark.parametrize(("highest", "step"), [(100, 20), (101, 50), (0.9, 0.2), (5, 1), (260, 100), (1e-3, 2e-4)])
def test_axes_have_round_steps(highest: float, step: float) -> None:
    assert round_step(highest) == pytest.approx(step)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_sizes=8,x"], "--batch_sizes=8,x: give whole numbers"),
        (["--sentences="], "--sentences=: give whole numbers"),
        (["--nonsense"], "Unknown command line flag 'nonsense'"),
        (["a.json", "b.json"], "a.json: only flags are understood"),
        (["--compare=a.json"], "--compare takes two results"),
        (["--compare=a.json,b.json"], "a.json can't be read as a result"),
        (["--output=result.txt"], "--output=result.txt: the name must end in .json"),
    ],
)
def test_wrong_flags_get_one_message(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # devices and cache are the tests'
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
        main(["benchmark", *arguments])
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert not captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=missing.py"], "[Errno 2] No such file or directory: 'missing.py'"),
        (["--config=configs/a2d.py", "--config.model.dtpe=float32"], "no field 'dtpe'. Did you mean 'dtype'?"),
    ],
)
def test_wrong_configurations_get_one_message(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "lbdt_jax.benchmark", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_the_command_writes_a_result_and_a_plot(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [result | {"rows": result["rows"][:count]} for count in range(len(result["rows"]) + 1)]
    asked = []
    monkeypatch.setattr(measure, "benchmark", lambda *arguments: asked.append(arguments) or iter(steps))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    path = tmp_path / "new" / "result.json"
    arguments = ["--batch_sizes=8,16", "--sentences=1,2", "--minutes=3", f"--output={path}"]
    with flagsaver.flagsaver():
        main(["benchmark", *arguments])
    assert asked[0][1:] == ([8, 16], [1, 2], 3.0) and asked[0][0].model.transfer_layers == 4
    assert load(path) == result
    assert sorted(p.name for p in path.parent.iterdir()) == ["result.json", "result.png"]
    shown = capsys.readouterr().out
    assert COLUMNS in shown and all(table_line(row) in shown for row in result["rows"])
