"""A run that is killed at any time and resumed ends with bit-identical parameters (lbdt_jax/train.py)."""

from __future__ import annotations

import functools
import itertools
import json
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from runs import OPTIMIZED, finish, logged, start, write_config

from lbdt_jax.checkpoint import load_checkpoint
from lbdt_jax.validation import load_history

pytestmark = pytest.mark.slow

STEPS, KILLS_PER_RUN = 120, 10  # in each of two concurrent runs
SMALLEST = {"cpu_devices": 1, "batch_size": 2, "image_size": (32, 32)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    return write_config(folder, STEPS, checkpoint_every_steps=10, evaluation_split="validation", **SMALLEST)


@pytest.fixture(scope="module")
def uninterrupted(config: Path) -> Path:
    """The workdir of an uninterrupted run."""
    workdir = config.parent / "uninterrupted"
    finish(start(config, workdir, **OPTIMIZED))
    return workdir


def kill(config: Path, workdir: Path, rng: random.Random, during_save: bool) -> None:
    """Starts the command and kills it during its next save, or at a random time after it."""
    process = start(config, workdir, **OPTIMIZED)
    pattern = "checkpoints/*.orbax-checkpoint-tmp" if during_save else "checkpoints/*/commit_success.txt"
    existing = set(workdir.glob(pattern))
    while process.poll() is None and set(workdir.glob(pattern)) <= existing:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.5 if during_save else 3))
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors[-3000:]


def newest_step(workdir: Path) -> int:
    """The step of the newest checkpoint; -1 without one."""
    return max((int(path.name) for path in workdir.glob("checkpoints/[0-9]*") if path.name.isdecimal()), default=-1)


def kill_often(config: Path, workdir: Path) -> int:
    """Kills the command repeatedly, then lets it finish. Returns how often it was killed during a save."""
    rng, unfinished = random.Random(workdir.name), 0
    for kills in itertools.count():
        if newest_step(workdir) > 0 and kills >= KILLS_PER_RUN:  # the last run resumes from a checkpoint
            break
        if newest_step(workdir) > STEPS / 2:  # leave enough steps to be killed in
            shutil.rmtree(workdir)
        kill(config, workdir, rng, during_save=bool(kills % 2))
        unfinished += bool(list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp")))
    finish(start(config, workdir, **OPTIMIZED))
    return unfinished


def test_killed_at_twenty_random_times(config: Path, uninterrupted: Path) -> None:
    workdirs = [config.parent / "killed", config.parent / "killed_too"]
    with ThreadPoolExecutor() as executor:
        unfinished = [*executor.map(functools.partial(kill_often, config), workdirs)]
    assert sum(unfinished) > len(workdirs) * KILLS_PER_RUN / 4
    expected = load_checkpoint(uninterrupted)
    for workdir in workdirs:
        resumed = load_checkpoint(workdir)
        assert expected.step == resumed.step == STEPS
        jax.tree.map(np.testing.assert_array_equal, expected.variables, resumed.variables)
        assert {path.name for path in (workdir / "checkpoints").iterdir()} == {str(STEPS - 10), str(STEPS)}


def end_in_validation(signal_number: signal.Signals, number: int, *command: Any) -> str:
    """Starts the command, and sends it a signal in the given one of its validations, counted from 1. Returns stderr."""
    process = start(*command, **OPTIMIZED)
    assert process.stderr is not None
    output = ""
    while output.count("validate moving_shapes validation: 0") < number:
        output += (character := process.stderr.read(1))
        assert character, output[-3000:]
    process.send_signal(signal_number)
    return finish(process, status=143 if signal_number == signal.SIGTERM else -signal_number)[1]


def test_a_run_that_ends_in_validations(config: Path, uninterrupted: Path) -> None:
    workdir = config.parent / "validated"
    command = config, workdir, "--config.validation_every_steps=40", "--config.keep_checkpoints=1"
    end_in_validation(signal.SIGKILL, 1, *command)
    assert newest_step(workdir) <= 40  # it was being saved, or was saved already
    assert not load_history(workdir / "validation.json")
    errors = end_in_validation(signal.SIGTERM, 2, *command)
    assert "Stopped by SIGTERM in the validation after step 80, which is saved" in errors
    assert [entry["step"] for entry in load_history(workdir / "validation.json")] == [40]
    finish(start(*command, **OPTIMIZED))
    jax.tree.map(
        np.testing.assert_array_equal, load_checkpoint(uninterrupted).variables, load_checkpoint(workdir).variables
    )
    history = load_history(workdir / "validation.json")
    scores = {entry["step"]: entry["scores"]["paper"]["mean_iou"] for entry in history}
    assert list(scores) == [40, 80, 120] == [*logged(workdir, "validation/paper/mean_iou")]
    best = load_checkpoint(workdir / "best").step
    assert best == max(scores, key=lambda step: (scores[step], -step))
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {str(best), "120", "best.json"}
    finish(start(*command, "--mode=evaluate", f"--config.checkpoint={workdir}/best", **OPTIMIZED))
    evaluated = json.loads((workdir / "evaluation" / "moving_shapes-validation.json").read_text())
    assert evaluated["checkpoint_step"] == best
    (entry,) = (entry for entry in history if entry["step"] == best)
    assert {name: evaluated[name] for name in ("samples", "paper", "standard", "groups")} == entry["scores"]


def test_sigterm_saves_and_ends_with_143(config: Path, uninterrupted: Path) -> None:
    workdir = config.parent / "stopped"
    process = start(config, workdir, "--config.checkpoint_every_steps=1000", **OPTIMIZED)
    while newest_step(workdir) < 0 or not logged(workdir, "loss"):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    start_time = time.monotonic()
    _, errors = finish(process, status=143)
    assert time.monotonic() - start_time < 30
    assert f"Stopped by SIGTERM after step {newest_step(workdir)}, which is saved." in errors
    finish(start(config, workdir, **OPTIMIZED))
    jax.tree.map(
        np.testing.assert_array_equal, load_checkpoint(uninterrupted).variables, load_checkpoint(workdir).variables
    )


def test_a_full_disk_is_reported_and_the_same_command_resumes(config: Path, uninterrupted: Path) -> None:
    workdir = config.parent / "full"
    kill(config, workdir, random.Random(1), during_save=False)
    before = newest_step(workdir)
    # A limit on the size of files has the same effect as a full disk.
    _, errors = finish(start(config, workdir, kilobytes_per_file=64, **OPTIMIZED), status=2)
    assert f"The checkpoint {workdir / 'checkpoints'}" in errors and "could not be written" in errors
    assert newest_step(workdir) == before
    finish(start(config, workdir, **OPTIMIZED))
    jax.tree.map(
        np.testing.assert_array_equal, load_checkpoint(uninterrupted).variables, load_checkpoint(workdir).variables
    )


def test_resuming_on_another_number_of_devices(tmp_path: Path) -> None:
    fields = {"global_batch_norm": True, "model.dropout": 0.0, "checkpoint_every_steps": 3}
    config = write_config(tmp_path, 5, **fields)
    eight, two = tmp_path / "eight", tmp_path / "two"
    finish(start(config, eight))
    shutil.copytree(eight, two)
    shutil.rmtree(two / "checkpoints" / "5")
    finish(start(config, two, "--config.cpu_devices=2"))
    expected, resumed = logged(eight, "loss"), logged(two, "loss")
    assert list(resumed) == list(expected) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([*resumed.values()], [*expected.values()], rtol=0, atol=1e-5)
    assert load_checkpoint(two).step == 5
