"""The Ref-DAVIS17 reader: four annotators, two encodings, renamed videos, earlier frames, void, damaged files."""

from __future__ import annotations

import codecs
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import HEIGHT, WIDTH, frame, write_jpeg
from fake_video_folders import (
    CAR,
    DOGS,
    FILES,
    FRAMES,
    GROUPS,
    MASKS,
    MASKS_FOR_SCORES,
    TEXTS,
    VOID,
    convert_ref_davis17,
    expressions_file,
    masks_for_scores,
    walking_mask,
    write_labels,
    write_ref_davis17,
)
from reader_checks import check_pair, damage_mask, read_all

from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.readers.ref_davis17 import RefDAVIS17
from input_pipeline.types import FramePair, Sentence, Skipped


def sentences(description: str) -> tuple[Sentence, ...]:
    """The four expressions of an object, such as "2 dog"; object ids have no gaps."""
    instance, text = description.split()
    return tuple(
        Sentence(f'a "{text}" n\u00ba {annotator}', int(instance), group, str(4 * (int(instance) - 1) + annotator))
        for annotator, group in enumerate(GROUPS)
    )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_ref_davis17(tmp_path / "davis")


def append_line(raw: Path, file: str, line: bytes) -> str:
    """Appends a line. Returns "file:line"."""
    path = raw / TEXTS / f"{file}.txt"
    path.write_bytes(path.read_bytes() + line + b"\n")
    return f"{path}:5"


def test_splits_videos_and_inventory(raw: Path) -> None:
    reader = RefDAVIS17(raw)
    assert reader.splits() == ("train", "val")
    assert reader.videos("train") == [CAR] and reader.videos("val") == [DOGS]
    assert reader.skipped() == ()
    assert reader.inventory() == {
        "train videos": (1, 60),
        "train folders of DAVIS/JPEGImages/480p": (1, 60),
        "train folders of DAVIS/Annotations/480p": (1, 60),
        "train folders of DAVIS/Annotations_unsupervised/480p": (1, 60),
        "train sentences": (8, None),
        "val videos": (1, 30),
        "val folders of DAVIS/JPEGImages/480p": (1, 30),
        "val folders of DAVIS/Annotations/480p": (1, 30),
        "val folders of DAVIS/Annotations_unsupervised/480p": (1, 30),
        "val sentences": (8, None),
    }


def test_training_frames_have_the_sentences_whose_object_is_visible(raw: Path) -> None:
    pairs, skipped = read_all(RefDAVIS17(raw), CAR)
    car, driver = sentences("1 car"), sentences("2 driver")
    assert [(pair.video, pair.frame_index, pair.sentences) for pair in pairs] == [
        (CAR, 0, car + driver),
        (CAR, 1, car),
        (CAR, 2, car + driver),
        (CAR, 3, car + driver),
    ]
    assert skipped == [Skipped(f"{raw / MASKS / CAR / '00001.png'}: instance 2", "the instance is not in the frame")]
    for pair, earlier in zip(pairs, (2, 3, 0, 1), strict=True):
        check_pair(raw / FRAMES, pair, earlier)
        assert not any((mask & VOID).any() for mask in pair.masks.values())
        assert pair.labels is None


def test_validation_keeps_every_sentence_in_every_frame(raw: Path) -> None:
    pairs, skipped = read_all(RefDAVIS17(raw), DOGS)
    assert [pair.earlier_rule for pair in pairs] == ["index + interval", "the frame itself", "interval"]
    check_pair(raw / FRAMES, pairs[1], 1)
    assert skipped == []
    write_jpeg(raw / FRAMES / DOGS / "00003.jpg", frame(3))
    write_labels(raw / MASKS / DOGS / "00003.png", {1: walking_mask(1, 3)})
    write_labels(raw / MASKS_FOR_SCORES / DOGS / "00003.png", masks_for_scores([1], 3))
    pairs, skipped = read_all(RefDAVIS17(raw), DOGS)
    assert skipped == []
    assert [pair.sentences for pair in pairs] == [sentences("1 dog") + sentences("2 scale")] * 4
    assert [pair.masks[2].any() for pair in pairs] == [True, False, True, False]
    for pair, earlier in zip(pairs, (2, 3, 0, 1), strict=True):
        check_pair(raw / FRAMES, pair, earlier)
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for instance, mask in masks_for_scores([1, 2] if pair.frame_index in (0, 2) else [1], pair.frame_index).items():
            labels[mask] = instance
        assert pair.labels.dtype == np.uint8
        np.testing.assert_array_equal(pair.labels, labels)


@pytest.mark.parametrize("fault", ["folder missing", "missing", "truncated", "another size"])
def test_frame_without_labels_for_published_scores_is_kept(raw: Path, fault: str) -> None:
    path = raw / MASKS_FOR_SCORES / DOGS / "00002.png"
    if fault == "folder missing":
        shutil.rmtree(path.parent)
        reason = "the video's folder of masks for published scores is missing"
        expected, without = Skipped(str(path.parent), reason), [0, 1, 2]
    else:
        expected, without = Skipped(str(path), damage_mask(path, fault)), [2]
    pairs, skipped = read_all(RefDAVIS17(raw), DOGS)
    assert skipped.count(expected) == 1
    assert [pair.frame_index for pair in pairs] == [0, 1, 2]
    assert [pair.frame_index for pair in pairs if pair.labels is None] == without
    for pair, earlier in zip(pairs, (2, 1, 0), strict=True):
        check_pair(raw / FRAMES, pair, earlier)


@pytest.mark.parametrize(
    "interval, earlier, rules",
    [
        (1, [1, 0, 1, 2], ["index + interval"] + ["interval"] * 3),
        (2, [2, 3, 0, 1], ["index + interval"] * 2 + ["interval"] * 2),
        (3, [3, 1, 2, 0], ["index + interval", "the frame itself", "the frame itself", "interval"]),
    ],
)
def test_the_earlier_frame(raw: Path, interval: int, earlier: list[int], rules: list[str]) -> None:
    pairs, skipped = read_all(RefDAVIS17(raw, interval), CAR)
    assert [pair.earlier_rule for pair in pairs] == rules
    assert {item.reason for item in skipped} == {"the instance is not in the frame"}
    for pair, earlier_index in zip(pairs, earlier, strict=True):
        check_pair(raw / FRAMES, pair, earlier_index)


def test_objects_are_sorted_as_text(raw: Path) -> None:
    for annotator, file in enumerate(FILES):
        append_line(raw, file, f'dog-scale 10 "tenth {annotator}"'.encode())
    sorted_sentences = RefDAVIS17(raw).annotations.sentences[DOGS]
    assert [sentence.instance for sentence in sorted_sentences] == [1] * 4 + [10] * 4 + [2] * 4
    assert [sentence.group for sentence in sorted_sentences] == list(GROUPS) * 3
    assert [sentence.expression for sentence in sorted_sentences] == [str(index) for index in range(12)]


def test_second_annotator_saved_as_utf8(raw: Path) -> None:
    path = raw / TEXTS / "Davis17_annot2.txt"
    path.write_text(path.read_bytes().decode("latin-1"), "utf-8")
    assert read_all(RefDAVIS17(raw), CAR)[0][1].sentences == sentences("1 car")


def test_old_mac_line_endings_and_byte_order_mark(raw: Path) -> None:
    """Without line breaks, lines would run together into one wrong sentence."""
    before = RefDAVIS17(raw).annotations
    for path in (raw / TEXTS).iterdir():
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\r\n", b"\r"))
    (raw / "DAVIS/ImageSets/2017/val.txt").write_bytes(codecs.BOM_UTF8 + DOGS.encode() + b"\r")
    assert RefDAVIS17(raw).annotations == before


def test_first_annotator_that_is_not_utf8(raw: Path) -> None:
    append_line(raw, "Davis17_annot1", b'motor-bike 1 "caf\xe9"')
    with pytest.raises(UserError, match="Davis17_annot1.txt:5: not UTF-8"):
        RefDAVIS17(raw).videos("train")


def test_motorbike_is_renamed(raw: Path) -> None:
    (raw / "DAVIS/ImageSets/2017/train.txt").write_text(f"{CAR}\nmotorbike\n")
    for file in FILES:
        append_line(raw, file, b'motor-bike 1 "a bike"')
    assert RefDAVIS17(raw).videos("train") == [CAR, "motorbike"]


def test_reader_can_be_pickled(raw: Path) -> None:
    reader = RefDAVIS17(raw)
    reader.videos("train")
    shutil.rmtree(raw / TEXTS)  # the annotations are pickled with it and not read again
    assert len([x for x in pickle.loads(pickle.dumps(reader)).read(CAR) if isinstance(x, FramePair)]) == 4


def test_empty_folder_raises_download_instructions(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        RefDAVIS17(tmp_path / "nowhere").videos("train")
    for part in (f"lacks {FRAMES}", "davischallenge.org", "mpi-inf.mpg.de", "--dataset=ref_davis17"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "part", [FRAMES, MASKS, "DAVIS/ImageSets/2017/val.txt", f"{TEXTS}/Davis17_annot2_full_video.txt"]
)
def test_missing_file_or_folder(raw: Path, part: str) -> None:
    (raw / part).rename(raw / "elsewhere")
    with pytest.raises(UserError, match=f"lacks {part}"):
        RefDAVIS17(raw).videos("train")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", [b"", 'clasic-car 1 "a car"'.encode("utf-16")], ids=["empty", "UTF-16"])
def test_text_file_without_expressions(raw: Path, file: str, content: bytes) -> None:
    (raw / TEXTS / f"{file}.txt").write_bytes(content)
    with pytest.raises(UserError, match=f"{file}.txt(:1: not UTF-8| has no expression)"):
        RefDAVIS17(raw).videos("train")


@pytest.mark.parametrize("file", FILES)
def test_annotator_without_expressions_for_a_split(raw: Path, file: str) -> None:
    path = raw / TEXTS / f"{file}.txt"
    path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(True) if not line.startswith(b"dog")))
    with pytest.raises(UserError, match=f"{file}.txt has no expression for a video of val.txt"):
        RefDAVIS17(raw).videos("train")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "line, reason",
    [
        ("dog-scale 3", 'the line does not have the form video object "expression"'),
        ("dog-scale 3 a dog", 'the line does not have the form video object "expression"'),
        ('dog-scale 3 "a do', 'the line does not have the form video object "expression"'),
        ('dog-scale "a dog"', 'the line does not have the form video object "expression"'),
        ('../../x 3 "a dog"', "the video's name is not a plain file name"),
        ('/etc/x 3 "a dog"', "the video's name is not a plain file name"),
        ('.. 3 "a dog"', "the video's name is not a plain file name"),
        ('a\0b 3 "a dog"', "the video's name is not a plain file name"),
        ('stranger 3 "a dog"', "video is neither in train.txt nor in val.txt"),
        ('dog-scale 0 "a dog"', "the object is not a number from 1 to 254"),
        ('dog-scale 255 "a dog"', "the object is not a number from 1 to 254"),
        ('dog-scale ../../x "a dog"', "the object is not a number from 1 to 254"),
        ('dog-scale 3 " "', "empty sentence"),
        ('dogs-scale 2 "a dog"', "object described twice in one file"),
    ],
)
def test_invalid_line_is_skipped_with_its_line_number(raw: Path, file: str, line: str, reason: str) -> None:
    where = append_line(raw, file, line.encode())
    (skipped,) = RefDAVIS17(raw).skipped()
    assert skipped.reason == reason and skipped.where.startswith(where)
    assert RefDAVIS17(raw).annotations.sentences[DOGS] == sentences("1 dog") + sentences("2 scale")


def test_object_without_an_expression_by_one_annotator(raw: Path) -> None:
    path = raw / TEXTS / "Davis17_annot2.txt"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[3]]))  # without dog-scale 1
    reason = "object without an expression by one annotator"
    assert RefDAVIS17(raw).skipped() == (Skipped(f"{path}: {DOGS} 1", reason),)
    dog, scale = sentences("1 dog"), sentences("2 scale")
    assert RefDAVIS17(raw).annotations.sentences[DOGS] == (*dog[:2], dog[3], *scale)  # the others keep their ids


@pytest.mark.parametrize(
    "line, reason",
    [
        ("../../x", "the video's name is not a plain file name"),
        ("..", "the video's name is not a plain file name"),
        (CAR, "video listed twice"),
        ("silent", "video without a sentence"),
    ],
)
def test_invalid_line_of_a_list_is_skipped(raw: Path, line: str, reason: str) -> None:
    (raw / "DAVIS/ImageSets/2017/val.txt").write_text(f"{DOGS}\n{line}\n")
    assert [item.reason for item in RefDAVIS17(raw).skipped()] == [reason]
    assert RefDAVIS17(raw).videos("train") == [CAR] and RefDAVIS17(raw).videos("val") == [DOGS]


def test_list_that_is_not_utf8(raw: Path) -> None:
    (raw / "DAVIS/ImageSets/2017/val.txt").write_bytes(b"bear\ncaf\xe9\n")
    with pytest.raises(UserError, match="val.txt:2: not UTF-8"):
        RefDAVIS17(raw).videos("val")


@pytest.mark.parametrize("part, what", [(FRAMES, "frames"), (MASKS, "masks")])
def test_video_without_its_folder(raw: Path, part: str, what: str) -> None:
    shutil.rmtree(raw / part / CAR)
    assert read_all(RefDAVIS17(raw), CAR) == (
        [],
        [Skipped(str(raw / part / CAR), f"the video's folder of {what} is missing")],
    )


def test_object_that_is_in_no_mask(raw: Path) -> None:
    for file in FILES:
        append_line(raw, file, b'dog-scale 9 "a unicorn"')
    pairs, skipped = read_all(RefDAVIS17(raw), DOGS)
    where = f"{raw / MASKS / DOGS}: instance 9 (a unicorn)"
    unicorn = Skipped(where, "the instance is in no mask of the video: kept with empty masks")
    assert skipped[:4] == [unicorn] * 4
    assert all(pair.masks.keys() == {1, 2, 9} and not pair.masks[9].any() for pair in pairs)


@pytest.mark.parametrize(
    "part, suffix, earlier_reasons",
    [(FRAMES, "jpg", ["earlier frame missing"]), (MASKS, "png", [])],
    ids=["frame", "mask"],
)
def test_missing_frame_or_mask(raw: Path, part: str, suffix: str, earlier_reasons: list[str]) -> None:
    """Frame 2, which is the earlier frame of frame 0."""
    path = raw / part / CAR / f"00002.{suffix}"
    path.unlink()
    pairs, skipped = read_all(RefDAVIS17(raw), CAR)
    what = "frame" if suffix == "jpg" else "mask"
    assert Skipped(str(path), f"{what} missing") in skipped
    assert [pair.frame_index for pair in pairs] == ([1, 3] if earlier_reasons else [0, 1, 3])
    assert [item.reason for item in skipped if item.reason == "earlier frame missing"] == earlier_reasons


def test_frame_missing_together_with_its_mask(raw: Path) -> None:
    (raw / FRAMES / CAR / "00002.jpg").unlink()
    path = raw / MASKS / CAR / "00002.png"
    path.unlink()
    pairs, skipped = read_all(RefDAVIS17(raw), CAR)
    assert [pair.frame_index for pair in pairs] == [1, 3]
    assert skipped[0] == Skipped(str(path), "mask missing")


def test_from_raw_files_to_records(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    report = prepare("ref_davis17", raw, tmp_path / "data")
    assert {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()} == before
    train, val = report["splits"]["train"], report["splits"]["val"]
    assert (train["videos"], train["frame_pairs"], train["sentences"]) == (1, 4, 28)
    assert train["earlier_frames"] == {"index + interval": 2, "interval": 2}
    assert train["groups"] == dict.fromkeys(GROUPS, 7)
    assert (val["videos"], val["frame_pairs"], val["sentences"]) == (1, 3, 24)
    assert "1 val videos of 30 in the full dataset" in capsys.readouterr().out


# -- as other code converts it


def same_pairs(first: list[FramePair], second: list[FramePair], labels: bool) -> None:
    for a, b in zip(first, second, strict=True):
        assert (a.video, a.frame_index, a.earlier_rule, a.sentences) == (
            b.video,
            b.frame_index,
            b.earlier_rule,
            b.sentences,
        )
        assert a.files == b.files and a.masks.keys() == b.masks.keys()
        for instance, mask in a.masks.items():
            np.testing.assert_array_equal(mask, b.masks[instance])
        if labels:
            np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize("masks", [MASKS, MASKS_FOR_SCORES])
def test_converted_layout_gives_the_same_samples(tmp_path: Path, masks: str) -> None:
    """Their converter moves the masks for scores; with those of the original layout beside, nothing differs."""
    original, raw = write_ref_davis17(tmp_path / "original"), write_ref_davis17(tmp_path / "raw")
    convert_ref_davis17(raw, masks)
    if masks == MASKS_FOR_SCORES:
        shutil.copytree(original / MASKS, raw / MASKS)
    before, after = RefDAVIS17(original), RefDAVIS17(raw)
    assert after.splits() == ("train", "val") and after.skipped() == ()
    assert after.inventory()["val folders of DAVIS/Annotations/480p"] == (1, 30)
    for video in (CAR, DOGS):
        same_pairs(read_all(after, video)[0], read_all(before, video)[0], masks == MASKS_FOR_SCORES and video == DOGS)


def test_converted_layout_of_val_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = convert_ref_davis17(write_ref_davis17(tmp_path / "raw"))
    shutil.rmtree(raw / "train")
    report = prepare("ref_davis17", raw, tmp_path / "data")
    assert [(split, counts["sentences"]) for split, counts in report["splits"].items()] == [("val", 24)]
    assert report["splits"]["val"]["groups"] == dict.fromkeys(GROUPS, 6)
    assert "split train left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ({"9x": {"exp": "a dog", "obj_id": "1"}}, "the expression's name is not a number"),
        ({"../x": {"exp": "a dog", "obj_id": "1"}}, "the expression's name is not a plain file name"),
        ({"9": {"exp": "a dog", "obj_id": "255"}}, "the object is not a number from 1 to 254"),
        ({"9": {"exp": " ", "obj_id": "1"}}, "empty sentence"),
        ({"9": {"exp": 5, "obj_id": "1"}}, "the expression is not text"),
    ],
)
def test_invalid_expression_of_the_converted_layout(tmp_path: Path, expression: dict, reason: str) -> None:
    raw = convert_ref_davis17(write_ref_davis17(tmp_path / "raw"))
    videos = json.loads(expressions_file(raw, "valid").read_text())["videos"]
    videos[DOGS]["expressions"] |= expression
    videos["../up"] = videos[DOGS]
    expressions_file(raw, "valid").write_text(json.dumps({"videos": videos}))
    reasons = [item.reason for item in RefDAVIS17(raw).skipped()]
    assert len(reasons) == 2 and reasons[0].startswith(reason) and reasons[1].startswith("the video's name")
    assert len(RefDAVIS17(raw).annotations.sentences[DOGS]) == 8


def test_converted_layout_without_an_annotator(tmp_path: Path) -> None:
    raw = convert_ref_davis17(write_ref_davis17(tmp_path / "raw"))
    videos = json.loads(expressions_file(raw, "valid").read_text())["videos"]
    videos[DOGS]["expressions"] = {name: videos[DOGS]["expressions"][name] for name in "02"}
    expressions_file(raw, "valid").write_text(json.dumps({"videos": videos}))
    with pytest.raises(
        UserError, match="valid/meta_expressions.json has no expression by annotator annot1 full, annot2"
    ):
        RefDAVIS17(raw).splits()
