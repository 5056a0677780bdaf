"""The Refer-YouTube-VOS reader: its splits, both forms of its json, earlier frames, absent objects, broken files."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from fabricate import HEIGHT, WIDTH, frame
from fabricate_video_folders import (
    MAN,
    NEW,
    OLD,
    TRAIN,
    VALID,
    expressions_of,
    fabricate_refer_youtube_vos,
    picture_of,
    walking,
    write_expressions,
)
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.readers.refer_youtube_vos import ReferYouTubeVOS
from input_pipeline.readers.video_folders import read_labels
from input_pipeline.types import FramePair, Sentence, Skipped


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return fabricate_refer_youtube_vos(tmp_path / "rvos")


def read(raw: Path, video: str = NEW, interval: int = 5) -> tuple[list[FramePair], list[Skipped]]:
    items = list(ReferYouTubeVOS(raw, interval).read(video))
    return [x for x in items if isinstance(x, FramePair)], [x for x in items if isinstance(x, Skipped)]


def check(raw: Path, split: str, pair: FramePair, earlier: int) -> None:
    """The pictures and the masks of a pair are those of its frames."""
    folder = raw / split / "JPEGImages" / pair.video
    np.testing.assert_array_equal(pair.frame, picture_of(folder / f"{pair.frame_index:05d}.jpg"))
    np.testing.assert_array_equal(pair.earlier_frame, picture_of(folder / f"{earlier:05d}.jpg"))
    assert {sentence.instance for sentence in pair.sentences} - {None} == pair.masks.keys()
    for instance, mask in pair.masks.items():
        assert mask.dtype == bool
        if mask.any():
            np.testing.assert_array_equal(mask, walking(instance, pair.frame_index))


def test_splits_videos_and_inventory(raw: Path):
    reader = ReferYouTubeVOS(raw)
    assert reader.splits() == ("train", "valid")
    assert reader.videos("train") == [NEW, OLD]
    assert reader.videos("valid") == [MAN]  # and not the video of test
    assert reader.skipped() == ()
    shutil.rmtree(raw / "train/Annotations" / OLD)
    assert reader.inventory() == {
        "train videos": (2, 3471),
        "train folders of JPEGImages": (2, 3471),
        "train folders of Annotations": (1, 3471),
        "train sentences": (6, 12913),
        "train sentences that name their object": (6, 12913),
        "valid videos": (1, 202),
        "valid folders of JPEGImages": (1, 202),
        "valid folders of Annotations": (1, 202),
        "valid sentences": (2, None),
        "valid sentences that name their object": (2, None),
    }


def test_training_frames_hold_the_sentences_whose_object_is_there(raw: Path):
    pairs, skipped = read(raw)
    left, second = Sentence("a Penguin on the left", 1, "", "0"), Sentence("the second penguin", 2, "", "1")
    front = Sentence("penguin, at the front", 1, "", "2")
    assert [(pair.video, pair.frame_index, pair.sentences) for pair in pairs] == [
        (NEW, 5, (left, second, front)),
        (NEW, 10, (left, front)),
        (NEW, 15, (left, second, front)),
    ]
    where = f"{raw / 'train/Annotations' / NEW / '00010.png'}: instance 2"
    assert skipped == [Skipped(where, "the instance is not in the frame")]
    for pair in pairs:
        check(raw, "train", pair, pair.frame_index - 5)


def test_the_older_form(raw: Path):
    pairs, skipped = read(raw, OLD)
    cats = Sentence("a cat", 1, "", "1-0"), Sentence("a café cat", 1, "", "1-1")
    dog = Sentence("a dog", 3, "", "3-0")
    assert [(pair.frame_index, pair.sentences) for pair in pairs] == [(0, cats), (5, (*cats, dog)), (10, (dog,))]
    assert [item.reason for item in skipped] == ["the instance is not in the frame"] * 2
    for pair in pairs:
        check(raw, "train", pair, max(pair.frame_index - 5, 0))


def test_validation_keeps_every_listed_frame_of_every_sentence(raw: Path):
    pairs, skipped = read(raw, MAN)
    assert skipped == []
    assert [pair.frame_index for pair in pairs] == [0, 5]
    assert [len(pair.sentences) for pair in pairs] == [2, 2]
    assert not pairs[0].masks[2].any() and pairs[1].masks[2].any()
    for pair in pairs:
        check(raw, "valid", pair, 0)


@pytest.mark.parametrize(
    "interval, earlier, rules",
    [
        (5, [0, 5, 10], ["interval"] * 3),
        (10, [0, 0, 5], ["first frame", "interval", "interval"]),
        (20, [0, 0, 0], ["first frame"] * 3),
    ],
)
def test_the_earlier_frame(raw: Path, interval: int, earlier: list[int], rules: list[str]):
    pairs, _ = read(raw, interval=interval)
    assert [pair.earlier_rule for pair in pairs] == rules
    for pair, number in zip(pairs, earlier, strict=True):
        check(raw, "train", pair, number)


def test_the_earlier_frame_at_the_start_is_the_first_one_there_is(raw: Path):
    (raw / "train/JPEGImages" / NEW / "00000.jpg").unlink()  # neither listed nor there: the video starts at 5
    pairs, _ = read(raw)
    assert [pair.earlier_rule for pair in pairs] == ["first frame", "interval", "interval"]
    check(raw, "train", pairs[0], 5)


def test_a_listed_frame_that_is_lost_has_no_substitute(raw: Path):
    path = raw / "train/JPEGImages" / NEW / "00005.jpg"
    path.unlink()
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [15]
    assert skipped[:2] == [
        Skipped(str(path), "frame missing"),
        Skipped(str(path.with_name("00010.jpg")), "earlier frame missing"),
    ]


def test_a_reader_travels_to_another_process(raw: Path):
    reader = ReferYouTubeVOS(raw)
    reader.splits()
    expressions_of(raw, "train").unlink()  # the tables travel along and are not read again
    assert len([x for x in pickle.loads(pickle.dumps(reader)).read(NEW) if isinstance(x, FramePair)]) == 3


def test_nothing_there_says_what_to_download(tmp_path: Path):
    with pytest.raises(UserError) as error:
        ReferYouTubeVOS(tmp_path / "nowhere").splits()
    for part in ("no split that can be read", "youtube-vos.org", "--dataset=refer_youtube_vos"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "part", ["train/JPEGImages", "train/Annotations", "valid/JPEGImages", "meta_expressions/train"]
)
def test_a_split_that_lacks_a_part(raw: Path, part: str):
    shutil.rmtree(raw / part)
    with pytest.raises(UserError, match=f"lacks {part}"):
        ReferYouTubeVOS(raw).splits()


def test_only_one_of_the_splits(raw: Path):
    (raw / "train").rename(raw / "elsewhere")
    assert ReferYouTubeVOS(raw).splits() == ("valid",)
    (raw / "elsewhere").rename(raw / "train")
    (raw / "valid").rename(raw / "elsewhere")
    assert ReferYouTubeVOS(raw).splits() == ("train",)
    assert ReferYouTubeVOS(raw).skipped() == ()


def test_validation_as_first_published_has_no_truth(raw: Path):
    """No masks, no objects: every listed frame with every sentence, and one note."""
    named = {"0": {"exp": "a man"}, "1": {"exp": "a horse"}}
    write_expressions(raw, "valid", {MAN: {"expressions": named, "frames": ["00000", "00005"]}})
    sentences = Sentence("a man", None, "", "0"), Sentence("a horse", None, "", "1")
    for masks, note in ((True, ()), (False, "split valid has no masks: only the server can score it")):
        if not masks:
            shutil.rmtree(raw / "valid/Annotations")
        reader = ReferYouTubeVOS(raw)
        assert reader.splits() == ("train", "valid") and reader.videos("valid") == [MAN]
        assert reader.inventory()["valid sentences that name their object"] == (0, None)
        assert reader.skipped() == (note and (Skipped(str(raw / "valid/Annotations"), note),))
        pairs, skipped = read(raw, MAN)
        assert skipped == []
        assert [(pair.frame_index, pair.sentences, pair.masks) for pair in pairs] == [
            (0, sentences, {}),
            (5, sentences, {}),
        ]
        for pair in pairs:
            check(raw, "valid", pair, 0)


def test_objects_without_masks_are_no_truth(raw: Path):
    shutil.rmtree(raw / "valid/Annotations")
    pairs, _ = read(raw, MAN)
    assert [[sentence.instance for sentence in pair.sentences] for pair in pairs] == [[None, None]] * 2
    assert [pair.masks for pair in pairs] == [{}, {}]


@pytest.mark.parametrize("named, notes", [({}, 0), ({"obj_id": "0"}, 1), ({"obj_id": "../../x"}, 1)])
def test_a_validation_sentence_that_names_no_object_is_asked_without_truth(raw: Path, named: dict, notes: int):
    expressions = {**VALID[MAN]["expressions"], "2": {"exp": "a hat", **named}}
    write_expressions(raw, "valid", {MAN: {**VALID[MAN], "expressions": expressions}})
    where = f"{expressions_of(raw, 'valid')}: video {MAN!r}: expression '2'"
    note = Skipped(where, "the object is not a number from 1 to 255: kept without truth")
    assert ReferYouTubeVOS(raw).skipped() == (note,) * notes
    for pair in read(raw, MAN)[0]:
        assert [sentence.instance for sentence in pair.sentences] == [1, 2, None]
        assert pair.masks.keys() == {1, 2}
        check(raw, "valid", pair, 0)


def test_a_validation_sentence_that_is_broken_is_left_out(raw: Path):
    expressions = {**VALID[MAN]["expressions"], "2": {"exp": "", "obj_id": "1"}, "../3": {"exp": "a hat"}}
    write_expressions(raw, "valid", {MAN: {**VALID[MAN], "expressions": expressions}})
    assert [item.reason for item in ReferYouTubeVOS(raw).skipped()] == [
        "empty sentence",
        "the expression's name is not a plain file name",
    ]
    assert [len(pair.sentences) for pair in read(raw, MAN)[0]] == [2, 2]


@pytest.mark.parametrize("fault", ["missing", "truncated", "another size", "folder missing"])
def test_a_validation_frame_without_its_mask_is_asked_without_truth(raw: Path, fault: str):
    """The server wants it, and no score may count it."""
    path = raw / "valid/Annotations" / MAN / "00005.png"
    expected = Skipped(str(path), "mask missing")
    if fault == "folder missing":
        shutil.rmtree(path.parent)
        expected = Skipped(str(path.parent), "the video's folder of masks is missing")
    elif fault == "missing":
        path.unlink()
    elif fault == "truncated":
        path.write_bytes(path.read_bytes()[:60])
        expected = Skipped(str(path), "the mask can't be read")
    else:
        Image.fromarray(np.ones((WIDTH, HEIGHT), np.uint8)).save(path)
        frame_path = str(raw / "valid/JPEGImages" / MAN / "00005.jpg")
        expected = Skipped(frame_path, "the mask has another size than the frame")
    pairs, skipped = read(raw, MAN)
    assert expected in skipped
    assert [pair.frame_index for pair in pairs] == [0, 5]
    truths = [[sentence.instance for sentence in pair.sentences] for pair in pairs]
    assert truths == [[None, None] if fault == "folder missing" else [1, 2], [None, None]]
    assert pairs[1].masks == {}
    for pair in pairs:
        assert [sentence.expression for sentence in pair.sentences] == ["0", "1"]
        check(raw, "valid", pair, 0)


def test_validation_without_the_list_of_test(raw: Path):
    expressions_of(raw, "test").unlink()
    (note, *_) = ReferYouTubeVOS(raw).skipped()
    assert note.where == str(expressions_of(raw, "test")) and "can't be told" in note.reason


def test_a_video_of_two_splits_is_not_evaluated(raw: Path):
    write_expressions(raw, "valid", {**VALID, NEW: TRAIN[NEW]})
    reader = ReferYouTubeVOS(raw)
    assert reader.videos("valid") == [MAN] and reader.videos("train") == [NEW, OLD]
    assert reader.skipped() == (Skipped(f"{expressions_of(raw, 'valid')}: video {NEW}", "video of two splits"),)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize(
    "content",
    [b"", b'{"videos": {', b"\xff\xfe", b'{"video": {}}', b'{"videos": []}', b"[]", b"[" * 100_000, None],
    ids=["empty", "broken", "not UTF-8", "wrong key", "a list", "no object", "too deep", "a folder"],
)
def test_a_broken_json_file(raw: Path, split: str, content: bytes | None):
    path = expressions_of(raw, split)
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"{split}/meta_expressions.json holds no expressions"):
        ReferYouTubeVOS(raw).splits()


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "", "a/b", "a\\b", "a\nb", "a\0b", "\ud800", "x" * 300])
def test_a_video_whose_name_leaves_its_folder(raw: Path, name: str):
    write_expressions(raw, "train", {**TRAIN, name: TRAIN[NEW]})
    assert ReferYouTubeVOS(raw).videos("train") == [NEW, OLD]
    where = f"{expressions_of(raw, 'train')}: video {name!r}"
    assert ReferYouTubeVOS(raw).skipped() == (Skipped(where, "the video's name is not a plain file name"),)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        {"expressions": {}, "frames": ["00000"]},
        {"expressions": [], "frames": ["00000"]},
        {"expressions": TRAIN[NEW]["expressions"], "frames": []},
        {"expressions": TRAIN[NEW]["expressions"], "frames": {"00000": 1}},
        {"exp": TRAIN[NEW]["expressions"], "frames": ["00000"]},
        {"objects": {}},
    ],
)
def test_a_malformed_video(raw: Path, entry: object):
    write_expressions(raw, "train", {**TRAIN, "stranger": entry})
    where = f"{expressions_of(raw, 'train')}: video 'stranger'"
    assert ReferYouTubeVOS(raw).skipped() == (Skipped(where, "video without a readable sentence or frame"),)
    assert ReferYouTubeVOS(raw).videos("train") == [NEW, OLD]


@pytest.mark.parametrize(
    "name, expression, reason",
    [
        ("3", None, "the expression is no text"),
        ("3", {"sentence": "a seal", "obj_id": "1"}, "the expression is no text"),
        ("3", {"exp": 3, "obj_id": "1"}, "the expression is no text"),
        ("3", {"exp": "a seal \ud800", "obj_id": "1"}, "the expression is no text"),
        ("3", {"exp": " ", "obj_id": "1"}, "empty sentence"),
        ("3", {"exp": "a seal"}, "the expression does not name its object"),
        ("3", {"exp": "a seal", "obj_id": "0"}, "the object is not a number from 1 to 255"),
        ("3", {"exp": "a seal", "obj_id": "256"}, "the object is not a number from 1 to 255"),
        ("3", {"exp": "a seal", "obj_id": "../../x"}, "the object is not a number from 1 to 255"),
        ("3", {"exp": "a seal", "obj_id": True}, "the object is not a number from 1 to 255"),
        ("3", {"exp": "a seal", "obj_id": 1.0}, "the object is not a number from 1 to 255"),
        ("3", {"exp": "a seal", "obj_id": float("nan")}, "the object is not a number from 1 to 255"),
        ("3", {"exp": "a seal", "obj_id": ["1"]}, "the object is not a number from 1 to 255"),
        ("3", {"exp": "a seal", "obj_id": "\u0661"}, "the object is not a number from 1 to 255"),
        ("../../x", {"exp": "a seal", "obj_id": "1"}, "the expression's name is not a plain file name"),
    ],
)
def test_a_bad_expression(raw: Path, name: str, expression: object, reason: str):
    expressions = {**TRAIN[NEW]["expressions"], name: expression}
    write_expressions(raw, "train", {**TRAIN, NEW: {**TRAIN[NEW], "expressions": expressions}})
    where = f"{expressions_of(raw, 'train')}: video {NEW!r}: expression {name!r}"
    assert ReferYouTubeVOS(raw).skipped() == (Skipped(where, reason),)
    assert [len(pair.sentences) for pair in read(raw)[0]] == [3, 2, 3]


def test_other_line_ends_and_a_byte_order_mark(raw: Path):
    path, before = expressions_of(raw, "train"), ReferYouTubeVOS(raw).tables
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(json.loads(path.read_bytes()), indent=1).replace("\n", "\r\n").encode()
    )
    assert ReferYouTubeVOS(raw).tables == before


@pytest.mark.parametrize("content", [None, {"frames": ["00000"]}, {"frames": "00000", "expressions": ["a seal"]}])
def test_a_malformed_object_of_the_older_form(raw: Path, content: object):
    write_expressions(raw, "train", {**TRAIN, OLD: {"objects": {**TRAIN[OLD]["objects"], "2": content}}})
    where = f"{expressions_of(raw, 'train')}: video {OLD!r}: object '2'"
    assert ReferYouTubeVOS(raw).skipped() == (Skipped(where, "malformed object"),)
    assert [pair.frame_index for pair in read(raw, OLD)[0]] == [0, 5, 10]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("../../x", "the frame's name is not a number of five digits"),
        ("5", "the frame's name is not a number of five digits"),
        (5, "the frame's name is not a number of five digits"),
        (None, "the frame's name is not a number of five digits"),
        ("\u0660" * 5, "the frame's name is not a number of five digits"),
        ("00010", "frame listed twice"),
    ],
)
def test_a_bad_frame_name(raw: Path, name: object, reason: str):
    write_expressions(raw, "train", {**TRAIN, NEW: {**TRAIN[NEW], "frames": [*TRAIN[NEW]["frames"], name]}})
    (skipped,) = ReferYouTubeVOS(raw).skipped()
    assert skipped.reason == reason and skipped.where.startswith(f"{expressions_of(raw, 'train')}: video {NEW!r}")
    assert [pair.frame_index for pair in read(raw)[0]] == [5, 10, 15]


@pytest.mark.parametrize("part, what", [("JPEGImages", "frames"), ("Annotations", "masks")])
def test_a_video_without_its_folder(raw: Path, part: str, what: str):
    folder = raw / "train" / part / NEW
    shutil.rmtree(folder)
    assert read(raw) == ([], [Skipped(str(folder), f"the video's folder of {what} is missing")])


def test_an_object_that_is_in_no_mask_of_the_video(raw: Path):
    expressions = {**VALID[MAN]["expressions"], "2": {"exp": "a unicorn", "obj_id": "9"}}
    write_expressions(raw, "valid", {MAN: {**VALID[MAN], "expressions": expressions}})
    pairs, skipped = read(raw, MAN)
    where = f"{raw / 'valid/Annotations' / MAN}: instance 9 (a unicorn)"
    assert skipped == [Skipped(where, "the instance is in no mask of the video: kept with empty masks")]
    assert [pair.masks.keys() for pair in pairs] == [{1, 2, 9}, {1, 2, 9}]
    assert not any(pair.masks[9].any() for pair in pairs)

    write_expressions(raw, "train", {NEW: {**TRAIN[NEW], "expressions": expressions}})
    pairs, skipped = read(raw)
    where = f"{raw / 'train/Annotations' / NEW}: instance 9 (a unicorn)"
    assert skipped[0] == Skipped(where, "the instance is in no mask of the video")
    assert all(9 not in pair.masks for pair in pairs)


@pytest.mark.parametrize(
    "number, frames, reason",
    [(15, [5, 10], "frame"), (0, [10, 15], "earlier frame")],
    ids=["frame", "earlier frame"],
)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_frame(raw: Path, number: int, frames: list[int], reason: str, kept: float):
    path = raw / "train/JPEGImages" / NEW / f"{number:05d}.jpg"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == frames
    where = str(path.with_name(f"{number or 5:05d}.jpg"))
    assert Skipped(where, f"the {reason} can't be read") in skipped


def test_a_missing_mask(raw: Path):
    path = raw / "train/Annotations" / NEW / "00005.png"
    path.unlink()
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0] == Skipped(str(path), "mask missing")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_mask(raw: Path, kept: float):
    path = raw / "train/Annotations" / NEW / "00005.png"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0] == Skipped(str(path), "the mask can't be read")


def test_a_mask_with_damage_inside_is_read_right_or_not_at_all(raw: Path):
    path = raw / "valid/Annotations" / MAN / "00005.png"
    sound, labels, failures = path.read_bytes(), read_labels(path), 0
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        try:
            np.testing.assert_array_equal(read_labels(path), labels)
        except UserError:
            failures += 1
    assert failures > len(sound) - 20  # what ends the file may be damaged without harm


def test_a_mask_with_colours(raw: Path):
    path = raw / "train/Annotations" / NEW / "00005.png"
    Image.fromarray(frame(0)).save(path)
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0] == Skipped(str(path), "the mask has neither a palette nor 8 bits of grey: no object ids")


def test_a_mask_with_few_bits_a_pixel(raw: Path):
    """A palette counts as it is; of grey, Pillow would make other ids: 17 of 1 where there are 4 bits."""
    path = raw / "train/Annotations" / NEW / "00005.png"
    labels = np.where(walking(1, 5), 1, 0) + np.where(walking(2, 5), 2, 0)
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(range(12))
    picture.save(path, bits=4)
    check(raw, "train", read(raw)[0][0], 0)
    path.write_bytes(grey_png(labels, bits=4))
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0] == Skipped(str(path), "the mask has neither a palette nor 8 bits of grey: no object ids")


def grey_png(values: np.ndarray, bits: int) -> bytes:
    """The bytes of a PNG file with few bits a pixel, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    planes = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., -bits:]
    rows = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in planes)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("side", [10_000, 60_000])
@pytest.mark.parametrize("part, what", [("Annotations", "mask"), ("JPEGImages", "frame")])
def test_a_picture_that_claims_to_be_immense(raw: Path, part: str, what: str, side: int):
    path = raw / "train" / part / NEW / ("00015.png" if what == "mask" else "00015.jpg")
    content = bytearray(grey_png(np.ones((HEIGHT, WIDTH)), bits=8))
    content[16:24] = struct.pack(">II", side, side)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [5, 10]
    assert Skipped(str(path), f"the {what} can't be read") in skipped


@pytest.mark.parametrize("part", ["JPEGImages", "Annotations"])
@pytest.mark.parametrize("kind", ["folder", "dangling", "circle"])
def test_something_else_than_a_file(raw: Path, part: str, kind: str):
    (path,) = (raw / "train" / part / NEW).glob("00015.*g")
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to(path.name if kind == "circle" else "nowhere")
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [5, 10]
    what = "frame" if part == "JPEGImages" else "mask"
    reason = f"{what} missing" if kind == "dangling" else f"the {what} can't be read"
    assert Skipped(str(path), reason) in skipped


def test_a_mask_without_a_palette(raw: Path):
    labels = np.where(walking(1, 5), 1, 0) + np.where(walking(2, 5), 2, 0)
    Image.fromarray(labels.astype(np.uint8)).save(raw / "train/Annotations" / NEW / "00005.png")
    check(raw, "train", read(raw)[0][0], 0)


def test_a_mask_of_another_size(raw: Path):
    Image.fromarray(np.ones((WIDTH, HEIGHT), np.uint8)).save(raw / "train/Annotations" / NEW / "00005.png")
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    where = str(raw / "train/JPEGImages" / NEW / "00005.jpg")
    assert skipped[0] == Skipped(where, "the mask has another size than the frame")


def test_an_earlier_frame_of_another_size(raw: Path):
    Image.fromarray(frame(0)[:, :32]).save(raw / "train/JPEGImages" / NEW / "00000.jpg")
    pairs, skipped = read(raw)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0].reason == "the earlier frame has another size than the frame"


def test_from_raw_files_to_records(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    report = prepare("refer_youtube_vos", raw, tmp_path / "data")
    assert {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()} == before
    train, valid = report["splits"]["train"], report["splits"]["valid"]
    assert (train["videos"], train["frame_pairs"], train["sentences"]) == (2, 6, 14)
    assert train["earlier_frames"] == {"interval": 5, "first frame": 1}
    assert len(train["skipped"]["the instance is not in the frame"]) == 3
    assert (valid["videos"], valid["frame_pairs"], valid["sentences"]) == (1, 2, 4)
    assert valid["earlier_frames"] == {"first frame": 1, "interval": 1}
    assert "2 train videos of 3471 in the full data set" in capsys.readouterr().out
