"""The benchmark: operations and times, rows without enough memory, time or data, and reports (lbdt_jax/benchmark)."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
import types
from collections.abc import Iterator
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
from lbdt_jax.benchmark import measure, timing
from lbdt_jax.benchmark.__main__ import main
from lbdt_jax.benchmark.report import COLUMNS, compare, load, plot, table_line
from lbdt_jax.cpu.convolution import DIMENSION_NUMBERS
from lbdt_jax.ops import convolve
from lbdt_jax.parallel import DATA_AXIS, make_mesh, shard_batch


@pytest.fixture(scope="module")
def result(fast_compilation: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A complete run on one device, which runs out of memory for a batch of 16."""

    def limited_batch(size: int, *arguments: Any, **more: Any) -> Any:
        if size == 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes.")
        return random_batch(size, *arguments, **more)

    config = tiny_config()
    config.model.transfer_layers = 0  # compiles faster
    config.data_dir = str(tmp_path_factory.mktemp("empty"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "SECONDS", 0.0)
        patch.setattr(measure, "WORD_VECTOR_SIZE", WORD_VECTOR_SIZE)
        patch.setattr(measure, "random_batch", limited_batch)
        patch.setattr(measure, "make_mesh", lambda: make_mesh(jax.devices()[:1]))
        patch.setattr(measure, "matrix_ceiling", lambda mesh, dtype: {"float32": 0.5, "bfloat16": 2.0}[dtype])
        *_, last = measure.benchmark(config, [8, 16], [1, 2], minutes=10)
    return last


def rows_of(result: dict[str, Any]) -> dict[tuple[str, int, int], dict[str, Any]]:
    return {(row["program"], row["batch_size"], row["sentences_per_frame"]): row for row in result["rows"]}


def test_every_row_is_measured_or_has_a_reason(result: dict[str, Any]) -> None:
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
    # 2 sentences for each of 8 frames are a batch of 16, too.
    for key in (("training step", 16, 1), ("forward", 16, 1), ("forward", 16, 2)):
        assert rows[key]["not_measured"] == "out of memory"
    for key in (("input pipeline", 8, 1), ("end to end", 8, 1)):
        assert rows[key]["not_measured"].startswith("No records of a2d_sentences in ")
    for key in (("training step", 8, 1), ("forward", 8, 1)):
        row = rows[key]
        seconds = row["seconds"]
        assert 0 < seconds["lower_quartile"] <= seconds["median"] <= seconds["upper_quartile"] < 10
        assert seconds["timings"] == timing.MIN_TIMINGS
        assert row["samples_per_second"] == pytest.approx(8 / seconds["median"])
        assert row["tflops_per_second"] == pytest.approx(row["flop"] / seconds["median"] / 1e12)
        assert row["share_of_ceiling"] == pytest.approx(row["tflops_per_second"] / 0.5)
    # The backward pass takes about twice the operations of the forward pass.
    assert 2.5 < rows["training step", 8, 1]["flop"] / rows["forward", 8, 1]["flop"] < 3.5
    assert rows["training step", 8, 1]["memory_bytes"] > rows["forward", 8, 1]["memory_bytes"] > 8 * 64 * 64 * 6


def test_operations_and_memory_of_a_matrix_product() -> None:
    mesh = make_mesh(jax.devices()[:2])
    sharded = PartitionSpec(DATA_AXIS)
    matrices = shard_batch({"matrix": np.ones((2, 32, 32), np.float32)}, mesh)["matrix"]
    matmul = timing.shard(jnp.matmul, mesh, (sharded, sharded))
    program, row = timing.compile_program(matmul, (matrices, matrices), mesh)
    np.testing.assert_array_equal(program(matrices, matrices), np.full((2, 32, 32), 32, np.float32))
    assert row["flop"] == pytest.approx(2 * 2 * 32**3, rel=1e-4)
    assert row["memory_bytes"] == 3 * 4 * 32 * 32
    assert row["compile_seconds"] > 0


def test_operations_of_a_convolution_are_counted_in_full() -> None:
    mesh = make_mesh(jax.devices()[:1])

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return convolve(x, kernel, (1, 1), ((0, 0), (0, 0)), dimension_numbers=DIMENSION_NUMBERS).sum()

    # The CPU loops over the images, and the compiler's analysis counts one iteration of a loop.
    _, row = timing.compile_program(
        jax.jit(jax.grad(loss)), (jnp.ones((3, 3, 64, 64)), jnp.ones((9, 25, 25, 64))), mesh
    )
    assert row["flop"] == pytest.approx(2 * 9 * 23 * 23 * 3 * 3 * 64 * 64, rel=0.1)


def test_cost_of_one_is_relative_to_one_sentence_on_as_many_frames() -> None:
    def forward(size: int, sentences: int, seconds: float) -> dict[str, Any]:
        return measure.describe_row("forward", size, sentences) | {"seconds": {"median": seconds}}

    rows = [measure.describe_row("training step", 8, 1) | {"seconds": {"median": 9.0}}, forward(16, 1, 4.0)]
    rows += [forward(8, 1, 2.0), forward(16, 2, 3.0)]
    for row in rows:
        measure.add_cost_of_one(row, rows)
    assert [row.get("cost_of_one") for row in rows] == [None, 1.0, 1.0, 1.5]


def test_the_ceiling_is_the_fastest_of_several_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def fake_measure_program(run: Any, row: dict[str, Any], samples: int) -> dict[str, Any]:
        sizes.append(round((row["flop"] / 2) ** (1 / 3)))
        rate, seconds = {1024: (1.0, 0.01), 2048: (3.0, 0.03)}.get(sizes[-1], (2.0, 0.06))
        return row | {"tflops_per_second": rate, "seconds": {"median": seconds}}

    monkeypatch.setattr(timing, "measure_program", fake_measure_program)
    assert timing.matrix_ceiling(make_mesh(jax.devices()[:1]), "bfloat16") == 3.0
    assert sizes == [1024, 2048, 4096]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that `timing` sees, to be changed: those of this machine depend on what else runs on it."""
    now = [0.0]
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def test_calls_are_timed_after_the_warm_up(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    calls = []

    def run() -> None:
        calls.append(None)
        now[0] += 1.0 if len(calls) == 1 else 0.05

    row = timing.measure(run, samples=4)
    assert row["seconds"]["median"] == pytest.approx(0.05)
    assert row["samples_per_second"] == pytest.approx(4 / 0.05)
    assert len(calls) == 2 + timing.MIN_TIMINGS * 2  # groups of two take 0.1 s


def test_the_speed_of_a_pipeline_does_not_count_its_read_ahead(now: list[float]) -> None:
    end = 10 * timing.PIPELINE_SECONDS

    def batches() -> Iterator[int]:
        """40 at once, then on average one every 5 ms, in bunches of four."""
        for _ in range(40):
            now[0] += 1e-6
            yield 0
        start = now[0]
        for number in itertools.count():
            now[0] = max(now[0] + 1e-6, start + 0.02 * (number // 4 + 1))
            assert now[0] < end
            yield number

    source = batches()
    row = timing.measure_pipeline(lambda: next(source), samples=4)
    assert timing.PIPELINE_SECONDS < now[0] < 1.5 * timing.PIPELINE_SECONDS
    assert row["samples_per_second"] == pytest.approx(4 / 0.005, rel=0.005)
    seconds = row["seconds"]
    assert 0.0045 < seconds["lower_quartile"] <= seconds["median"] <= seconds["upper_quartile"] < 0.0055
    assert seconds["timings"] <= timing.PIPELINE_SECONDS / timing.BLOCK_SECONDS


def test_rows_that_would_exceed_the_budget_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
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
    # The third step could take two minutes, as the first did; the second forward pass would end at minute 5.
    assert ["not_measured" in row for row in last["rows"]] == [False, False, True, False, True]
    assert last["rows"][2]["not_measured"] == "no time left: --minutes=4.5"
    assert plot(last | {"rows": [last["rows"][2]]}) is None


def test_without_tensorflow_the_input_pipeline_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pipeline", "encoded_batches", "record_dataset"):
        monkeypatch.delitem(sys.modules, f"input_pipeline.{name}", raising=False)
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
def test_an_invalid_configuration_is_an_error(field: str, value: Any, message: str) -> None:
    config = tiny_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        next(measure.benchmark(config, [8], [1], minutes=10))


def test_other_errors_are_not_reported_as_out_of_memory() -> None:
    def broken() -> dict[str, Any]:
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        measure.attempt(broken)


def test_table_columns_are_aligned(result: dict[str, Any]) -> None:
    lines = [table_line(row) for row in result["rows"]]
    with_cost = table_line(result["rows"][0] | {"cost_of_one": 1.5})
    assert len(with_cost) == len(COLUMNS) and with_cost.endswith("     1.50")
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
def test_a_file_without_a_result_is_an_error(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match="a.json can't be read as a result"):
        load(path)


def test_the_plot_has_a_panel_for_batch_sizes_and_one_for_sentences(result: dict[str, Any]) -> None:
    one_panel = plot(result)
    with_sentences = copy.deepcopy(result)
    forward = rows_of(with_sentences)["forward", 8, 1]
    with_sentences["rows"].append(forward | {"batch_size": 32, "sentences_per_frame": 4})
    two_panels = plot(with_sentences)
    assert [axes.get_title("left") for axes in one_panel.axes] == ["Samples per second"]
    assert [axes.get_title("left") for axes in two_panels.axes] == ["Samples per second", "Masks per second"]
    (width, height), size = one_panel.get_size_inches(), two_panels.get_size_inches()
    assert (height, 2 * width) == (size[1], size[0])


def test_the_plot_has_medians_quartiles_and_an_axis_from_zero(result: dict[str, Any]) -> None:
    quartiles = {"median": 0.1, "lower_quartile": 0.08, "upper_quartile": 0.125}
    rows = [measure.describe_row("forward", size, 1) | {"seconds": quartiles} for size in (8, 16)]
    (axes,) = plot(result | {"rows": rows}).axes
    (container,) = axes.containers
    line, _, (bars,) = container
    np.testing.assert_array_equal(line.get_xdata(), [0, 1])  # at equal distances
    np.testing.assert_allclose(line.get_ydata(), [80, 160])
    np.testing.assert_allclose(bars.get_segments(), [[(0, 64), (0, 100)], [(1, 128), (1, 200)]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "16"]
    assert [label.get_text() for label in axes.get_legend().get_texts()] == ["forward"]
    lowest, highest = axes.get_ylim()
    assert lowest == 0 and highest > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch_sizes=8,x"], "--batch_sizes=8,x: expected positive integers"),
        (["--sentences="], "--sentences=: expected positive integers"),
        (["--nonsense"], "Unknown command line flag 'nonsense'"),
        (["a.json", "b.json"], "a.json: unexpected argument"),
        (["--compare=a.json"], "--compare takes two results"),
        (["--compare=a.json,b.json"], "a.json can't be read as a result"),
        (["--output=result.txt"], "--output=result.txt: the name must end in .json"),
    ],
)
def test_wrong_flags_give_one_message(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # keep the devices and the cache of the tests
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
def test_wrong_configurations_give_one_message(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "lbdt_jax.benchmark", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_the_command_writes_a_result_and_a_plot(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [result | {"rows": result["rows"][:count]} for count in range(len(result["rows"]) + 1)]
    calls = []
    monkeypatch.setattr(measure, "benchmark", lambda *arguments: calls.append(arguments) or iter(steps))
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    path = tmp_path / "new" / "result.json"
    arguments = ["--batch_sizes=8,16", "--sentences=1,2", "--minutes=3", f"--output={path}"]
    with flagsaver.flagsaver():
        main(["benchmark", *arguments])
    assert calls[0][1:] == ([8, 16], [1, 2], 3.0) and calls[0][0].model.transfer_layers == 4
    assert load(path) == result
    assert sorted(p.name for p in path.parent.iterdir()) == ["result.json", "result.png"]
    output = capsys.readouterr().out
    assert COLUMNS in output and all(table_line(row) in output for row in result["rows"])
