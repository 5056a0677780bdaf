"""The layout that LBDT's code prepares: rows, earlier frames and masks as it reads them, and damaged files."""

from __future__ import annotations

import codecs
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import CLAP, JHMDB_SAMPLES, RUN, box, frame, write_h5, write_lbdt_layout
from PIL import Image
from reader_checks import read_all

from input_pipeline.errors import UserError
from input_pipeline.readers.lbdt_layout import (
    LBDTLayoutA2D,
    LBDTLayoutJHMDB,
    LBDTLayoutReferYouTubeVOS,
    is_lbdt_layout,
)
from input_pipeline.types import FramePair, Sentence, Skipped

READERS = {"a2d": LBDTLayoutA2D, "jhmdb": LBDTLayoutJHMDB, "ytvos": LBDTLayoutReferYouTubeVOS}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_lbdt_layout(tmp_path / "datasets")


def check_frames(pair: FramePair, index: int, earlier: int) -> None:
    """Checks that a frame pair has the given frames (from 0), by their brightness, which JPEG hardly changes."""
    assert pair.frame.dtype == pair.earlier_frame.dtype == np.uint8
    for image, expected in ((pair.frame, index), (pair.earlier_frame, earlier)):
        np.testing.assert_allclose(image[10:].mean(), frame(expected)[10:].mean(), atol=1)
        assert image[2, 2, 0] > image[2, 2, 2] + 50  # RGB, not BGR
    assert {sentence.instance for sentence in pair.sentences} == pair.masks.keys()


def append_row(raw: Path, dataset: str, row: str) -> str:
    """Appends a row to val.txt. Returns "file:line"."""
    path = raw / dataset / "val.txt"
    content = path.read_text().rstrip("\n")
    path.write_text(f"{content}\n{row}")
    return f"{path}:{content.count(chr(10)) + 2}"


def test_splits_videos_and_inventory(raw: Path) -> None:
    assert not is_lbdt_layout(raw) and all(is_lbdt_layout(raw / dataset) for dataset in READERS)
    a2d, jhmdb, ytvos = (reader(raw / dataset) for dataset, reader in READERS.items())
    assert a2d.splits() == ("train", "test")
    assert (a2d.videos("train"), a2d.videos("test")) == (["walker"], ["Cat_-1"])
    assert a2d.inventory() == {
        "train videos": (1, 3017),
        "train folders of frames": (1, None),
        "train sentences about a frame": (3, None),
        "test videos": (1, 737),
        "test folders of frames": (1, None),
        "test sentences about a frame": (1, None),
    }
    assert jhmdb.splits() == ("test",) and jhmdb.videos("test") == [CLAP, RUN]
    assert jhmdb.inventory()["test sentences about a frame"] == (6, 2784)
    assert ytvos.splits() == ("train", "valid")
    assert (ytvos.videos("train"), ytvos.videos("valid")) == (["penguin"], ["man"])
    assert a2d.skipped() == jhmdb.skipped() == ytvos.skipped() == ()


@pytest.mark.parametrize(
    "interval, earlier, rules",
    [
        (6, [1, 3], ["first frame", "interval"]),
        (1, [1, 8], ["interval", "interval"]),
        (8, [1, 1], ["first frame", "interval"]),
        (9, [1, 3], ["first frame", "index - 6"]),
    ],
)
def test_a2d(raw: Path, interval: int, earlier: list[int], rules: list[str]) -> None:
    pairs, skipped = read_all(LBDTLayoutA2D(raw / "a2d", interval), "walker")
    assert skipped == []
    man, woman = Sentence("the man in red", 0), Sentence("a woman", 1)
    assert [(pair.frame_index, pair.sentences) for pair in pairs] == [(2, (man, woman)), (9, (woman,))]
    assert [pair.earlier_rule for pair in pairs] == rules
    for pair, earlier_index in zip(pairs, earlier, strict=True):
        check_frames(pair, pair.frame_index - 1, earlier_index - 1)
    np.testing.assert_array_equal(pairs[0].masks[0], box(4, 4))
    np.testing.assert_array_equal(pairs[0].masks[1], box(30, 8))
    np.testing.assert_array_equal(pairs[1].masks[1], box(30, 20))


def test_a2d_video_that_starts_late(raw: Path) -> None:
    (pair,), _ = read_all(LBDTLayoutA2D(raw / "a2d"), "Cat_-1")
    check_frames(pair, 4, 3)  # the video's first frame
    assert pair.earlier_rule == "first frame"
    assert pair.sentences == (Sentence("cat, jumping", 2),)


def test_jhmdb(raw: Path) -> None:
    for _, video, text, indices in JHMDB_SAMPLES:
        pairs, skipped = read_all(LBDTLayoutJHMDB(raw / "jhmdb"), video)
        assert skipped == []
        assert [(pair.frame_index, pair.sentences) for pair in pairs] == [
            (index, (Sentence(text, 0),)) for index in indices
        ]
        for pair in pairs:
            index = pair.frame_index
            check_frames(pair, index - 1, max(index - 5, 1) - 1)
            assert pair.earlier_rule == ("interval" if index > 5 else "first frame")
            np.testing.assert_array_equal(pair.masks[0], box(index, 2 * index))


@pytest.mark.parametrize("video, absent", [("penguin", False), ("man", True)])
def test_refer_youtube_vos(raw: Path, video: str, absent: bool) -> None:
    pairs, skipped = read_all(LBDTLayoutReferYouTubeVOS(raw / "ytvos"), video)
    first, second, top = (
        Sentence(text, instance, expression=name)
        for text, instance, name in (("the first", 1, "0"), ("the second", 2, "1"), ("the one at the top", 1, "2"))
    )
    repeated = Sentence("the first", 1, expression="3")  # twice in one frame: another expression
    assert [(pair.frame_index, pair.sentences) for pair in pairs] == [
        (0, (first, second) if absent else (first,)),
        (5, (first, second, top)),
        (10, (first, repeated)),
    ]
    where = f"{raw / 'ytvos/train.txt'}:3: instance 2"
    assert skipped == ([] if absent else [Skipped(where, "the instance is not in the frame")])
    for pair, earlier in zip(pairs, (0, 0, 5), strict=True):
        check_frames(pair, pair.frame_index, earlier)
        for instance, mask in pair.masks.items():
            expected = box(4 if instance == 1 else 30, pair.frame_index) & ((instance, pair.frame_index) != (2, 0))
            np.testing.assert_array_equal(mask, expected)


def test_refer_youtube_vos_without_the_earlier_frame(raw: Path) -> None:
    (raw / "ytvos/train.txt").write_text("penguin/00010#48#64#1#the first")
    (raw / "ytvos/train/JPEGImages/penguin/00005.jpg").unlink()
    (pair,), _ = read_all(LBDTLayoutReferYouTubeVOS(raw / "ytvos"), "penguin")
    check_frames(pair, 10, 0)
    assert pair.earlier_rule == "first frame"


def test_reader_can_be_pickled(raw: Path) -> None:
    reader = LBDTLayoutA2D(raw / "a2d")
    reader.splits()
    (raw / "a2d/train.txt").unlink()  # the annotations are pickled with it and not read again
    assert len(read_all(pickle.loads(pickle.dumps(reader)), "walker")[0]) == 2


@pytest.mark.parametrize(
    "dataset, folder",
    [("a2d", "images"), ("a2d", "masks"), ("jhmdb", "puppet_mask"), ("ytvos", "val/Annotations")],
)
def test_missing_folder(raw: Path, dataset: str, folder: str) -> None:
    shutil.rmtree(raw / dataset / folder)
    with pytest.raises(UserError, match=f"has (train|val).txt but lacks {folder}"):
        READERS[dataset](raw / dataset).splits()


def test_only_one_of_the_splits(raw: Path) -> None:
    (raw / "ytvos/train.txt").unlink()
    shutil.rmtree(raw / "ytvos/train")
    assert is_lbdt_layout(raw / "ytvos")
    assert LBDTLayoutReferYouTubeVOS(raw / "ytvos").splits() == ("valid",)


def test_text_that_is_not_utf8(raw: Path) -> None:
    (raw / "a2d/val.txt").write_bytes(b"Cat_-1/00005,48,64,2,a cat,13\nCat_-1/00005,48,64,2,caf\xe9,13\n")
    with pytest.raises(UserError, match="val.txt:2: not UTF-8"):
        LBDTLayoutA2D(raw / "a2d").splits()


def test_windows_line_endings_and_byte_order_mark(raw: Path) -> None:
    before = LBDTLayoutA2D(raw / "a2d").annotations, LBDTLayoutReferYouTubeVOS(raw / "ytvos").annotations
    for dataset in ("a2d", "ytvos"):
        path = raw / dataset / "train.txt"
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert (LBDTLayoutA2D(raw / "a2d").annotations, LBDTLayoutReferYouTubeVOS(raw / "ytvos").annotations) == before


A2D_ROW = "the row does not have the form video/frame,height,width,instance,sentence,category"
YTVOS_ROW = "the row does not have the form video/frame~height~width~object~sentence"
BAD_NAME, BAD_ID = "the video's name is not a plain file name", "the instance is not a valid object id"


@pytest.mark.parametrize(
    "dataset, row, reason",
    [
        ("a2d", "Cat_-1/00005,48,64,2", A2D_ROW),
        ("a2d", "Cat_-1/00005,48,64,2,cat", A2D_ROW),
        ("a2d", "Cat_-1/5,48,64,2,cat,13", A2D_ROW),
        ("a2d", "Cat_-1,48,64,2,cat,13", A2D_ROW),
        ("a2d", "Cat_-1/00005,0,64,2,cat,13", A2D_ROW),
        ("a2d", "Cat_-1/00005,48.0,64,2,cat,13", A2D_ROW),
        ("a2d", "../../x/00005,48,64,2,cat,13", BAD_NAME),
        ("a2d", "/etc/00005,48,64,2,cat,13", BAD_NAME),
        ("a2d", "../00005,48,64,2,cat,13", BAD_NAME),
        ("a2d", "a\0b/00005,48,64,2,cat,13", BAD_NAME),
        ("a2d", f"{'long' * 99}/00005,48,64,2,cat,13", BAD_NAME),
        ("a2d", "Cat_-1/00005,48,64,2 (copy),cat,13", BAD_ID),
        ("a2d", "Cat_-1/00005,48,64,True,cat,13", BAD_ID),
        ("a2d", "Cat_-1/00005,48,64,2, ,13", "empty sentence"),
        ("a2d", "walker/00002,48,64,1,a woman,13", "video in two splits"),
        ("jhmdb", "../../x/00001,48,64,1,a man,5", BAD_NAME),
        ("jhmdb", f"clap/{CLAP}/00001,48,64,1,a man,5", BAD_NAME),
        ("ytvos", "man/00005#48#64#1#the first", YTVOS_ROW),
        ("ytvos", "man/00005~48~64~1", YTVOS_ROW),
        ("ytvos", "man/00005~48~64~0~the first", BAD_ID),
        ("ytvos", "man/00005~48~64~256~the first", BAD_ID),
        ("ytvos", "../../x/00005~48~64~1~the first", BAD_NAME),
    ],
    ids=lambda value: value[:40].replace("\0", "NUL"),
)
def test_invalid_row_is_skipped_with_its_line_number(raw: Path, dataset: str, row: str, reason: str) -> None:
    reader = READERS[dataset]
    split = reader(raw / dataset).splits()[-1]
    before = reader(raw / dataset).annotations.rows[split]
    where = append_row(raw, dataset, row)
    after = reader(raw / dataset)
    (skipped,) = after.skipped()
    assert skipped.reason == reason
    assert skipped.where.startswith(f"{raw / 'a2d/val.txt'}: video walker" if "splits" in reason else where)
    assert after.annotations.rows[split] == before


def test_row_of_an_instance_without_a_mask(raw: Path) -> None:
    where = append_row(raw, "a2d", "Cat_-1/00005,48,64,7,cat,13")
    (pair,), (skipped,) = read_all(LBDTLayoutA2D(raw / "a2d"), "Cat_-1")
    assert skipped.reason == "the instance is not in the frame" and skipped.where.startswith(where)
    assert pair.sentences == (Sentence("cat, jumping", 2),) and pair.masks.keys() == {2}


def test_row_whose_size_is_not_the_frames_is_kept(raw: Path) -> None:
    where = append_row(raw, "a2d", "Cat_-1/00005,64,48,2,cat,13")
    (pair,), (note,) = read_all(LBDTLayoutA2D(raw / "a2d"), "Cat_-1")
    assert note.where == where and note.reason.endswith("not the frame's: kept with those of the frame")
    assert pair.sentences == (Sentence("cat, jumping", 2), Sentence("cat", 2)) and pair.frame.shape == (48, 64, 3)


@pytest.mark.parametrize("dataset, row", [("a2d", "x/00001,48,64,2,cat,1"), ("jhmdb", "x/00001,48,64,1,a man,5")])
def test_video_without_frames(raw: Path, dataset: str, row: str) -> None:
    append_row(raw, dataset, row)
    pairs, (skipped,) = read_all(READERS[dataset](raw / dataset), "x")
    assert pairs == [] and skipped.reason == "the video's folder of frames is missing"


def test_video_under_two_actions(raw: Path) -> None:
    (raw / "jhmdb/Rename_Images/wave" / RUN).mkdir(parents=True)
    reader = LBDTLayoutJHMDB(raw / "jhmdb")
    assert [item.reason for item in reader.skipped()] == ["video under two actions"]
    assert read_all(reader, RUN)[0] == [] and len(read_all(reader, CLAP)[0]) == 3


@pytest.mark.parametrize(
    "dataset, video, file, frames",
    [
        ("a2d", "walker", "images/walker/00009.jpg", [2]),
        ("a2d", "walker", "images/walker/00003.jpg", [2]),
        ("a2d", "walker", "masks/walker/00009.h5", [2]),
        ("jhmdb", CLAP, f"Rename_Images/clap/{CLAP}/00005.png", [1, 6]),
        ("jhmdb", CLAP, f"puppet_mask/clap/{CLAP}/puppet_mask.mat", []),
        ("ytvos", "man", "val/JPEGImages/man/00005.jpg", [0]),
        ("ytvos", "man", "val/Annotations/man/00005.png", [0, 10]),
    ],
)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.9, None], ids=["empty", "half", "most", "missing"])
def test_truncated_or_missing_file(
    raw: Path, dataset: str, video: str, file: str, frames: list[int], kept: float
) -> None:
    path = raw / dataset / file
    content = path.read_bytes()
    path.unlink() if kept is None else path.write_bytes(content[: int(kept * len(content))])
    if kept is None and file.endswith("00003.jpg"):
        frames = [2, 9]  # a missing earlier frame without a row is replaced by the first frame
    pairs, skipped = read_all(READERS[dataset](raw / dataset), video)
    assert [pair.frame_index for pair in pairs] == frames
    assert len(skipped) == (0 if frames == [2, 9] else 3 - len(frames) if dataset != "a2d" else 1)
    assert all("missing" in item.reason if kept is None else "can't be read" in item.reason for item in skipped)


@pytest.mark.parametrize("dataset, video", [("a2d", "Cat_-1"), ("ytvos", "man")])
def test_masks_and_frame_of_different_size(raw: Path, dataset: str, video: str) -> None:
    write_h5(raw / "a2d/masks/Cat_-1/00005.h5", [2], [box(5, 30)[:, :32]])
    for path in (raw / "ytvos/val/Annotations/man").iterdir():
        Image.fromarray(np.ones((64, 48), np.uint8)).save(path)
    pairs, skipped = read_all(READERS[dataset](raw / dataset), video)
    assert pairs == [] and all("the mask and the frame differ in size" in item.reason for item in skipped)
