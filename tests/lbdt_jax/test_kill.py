"""A run that is killed at any moment ends, started again, with the same parameters to the bit (lbdt_jax/train.py)."""

from __future__ import annotations

import functools
import itertools
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import OPTIMISED, finish, logged, start, write_config

from lbdt_jax.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

STEPS, KILLS_EACH = 120, 10  # of two runs side by side
SMALLEST = {"cpu_devices": 1, "batch_size": 2, "image_size": (32, 32)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    return write_config(folder, STEPS, checkpoint_every_steps=10, evaluation_split="validation", **SMALLEST)


@pytest.fixture(scope="module")
def whole(config: Path) -> Path:
    """A run that nothing happened to."""
    workdir = config.parent / "whole"
    finish(start(config, workdir, **OPTIMISED))
    return workdir


def kill(config: Path, workdir: Path, rng: random.Random, in_a_save: bool) -> None:
    """Starts the command and kills it: in its next save, or at a random time after it."""
    process = start(config, workdir, **OPTIMISED)
    sign = "checkpoints/*.orbax-checkpoint-tmp" if in_a_save else "checkpoints/*/commit_success.txt"
    known = set(workdir.glob(sign))
    while process.poll() is None and set(workdir.glob(sign)) <= known:
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.5 if in_a_save else 3))
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors[-3000:]


def newest(workdir: Path) -> int:
    return max((int(path.name) for path in workdir.glob("checkpoints/[0-9]*") if path.name.isdecimal()), default=-1)


def kill_often(config: Path, workdir: Path) -> int:
    """Kills the command again and again and lets it end at last; returns how often it died in the middle of a save."""
    rng, unfinished = random.Random(workdir.name), 0
    for number in itertools.count():
        if newest(workdir) > 0 and number >= KILLS_EACH:  # the last run goes on from a checkpoint
            break
        if newest(workdir) > STEPS / 2:  # enough is left to be killed in
            shutil.rmtree(workdir)
        kill(config, workdir, rng, in_a_save=bool(number % 2))
        unfinished += bool(list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp")))
    finish(start(config, workdir, **OPTIMISED))
    return unfinished


def test_killed_at_twenty_random_moments(config: Path, whole: Path) -> None:
    workdirs = [config.parent / "killed", config.parent / "killed_too"]
    with ThreadPoolExecutor() as together:
        unfinished = [*together.map(functools.partial(kill_often, config), workdirs)]
    assert sum(unfinished) > len(workdirs) * KILLS_EACH / 4
    expected = load_checkpoint(whole)
    for workdir in workdirs:
        found = load_checkpoint(workdir)
        assert expected.step == found.step == STEPS
        jax.tree.map(np.testing.assert_array_equal, expected.variables, found.variables)
        assert {path.name for path in (workdir / "checkpoints").iterdir()} == {str(STEPS - 10), str(STEPS)}


def test_sigterm_saves_and_ends_with_143(config: Path, whole: Path) -> None:
    workdir = config.parent / "stopped"
    process = start(config, workdir, "--config.checkpoint_every_steps=1000", **OPTIMISED)
    while newest(workdir) < 0 or not logged(workdir, "loss"):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    _, errors = finish(process, status=143)
    assert time.monotonic() - begun < 30
    assert f"Stopped by SIGTERM after step {newest(workdir)}, which is saved." in errors
    finish(start(config, workdir, **OPTIMISED))
    jax.tree.map(np.testing.assert_array_equal, load_checkpoint(whole).variables, load_checkpoint(workdir).variables)


def test_a_full_disk_is_told_and_the_same_command_goes_on(config: Path, whole: Path) -> None:
    workdir = config.parent / "full"
    kill(config, workdir, random.Random(1), in_a_save=False)
    before = newest(workdir)
    # No file may grow further: what writing to a full disk is like, without one.
    _, errors = finish(start(config, workdir, kilobytes_per_file=64, **OPTIMISED), status=2)
    assert f"The checkpoint {workdir / 'checkpoints'}" in errors and "could not be written" in errors
    assert newest(workdir) == before
    finish(start(config, workdir, **OPTIMISED))
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
