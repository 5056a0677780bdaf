"""The Refer-YouTube-VOS reader: its splits, both forms of its JSON, earlier frames, absent objects, damaged files."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
from fake_video_folders import (
    MAN,
    NEW,
    OLD,
    TRAIN,
    VALID,
    expressions_file,
    write_expressions,
    write_refer_youtube_vos,
)
from reader_checks import check_pair, damage_mask, read_all

from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.readers.refer_youtube_vos import ReferYouTubeVOS
from input_pipeline.types import FramePair, Sentence, Skipped


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_refer_youtube_vos(tmp_path / "rvos")


def test_splits_videos_and_inventory(raw: Path) -> None:
    reader = ReferYouTubeVOS(raw)
    assert reader.splits() == ("train", "valid")
    assert reader.videos("train") == [NEW, OLD]
    assert reader.videos("valid") == [MAN]  # without the video of test
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


def test_training_frames_have_the_sentences_whose_object_is_visible(raw: Path) -> None:
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
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
        check_pair(raw / "train/JPEGImages", pair, pair.frame_index - 5)


def test_the_older_form(raw: Path) -> None:
    pairs, skipped = read_all(ReferYouTubeVOS(raw), OLD)
    cats = Sentence("a cat", 1, "", "1-0"), Sentence("a café cat", 1, "", "1-1")
    dog = Sentence("a dog", 3, "", "3-0")
    assert [(pair.frame_index, pair.sentences) for pair in pairs] == [(0, cats), (5, (*cats, dog)), (10, (dog,))]
    assert [item.reason for item in skipped] == ["the instance is not in the frame"] * 2
    for pair in pairs:
        check_pair(raw / "train/JPEGImages", pair, max(pair.frame_index - 5, 0))


def test_validation_keeps_every_sentence_in_every_listed_frame(raw: Path) -> None:
    pairs, skipped = read_all(ReferYouTubeVOS(raw), MAN)
    assert skipped == []
    assert [pair.frame_index for pair in pairs] == [0, 5]
    assert [len(pair.sentences) for pair in pairs] == [2, 2]
    assert not pairs[0].masks[2].any() and pairs[1].masks[2].any()
    for pair in pairs:
        check_pair(raw / "valid/JPEGImages", pair, 0)


@pytest.mark.parametrize(
    "interval, earlier, rules",
    [
        (5, [0, 5, 10], ["interval"] * 3),
        (10, [0, 0, 5], ["first frame", "interval", "interval"]),
        (20, [0, 0, 0], ["first frame"] * 3),
    ],
)
def test_the_earlier_frame(raw: Path, interval: int, earlier: list[int], rules: list[str]) -> None:
    pairs, _ = read_all(ReferYouTubeVOS(raw, interval), NEW)
    assert [pair.earlier_rule for pair in pairs] == rules
    for pair, earlier_index in zip(pairs, earlier, strict=True):
        check_pair(raw / "train/JPEGImages", pair, earlier_index)


def test_earlier_frame_at_the_start_is_the_first_existing_frame(raw: Path) -> None:
    (raw / "train/JPEGImages" / NEW / "00000.jpg").unlink()  # not listed and now missing: the video starts at 5
    pairs, _ = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.earlier_rule for pair in pairs] == ["first frame", "interval", "interval"]
    check_pair(raw / "train/JPEGImages", pairs[0], 5)


def test_missing_listed_frame_is_not_replaced(raw: Path) -> None:
    path = raw / "train/JPEGImages" / NEW / "00005.jpg"
    path.unlink()
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [15]
    assert skipped[:2] == [
        Skipped(str(path), "frame missing"),
        Skipped(str(path.with_name("00010.jpg")), "earlier frame missing"),
    ]


def test_reader_can_be_pickled(raw: Path) -> None:
    reader = ReferYouTubeVOS(raw)
    reader.splits()
    expressions_file(raw, "train").unlink()  # the annotations are pickled with it and not read again
    assert len([x for x in pickle.loads(pickle.dumps(reader)).read(NEW) if isinstance(x, FramePair)]) == 3


def test_empty_folder_raises_download_instructions(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        ReferYouTubeVOS(tmp_path / "nowhere").splits()
    for part in ("no split that can be read", "youtube-vos.org", "--dataset=refer_youtube_vos"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "part", ["train/JPEGImages", "train/Annotations", "valid/JPEGImages", "meta_expressions/train"]
)
def test_split_with_a_missing_folder(raw: Path, part: str) -> None:
    shutil.rmtree(raw / part)
    with pytest.raises(UserError, match=f"lacks {part}"):
        ReferYouTubeVOS(raw).splits()


def test_only_one_of_the_splits(raw: Path) -> None:
    (raw / "train").rename(raw / "elsewhere")
    assert ReferYouTubeVOS(raw).splits() == ("valid",)
    (raw / "elsewhere").rename(raw / "train")
    (raw / "valid").rename(raw / "elsewhere")
    assert ReferYouTubeVOS(raw).splits() == ("train",)
    reason = "split valid left out: its folder has neither JPEGImages nor Annotations"
    assert ReferYouTubeVOS(raw).skipped() == (Skipped(str(raw / "valid"), reason),)


def test_validation_as_first_published_has_no_ground_truth(raw: Path) -> None:
    """Without masks and object ids, every sentence is kept in every listed frame, with one note."""
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
        pairs, skipped = read_all(ReferYouTubeVOS(raw), MAN)
        assert skipped == []
        assert [(pair.frame_index, pair.sentences, pair.masks) for pair in pairs] == [
            (0, sentences, {}),
            (5, sentences, {}),
        ]
        for pair in pairs:
            check_pair(raw / "valid/JPEGImages", pair, 0)


def test_objects_without_masks_have_no_ground_truth(raw: Path) -> None:
    shutil.rmtree(raw / "valid/Annotations")
    pairs, _ = read_all(ReferYouTubeVOS(raw), MAN)
    assert [[sentence.instance for sentence in pair.sentences] for pair in pairs] == [[None, None]] * 2
    assert [pair.masks for pair in pairs] == [{}, {}]


@pytest.mark.parametrize("named, notes", [({}, 0), ({"obj_id": "0"}, 1), ({"obj_id": "../../x"}, 1)])
def test_validation_sentence_without_an_object_is_kept_without_ground_truth(raw: Path, named: dict, notes: int) -> None:
    expressions = {**VALID[MAN]["expressions"], "2": {"exp": "a hat", **named}}
    write_expressions(raw, "valid", {MAN: {**VALID[MAN], "expressions": expressions}})
    where = f"{expressions_file(raw, 'valid')}: video {MAN!r}: expression '2'"
    note = Skipped(where, "the object is not a number from 1 to 255: kept without ground truth")
    assert ReferYouTubeVOS(raw).skipped() == (note,) * notes
    for pair in read_all(ReferYouTubeVOS(raw), MAN)[0]:
        assert [sentence.instance for sentence in pair.sentences] == [1, 2, None]
        assert pair.masks.keys() == {1, 2}
        check_pair(raw / "valid/JPEGImages", pair, 0)


def test_invalid_validation_sentence_is_skipped(raw: Path) -> None:
    expressions = {**VALID[MAN]["expressions"], "2": {"exp": "", "obj_id": "1"}, "../3": {"exp": "a hat"}}
    write_expressions(raw, "valid", {MAN: {**VALID[MAN], "expressions": expressions}})
    assert [item.reason for item in ReferYouTubeVOS(raw).skipped()] == [
        "empty sentence",
        "the expression's name is not a plain file name",
    ]
    assert [len(pair.sentences) for pair in read_all(ReferYouTubeVOS(raw), MAN)[0]] == [2, 2]


@pytest.mark.parametrize("fault", ["missing", "truncated", "another size", "folder missing"])
def test_validation_frame_without_a_mask_is_kept_without_ground_truth(raw: Path, fault: str) -> None:
    """The server needs its prediction, and no score may include it."""
    path = raw / "valid/Annotations" / MAN / "00005.png"
    if fault == "folder missing":
        shutil.rmtree(path.parent)
        expected = Skipped(str(path.parent), "the video's folder of masks is missing")
    else:
        frame_path = raw / "valid/JPEGImages" / MAN / "00005.jpg"
        where = frame_path if fault == "another size" else path
        expected = Skipped(str(where), damage_mask(path, fault))
    pairs, skipped = read_all(ReferYouTubeVOS(raw), MAN)
    assert expected in skipped
    assert [pair.frame_index for pair in pairs] == [0, 5]
    instances = [[sentence.instance for sentence in pair.sentences] for pair in pairs]
    assert instances == [[None, None] if fault == "folder missing" else [1, 2], [None, None]]
    assert pairs[1].masks == {}
    for pair in pairs:
        assert [sentence.expression for sentence in pair.sentences] == ["0", "1"]
        check_pair(raw / "valid/JPEGImages", pair, 0)


def test_validation_without_the_list_of_test(raw: Path) -> None:
    expressions_file(raw, "test").unlink()
    (note, *_) = ReferYouTubeVOS(raw).skipped()
    assert note.where == str(expressions_file(raw, "test")) and "can't be distinguished" in note.reason


def test_video_in_two_splits_is_not_evaluated(raw: Path) -> None:
    write_expressions(raw, "valid", {**VALID, NEW: TRAIN[NEW]})
    reader = ReferYouTubeVOS(raw)
    assert reader.videos("valid") == [MAN] and reader.videos("train") == [NEW, OLD]
    assert reader.skipped() == (Skipped(f"{expressions_file(raw, 'valid')}: video {NEW}", "video in two splits"),)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize(
    "content",
    [b"", b'{"videos": {', b"\xff\xfe", b'{"video": {}}', b'{"videos": []}', b"[]", b"[" * 100_000, None],
    ids=["empty", "broken", "not UTF-8", "wrong key", "a list", "no object", "too deep", "a folder"],
)
def test_invalid_json_file(raw: Path, split: str, content: bytes | None) -> None:
    path = expressions_file(raw, split)
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"{split}/meta_expressions.json holds no expressions"):
        ReferYouTubeVOS(raw).splits()


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "", "a/b", "a\\b", "a\nb", "a\0b", "\ud800", "x" * 300])
def test_video_whose_name_is_not_a_plain_file_name(raw: Path, name: str) -> None:
    write_expressions(raw, "train", {**TRAIN, name: TRAIN[NEW]})
    assert ReferYouTubeVOS(raw).videos("train") == [NEW, OLD]
    where = f"{expressions_file(raw, 'train')}: video {name!r}"
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
def test_malformed_video(raw: Path, entry: object) -> None:
    write_expressions(raw, "train", {**TRAIN, "stranger": entry})
    where = f"{expressions_file(raw, 'train')}: video 'stranger'"
    assert ReferYouTubeVOS(raw).skipped() == (Skipped(where, "video without a readable sentence or frame"),)
    assert ReferYouTubeVOS(raw).videos("train") == [NEW, OLD]


@pytest.mark.parametrize(
    "name, expression, reason",
    [
        ("3", None, "the expression is not text"),
        ("3", {"sentence": "a seal", "obj_id": "1"}, "the expression is not text"),
        ("3", {"exp": 3, "obj_id": "1"}, "the expression is not text"),
        ("3", {"exp": "a seal \ud800", "obj_id": "1"}, "the expression is not text"),
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
def test_invalid_expression_is_skipped(raw: Path, name: str, expression: object, reason: str) -> None:
    expressions = {**TRAIN[NEW]["expressions"], name: expression}
    write_expressions(raw, "train", {**TRAIN, NEW: {**TRAIN[NEW], "expressions": expressions}})
    where = f"{expressions_file(raw, 'train')}: video {NEW!r}: expression {name!r}"
    assert ReferYouTubeVOS(raw).skipped() == (Skipped(where, reason),)
    assert [len(pair.sentences) for pair in read_all(ReferYouTubeVOS(raw), NEW)[0]] == [3, 2, 3]


def test_windows_line_endings_and_byte_order_mark(raw: Path) -> None:
    path, before = expressions_file(raw, "train"), ReferYouTubeVOS(raw).annotations
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(json.loads(path.read_bytes()), indent=1).replace("\n", "\r\n").encode()
    )
    assert ReferYouTubeVOS(raw).annotations == before


@pytest.mark.parametrize("content", [None, {"frames": ["00000"]}, {"frames": "00000", "expressions": ["a seal"]}])
def test_malformed_object_of_the_older_form(raw: Path, content: object) -> None:
    write_expressions(raw, "train", {**TRAIN, OLD: {"objects": {**TRAIN[OLD]["objects"], "2": content}}})
    where = f"{expressions_file(raw, 'train')}: video {OLD!r}: object '2'"
    assert ReferYouTubeVOS(raw).skipped() == (Skipped(where, "malformed object"),)
    assert [pair.frame_index for pair in read_all(ReferYouTubeVOS(raw), OLD)[0]] == [0, 5, 10]


@pytest.mark.parametrize(
    "name, reason",
    [
        ("../../x", "the frame's name is not a five-digit number"),
        ("5", "the frame's name is not a five-digit number"),
        (5, "the frame's name is not a five-digit number"),
        (None, "the frame's name is not a five-digit number"),
        ("\u0660" * 5, "the frame's name is not a five-digit number"),
        ("00010", "frame listed twice"),
    ],
)
def test_invalid_frame_name_is_skipped(raw: Path, name: object, reason: str) -> None:
    write_expressions(raw, "train", {**TRAIN, NEW: {**TRAIN[NEW], "frames": [*TRAIN[NEW]["frames"], name]}})
    (skipped,) = ReferYouTubeVOS(raw).skipped()
    assert skipped.reason == reason and skipped.where.startswith(f"{expressions_file(raw, 'train')}: video {NEW!r}")
    assert [pair.frame_index for pair in read_all(ReferYouTubeVOS(raw), NEW)[0]] == [5, 10, 15]


@pytest.mark.parametrize("part, what", [("JPEGImages", "frames"), ("Annotations", "masks")])
def test_video_without_its_folder(raw: Path, part: str, what: str) -> None:
    folder = raw / "train" / part / NEW
    shutil.rmtree(folder)
    assert read_all(ReferYouTubeVOS(raw), NEW) == (
        [],
        [Skipped(str(folder), f"the video's folder of {what} is missing")],
    )


def test_object_that_is_in_no_mask(raw: Path) -> None:
    expressions = {**VALID[MAN]["expressions"], "2": {"exp": "a unicorn", "obj_id": "9"}}
    write_expressions(raw, "valid", {MAN: {**VALID[MAN], "expressions": expressions}})
    pairs, skipped = read_all(ReferYouTubeVOS(raw), MAN)
    where = f"{raw / 'valid/Annotations' / MAN}: instance 9 (a unicorn)"
    assert skipped == [Skipped(where, "the instance is in no mask of the video: kept with empty masks")]
    assert [pair.masks.keys() for pair in pairs] == [{1, 2, 9}, {1, 2, 9}]
    assert not any(pair.masks[9].any() for pair in pairs)

    write_expressions(raw, "train", {NEW: {**TRAIN[NEW], "expressions": expressions}})
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    where = f"{raw / 'train/Annotations' / NEW}: instance 9 (a unicorn)"
    assert skipped[0] == Skipped(where, "the instance is in no mask of the video")
    assert all(9 not in pair.masks for pair in pairs)


def test_from_raw_files_to_records(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    report = prepare("refer_youtube_vos", raw, tmp_path / "data")
    assert {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()} == before
    train, valid = report["splits"]["train"], report["splits"]["valid"]
    assert (train["videos"], train["frame_pairs"], train["sentences"]) == (2, 6, 14)
    assert train["earlier_frames"] == {"interval": 5, "first frame": 1}
    assert len(train["skipped"]["the instance is not in the frame"]) == 3
    assert (valid["videos"], valid["frame_pairs"], valid["sentences"]) == (1, 2, 4)
    assert valid["earlier_frames"] == {"first frame": 1, "interval": 1}
    assert "2 train videos of 3471 in the full dataset" in capsys.readouterr().out
