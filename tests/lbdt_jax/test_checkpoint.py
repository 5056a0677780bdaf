"""Checkpoints are restored bit-identically, and broken ones are reported (lbdt_jax/checkpoint.py)."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny import STEPS_PER_EPOCH, tiny_config, tiny_variables

from configs import base
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.checkpoint import CheckpointError, CheckpointWriter, find_checkpoint, load_checkpoint
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import make_mesh, replicate
from lbdt_jax.step import TrainState, initial_state

WORD_VECTORS = WordVectors(("a", "ü ,", "zebra"), np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32))

#: Modules in the checkpoints of this file, since few arrays are saved much faster. test_main.py saves all modules.
MODULES = ("text_encoder", "head")


def some_variables() -> dict[str, Any]:
    """The variables of MODULES."""
    return {
        collection: {name: modules[name] for name in MODULES if name in modules}
        for collection, modules in tiny_variables().items()
    }


@functools.cache
def state_on_host(step: int) -> TrainState:
    template = jax.device_get(initial_state(some_variables(), make_optimizer(tiny_config(), STEPS_PER_EPOCH)))
    rng = np.random.default_rng(step)
    return jax.tree.map(
        lambda x: rng.standard_normal(x.shape).astype(x.dtype) if np.ndim(x) else np.asarray(step, x.dtype), template
    )


def state_at(step: int, devices: int = 1) -> TrainState:
    """A state in which every array is random, AdamW's moments included."""
    return replicate(state_on_host(step), make_mesh(jax.devices()[:devices]))


def save(workdir: Path, *steps: int, keep: int = 5) -> None:
    with CheckpointWriter(workdir / "checkpoints", keep) as writer:
        for step in steps:
            writer.save(state_at(step), tiny_config(), WORD_VECTORS)


def restore(workdir: Path, state: TrainState) -> TrainState:
    with CheckpointWriter(workdir / "checkpoints", 5) as writer:
        return writer.restore(state)


def assert_same_bytes(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WORKDIR with the checkpoints of steps 3 and 12; copy it before breaking it."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 3, 12)
    return workdir


@pytest.fixture
def workdir(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "workdir")


def test_restores_what_was_saved(saved: Path) -> None:
    restored = restore(saved, state_at(0))
    assert_same_bytes(restored, state_at(12))
    loaded = load_checkpoint(saved)
    expected = state_at(12)
    assert_same_bytes(loaded.variables, {"params": expected.params, "batch_stats": expected.batch_stats})
    assert (loaded.step, loaded.path) == (12, (saved / "checkpoints" / "12").absolute())
    assert loaded.sentence_encoder.words == WORD_VECTORS.words
    assert_same_bytes(loaded.sentence_encoder.vectors, WORD_VECTORS.vectors)
    assert json.loads(loaded.config.to_json()) == json.loads(tiny_config().to_json())


def test_restores_onto_the_devices_of_the_given_state(saved: Path) -> None:
    template = state_at(0, devices=8)
    restored = restore(saved, template)
    assert_same_bytes(restored, state_at(12))
    for array, like in zip(jax.tree.leaves(restored), jax.tree.leaves(template), strict=True):
        assert array.sharding == like.sharding and len(array.addressable_shards) == 8


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 4, 10, keep=2)
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["10", "4"]


def test_a_step_is_saved_once(workdir: Path) -> None:
    before = contents(workdir)
    save(workdir, 12)
    assert contents(workdir) == before


def test_training_continues_while_a_state_is_written(tmp_path: Path) -> None:
    state, expected = state_at(1), jax.device_get(state_at(1))
    reuse_memory = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)
    with CheckpointWriter(tmp_path / "checkpoints", 1) as writer:
        writer.save(state, tiny_config(), WORD_VECTORS)
        reuse_memory(state)
    assert_same_bytes(restore(tmp_path, state_at(0)), expected)


def test_without_a_checkpoint_training_starts_from_its_state(tmp_path: Path) -> None:
    state = state_at(0)
    assert restore(tmp_path, state) is state


def test_all_ways_to_specify_a_checkpoint(saved: Path) -> None:
    newest = (saved / "checkpoints" / "12").absolute()
    assert find_checkpoint(saved) == find_checkpoint(saved / "checkpoints") == find_checkpoint(newest) == newest
    assert find_checkpoint(saved / "checkpoints" / "3").name == "3"


def test_a_workdir_whose_name_is_a_number(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "7")
    assert find_checkpoint(tmp_path / "7").name == "12"


def test_new_fields_have_their_default_values(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = base.get_config()
    defaults.model.new_field, defaults.other_new_field = 3, "x"
    monkeypatch.setattr(base, "get_config", defaults.copy_and_resolve_references)
    config = load_checkpoint(workdir).config
    assert (config.model.new_field, config.other_new_field) == (3, "x")
    assert config.model.transfer_width == 16 != defaults.model.transfer_width


@pytest.mark.parametrize("folder", ["", "checkpoints", "no/such/folder", "7"])
def test_no_checkpoint(tmp_path: Path, folder: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "notes").mkdir()
    with pytest.raises(CheckpointError, match=f"No checkpoint in {tmp_path / folder}"):
        load_checkpoint(tmp_path / folder)


def test_an_unfinished_save_is_no_checkpoint(workdir: Path) -> None:
    checkpoints = workdir / "checkpoints"
    shutil.copytree(checkpoints / "12", checkpoints / "20.orbax-checkpoint-tmp")
    assert find_checkpoint(workdir).name == "12"
    assert int(restore(workdir, state_at(0)).step) == 12


def test_a_folder_that_is_no_checkpoint(workdir: Path) -> None:
    (workdir / "checkpoints" / "30").mkdir()
    with pytest.raises(CheckpointError, match="30"):
        load_checkpoint(workdir)
    assert load_checkpoint(workdir / "checkpoints" / "12").step == 12


def test_killed_while_an_old_checkpoint_was_deleted(workdir: Path) -> None:
    shutil.rmtree(workdir / "checkpoints" / "3" / "variables")
    (workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA").unlink()
    assert int(restore(workdir, state_at(0)).step) == 12
    save(workdir, 13, keep=2)
    assert sorted(entry.name for entry in (workdir / "checkpoints").iterdir()) == ["12", "13"]


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("part", ["variables", "optimizer_state", "word_vectors", "."])
def test_a_broken_file(workdir: Path, part: str, damage: Any) -> None:
    folder = workdir / "checkpoints" / "12"
    files = (folder / part).glob("*") if part == "." else (folder / part).rglob("*")
    files = [path for path in files if path.is_file() and path.name != "SHA256SUMS"]
    file = max(files, key=lambda path: path.stat().st_size)
    damage(file)
    reason = "is missing" if damage is Path.unlink else "was changed"
    message = rf"{folder} is broken[^\n]*\n{file.relative_to(folder)} {reason}"
    before = contents(workdir)
    with pytest.raises(CheckpointError, match=message):
        restore(workdir, state_at(0))
    if part == "optimizer_state":  # evaluation and prediction don't need it
        assert load_checkpoint(workdir).step == 12
    else:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(workdir)
    assert contents(workdir) == before
    assert load_checkpoint(workdir / "checkpoints" / "3").step == 3


def test_checksums_can_be_checked_with_sha256sum(saved: Path) -> None:
    for step in (3, 12):
        subprocess.run(
            ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=saved / "checkpoints" / str(step), check=True
        )


@pytest.mark.parametrize("damage", [truncate, flip])
def test_broken_checksums(workdir: Path, damage: Any) -> None:
    damage(workdir / "checkpoints" / "12" / "SHA256SUMS")
    with pytest.raises(CheckpointError, match=f"{workdir / 'checkpoints' / '12'} is broken"):
        restore(workdir, state_at(0))


def test_a_run_that_was_killed_before_it_wrote_checksums(workdir: Path) -> None:
    (workdir / "checkpoints" / "12" / "SHA256SUMS").unlink()
    assert_same_bytes(restore(workdir, state_at(0)), state_at(12))


def test_a_checkpoint_of_another_model(workdir: Path) -> None:
    variables = some_variables()
    variables["params"]["text_encoder"] = {
        name: np.zeros((*array.shape[:-1], 2 * array.shape[-1]), np.float32)
        for name, array in variables["params"]["text_encoder"].items()
    }
    wider = initial_state(variables, make_optimizer(tiny_config(), STEPS_PER_EPOCH))
    before = contents(workdir)
    with pytest.raises(CheckpointError, match=f"{workdir / 'checkpoints' / '12'} is broken or of another model"):
        restore(workdir, replicate(wider, make_mesh(jax.devices()[:1])))
    assert contents(workdir) == before
