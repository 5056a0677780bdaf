"""Own clips: clips and folders, palette masks and RLE, unions, frames held out, and every line explained."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_datasets import HEIGHT, WIDTH, frame, write_clip, write_jpeg
from fake_mevis import rle
from fake_own import LABELLED, NAMES, SENTENCES, write_own
from fake_video_folders import walking_mask, write_labels
from ml_collections import ConfigDict
from PIL import ExifTags, Image, ImageFilter
from reader_checks import read_all

from input_pipeline.errors import UserError
from input_pipeline.files import record_files
from input_pipeline.images import decode_frame
from input_pipeline.pictures import read_picture
from input_pipeline.prepare import prepare
from input_pipeline.readers.own import NO_SUCH_OBJECT, REPEATED_LINE, OwnClips
from input_pipeline.record_dataset import split_counts
from input_pipeline.types import FramePair, Sentence


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_own(tmp_path / "own")


def check_images(pair: FramePair, earlier: int) -> None:
    """Checks the images by their brightness."""
    for index, image in ((pair.frame_index, pair.frame), (earlier, pair.earlier_frame)):
        assert abs(float(image[-1, -1].mean()) - float(frame(index)[-1, -1].mean())) < 4


def test_frames_are_split_in_time(raw: Path) -> None:
    reader = OwnClips(raw, 2)
    assert reader.splits() == ("train", "val") and reader.skipped() == ()
    assert reader.videos("train") == ["dog/train", "my cats/train"]
    pairs, skipped = read_all(reader, "dog/train")
    assert [pair.frame_index for pair in pairs] == [0, 3, 7, 9] and {pair.video for pair in pairs} == {"dog"}
    for pair, earlier in zip(pairs, (0, 1, 5, 7), strict=True):
        check_images(pair, earlier)
        objects = LABELLED["dog"][pair.frame_index]
        names = {1: "the brown dog, on the left", 2: "the cat", 256: "both animals"}
        present = [*objects, 256] if len(objects) == 2 else sorted([*objects, 256])
        assert [sentence.text for sentence in pair.sentences] == [names[target] for target in present]
        for target in present:
            expected = np.logical_or.reduce([walking_mask(i, pair.frame_index) for i in objects if target in (i, 256)])
            np.testing.assert_array_equal(pair.masks[target], expected)
    assert [item.reason for item in skipped] == ["the instance is not in the frame"] * 2
    (pair,), _ = read_all(reader, "dog/val")
    assert pair.frame_index == 11 and pair.sentences[0] == Sentence("the brown dog, on the left", 1, "", "2")
    (pair,), _ = read_all(reader, "my cats/val")
    check_images(pair, 0)
    np.testing.assert_array_equal(pair.masks[3], walking_mask(3, 1))
    assert pair.files[0] == (raw / "videos/my cats/IMG_9.jpg").read_bytes()


def test_frame_rates_are_counted(raw: Path) -> None:
    """`config.frame_rate` is to be set to them; a folder of frames has none, and a damaged clip neither."""
    for name in ("bird", "cow", "damaged"):
        write_clip(raw / f"videos/{name}.mp4", 4, Fraction(30000, 1001))
        write_labels(raw / f"masks/{name}/0.png", {1: walking_mask(1, 0)})
    (raw / "videos/damaged.mp4").write_bytes(b"x")
    (raw / "sentences.txt").write_text(f"{SENTENCES}bird, 1, a bird\ncow, 1, a cow\ndamaged, 1, a damaged clip\n")
    assert OwnClips(raw).inventory() == {
        "videos with a sentence and a mask": (5, None),
        "sentences": (7, None),
        "labelled frames in train": (8, None),
        "labelled frames in val": (2, None),
        "clips with 24 frames per second": (1, None),
        "clips with 29.97 frames per second": (2, None),
    }


def test_held_out_frames_by_choice(raw: Path) -> None:
    (raw / "held_out.txt").write_text("# by hand\ndog, 7\nmy cats\nother\ndog, x\ndog, 3\n")
    reader = OwnClips(raw)
    assert reader.annotations.frames == {
        "train": {"dog": (0, 3)},
        "val": {"dog": (7, 9, 11), "my cats": (0, 1)},
    }
    assert [item.reason for item in reader.skipped()] == [
        "no such video with a sentence and a mask",
        "no frame of the video has this name or number",
        "video listed twice",
    ]
    assert [item.where.split(": ")[0] for item in reader.skipped()] == [f"{raw}/held_out.txt:{n}" for n in (4, 5, 6)]


@pytest.mark.parametrize("names", [NAMES, ("00011", "00012", "00015"), ("a²", "b2", "b10")])
def test_frames_of_a_folder_are_held_out_by_name(raw: Path, names: tuple[str, ...]) -> None:
    for old, new in zip(NAMES, names, strict=True):
        (raw / f"videos/my cats/{old}.jpg").rename(raw / f"videos/my cats/{new}.jpg")
    change_json({name: {"3": rle(walking_mask(3, index))} for index, name in enumerate(names)})(raw)
    by_number = ["12", "13"] if names[0].isdecimal() else []
    for text, position in ((names[1], 1), (names[2], 2), *zip(by_number, (1, 2), strict=False)):
        (raw / "held_out.txt").write_text(f"my cats, {text}")
        frames = OwnClips(raw).annotations.frames
        assert frames["val"] == {"my cats": tuple(range(position, 3))}
        assert frames["train"]["my cats"] == tuple(range(position))
    (raw / "held_out.txt").write_text("my cats, 1")
    unknown = "no frame of the video has this name or number"
    assert (unknown in [item.reason for item in OwnClips(raw).skipped()]) is not bool(by_number)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return exif


RGBA = np.dstack([frame(1), 4 * np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 256]).astype(np.uint8)
GRAY_16 = (np.arange(HEIGHT * WIDTH, dtype=np.uint16) * 21).reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("suffix", "image", "exif"),
    [
        ("jpg", frame(1)[::-1, ::-1], orientation(3)),
        ("jpg", np.rot90(frame(1)), orientation(6)),
        ("png", RGBA, orientation(1)),
        ("png", GRAY_16, orientation(1)),
        ("webp", frame(1), orientation(1)),
    ],
)
def test_frames_are_as_predict_shows_them(raw: Path, suffix: str, image: np.ndarray, exif: Image.Exif) -> None:
    (raw / "videos/my cats/IMG_9.jpg").unlink()
    path = raw / f"videos/my cats/IMG_9.{suffix}"
    Image.fromarray(image).save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    (pair,), skipped = read_all(OwnClips(raw), "my cats/val")
    assert not skipped
    ((_, displayed),) = read_picture(path)
    np.testing.assert_array_equal(pair.frame, displayed)
    assert pair.files is not None and np.abs(decode_frame(pair.files[0]).astype(int) - displayed).mean() < 4
    np.testing.assert_array_equal(pair.masks[3], walking_mask(3, 1))
    assert pair.files[1] == (raw / "videos/my cats/IMG_8.jpg").read_bytes()


@pytest.mark.parametrize(
    ("held_out", "split", "left", "how_many", "other"),
    [
        ("dog\nmy cats\n", "train", "val", "all of them", "Without training: --mode=evaluate"),
        ("# none", "val", "train", "none", "To use another one, set --config.evaluation_split=train"),
    ],
)
def test_split_without_a_frame(raw: Path, held_out: str, split: str, left: str, how_many: str, other: str) -> None:
    (raw / "held_out.txt").write_text(held_out)
    reader = OwnClips(raw)
    (item,) = reader.skipped()
    assert reader.splits() == (left,)
    assert item.reason.startswith(f"split {split} has no labelled frame: held_out.txt holds out {how_many}: list ")
    prepare("own", raw, raw.parent / "data")
    config = ConfigDict({"dataset": "own", "data_dir": str(raw.parent / "data")})
    folder = raw.parent / "data" / "own" / "2.0.0"
    remedy = f"{raw}: {item.reason}. When that is changed, delete {folder} and run this again. {other}"
    with pytest.raises(UserError, match=re.escape(f"own has no split {split!r}; it has {left}. {remedy}")):
        split_counts(config, split)


def test_absent_objects_have_empty_masks_in_val(raw: Path) -> None:
    (raw / "held_out.txt").write_text("dog, 3")
    pairs, _ = read_all(OwnClips(raw), "dog/val")
    assert [len(pair.sentences) for pair in pairs] == [3] * 4 and not pairs[0].masks[2].any()


def test_sentences_about_an_object_in_no_mask_are_left_out(raw: Path) -> None:
    (raw / "sentences.txt").write_text(f"{SENTENCES}dog, 7, the unknown\ndog, 1+7, both\nmy cats, 4, the black cat\n")
    empty = rle(np.zeros((HEIGHT, WIDTH), bool))
    change_json({NAMES[i]: {"3": rle(walking_mask(3, i)), "4": empty} for i in range(2)})(raw)
    write_labels(raw / "masks/dog/11.png", {1: walking_mask(1, 11)})  # "the cat", object 2, is in "train" only
    for split in ("train", "val"):
        reader = OwnClips(raw)
        reader.skipped()
        with record_files() as files:
            pairs, skipped = read_all(reader, f"dog/{split}")
        assert {str(raw / "masks/dog/0.png"), str(raw / "masks/dog/11.png")} <= files.keys()  # of both splits
        names = {"the brown dog, on the left", "the cat", "both animals"}
        assert {s.text for pair in pairs for s in pair.sentences} == names
        assert [item.where for item in skipped if item.reason == NO_SUCH_OBJECT] == [
            f"{raw}/masks: video dog, object 7; they have object 1, 2 (sentences.txt:7)",
            f"{raw}/masks: video dog, object 7 of 1+7; they have object 1, 2 (sentences.txt:8)",
        ]
        (pair,), (item,) = read_all(OwnClips(raw), f"my cats/{split}")
        assert [s.text for s in pair.sentences] == ["a white cat"] and "object 4; they have object 3" in item.where
    (pair,), skipped = read_all(OwnClips(raw), "dog/val")
    assert not pair.masks[2].any()
    assert skipped[-1].reason.endswith("of the video's val frames: its sentences are kept, with empty masks")


def test_repeated_lines_count_once(raw: Path) -> None:
    (raw / "sentences.txt").write_text(f"{SENTENCES}dog.mp4, 1,  the brown dog, on the left\ndog, 2+1, both animals\n")
    expected, reader = OwnClips(write_own(raw.parent / "other")), OwnClips(raw)
    assert reader.annotations.sentences == expected.annotations.sentences
    assert reader.annotations.targets == expected.annotations.targets
    places = [f"{raw}/sentences.txt:7: as in line 2", f"{raw}/sentences.txt:8: as in line 4"]
    assert [(item.where, item.reason) for item in reader.skipped()] == [(where, REPEATED_LINE) for where in places]


@pytest.mark.parametrize("bits", [8, 1])
def test_black_and_white_masks(raw: Path, bits: int) -> None:
    shutil.rmtree(raw / "masks/dog")
    (raw / "masks/dog").mkdir()
    white = walking_mask(1, 4)
    Image.fromarray(white if bits == 1 else 255 * white.astype(np.uint8)).save(raw / "masks/dog/4.png")
    (pair,), _ = read_all(OwnClips(raw), "dog/train")
    np.testing.assert_array_equal(pair.masks[1], walking_mask(1, 4))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('"dog","1","the dog, on the left"', "the dog, on the left"),
        ('dog,1,"the ""big"" dog"', 'the "big" dog'),
        ('dog, 1, "big" and "brown"', '"big" and "brown"'),
        ('dog, 1, the "big" dog', 'the "big" dog'),
    ],
)
def test_fields_that_a_spreadsheet_has_quoted(raw: Path, line: str, text: str) -> None:
    (raw / "sentences.txt").write_text(f"{line}\n")
    (sentence,) = OwnClips(raw).annotations.sentences["dog"]
    assert (sentence.text, sentence.instance) == (text, 1)


def test_accents_as_macos_stores_them(raw: Path) -> None:
    """In names of files, a letter and its accent may be two characters; what is typed is one."""
    stored, typed = "cafe\u0301", "caf\u00e9"
    (raw / "videos/dog.mp4").rename(raw / f"videos/{stored}.mp4")
    (raw / "masks/dog").rename(raw / f"masks/{stored}")
    (raw / "videos/my cats/IMG_8.jpg").rename(raw / f"videos/my cats/{stored}_8.jpg")
    change_json({f"{typed}_8": {"3": rle(walking_mask(3, 0))}})(raw)
    (raw / "sentences.txt").write_text(f"{typed},1,the dog\n{typed}.mp4,2,the cat\nmy cats,3,a cat\n")
    (raw / "held_out.txt").write_text(f"{typed}, 9\nmy cats, {typed}_8")
    frames = OwnClips(raw).annotations.frames
    assert frames == {"train": {typed: (0, 3, 7)}, "val": {typed: (9, 11), "my cats": (2,)}}
    assert OwnClips(raw).skipped() == ()
    (raw / f"masks/{stored}").rename(raw / f"masks/{typed}")
    assert OwnClips(raw).annotations.frames == frames


def test_suffixes_in_capitals(raw: Path) -> None:
    expected = OwnClips(raw).annotations.frames
    for path in ("masks/dog/0.png", "masks/dog/0003.png", "masks/my cats.json", "videos/my cats/IMG_8.jpg"):
        (raw / path).rename((raw / path).with_suffix((raw / path).suffix.upper()))
    reader = OwnClips(raw)
    assert reader.annotations.frames == expected and reader.skipped() == ()
    assert len(read_all(reader, "dog/train")[0]) == 4 and len(read_all(reader, "my cats/train")[0]) == 1


def test_only_the_masks_of_named_objects_are_made(raw: Path) -> None:
    (video,) = (v for name, v in OwnClips(raw).annotations.videos.items() if name == "dog")
    masks = video.read_mask(0, [2, 9], (HEIGHT, WIDTH))
    assert masks.keys() == {2, 9} and not masks[9].any()
    np.testing.assert_array_equal(masks[2], walking_mask(2, 0))
    write_labels(raw / "masks/dog/0.png", {1: walking_mask(1, 0), 255: walking_mask(3, 0)})  # 255 as void, as in DAVIS
    assert video.find_objects([1]) == {1, 255} and video.find_objects([1, 9]) == {1, 2, 255}


def blurred(raw: Path) -> None:
    mask = Image.fromarray(255 * walking_mask(1, 0).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    assert {1, 255} <= set(np.unique(mask))
    mask.save(raw / "masks/dog/0.png")


def append(line: str) -> Callable[[Path], object]:
    return lambda raw: (raw / "sentences.txt").write_text(f"{SENTENCES}{line}\n")


def change_json(content: Any) -> Callable[[Path], object]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda raw: (raw / "masks/my cats.json").write_text(text)


GOOD = {"3": rle(walking_mask(3, 0))}


def turned(raw: Path) -> None:
    Image.fromarray(np.ones((WIDTH, HEIGHT), np.uint8)).save(raw / "masks/dog/0.png")


def write_moving(path: Path) -> None:
    path.with_suffix(".jpg").unlink()
    Image.fromarray(frame(0)).save(path, save_all=True, append_images=[Image.fromarray(frame(1))])


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        (append("dog 1 the dog"), "sentences.txt:7: 'dog 1 the dog'", "the line does not have the form video"),
        (append("bird, 1, a bird"), "sentences.txt:7: 'bird'; ", "no such video"),
        (append("../dog, 1, a dog"), "sentences.txt:7: '../dog'", "no such video"),
        (append("dog, one, a dog"), "sentences.txt:7: 'one'", "the object is not a number from 1 to 255, or several"),
        (append("dog, 1+, a dog"), "sentences.txt:7: '1+'", "the object is not a number from 1 to 255, or several"),
        (append("dog, 256, a dog"), "sentences.txt:7: '256'", "the object is not a number from 1 to 255, or several"),
        (append("dog, 1, "), "sentences.txt:7", "empty sentence"),
        (
            append("dog, 9, a bird"),
            "video dog, object 9; they have object 1, 2",
            NO_SUCH_OBJECT,
        ),
        (lambda raw: (raw / "videos/x.avi").touch(), "videos/x.avi", "neither a folder of frames nor a clip (.mp4"),
        (lambda raw: (raw / "videos/empty").mkdir(), "videos/empty", "the folder has no pictures (.jpg, .jpeg, .png, "),
        (
            lambda raw: write_clip(raw / "videos/dog.mov", 2),
            "videos/dog.mp4",
            "a clip and a folder, or two clips, of one",
        ),
        (
            lambda raw: write_jpeg(raw / "videos/my cats/IMG_09.JPG", frame(1)),
            "videos/my cats: IMG_09.JPG and IMG_9.jpg",
            "two pictures of one number: the video is left out",
        ),
        (
            lambda raw: Image.fromarray(frame(1)).save(raw / "videos/my cats/IMG_9.png"),
            "videos/my cats: IMG_9.jpg and IMG_9.png",
            "two pictures of one number: the video is left out",
        ),
        (lambda raw: (raw / "videos/my cats/x.txt").touch(), "videos/my cats/x.txt", "not a picture (.jpg"),
        (lambda raw: (raw / "masks/dog/0.jpg").touch(), "masks/dog/0.jpg", "not a PNG file"),
        (lambda raw: (raw / "masks/cat").mkdir(), "masks/cat", "no video of this name is used"),
        (lambda raw: (raw / "masks/dgo.json").touch(), "masks/dgo.json", "no video of this name is used"),
        (lambda raw: (raw / "masks/dog.zip").touch(), "masks/dog.zip", "neither a folder of masks nor the JSON file"),
        (
            lambda raw: (raw / "held_out.txt").write_text("my cats, IMG_8\ndog, 600"),
            "held_out.txt:2: 'dog, 600'",
            "the line holds out no labelled frame",
        ),
        (
            lambda raw: write_clip(raw / "videos/a,b.mp4", 2),
            "videos/a,b.mp4",
            "the video's name is not a plain file name",
        ),
        (lambda raw: write_clip(raw / "videos/mute.mp4", 2), "video mute", "video without a sentence"),
        (
            lambda raw: write_labels(raw / "masks/dog/last.png", {}),
            "masks/dog/last.png",
            "the mask's name is not the number",
        ),
        (lambda raw: write_labels(raw / "masks/dog/00.png", {}), "masks/dog/00.png", "two masks of one frame"),
        (
            lambda raw: write_labels(raw / "masks/dog/40.png", {1: walking_mask(1, 0)}),
            "frame 40 of 12",
            "the clip is damaged, ends before the frame, or was unpacked with repeated ones",
        ),
        (lambda raw: (raw / "masks/dog/0.png").write_bytes(b"x"), "masks/dog/0.png", "the mask can't be read"),
        (blurred, "masks/dog/0.png", "a black-and-white mask with soft edges: save it with 0 and 255 only"),
        (turned, "masks/dog/0.png: 48 x 64 and 64 x 48 (h x w)", "the mask and the frame differ in size"),
        (lambda raw: (raw / "videos/dog.mp4").write_bytes(b"x"), "videos/dog.mp4", "the clip is damaged, or no MP4"),
        (lambda raw: (raw / "videos/my cats/IMG_8.jpg").write_bytes(b"x"), "IMG_8.jpg", "the frame can't be read"),
        (
            lambda raw: write_moving(raw / "videos/my cats/IMG_8.png"),
            "IMG_8.png",
            "the frame is a moving picture",
        ),
        (change_json("{"), "my cats.json: ", "the file of masks can't be read"),
        (
            change_json({"IMG_8": GOOD, "7": GOOD}),
            "frame '7'; the first ones are IMG_8, IMG_9, IMG_10",
            "no frame has the",
        ),
        (
            change_json({"IMG_8": {"x": GOOD["3"]}}),
            "frame IMG_8",
            "the mask can't be read: an object that is not a number",
        ),
        (change_json({"IMG_8": {"3": {"size": [9, 9], "counts": "x"}}}), "frame IMG_8", "the mask can't be read: "),
        (
            change_json({"IMG_8": {"3": {"size": [[0] * 1000, 9], "counts": "x"}}}),
            "frame IMG_8",
            "the mask can't be read: a mask without a height and a width",
        ),
        (
            change_json({"IMG_8": {"3": {"size": [8192, 8192], "counts": [2**26]}}}),  # takes 64 MB
            "frame IMG_8",
            "the mask and the frame differ in size",
        ),
        (
            lambda raw: (raw / "masks/my cats").mkdir(),
            "my cats.json",
            "not read, since a folder of masks lies beside it",
        ),
    ],
)
def test_what_does_not_fit_is_explained(raw: Path, change: Callable[[Path], object], where: str, reason: str) -> None:
    change(raw)
    reader = OwnClips(raw)
    found = [item for split in reader.splits() for v in reader.videos(split) for item in read_all(reader, v)[1]]
    found += reader.skipped()
    assert any(where in item.where and item.reason.startswith(reason) for item in found), found


@pytest.mark.parametrize("part", ["sentences.txt", "videos", "masks"])
def test_missing_part(raw: Path, part: str) -> None:
    (raw / part).rename(raw / "elsewhere")
    with pytest.raises(UserError, match=f"lacks {part}(?s:.*)Your own clips"):
        OwnClips(raw).splits()


def test_nothing_fits(raw: Path) -> None:
    (raw / "sentences.txt").write_text("dog; 1; a dog\nbird, 1, a bird\n")
    with pytest.raises(
        UserError, match="no sentence has a video with a mask(?s:.*)does not have the form(?s:.*)no such video"
    ):
        OwnClips(raw).splits()
