"""Checkpoints are restored bit-identically, and broken ones are reported (lbdt_jax/checkpoint.py)."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from paths import GOLDEN
from tiny import STEPS_PER_EPOCH, tiny_config, tiny_variables

from configs import base
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.checkpoint import (
    CheckpointError,
    CheckpointWriter,
    find_checkpoint,
    load_checkpoint,
    load_unused,
    save_weights,
)
from lbdt_jax.checkpoint_folder import steps_to_keep
from lbdt_jax.checksums import COMMAND, write_checksums
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


def edit_metadata(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edits our json in a checkpoint, and writes its checksums anew."""
    path = folder / "_CHECKPOINT_METADATA"
    metadata = json.loads(path.read_text())
    edit(metadata["custom_metadata"])
    path.write_text(json.dumps(metadata))
    write_checksums(folder)


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


@pytest.mark.parametrize(
    ("keep", "validated", "kept"),
    [
        (1, (), {9}),
        (2, (), {8, 9}),
        (3, (2, 4, 6), {4, 6, 9}),  # those with a score before those without, the newest in any case
        (3, (2, 4, 9), {2, 4, 9}),
        (3, (5,), {5, 8, 9}),
        (20, (2,), {*range(10)}),
    ],
)
def test_which_checkpoints_are_kept(keep: int, validated: tuple[int, ...], kept: set[int]) -> None:
    assert steps_to_keep(range(10), keep, validated) == kept


def test_the_best_checkpoint_is_never_deleted_and_found_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(CheckpointError, match="No best checkpoint in"):
        find_checkpoint(tmp_path / "best")
    with CheckpointWriter(folder, keep=1) as writer:
        writer.save(state_at(1), tiny_config(), WORD_VECTORS)
        writer.mark_validated([1], {"step": 1, "measure": "paper/mean_iou", "score": 0.5})
        writer.save(state_at(2), tiny_config(), WORD_VECTORS)
    save(tmp_path, 3, keep=1)  # by a run that does not validate
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "3", "best.json"]
    assert find_checkpoint(tmp_path / "best") == find_checkpoint(folder / "best") == (folder / "1").absolute()
    assert find_checkpoint(tmp_path).name == "3"
    (folder / "1").rename(folder / "elsewhere")
    with pytest.raises(CheckpointError, match="best.json names the checkpoint 1, which is not there"):
        find_checkpoint(tmp_path / "best")
    shutil.copytree(tmp_path, tmp_path / "best")  # a folder of that name is a folder
    assert find_checkpoint(tmp_path / "best").name == "3"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"5",
        b"[1]",
        b'{"step": true}',
        b'{"step": "1"}',
        b'{"step": -1}',
        b'{"step": 1e9}',
        b"[" * 4000,
        b" " * 5000,
    ],
)
def test_a_broken_best_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "best.json").write_bytes(content)
    for read in (lambda: find_checkpoint(tmp_path / "best"), lambda: CheckpointWriter(tmp_path, 1)):
        with pytest.raises(CheckpointError, match="best.json is broken.*Delete it"):
            read()


def test_the_moving_average_is_a_part_of_its_own(tmp_path: Path, saved: Path) -> None:
    config = tiny_config()
    config.ema_decay = 0.9
    average = jax.tree.map(lambda x: x + 1, state_on_host(5).variables)
    state = replicate(dataclasses.replace(state_on_host(5), ema=average), make_mesh(jax.devices()[:1]))
    with CheckpointWriter(tmp_path / "checkpoints", 1) as writer:
        writer.save(state, config, WORD_VECTORS)
    assert_same_bytes(restore(tmp_path, jax.tree.map(jnp.zeros_like, state)), state)
    for weights, loaded, expected in (("", "ema", average), ("trained", "trained", state.variables)):
        checkpoint = load_checkpoint(tmp_path, weights)
        assert checkpoint.weights == loaded
        assert_same_bytes(checkpoint.variables, expected)

    edit_metadata(tmp_path / "checkpoints" / "5", lambda json: json["config"].update(evaluated_weights="trained"))
    assert load_checkpoint(tmp_path).weights == "trained" and load_checkpoint(tmp_path, "ema").weights == "ema"
    assert load_checkpoint(saved).weights == "trained"
    with pytest.raises(CheckpointError, match="holds no moving average of the weights: it was trained without"):
        load_checkpoint(saved, "ema")
    with pytest.raises(CheckpointError, match="ema/.*: expected float32, .* found nothing"):
        restore(saved, state)


def test_the_state_of_muon(tmp_path: Path) -> None:
    config = tiny_config()
    config.optimizer = "muon"
    variables = state_on_host(5).variables
    optimizer = make_optimizer(config, 10)
    state = replicate(initial_state(variables, optimizer), make_mesh(jax.devices()[:1]))
    _, moments = optimizer.update(variables["params"], state.optimizer_state, variables["params"])
    state = dataclasses.replace(state, optimizer_state=moments)
    with CheckpointWriter(tmp_path / "checkpoints", 1) as writer:
        writer.save(state, config, WORD_VECTORS)
    assert_same_bytes(restore(tmp_path, jax.tree.map(jnp.zeros_like, state)), state)


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


def test_new_fields_have_their_default_values(workdir: Path) -> None:
    def remove_fields(metadata: dict[str, Any]) -> None:
        del metadata["config"]["model"]["channel_gates"], metadata["config"]["text_encoder"]

    edit_metadata(workdir / "checkpoints" / "12", remove_fields)
    config, defaults = load_checkpoint(workdir).config, base.get_config()
    assert (config.model.channel_gates, config.text_encoder) == (True, "glove_lstm")
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


def test_without_checksums_nothing_is_read(workdir: Path) -> None:
    folder = workdir / "checkpoints" / "12"
    (folder / "SHA256SUMS").unlink()
    for read in (lambda: restore(workdir, state_at(0)), lambda: load_checkpoint(workdir)):
        with pytest.raises(
            CheckpointError, match=f"{folder} is broken.*\nSHA256SUMS, .* is missing.* in that folder: find"
        ):
            read()
    subprocess.run(COMMAND, cwd=folder, shell=True, check=True)  # as the message says
    assert load_checkpoint(workdir).step == 12


def test_a_save_is_no_checkpoint_before_its_checksums_are_written(workdir: Path, monkeypatch) -> None:
    def killed(folder: Path) -> None:
        raise OSError("killed")

    monkeypatch.setattr("lbdt_jax.checkpoint.write_checksums", killed)
    with pytest.raises(
        CheckpointError, match=f"{workdir / 'checkpoints' / '20'} could not be written: OSError: killed"
    ):
        save(workdir, 20)
    assert (workdir / "checkpoints" / "20.unfinished").is_dir()
    assert load_checkpoint(workdir).step == 12
    assert_same_bytes(restore(workdir, state_at(0)), state_at(12))
    assert sorted(entry.name for entry in (workdir / "checkpoints").iterdir()) == ["12", "3"]


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


# -- what is declared is checked before it is read, and what is read before it is used


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WORKDIR with weights only; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("weights")
    save_weights(workdir, some_variables(), tiny_config(), WORD_VECTORS, unused={"a": np.ones(3, np.float32)})
    return workdir


def edit_array(folder: Path, name: str, chunks: int = 0, **changes: Any) -> None:
    """Changes what zarr declares about an array of a checkpoint, and writes the checksums anew."""
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder / 'variables'}/"}).result()
    key = f"{name}/zarr.json"
    declared = json.loads(store[key]) | changes
    if chunks:
        for part in (declared["chunk_grid"], declared["codecs"][0]):
            part["configuration"]["chunk_shape"] = [chunks]
    store[key] = json.dumps(declared).encode()
    write_checksums(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [2**33]}, r"variables: .* MB of files would take 34\.4 GB of memory"),
        ({"shape": [2**20]}, r"does not fit its own configuration, .*bias is \(1048576,\), and should be \(1,\)"),
        ({"chunks": 2**28}, r"shape \(1,\) is stored in chunks of shape \(268435456,\)"),
        ({"data_type": "int32"}, "params/head/project/bias: expected float32 or float64, found int32"),
        ({"data_type": "complex64", "fill_value": [0, 0]}, "expected float32 or float64, found complex64"),
        ({"codecs": [{"name": "unknown"}]}, "broken"),
    ],
)
def test_arrays_that_are_not_as_expected_are_not_read(
    weights: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(weights, tmp_path / "weights") / "checkpoints" / "0"
    edit_array(folder, "params.head.project.bias", **changes)
    with pytest.raises(CheckpointError, match=f"(?s){folder}.*{message}"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda json: json.update(words="abc"), "list of words is broken"),
        (lambda json: json.update(words=["a", "a", "b"]), "list of words is broken"),
        (lambda json: json.update(words=["a"]), r"expected vectors of 1 words, found \{'vectors': \(3, 6\)\}"),
        (lambda json: json.pop("config"), "expected a configuration"),
        (lambda json: json.update(tokenizer="{}"), "It has a tokenizer, and no transformer that reads its tokens"),
        (lambda json: json["config"]["model"].update(transfer_width=32), r"is \(64,\), and should be \(128,\)"),
        (lambda json: json.update(padding=" " * (65 << 20)), "has 65.0 MB or more. The limit is 64.0 MB"),
    ],
)
def test_broken_json(weights: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    folder = shutil.copytree(weights, tmp_path / "weights") / "checkpoints" / "0"
    edit_metadata(folder, edit)
    with pytest.raises(CheckpointError, match=f"(?s){folder}.*{message}"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    variables = jax.tree.map(np.array, some_variables())
    variables["params"]["head"]["project"]["bias"][:] = value
    save_weights(tmp_path, variables, tiny_config(), WORD_VECTORS, unused={"a": np.ones(3, np.int32)})
    with pytest.raises(CheckpointError, match="params/head/project/bias has numbers that are NaN or infinite"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="unused/a: expected float32, float64 or int64, found int32"):
        load_unused(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message", "new_kind"),
    [
        (lambda sums: f"{sums}{'0' * 64}  ../../../etc/passwd\n", "names a file outside the folder", False),
        (lambda sums: f"{'0' * 64}  /etc/passwd\n{sums}", "line 1, names a file outside the folder", False),
        (lambda sums: "", "_CHECKPOINT_METADATA is not listed", False),
        (
            lambda sums: "".join(line for line in sums.splitlines(True) if "variables/manifest" not in line),
            "not listed",
            False,
        ),
        (lambda sums: "hello\n", "line 1, is not a checksum", False),
        (lambda sums: sums * 4000, "The limit is 4.0 MB", False),
        (os.mkfifo, "a named pipe", True),
        (os.mkdir, "a folder", True),
        (lambda path: os.symlink("/dev/zero", path), "a device", True),
    ],
)
def test_untrusted_checksums(
    weights: Path, tmp_path: Path, damage: Callable[[Any], Any], message: str, new_kind: bool
) -> None:
    folder = shutil.copytree(weights, tmp_path / "weights") / "checkpoints" / "0"
    path = folder / "SHA256SUMS"
    if new_kind:
        path.unlink()
        damage(path)
    else:
        path.write_text(damage(path.read_text()))
    with pytest.raises(CheckpointError, match=f"(?s){folder} is broken.*{message}"):
        load_checkpoint(folder)


def test_files_of_a_checkpoint_are_regular_and_listed(weights: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(weights, tmp_path / "weights") / "checkpoints" / "0"
    (folder / "variables" / ".DS_Store").touch()
    (folder / "notes.txt").touch()
    assert load_checkpoint(folder).step == 0
    os.mkfifo(folder / "variables" / "pipe")
    with pytest.raises(CheckpointError, match="pipe is a named pipe"):
        load_checkpoint(folder)
    (folder / "variables" / "pipe").unlink()
    (folder / "variables" / "zarr.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"variables/zarr.json is not listed in SHA256SUMS"):
        load_checkpoint(folder)
    (folder / "variables" / "zarr.json").unlink()
    linked = (folder / "variables").rename(tmp_path / "variables")
    (folder / "variables").symlink_to(linked)
    for name in ("circle", "another"):
        (linked / name).symlink_to(linked)
    assert load_checkpoint(folder).step == 0
    (linked / "zarr.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"variables/zarr.json is not listed in SHA256SUMS"):
        load_checkpoint(folder)


def edit_tokenizer(metadata: dict[str, Any], **changes: Any) -> None:
    metadata["tokenizer"] = json.dumps(json.loads(metadata["tokenizer"]) | changes)


REPEATED = {"type": "Replace", "pattern": {"String": "e"}, "content": "e" * 1000}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda json: json["config"]["model"]["transformer"].update(padding_id=-1), "padding_id is -1"),
        (lambda json: json["config"]["model"]["transformer"].update(layers=20_000), "layers is 20000"),
        (lambda json: json["config"]["model"].update(transformer={}), "a tokenizer, and no transformer"),
        (lambda json: json["config"].update(max_words=1000), "max_words is 1000; its transformer reads 24 tokens"),
        (lambda json: json["config"].update(max_words=2), "adds 2 special tokens to a sentence, of which 2 tokens"),
        (lambda json: edit_tokenizer(json, normalizer=REPEATED), "would make a sentence up to .* times as long"),
        (lambda json: edit_tokenizer(json, model=None), "can't read this tokenizer"),
    ],
)
def test_transformers_and_their_tokenizers(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    with zipfile.ZipFile(GOLDEN / "compatibility" / "transformer.zip") as archive:
        archive.extractall(tmp_path)
    edit_metadata(tmp_path / "checkpoints" / "0", edit)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


def test_training_does_not_resume_with_other_word_vectors(saved: Path) -> None:
    other = WordVectors(WORD_VECTORS.words, WORD_VECTORS.vectors[::-1], "random:6")
    with CheckpointWriter(saved / "checkpoints", 5) as writer:
        assert int(writer.restore(state_at(0), WORD_VECTORS).step) == 12
        with pytest.raises(CheckpointError, match=f"{saved}.*other word vectors .* than those of random:6"):
            writer.restore(state_at(0), other)
