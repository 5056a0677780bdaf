"""Augmentation: each kind alone, both frames alike, and the same batches whatever they are made from and by whom."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_datasets import write_a2d
from frames import noise
from ml_collections import ConfigDict

from configs.base import get_config
from input_pipeline.augmentation import PADDING_COLOR, SampleGroup, _draw, augment, is_augmented
from input_pipeline.errors import UserError
from input_pipeline.images import resize_frame, resize_target
from input_pipeline.pipeline import distinct_sentences, steps_per_epoch, training_batches, vocabulary
from input_pipeline.prepare import prepare
from input_pipeline.report import records_dir
from input_pipeline.text.word_vectors import WordVectors, load_word_vectors
from lbdt_jax.visualization.augmentations import save_augmentations

SIZE = (64, 96)
COLORS = {"augment_brightness": 0.5, "augment_contrast": 0.5, "augment_saturation": 0.5, "augment_hue": 0.2}
EVERYTHING = {"augment_flip": 0.5, "augment_scale": (0.5, 2.0), **COLORS}


def config_with(**fields: Any) -> ConfigDict:
    config = get_config()
    config.update(image_size=SIZE, **fields)
    return config


def make_group(
    height: int = 64, width: int = 96, sentences: tuple[str, ...] = ("the dog on the left",), **changes: Any
) -> SampleGroup:
    """Noise, of which only a part changes between the frames, with an object near a corner. Can't be written to."""
    frame = noise(height, width)
    earlier_frame = frame.copy()
    earlier_frame[height // 2 :, : width // 3] = noise(height, width, seed=1)[height // 2 :, : width // 3]
    target = np.zeros((height, width), np.uint8)
    target[2:12, 3:18] = 1
    names = tuple(f"clip/7/{number}: {sentence}" for number, sentence in enumerate(sentences))
    group = SampleGroup(frame, earlier_frame, (target,) * len(sentences), sentences, names)._replace(**changes)
    for array in (group.frame, group.earlier_frame, *group.targets):
        array.flags.writeable = False
    return group


def assert_equal(group: SampleGroup, other: SampleGroup) -> None:
    for field, value, expected in zip(SampleGroup._fields, group, other, strict=True):
        np.testing.assert_array_equal(value, expected, err_msg=field)


def test_nothing_is_augmented_by_default() -> None:
    assert not is_augmented(get_config())
    for field, value in EVERYTHING.items():
        assert is_augmented(config_with(**{field: value}))


def test_mirroring() -> None:
    group = make_group(sentences=("the dog on the left", "a cat"))
    mirrored, augmentation = augment(config_with(augment_flip=1.0), 0, group)
    assert augmentation.mirrored
    assert mirrored.sentences == ("the dog on the right", "a cat") and mirrored.names == group.names
    for image, original in zip((*mirrored[:2], *mirrored.targets), (*group[:2], *group.targets), strict=True):
        np.testing.assert_array_equal(image, original[:, ::-1])
    # One sentence in doubt keeps the frame pair as it is.
    group = make_group(sentences=("the dog on the left", "a man who left"))
    kept, augmentation = augment(config_with(augment_flip=1.0), 0, group)
    assert not augmentation.mirrored
    assert_equal(kept, group)
    flips = sum(augment(config_with(augment_flip=0.25), epoch, make_group())[1].mirrored for epoch in range(400))
    assert 70 < flips < 130


@pytest.mark.parametrize("scales", [(1.5, 1.5), (0.6, 0.6), (0.5, 2.0), (1.0, 1.0001)])
def test_scale_and_crop(scales: tuple[float, float]) -> None:
    height, width = 150, 200
    mask = np.zeros((height, width), bool)
    mask[40:110, 60:140] = True
    group = make_group(height, width, targets=(mask,))
    seen = set()
    for epoch in range(5):
        augmented, (_, crop, _) = augment(config_with(augment_scale=scales), epoch, group)
        assert scales[0] <= crop.scale <= scales[1]
        seen.add(crop)
        (target,) = augmented.targets
        assert target.dtype == np.uint8 and target.shape == SIZE
        if crop.scale >= 1:
            part = crop.part(height, width)
            whole, inside = (slice(None), slice(None)), SIZE
            assert [rows.stop - rows.start for rows in part] == [round(height / crop.scale), round(width / crop.scale)]
        else:
            part, whole = (slice(None), slice(None)), crop.part(*SIZE)
            inside = (round(crop.scale * SIZE[0]), round(crop.scale * SIZE[1]))
            outside = np.ones(SIZE, bool)
            outside[whole] = False
            assert (augmented.frame[outside] == PADDING_COLOR).all() and not target[outside].any()
        np.testing.assert_array_equal(augmented.frame[whole], resize_frame(group.frame[part], inside))
        np.testing.assert_array_equal(augmented.earlier_frame[whole], resize_frame(group.earlier_frame[part], inside))
        np.testing.assert_array_equal(target[whole], resize_target(mask[part], inside))
    assert len(seen) > 3


def test_no_object_disappears_unless_the_configuration_says_so() -> None:
    group = make_group()
    (mask,) = group.targets
    shares = []
    for epoch in range(100):
        augmented, (_, crop, _) = augment(config_with(augment_scale=(1.5, 3.0)), epoch, group)
        shares.append(mask[crop.part(*SIZE)].sum() / mask.sum())
        assert augmented.targets[0].any()
    assert min(shares) >= 0.25 and min(shares) < 0.6
    config = config_with(augment_scale=(1.5, 3.0), augment_min_visible=0.0)
    assert sum(not augment(config, epoch, group)[0].targets[0].any() for epoch in range(100)) > 20
    # An object that no crop keeps leaves the whole frame; an object that is not there does not matter.
    everywhere = make_group(targets=(np.ones(SIZE, np.uint8),))
    augmented, augmentation = augment(config_with(augment_scale=(5.0, 5.0)), 0, everywhere)
    assert augmentation.crop.scale == 1
    assert_equal(augmented, everywhere)
    nowhere = make_group(targets=(np.zeros(SIZE, np.uint8),))
    assert augment(config_with(augment_scale=(5.0, 5.0)), 0, nowhere)[1].crop.scale == 5


@pytest.mark.parametrize("fields", [*({name: range_} for name, range_ in COLORS.items()), COLORS, EVERYTHING])
def test_what_does_not_move_stays_the_same_in_both_frames(fields: dict[str, Any]) -> None:
    still = make_group(earlier_frame=noise(64, 96))
    changes = set()
    for epoch in range(20):
        augmented, (mirrored, crop, colors) = augment(config_with(**fields), epoch, still)
        assert (augmented.frame == augmented.earlier_frame).all()
        changes.add(colors)
        if "augment_scale" not in fields:
            assert all(bool(change) == (f"augment_{kind}" in fields) for kind, change in colors._asdict().items())
            assert (augmented.frame != still.frame).any()
            np.testing.assert_array_equal(augmented.targets, still.targets) if not mirrored else None
            moving = make_group()
            augmented = augment(config_with(**fields), epoch, moving)[0]
            same = (moving.frame == moving.earlier_frame).all(-1)
            assert (augmented.frame[same] == augmented.earlier_frame[same]).all()
    assert len(changes) == 20


def test_changes_of_color() -> None:
    group = make_group(frame=np.clip(noise(64, 96), 60, 120))  # nothing reaches 0 or 255
    frame = group.frame.astype(float)
    luma = frame @ [0.299, 0.587, 0.114]

    def recolored(kind: str, range_: float) -> tuple[np.ndarray, float]:
        augmented, (_, _, colors) = augment(config_with(**{f"augment_{kind}": range_}), 3, group)
        return augmented.frame, getattr(colors, kind)

    after, change = recolored("brightness", 0.5)
    np.testing.assert_allclose(after, (1 + change) * frame, atol=0.51)
    after, change = recolored("contrast", 0.5)
    np.testing.assert_allclose(after, (1 + change) * (frame - luma.mean()) + luma.mean(), atol=0.51)
    after, change = recolored("saturation", 0.5)
    np.testing.assert_allclose(after, (1 + change) * (frame - luma[..., None]) + luma[..., None], atol=0.51)
    after, change = recolored("hue", 0.05)
    np.testing.assert_allclose(after @ [0.299, 0.587, 0.114], luma, atol=0.6)
    red = make_group(frame=np.full((64, 96, 3), (200, 40, 40), np.uint8))
    config = config_with(augment_hue=0.5)
    hues = [augment(config, epoch, red)[0].frame[0, 0].argmax() for epoch in range(50)]
    assert set(hues) == {0, 1, 2}


def test_draws_depend_on_seed_epoch_and_samples_only() -> None:
    config = config_with(**EVERYTHING)
    group = make_group(sentences=("a dog", "a cat"))
    _, augmentation = augment(config, 2, group)
    swapped = group._replace(sentences=group.sentences[::-1], names=group.names[::-1])
    assert augment(config, 2, swapped)[1] == augmentation
    others = [augment(config, 3, group)[1], augment(config, 2, group._replace(names=("clip/8/0: a dog",)))[1]]
    config.seed += 1
    others.append(augment(config, 2, group)[1])
    assert all(other.crop != augmentation.crop and other.colors != augmentation.colors for other in others)
    # Turning one kind on does not change another.
    for field, value in EVERYTHING.items():
        _, alone = augment(config_with(**{field: value}), 2, group)
        kind = field.removeprefix("augment_")
        if kind == "flip":
            assert alone.mirrored == augmentation.mirrored
        elif kind == "scale":
            assert alone.crop == augmentation.crop
        else:
            assert getattr(alone.colors, kind) == getattr(augmentation.colors, kind)
    # On every machine, for ever: runs resume with these.
    assert _draw(0, 1, ("b", "a"), "flip") == (0.8570095959137939, 0.0634791488097387, 0.560758543596757)


# -- batches


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of a small A2D-Sentences, with frames kept at 32x64."""
    folder = tmp_path_factory.mktemp("augmentation")
    prepare("a2d_sentences", write_a2d(folder / "raw"), folder / "data", image_size=(32, 64))
    return folder / "data"


@pytest.fixture(scope="module")
def other_data_dirs(data_dir: Path) -> dict[str, Path]:
    """The same records without the resized frames, and as an earlier version made them."""
    folders = {"original": data_dir.with_name("original"), "without index": data_dir.with_name("without_index")}
    for folder in folders.values():
        shutil.copytree(data_dir, folder)
        shutil.rmtree(records_dir(folder, "a2d_sentences") / "resized_32x64")
    (records_dir(folders["without index"], "a2d_sentences") / "index.json").unlink()
    return folders


@pytest.fixture
def config(data_dir: Path) -> ConfigDict:
    config = get_config()
    config.update(data_dir=str(data_dir), image_size=(32, 64), batch_size=2)
    return config


@pytest.fixture
def word_vectors(config: ConfigDict) -> WordVectors:
    config = config.copy_and_resolve_references()
    config.augment_flip = 0.5
    return load_word_vectors("random:8", vocabulary(config))


def take(count: int, *args: Any, **kwargs: Any) -> list[dict]:
    return list(itertools.islice(training_batches(*args, **kwargs), count))


def assert_batches_equal(batches: list[dict], expected: list[dict]) -> None:
    for batch, other in zip(batches, expected, strict=True):
        for field in other:
            np.testing.assert_array_equal(batch[field], other[field], err_msg=field)
            assert batch[field].dtype == other[field].dtype


@pytest.mark.parametrize("sentences_per_frame", [1, 2])
def test_augmented_batches_are_the_same_however_they_are_made(
    config, word_vectors, other_data_dirs, sentences_per_frame: int, capsys
) -> None:
    config.update(sentences_per_frame=sentences_per_frame, batch_size=2 * sentences_per_frame, **EVERYTHING)
    expected = take(9, config, word_vectors)
    assert "does not read" in capsys.readouterr().out  # it crops the original frames
    assert_batches_equal(take(4, config, word_vectors, first_step=5), expected[5:])
    parts = [take(4, config, word_vectors, process_index=index, process_count=2) for index in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_batches_equal(joined, expected[:4])
    config.decoded_cache = 100
    assert_batches_equal(take(9, config, word_vectors), expected)
    config.data_dir = str(other_data_dirs["original"])
    assert_batches_equal(take(9, config, word_vectors), expected)

    config.data_dir = str(other_data_dirs["without index"])
    expected = take(9, config, word_vectors)
    assert_batches_equal(take(4, config, word_vectors, first_step=5), expected[5:])
    samples = [name for batch in expected for name in batch["name"]]
    frames = [batch["frame"][row // sentences_per_frame] for batch in expected for row in range(len(batch["name"]))]
    repeated = Counter(samples).most_common(1)[0][0]
    versions = {frame.tobytes() for sample, frame in zip(samples, frames, strict=True) if sample == repeated}
    assert len(versions) > 1  # drawn anew in each epoch


def test_frames_kept_at_the_models_size_are_augmented(config, word_vectors, other_data_dirs, capsys) -> None:
    config.update(augment_flip=0.5, **COLORS)
    batches = take(9, config, word_vectors)
    assert not capsys.readouterr().out
    config.data_dir = str(other_data_dirs["original"])
    assert_batches_equal(batches, take(9, config, word_vectors))


def test_the_words_of_mirrored_samples(config, word_vectors) -> None:
    sentence, mirrored = "the man in red walking left", "the man in red walking right"
    assert not word_vectors.unknown_words(mirrored, 25)
    originals = {name: row for batch in take(3, config, word_vectors) for name, row in rows(batch)}
    config.augment_flip = 1.0
    batches = take(3, config, word_vectors)
    assert {name for batch in batches for name in batch["name"]} == originals.keys()
    for name, (frame, words, target) in (row for batch in batches for row in rows(batch)):
        expected = mirrored if name.endswith(sentence) else name.split(": ")[1]
        np.testing.assert_array_equal(words, word_vectors.encode(expected, 25)[0])
        np.testing.assert_array_equal(frame, originals[name][0][:, ::-1])
        np.testing.assert_array_equal(target, originals[name][2][:, ::-1])


def rows(batch: dict) -> list[tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    fields = zip(batch["frame"], batch["words"], batch["target"], strict=True)
    return list(zip(batch["name"], fields, strict=True))


def test_sentences_and_vocabulary_include_the_mirrored_ones(config) -> None:
    sentences, words = distinct_sentences(config), vocabulary(config)
    assert "left" in words and "right" not in words
    config.augment_flip = 0.1
    assert set(distinct_sentences(config)) == {*sentences, "the man in red walking right"}
    assert vocabulary(config) == sorted([*words, "right"])


@pytest.mark.parametrize("source", ["index", "without index"])
def test_an_epoch_takes_some_sentences_of_each_frame_pair(config, word_vectors, other_data_dirs, source: str) -> None:
    if source == "without index":
        config.data_dir = str(other_data_dirs[source])
    config.sentences_per_epoch = 1
    assert steps_per_epoch(config) == 2  # four frame pairs, two of them with two sentences
    batches = take(20, config, word_vectors)
    epochs = [[name for batch in batches[step : step + 2] for name in batch["name"]] for step in range(0, 20, 2)]
    for epoch in epochs:
        assert len({name.rpartition("/")[0] for name in epoch}) == 4
    assert len({name for epoch in epochs for name in epoch}) == 6
    assert_batches_equal(take(5, config, word_vectors, first_step=3), batches[3:8])
    parts = [take(4, config, word_vectors, process_index=index, process_count=2) for index in range(2)]
    joined = [{name: np.concatenate([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    assert_batches_equal(joined, batches[:4])
    config.update(sentences_per_epoch=2, sentences_per_frame=2)
    assert steps_per_epoch(config) == 4
    config.update(sentences_per_epoch=8, sentences_per_frame=1)
    assert steps_per_epoch(config) == 3


def test_the_contact_sheet(config, tmp_path) -> None:
    config.contact_sheet_samples = 3
    with pytest.raises(UserError, match="Nothing is augmented.* config.augment_flip"):
        save_augmentations(config, tmp_path / "augmentations.png")
    config.augment_flip = 1.0
    save_augmentations(config, tmp_path / "augmentations.png")
    assert (tmp_path / "augmentations.png").stat().st_size > 10_000
