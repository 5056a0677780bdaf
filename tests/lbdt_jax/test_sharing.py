"""Folders to share: written, read as strictly as checkpoints, fetched from the Hub (checkpoint_shared.py, hub.py)."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
import yaml
from absl.testing import flagsaver
from clips import SENTENCES, numbered_frame, tiny_checkpoint
from flax.traverse_util import flatten_dict
from huggingface_hub import errors
from ml_collections import ConfigDict
from model_folders import edit_arrays, edit_json
from paths import GOLDEN
from tiny import tiny_config

import lbdt_jax
from input_pipeline.errors import UserError
from input_pipeline.text.word_vectors import WordVectors, load_word_vectors
from lbdt_jax.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_unused, save_weights
from lbdt_jax.checkpoint_folder import find_checkpoint
from lbdt_jax.checksums import write_checksums
from lbdt_jax.convert.__main__ import main
from lbdt_jax.convert.initial import find_initial_weights, load_initial_weights
from lbdt_jax.convert.sharing import write_shared
from lbdt_jax.hub import locate_checkpoint

pytestmark = pytest.mark.usefixtures("fast_compilation")

STEP, UNUSED = 70, {"decoder.unused": np.arange(3, dtype=np.float32), "bn.num_batches_tracked": np.asarray(5)}
PARAMETER = "params/head/project/bias"


def convert(source: Path | str, target: Path, *arguments: str) -> None:
    with flagsaver.flagsaver():
        main(["convert", f"--from={source}", f"--to={target}", *arguments])


def write_run(workdir: Path) -> None:
    """Writes WORKDIR with the checkpoint STEP, the best one, and its scores."""
    checkpoint = tiny_checkpoint()
    config = checkpoint.config.copy_and_resolve_references()
    config.update(dataset="moving_shapes", data_dir=str(workdir), initial_weights=str(workdir / "resnet18.pth"))
    config.update(learning_rate=2e-3, learning_rate_drops=(1.5, 2.0))
    save_weights(workdir, checkpoint.variables, config, checkpoint.sentence_encoder, UNUSED, STEP)
    scores = {"paper": {"mean_iou": 0.8412, "evil | <b>": 0.5}, "standard": {"mean_iou": 0.8119, "coco_map": 0.6775}}
    results = {
        "checkpoints/best.json": {"step": STEP, "measure": "paper/mean_iou", "score": 0.7},
        "validation.json": [
            {"step": step, "weights": "trained", "split": "valid", "scores": {"paper": {"mean_iou": score}}, **dataset}
            for step, score, dataset in (
                (STEP - 1, 0.111, {}),
                (STEP, 0.222, {}),
                (STEP, 0.444, {"dataset": "refcoco"}),
            )
        ],
        "evaluation/moving_shapes-test.json": {
            **{"dataset": "moving_shapes", "split": "test", "checkpoint": f"checkpoints/{STEP}"},
            **{"checkpoint_step": STEP, "samples": 3200, **scores},
        },
        "evaluation/of_another_model.json": {
            **{"dataset": "moving_shapes", "split": "test", "checkpoint": f"/another/checkpoints/{STEP}"},
            **{"checkpoint_step": STEP, "paper": {"mean_iou": 0.555}},
        },
        "evaluation/moving_shapes-other.json": {"checkpoint_step": STEP - 1, "paper": {"mean_iou": 0.333}},
    }
    (workdir / "evaluation").mkdir()
    (workdir / "evaluation" / "broken.json").write_text("[" * 100_000)
    for name, result in results.items():
        (workdir / name).write_text(json.dumps(result))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the training workdir/ and shared/, which was made of it."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder / "workdir")
    convert(folder / "workdir" / "best", folder / "shared", "--format=safetensors")
    return folder


@pytest.fixture
def shared(run: Path, tmp_path: Path) -> Path:
    """A copy of the shared folder, to be broken."""
    return shutil.copytree(run / "shared", tmp_path / "shared")


def assert_same_model(actual: Checkpoint, expected: Checkpoint) -> None:
    arrays, others = flatten_dict(actual.variables), flatten_dict(expected.variables)
    assert arrays.keys() == others.keys()
    for path, array in arrays.items():
        assert array.dtype == others[path].dtype and np.asarray(array).tobytes() == np.asarray(others[path]).tobytes()
    assert actual.sentence_encoder.words == expected.sentence_encoder.words
    np.testing.assert_array_equal(actual.sentence_encoder.vectors, expected.sentence_encoder.vectors)
    assert actual.sentence_encoder.source == expected.sentence_encoder.source
    assert (actual.step, actual.weights) == (expected.step, expected.weights)
    fields, other_fields = json.loads(actual.config.to_json()), json.loads(expected.config.to_json())
    fields |= {name: other_fields[name] for name in ("data_dir", "initial_weights")}
    assert fields == other_fields


def test_there_and_back_to_the_bit(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in (run / "shared").iterdir()) == [
        *("README.md", "SHA256SUMS", "config.json", "model.safetensors", "vocabulary.json")
    ]
    convert(run / "shared", tmp_path / "back")
    assert f"after {STEP} steps" in capsys.readouterr().out
    expected = load_checkpoint(run / "workdir")
    for folder in (run / "shared", tmp_path / "back"):
        assert_same_model(load_checkpoint(folder), expected)
        unused = load_unused(folder)
        assert unused.keys() == UNUSED.keys()
        for name, array in UNUSED.items():
            assert unused[name].dtype == array.dtype and unused[name].tobytes() == array.tobytes()
    assert next(iter(jax.tree.leaves(load_checkpoint(run / "shared").variables))).devices() == {jax.local_devices()[0]}
    numbered = shutil.copytree(run / "shared", tmp_path / "70")  # not taken for a checkpoint of step 70
    assert find_checkpoint(numbered) == numbered

    frames = [numbered_frame(index) for index in range(3)]
    segmenter = lbdt_jax.load(run / "shared")
    masks, scores = segmenter.segment(frames, SENTENCES)
    segmenter._predictor.use(expected.variables)  # compiled once
    other_masks, other_scores = segmenter.segment(frames, SENTENCES)
    assert masks.any() and (masks == other_masks).all() and scores.tobytes() == other_scores.tobytes()


def test_the_model_card(run: Path) -> None:
    _, header, text = (run / "shared" / "README.md").read_text().split("---\n", 2)
    data = yaml.safe_load(header)
    assert (data["library_name"], data["pipeline_tag"]) == ("lbdt_jax", "image-segmentation")
    assert data["datasets"] == ["moving_shapes"] and "license" not in data
    results = [result for entry in data["model-index"] for result in entry["results"]]
    assert {(row["dataset"]["name"], row["dataset"]["split"], len(row["metrics"])) for row in results} == {
        ("moving_shapes", "test", 3),
        ("moving_shapes", "valid, while training", 1),
        ("refcoco", "valid, while training", 1),
    }
    for part in (
        "LBDT-1 with ResNet-18",
        "trained on `moving_shapes`: 70 steps of 8 samples",
        "initial weights: `resnet18.pth`",
        "--config=configs/shapes.py:adamw \\\n",
        "--config.learning_rate_drops='(1.5, 2.0)'",
        "--config.initial_weights=resnet18.pth",
        "python -m lbdt_jax.predict --checkpoint=MODEL",
        "`moving_shapes`, split `test`, 3,200 sentences",
        '|  | protocol "paper" | protocol "standard" |',
        "| mean_iou | 84.1 | 81.2 |",
        "| coco_map |  | 67.8 |",
        "| mean_iou | 22.2 |",
        "best checkpoint of its training by `paper/mean_iou`",
    ):
        assert part in text, part
    for absent in ("config.learning_rate=0.002", "<b>", "11.1", "33.3", "55.5", "decoded_cache"):
        assert absent not in text, absent
    for path in (run / "shared").iterdir():  # no path of this machine
        assert str(run).encode() not in path.read_bytes()
        assert path.stat().st_mode == (run / "workdir" / "validation.json").stat().st_mode


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:7])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocabulary.json", "SHA256SUMS", "README.md"])
def test_a_broken_file(shared: Path, name: str, damage: Callable[[Path], None], capsys) -> None:
    damage(shared / name)
    reason = "is missing" if damage is Path.unlink else "was changed"
    if name == "README.md":  # a model card may be edited
        assert load_checkpoint(shared).step == STEP
        assert f"{shared}: README.md {reason}" in capsys.readouterr().out
        return
    if name == "SHA256SUMS" and damage is not Path.unlink:
        reason = "SHA256SUMS, line|was changed|is not listed"
    with pytest.raises(CheckpointError, match=f"(?s)shared model {shared} is broken.*({name} .*{reason}|{reason})"):
        load_checkpoint(shared)


def write_header(header: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").write_bytes(header)


TERABYTE = json.dumps({PARAMETER: {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_json("config.json", lambda json: json.update(format_version=2)), "has format_version 2.*update lbdt_jax"),
        (edit_json("config.json", lambda json: json.update(format_version=True)), "format_version is True"),
        (edit_json("config.json", lambda json: json.update(auto_map={})), "unknown fields auto_map.*update lbdt_jax"),
        (edit_json("config.json", lambda json: json.update(step=-1)), "step is -1"),
        (edit_json("config.json", lambda json: json.update(weights=["ema"])), r"weights is \['ema'\]"),
        (edit_json("config.json", lambda json: json.update(versions=None)), "versions is None"),
        (edit_json("config.json", lambda json: json.update(config=None)), "config is None"),
        (edit_json("config.json", lambda json: json["config"].update(new=1)), "does not know the field 'new'"),
        (edit_json("config.json", lambda json: json["config"].update(max_words=0)), "config.max_words is 0"),
        (edit_json("config.json", lambda json: json["config"]["model"].update(transfer_width=32)), "and should be"),
        (edit_json("config.json", lambda json: json.update(format="other")), "config.json is not one of lbdt_jax"),
        (edit_json("vocabulary.json", lambda json: json + ["a"]), "no list of distinct words"),
        (edit_json("vocabulary.json", lambda json: {"a": 1}), "no list of distinct words"),
        (edit_json("vocabulary.json", lambda json: json[1:]), r"expected vectors of 5 words, found \(6, 6\)"),
        (edit_arrays(lambda arrays: arrays.pop("word_vectors/vectors")), "expected vectors of 6 words, found nothing"),
        (edit_arrays(lambda arrays: arrays.pop(PARAMETER)), f"{PARAMETER} is missing, and should be"),
        (edit_arrays(lambda arrays: arrays.update({"params/a": arrays[PARAMETER]})), "params/a .*should be absent"),
        (edit_arrays(lambda arrays: arrays.update({PARAMETER: np.zeros(7, np.float32)})), r"is \(7,\), and should be"),
        (
            edit_arrays(lambda arrays: arrays.update({PARAMETER: np.zeros(1, np.int64)})),
            "expected float32, found int64",
        ),
        (edit_arrays(lambda arrays: arrays.update({PARAMETER: np.zeros(1, np.float16)})), f"{PARAMETER}: F16"),
        (
            edit_arrays(lambda arrays: arrays.update({PARAMETER: np.float32([np.nan])})),
            f"{PARAMETER} .* NaN or infinite",
        ),
        (write_header(b""), "header of 0 bytes"),
        (write_header(struct.pack("<Q", 2**40) + b"{}"), "header of 1,099,511,627,776 bytes"),
        (write_header(struct.pack("<Q", len(TERABYTE)) + TERABYTE), "broken, or not a .safetensors file"),
    ],
)
def test_contents_that_are_not_as_expected(shared: Path, edit: Callable[[Path], Any], message: str) -> None:
    edit(shared)
    write_checksums(shared)
    with pytest.raises(CheckpointError, match=f"(?s){shared}.*{message}"):
        load_checkpoint(shared)


def test_other_files_beside_it_do_not_matter(shared: Path) -> None:
    (shared / ".gitattributes").touch()
    (shared / "modeling.py").write_text("raise SystemExit")
    assert load_checkpoint(shared).step == STEP


def test_folders_and_files_of_others(run: Path, tmp_path: Path) -> None:
    for folder in ("transformers", "torch", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "transformers" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "torch" / "pytorch_model.bin").touch()
    for path, message in {
        "transformers": "It holds another model.*config.json of a model of the kind 'bert'",
        "torch": "It holds another model.*pytorch_model.bin",
        "empty": "Train first",
    }.items():
        with pytest.raises(CheckpointError, match=f"No checkpoint in {tmp_path / path}. {message}"):
            load_checkpoint(tmp_path / path)
    with pytest.raises(CheckpointError, match="It is a file; pass the folder that is inside"):
        load_checkpoint(run / "shared" / "model.safetensors")


def test_the_moving_average(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(run / "shared")
    checkpoint = Checkpoint(
        *(getattr(checkpoint, name) for name in ("variables", "config", "sentence_encoder")), 3, run, "ema"
    )
    write_shared(tmp_path / "shared", checkpoint, {})
    assert "weights: their moving average" in (tmp_path / "shared" / "README.md").read_text()
    convert(tmp_path / "shared", tmp_path / "ours")
    for folder in (tmp_path / "shared", tmp_path / "ours"):
        assert load_checkpoint(folder).weights == load_checkpoint(folder, "ema").weights == "ema"
        with pytest.raises(CheckpointError, match="holds the moving average of the weights alone"):
            load_checkpoint(folder, "trained")
    with pytest.raises(CheckpointError, match=r"holds no moving average .* trained without config\.ema_decay"):
        load_checkpoint(run / "shared", "ema")


def test_a_transformer(tmp_path: Path) -> None:
    with zipfile.ZipFile(GOLDEN / "compatibility" / "transformer.zip") as archive:
        archive.extractall(tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "shared", "--format=safetensors")
    ours, shared = load_checkpoint(tmp_path / "ours"), load_checkpoint(tmp_path / "shared")
    assert shared.sentence_encoder.text == ours.sentence_encoder.text
    flat = flatten_dict(shared.variables)
    assert all((flat[path] == array).all() for path, array in flatten_dict(ours.variables).items())
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "converted from a file of PyTorch" in card and "lbdt_jax.main" not in card and "datasets:" not in card
    edit_json("tokenizer.json", lambda json: json.update(model=None))(tmp_path / "shared")
    for message in ("tokenizer.json was changed", "can't read this tokenizer"):
        with pytest.raises(CheckpointError, match=f"(?s){tmp_path / 'shared'}.*{message}"):
            load_checkpoint(tmp_path / "shared")
        write_checksums(tmp_path / "shared")
    (tmp_path / "shared" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer.json is missing"):
        load_checkpoint(tmp_path / "shared")


def test_what_the_command_refuses(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, message in ((run / "shared", "exists already"), (tmp_path / "new.ckpt", "writes a folder")):
        with pytest.raises(SystemExit):
            convert(run / "workdir", target, "--format=safetensors")
        assert message in capsys.readouterr().err


# -- the Hugging Face Hub


class FakeHub:
    """Stands for snapshot_download: repositories that are folders, and what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.downloads = folder, []

    def __call__(self, repo_id: str, *, revision: str | None = None, allow_patterns: list[str]) -> str:
        self.downloads.append((repo_id, revision, sorted(allow_patterns)))
        snapshot = self.folder / "cache" / repo_id / ("a" * 40)
        snapshot.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if (self.folder / repo_id / name).exists():
                shutil.copy(self.folder / repo_id / name, snapshot)
        return str(snapshot)


@pytest.fixture
def hub(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """A Hub with the repositories jane/shapes, a model of ours, and jane/bert. The current folder is another one."""
    hub = FakeHub(tmp_path / "hub")
    shutil.copytree(run / "shared", hub.folder / "jane" / "shapes")
    (hub.folder / "jane" / "shapes" / "modeling.py").touch()
    (hub.folder / "jane" / "bert").mkdir()
    (hub.folder / "jane" / "bert" / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.chdir(tmp_path)
    return hub


def test_a_repository_is_read_where_a_folder_is(hub: FakeHub, run: Path, tmp_path: Path, capsys) -> None:
    assert_same_model(lbdt_jax.load("jane/shapes@v1").checkpoint, load_checkpoint(run / "shared"))
    assert f"jane/shapes of the Hugging Face Hub, revision {'a' * 40}: " in capsys.readouterr().out
    all_files = ["README.md", "SHA256SUMS", "config.json", "model.safetensors", "tokenizer.json", "vocabulary.json"]
    small = [name for name in all_files if name != "model.safetensors"]
    assert hub.downloads == [("jane/shapes", "v1", small), ("jane/shapes", "a" * 40, all_files)]
    assert not list((hub.folder / "cache").rglob("modeling.py"))
    convert("jane/shapes", tmp_path / "ours")
    assert load_checkpoint(tmp_path / "ours").step == STEP
    assert find_initial_weights("jane/shapes", tiny_config().model) == locate_checkpoint("jane/shapes")


def test_initial_weights_are_of_a_model_that_reads_the_same(shared: Path) -> None:
    checkpoint, config, words = load_checkpoint(shared), tiny_config(), load_word_vectors("random:6", ["the", "fox"])

    def initialize(config: ConfigDict, words: WordVectors) -> Any:
        return load_initial_weights(checkpoint.variables, shared, config, words)

    for same in (words, load_word_vectors("random:6", ["fox"])):  # of which the checkpoint knows one word or none
        np.testing.assert_array_equal(
            initialize(config, same)["params"]["head"]["project"]["bias"],
            checkpoint.variables["params"]["head"]["project"]["bias"],
        )
    with pytest.raises(UserError, match="initial_weights, .*: The model was trained with other word vectors"):
        initialize(config, dataclasses.replace(words, vectors=-words.vectors))
    config.model.attention_heads = 4
    with pytest.raises(UserError, match=r"it was trained with config\.model\.attention_heads=2, not 4"):
        initialize(config, words)


def test_of_another_model_no_weights_are_fetched(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match="jane/bert of the Hugging Face Hub holds no model of lbdt_jax.*'bert'"):
        locate_checkpoint("jane/bert")
    assert all("model.safetensors" not in files for *_, files in hub.downloads)
    (hub.folder / "jane" / "bert" / "model.safetensors").touch()  # as initial weights, an image encoder is welcome
    assert (locate_checkpoint("jane/bert", any_model=True) / "model.safetensors").exists()


def test_what_is_a_path_and_what_a_repository(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "jo" / "local").mkdir(parents=True)
    for path in (
        *("runs/mine", "runs/misspelt", "jo/local", "jo/missing", "one", "a/b/c", "../a", "/a/b", "./a", "", "~/a"),
        *("data/resnet50.pth", "x/released.ckpt", "x/model.safetensors", "a b/c", "a/b@", "-a/b", "runs/best"),
    ):
        assert locate_checkpoint(path) == Path(path).expanduser() and not hub.downloads, path
    shutil.copytree(hub.folder / "jane" / "shapes", hub.folder / "jo" / "shapes")
    assert locate_checkpoint("jo/shapes@refs/pr/1").is_relative_to(hub.folder)  # a revision always means the Hub


def http_error(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    response: Any = types.SimpleNamespace(headers={}, request=None, status_code=status)
    return kind(f"{status} Client Error", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            http_error(errors.RepositoryNotFoundError, 401),
            "no folder jane/x, and no repository.*private.*hf auth login",
        ),
        (http_error(errors.GatedRepoError, 403), "ask for access on https://huggingface.co/jane/x"),
        (http_error(errors.RevisionNotFoundError, 404), "jane/x .*has no branch, tag or commit v9"),
        (errors.LocalEntryNotFoundError("no snapshot"), "(?s)can't be reached.*hf download jane/x.*no snapshot"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (type("ConnectError", (Exception,), {})("no route"), "can't be reached"),
        (errors.HFValidationError("Cannot have --"), "can have this name: Cannot have --"),
        (http_error(errors.HfHubHTTPError, 500), "can't be downloaded.*HfHubHTTPError: 500"),
        (OSError(28, "No space left on device"), "can't be downloaded.*No space left"),
    ],
)
def test_errors_of_the_hub(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=message):
        lbdt_jax.load("jane/x@v9")


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="no folder jane/x.*pip install huggingface_hub"):
        lbdt_jax.load("jane/x")
