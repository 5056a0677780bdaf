"""Two processes with four devices each equal one process with eight (lbdt_jax/parallel.py, launch/local.sh)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import ROOT
from runs import OPTIMIZED, finish, logged, process_environments, start, start_processes, write_config

from input_pipeline.errors import UserError
from lbdt_jax import parallel
from lbdt_jax.checkpoint import load_checkpoint
from lbdt_jax.parallel import initialize_distributed

STEPS = 3

#: In float32, another order of summing gradients changes those of the third step by about 1e-4. Here, parameters and
#: gradients are float64 too, and only the logged values are float32.
DOUBLE = {"JAX_ENABLE_X64": "1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fields = {"checkpoint_every_steps": 2, "model.dtype": "float64"}
    return write_config(tmp_path_factory.mktemp("processes"), STEPS, **fields)


@pytest.fixture(scope="module")
def single(config: Path) -> Path:
    """The workdir of a run in one process."""
    workdir = config.parent / "single"
    finish(start(config, workdir, **DOUBLE))
    return workdir


@pytest.mark.slow
def test_two_processes_equal_one(config: Path, single: Path) -> None:
    workdir = config.parent / "two"
    (output, bars), (other_output, no_bars) = map(finish, start_processes(2, config, workdir, **DOUBLE))
    for name in ("loss", "bce", "dice", "iou", "gradient_norm"):
        one, two = logged(single, name), logged(workdir, name)
        assert list(one) == list(two) == [1, 2, 3]
        np.testing.assert_allclose([*two.values()], [*one.values()], rtol=2e-7)

    assert "mean IoU" in output and "step/s" in bars
    assert other_output == "" and "step/s" not in no_bars and "sentence/s" not in no_bars
    assert len(list(workdir.glob("events.out.tfevents.*"))) == 1
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "3"}


@pytest.mark.slow
def test_two_processes_with_one_device_each_equal_one_with_two(config: Path) -> None:
    one, two = config.parent / "two_devices", config.parent / "one_device_each"
    finish(start(config, one, "--config.cpu_devices=2", **DOUBLE))
    for _ in range(2):
        for process in start_processes(2, config, two, devices=2, **DOUBLE):
            finish(process)
        for name in ("loss", "gradient_norm"):
            np.testing.assert_allclose([*logged(two, name).values()], [*logged(one, name).values()], rtol=2e-7)
        checkpoint = load_checkpoint(two)
        assert checkpoint.step == STEPS
        shutil.rmtree(checkpoint.path)  # the second run resumes from step 2


@pytest.mark.slow
def test_two_processes_score_every_sample_once(config: Path, single: Path) -> None:
    workdir = config.parent / "scored_by_two"
    arguments = ("--mode=evaluate", f"--config.checkpoint={single}")
    for process in start_processes(2, config, workdir, *arguments, **DOUBLE):
        finish(process)
    one, two = (
        json.loads((folder / "evaluation" / "moving_shapes-test.json").read_text()) for folder in (single, workdir)
    )
    assert two["samples"] == 48
    assert single / one.pop("checkpoint") == Path(two.pop("checkpoint"))  # its own, and one outside of the workdir
    assert two == one
    for kind in ("best", "worst"):
        name = f"moving_shapes-test-{kind}.png"
        assert (workdir / "evaluation" / name).read_bytes() == (single / "evaluation" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_validate_together(config: Path) -> None:
    workdir = config.parent / "validated_by_two"
    (output, _), (other_output, _) = map(
        finish, start_processes(2, config, workdir, "--config.validation_every_steps=2", **DOUBLE)
    )
    assert output.count("Validation after step") == 2 and other_output == ""
    history = json.loads((workdir / "validation.json").read_text())
    assert [entry["step"] for entry in history] == [2, 3]
    evaluated = json.loads((workdir / "evaluation" / "moving_shapes-test.json").read_text())
    assert {name: evaluated[name] for name in ("samples", "paper", "standard", "groups")} == history[-1]["scores"]


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_after_the_same_step(tmp_path: Path) -> None:
    fields = {"image_size": (32, 32), "batch_size": 2, "evaluation_split": "validation"}
    config = write_config(tmp_path, 200, checkpoint_every_steps=1000, **fields)
    for process in start_processes(2, config, tmp_path / "uninterrupted", devices=2, **OPTIMIZED):
        finish(process)
    workdir = tmp_path / "stopped"
    first, second = start_processes(2, config, workdir, devices=2, **OPTIMIZED)
    while len(list((workdir / "checkpoints").glob("0"))) == 0 or not logged(workdir, "loss"):
        time.sleep(0.1)
    second.send_signal(signal.SIGTERM)
    start_time = time.monotonic()
    for process in (first, second):
        _, errors = finish(process, status=143)
        assert "Stopped by SIGTERM after step" in errors
    assert time.monotonic() - start_time < 30
    assert 0 < load_checkpoint(workdir).step < 200
    for process in start_processes(2, config, workdir, devices=2, **OPTIMIZED):
        finish(process)
    expected, resumed = load_checkpoint(tmp_path / "uninterrupted"), load_checkpoint(workdir)
    assert expected.step == resumed.step == 200
    jax.tree.map(np.testing.assert_array_equal, expected.variables, resumed.variables)


@pytest.mark.slow
@pytest.mark.parametrize(("interrupted", "status"), [(False, 2), (True, 130)])
def test_one_of_two_processes_ends_both(interrupted: bool, status: int, tmp_path: Path) -> None:
    config, workdir = write_config(tmp_path, 1000, image_size=(32, 32), batch_size=2), tmp_path / "ended"
    if not interrupted:  # the second process waits for records that the first one can't make
        for clip in (tmp_path / "data" / "raw").rglob("*.mp4"):
            clip.write_bytes(b"")
    first, second = start_processes(2, config, workdir, devices=2)
    try:
        while interrupted and not logged(workdir, "loss"):
            time.sleep(0.1)
        if interrupted:
            first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=240)  # with JAX's five minutes it would take longer
        assert first.returncode == status, errors
        second.communicate(timeout=60)
        assert second.returncode not in (0, 2)  # 2 would tell a cluster manager not to restart the run
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_sigterm_ends_an_evaluation_in_two_processes_at_once(config: Path, single: Path) -> None:
    workdir = config.parent / "ended"
    arguments = ("--mode=evaluate", f"--config.checkpoint={single}")
    processes = start_processes(2, config, workdir, *arguments, **DOUBLE)
    try:
        stderr, output = processes[0].stderr, ""
        while "sentence/s" not in output:
            output += (character := stderr.read(1))
            assert character, output
        for process in processes:
            process.send_signal(signal.SIGTERM)
        start_time = time.monotonic()
        for process in processes:
            finish(process, status=-signal.SIGTERM)
    finally:
        for process in processes:
            process.kill()
    assert time.monotonic() - start_time < 10
    assert not list(workdir.glob("evaluation/*.json"))


#: The first process enters the collective 40 seconds after the second.
LATE_PROCESS = """
import time
import jax, numpy as np
from jax.sharding import PartitionSpec
from lbdt_jax.parallel import DATA_AXIS, initialize_distributed, is_first_process, make_mesh, set_cpu_devices
from lbdt_jax.parallel import shard_batch, warm_up_collectives

initialize_distributed()
set_cpu_devices(2)
warm_up_collectives()
if is_first_process():
    time.sleep(40)
values = {"x": np.arange(2, dtype=np.float32) + 10 * jax.process_index()}
specs = {"in_specs": PartitionSpec(DATA_AXIS), "out_specs": PartitionSpec()}
mean = jax.shard_map(lambda x: jax.lax.pmean(x, DATA_AXIS), mesh=make_mesh(), **specs)
print(jax.jit(mean)(shard_batch(values, make_mesh())["x"]).addressable_data(0))
"""


@pytest.mark.slow
def test_processes_wait_for_a_slow_compilation() -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LATE_PROCESS],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for variables in process_environments(2)
    ]
    for process in processes:
        output, _ = finish(process)
        assert output.endswith("[5.5]\n")  # gloo prints something before it


def test_a_single_process_does_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in parallel.PROCESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    initialize_distributed()
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    "variables",
    [
        {"JAX_NUM_PROCESSES": "2"},
        {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
        {"JAX_COORDINATOR_ADDRESS": "localhost", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "localhost:65536", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    ],
)
def test_wrong_process_variables_raise(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in parallel.PROCESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="set all of JAX_COORDINATOR_ADDRESS"):
        initialize_distributed()


def test_the_port_of_another_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("localhost", 0)) as other:
        values = (f"localhost:{other.getsockname()[1]}", "2", "0")
        for name, value in zip(parallel.PROCESS_VARIABLES, values, strict=True):
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"port {other.getsockname()[1]} .* Address already in use. If another run"):
            initialize_distributed()


def test_in_slurm_jax_connects_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **named: called.append((arguments, named)))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    initialize_distributed()
    assert called == [((), {})]
    for name, value in zip(parallel.PROCESS_VARIABLES, ("host:1", "4", "3"), strict=True):
        monkeypatch.setenv(name, value)
    initialize_distributed()
    assert called[1] == (("host:1", 4, 3), {"cluster_detection_method": "deactivate"})
