"""A run that is killed at any moment ends, started again, with the same parameters to the bit (lbdt_jax/train.py)."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import finish, logged, start, write_config

from lbdt_jax.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

STEPS, KILLS = 400, 20


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    return write_config(folder, STEPS, checkpoint_every_steps=5, evaluation_split="validation", cpu_devices=2)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """A run that nothing happened to."""
    workdir = config.parent / "whole"
    finish(start(config, workdir))
    return workdir


def kill(config: Path, workdir: Path, rng: random.Random, in_a_save: bool) -> str:
    """Starts the command and kills it: a random time after its first step, or in the middle of a save."""
    process = start(config, workdir)
    first = newest(workdir)
    while process.poll() is None and newest(workdir) <= first:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 2))
    while in_a_save and process.poll() is None and not list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")):
        time.sleep(0.0005)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors[-3000:]
    return errors


def newest(workdir: Path) -> int:
    return max((int(path.name) for path in workdir.glob("checkpoints/[0-9]*") if path.name.isdecimal()), default=-1)


def test_killed_at_twenty_random_moments(config: Path, whole: Path) -> None:
    workdir, rng = config.parent / "killed", random.Random(0)
    for number in range(KILLS):
        kill(config, workdir, rng, in_a_save=bool(number % 2))
    assert newest(workdir) < STEPS
    finish(start(config, workdir))
    expected, found = load_checkpoint(whole), load_checkpoint(workdir)
    assert expected.step == found.step == STEPS
    jax.tree.map(np.testing.assert_array_equal, expected.variables, found.variables)
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {str(STEPS - 5), str(STEPS)}


def test_sigterm_saves_and_ends_with_143(config: Path, whole: Path) -> None:
    workdir = config.parent / "stopped"
    process = start(config, workdir, "--config.checkpoint_every_steps=1000")
    while not list(workdir.glob("events.out.tfevents.*")) or newest(workdir) < 0:
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    _, errors = finish(process, status=143)
    assert time.monotonic() - begun < 30
    assert f"Stopped by SIGTERM after step {newest(workdir)}, which is saved." in errors
    finish(start(config, workdir))
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(whole).variables, load_checkpoint(workdir).variables)


def test_a_full_disk_is_told_and_the_same_command_goes_on(config: Path, whole: Path) -> None:
    workdir = config.parent / "full"
    kill(config, workdir, random.Random(1), in_a_save=False)
    before = newest(workdir)
    # No file may grow further: what writing to a full disk is like, without one.
    _, errors = finish(start(config, workdir, kilobytes_per_file=64), status=2)
    assert f"The checkpoint {workdir / 'checkpoints'}" in errors and "could not be written" in errors
    assert newest(workdir) == before
    finish(start(config, workdir))
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(whole).variables, load_checkpoint(workdir).variables)


def test_another_number_of_devices_goes_on(tmp_path: Path) -> None:
    fields = {"global_batch_norm": True, "model.dropout": 0.0, "checkpoint_every_steps": 3}
    config = write_config(tmp_path, 5, **fields)
    eight, two = tmp_path / "eight", tmp_path / "two"
    finish(start(config, eight))
    shutil.copytree(eight, two)
    shutil.rmtree(two / "checkpoints" / "5")
    finish(start(config, two, "--config.cpu_devices=2"))
    expected, found = logged(eight, "loss"), logged(two, "loss")
    assert list(found) == list(expected) == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([*found.values()], [*expected.values()], rtol=0, atol=1e-5)
    assert load_checkpoint(two).step == 5
