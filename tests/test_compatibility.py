"""Files of an earlier version can be read: checkpoints, records, exported programs (see golden/README.md)."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from paths import GOLDEN
from runs import logged

from input_pipeline.pipeline import evaluation_examples, training_batches
from lbdt_jax.checkpoint import Checkpoint, load_checkpoint, load_unused
from lbdt_jax.parallel import make_mesh
from lbdt_jax.step import make_model
from lbdt_jax.train import train

pytestmark = pytest.mark.usefixtures("fast_compilation")

STORED = GOLDEN / "compatibility"
EXPECTED = json.loads((STORED / "expected.json").read_text())
LOGITS = np.load(STORED / "logits.npz")
SPLITS = ("train", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored archives, unpacked: records/, glove/ (a training run), transformer/ (converted weights), exported/."""
    folder = tmp_path_factory.mktemp("compatibility")
    for archive in STORED.glob("*.zip"):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder / archive.stem)
    return folder


def load(folder: Path, name: str) -> tuple[Checkpoint, ConfigDict]:
    """A stored checkpoint, and its configuration with the folder of the stored records."""
    checkpoint = load_checkpoint(folder / name)
    config = checkpoint.config.copy_and_resolve_references()
    config.data_dir = str(folder / "records")
    return checkpoint, config


def inputs(folder: Path, name: str) -> tuple[np.ndarray, ...]:
    """Frames, earlier frames, words and word masks of all sentences of both splits."""
    checkpoint, config = load(folder, name)
    fields: list[tuple[np.ndarray, ...]] = []
    for split in SPLITS:
        for example in evaluation_examples(config, split, checkpoint.sentence_encoder):
            count = len(example.sentences)
            frames = (np.stack([frame] * count) for frame in (example.frame, example.earlier_frame))
            fields.append((*frames, example.words, example.word_mask))
    return tuple(np.concatenate(field) for field in zip(*fields, strict=True))


def assert_logits(actual: jax.Array | np.ndarray, name: str) -> None:
    expected = LOGITS[name]
    assert actual.shape == (7, 64, 64) and expected.std() > 0.01
    np.testing.assert_allclose(actual[:, ::4, ::4], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["glove", "transformer"])
def test_checkpoints_predict_the_same_logits(folder: Path, name: str) -> None:
    checkpoint, _ = load(folder, name)
    assert_logits(jax.jit(make_model(checkpoint.config).apply)(checkpoint.variables, *inputs(folder, name)), name)


def test_a_converted_checkpoint_keeps_the_unused_weights(folder: Path) -> None:
    np.testing.assert_array_equal(load_unused(folder / "transformer")["decoder.unused"], [0, 1, 2])


@pytest.mark.slow
@pytest.mark.usefixtures("fast_compilation")
def test_training_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, config = load(folder, "glove")
    assert checkpoint.step == 2
    batches = training_batches(config, checkpoint.sentence_encoder, first_step=2)
    assert {step: next(batches)["name"].tolist() for step in ("3", "4")} == EXPECTED["names"]
    # On one device, like the stored run: batch statistics and dropout are per device.
    monkeypatch.setattr("lbdt_jax.train.make_mesh", lambda: make_mesh(jax.devices()[:1]))
    train(config, folder / "glove")
    for name in ("loss", "gradient_norm"):
        actual, expected = logged(folder / "glove", name), EXPECTED[name]
        assert sorted(actual) == [3, 4]
        np.testing.assert_allclose([actual[3], actual[4]], [expected["3"], expected["4"]], rtol=1e-4)


@pytest.mark.parametrize("split", SPLITS)
def test_records_hold_the_same_examples(folder: Path, split: str) -> None:
    checkpoint, config = load(folder, "glove")
    examples = list(evaluation_examples(config, split, checkpoint.sentence_encoder))
    assert len(examples) == len(EXPECTED["examples"][split])
    for example, expected in zip(examples, EXPECTED["examples"][split], strict=True):
        assert (example.video, example.frame_index) == (expected["video"], expected["frame_index"])
        assert [*example.original_frame.shape[:2]] == expected["size"]
        brightness = [frame.mean() for frame in (example.original_frame, example.original_earlier_frame)]
        np.testing.assert_allclose(brightness, expected["brightness"], atol=0.1)
        assert [[sentence.text, sentence.instance] for sentence in example.sentences] == expected["sentences"]
        assert example.word_mask.sum(axis=1).tolist() == expected["tokens"]
        np.testing.assert_allclose(example.words.sum(axis=(1, 2)), expected["words"], rtol=1e-5, atol=1e-5)
        assert [zlib.crc32(target.tobytes()) for target in example.targets] == expected["targets"]
        assert [zlib.crc32(mask.tobytes()) for mask in example.masks] == expected["masks"]


def test_exported_programs_give_the_same_logits(folder: Path) -> None:
    exported = folder / "exported"
    assert json.loads((exported / "model.json").read_text())["image_size"] == [64, 64]
    try:
        programs = [(exported / f"{name}.jax").read_bytes() for name in ("encode", "answer")]
        encode, segment = map(jax.export.deserialize, programs)
    except Exception as error:
        pytest.fail(
            f"jax {jax.__version__} can't read the exported programs of golden/compatibility. JAX supports programs of "
            f"the last six months: if these are older, export them again as golden/README.md says. {error}"
        )
    weights = dict(np.load(exported / "weights.npz"))
    frames, earlier_frames, words, word_mask = inputs(folder, "glove")
    features = jax.jit(encode.call)(weights, {"frame": frames, "earlier_frame": earlier_frames})
    index = np.arange(len(frames), dtype=np.int32)
    sentences = {"words": words, "word_mask": word_mask, "frame_of_sentence": index}
    assert_logits(jax.jit(segment.call)(weights, features, sentences), "glove")
