"""The MeViS reader: unions, expressions without a target, both versions, masks read one by one, damaged files."""

from __future__ import annotations

import json
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_datasets import HEIGHT, WIDTH
from fake_mevis import (
    EXPRESSIONS,
    OF_VIDEO,
    TRAIN,
    VALID,
    VALID_U,
    entry,
    expression,
    masks_of,
    object_mask,
    rle,
    write_entries,
    write_masks,
    write_mevis,
)
from reader_checks import read_all

from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.readers.mevis import MeViS
from input_pipeline.types import FramePair, Sentence, Skipped


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_mevis(tmp_path / "mevis")


def union(annos: list[int], index: int) -> np.ndarray:
    return np.logical_or.reduce([np.zeros((HEIGHT, WIDTH), bool), *(object_mask(anno, index) for anno in annos)])


def check_targets(video: str, pair: FramePair) -> None:
    """Checks that every sentence has the union of its objects."""
    assert {sentence.instance for sentence in pair.sentences} == pair.masks.keys()
    for sentence in pair.sentences:
        expected = union(EXPRESSIONS[video][sentence.expression]["anno_id"], pair.frame_index)
        mask = pair.masks[sentence.instance]
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, expected)


def test_training_frames_have_the_expressions_whose_target_is_visible(raw: Path) -> None:
    reader = MeViS(raw)
    assert reader.splits() == ("train", "valid_u", "valid") and reader.videos("train") == [TRAIN]
    pairs, skipped = read_all(reader, TRAIN)
    assert [[sentence.expression for sentence in pair.sentences] for pair in pairs] == [
        ["0", "1", "3"],
        ["0", "1", "3"],
        ["1", "3"],
        ["0", "1", "3"],
    ]
    assert pairs[0].sentences == (
        Sentence("The seal  swimming left", 1, "one object", "0"),
        Sentence("two seals", 2, "several objects", "1"),
        Sentence("both seals", 2, "several objects", "3"),
    )
    for pair in pairs:
        check_targets(TRAIN, pair)
        assert (pair.earlier_rule, pair.video) == ("first frame", TRAIN)
    where = f"{raw}/train/mask_dict.json: video {TRAIN}: object 7, frames 00002"
    assert skipped == [Skipped(where, "the instance is not in the frame")]
    (item,) = [item for item in reader.skipped() if "train" in item.where]
    assert item.where.endswith("expression '2'") and "without a target" in item.reason


def test_training_on_expressions_without_a_target_by_choice(raw: Path) -> None:
    pairs, _ = read_all(MeViS(raw, 2, no_target_sentences=True), TRAIN)
    assert [len(pair.sentences) for pair in pairs] == [4, 4, 3, 4]
    assert [pair.earlier_rule for pair in pairs] == ["first frame"] * 2 + ["interval"] * 2
    for pair in pairs:
        check_targets(TRAIN, pair)
        assert Sentence("a bird that flies", 0, "no target", "2") in pair.sentences and not pair.masks[0].any()


def test_validation_keeps_every_expression_in_every_frame(raw: Path) -> None:
    reader = MeViS(raw)
    pairs, skipped = read_all(reader, VALID_U)
    assert skipped == [] and len(pairs) == 3
    for pair in pairs:
        check_targets(VALID_U, pair)
        groups = ["one object", "several objects", "no target", "several objects"]
        assert [sentence.group for sentence in pair.sentences] == groups
    inventory = reader.inventory()
    assert inventory["valid_u sentences"] == (4, None)  # of version 2
    assert inventory["valid sentences"] == (2, 2236)
    assert (
        inventory["valid_u sentences without a target"][0] == inventory["valid_u unknown keys of expressions"][0] == 1
    )
    pairs, skipped = read_all(reader, VALID)
    assert skipped == [] and [pair.masks for pair in pairs] == [{}, {}]
    assert pairs[0].sentences == (Sentence("the boat", None, "", "0"), Sentence("no boat", None, "", "1"))


def test_version_2_is_preferred_and_said(raw: Path) -> None:
    videos = {VALID_U: {**entry(VALID_U), "expressions": {"9": expression("the new cat", 20)}}}
    write_entries(raw, "valid_u", videos, "meta_expressions_v2.json")
    reader = MeViS(raw)
    assert {s.text for pair in read_all(reader, VALID_U)[0] for s in pair.sentences} == {"the new cat"}
    note = Skipped(f"{raw}/valid_u/meta_expressions.json", "not read, since meta_expressions_v2.json lies beside it")
    assert note in reader.skipped()
    (raw / "valid_u/meta_expressions.json").unlink()
    assert MeViS(raw).videos("valid_u") == [VALID_U] and note not in MeViS(raw).skipped()


@pytest.mark.parametrize("name", ["mevis", "MeViS_release"])
def test_folder_around_the_splits_and_evaluation_alone(raw: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "around").mkdir()
    raw.rename(tmp_path / "around" / name)
    shutil.rmtree(tmp_path / "around" / name / "train/JPEGImages")
    reader = MeViS(tmp_path / "around")
    assert reader.splits() == ("valid_u", "valid") and len(read_all(reader, VALID_U)[0]) == 3
    assert any(item.reason.startswith("split train left out") for item in reader.skipped())


def test_from_raw_files_to_records(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = prepare("mevis", raw, tmp_path / "data", no_target_sentences=True)
    assert report["splits"]["train"]["groups"] == {"no target": 4, "one object": 3, "several objects": 8}
    assert report["splits"]["valid_u"]["groups"] == {"no target": 3, "one object": 3, "several objects": 6}
    assert report["splits"]["valid"]["without_truth"] == 4 and report["no_target_sentences"] is True
    assert "1 valid_u unknown keys of expressions" in capsys.readouterr().out
    assert prepare("mevis", raw, tmp_path / "data") == report
    with pytest.raises(UserError, match="with training sentences that have no target.*Change it, delete"):
        prepare("mevis", raw, tmp_path / "data", no_target_sentences=False)
    with pytest.raises(UserError, match="a2d_sentences has no sentences without a target"):
        prepare("a2d_sentences", raw, tmp_path / "data", no_target_sentences=True)


# -- damage


def change_expressions(**changes: Any) -> Callable[[Path], Path]:
    """Changes the entry of the video of valid_u: `frames`, or expression "9"."""

    def change(raw: Path) -> Path:
        content = entry(VALID_U)
        content["frames"] = changes.get("frames", content["frames"])
        if "expression" in changes:
            content["expressions"] = {**content["expressions"], "9": changes["expression"]}
        content["expressions"] = content["expressions"] | changes.get("more", {})
        return write_entries(raw, "valid_u", {VALID_U: content})

    return change


KEPT = ": kept without ground truth"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_expressions(expression={"exp": 5}), "the expression is not text"),
        (change_expressions(expression="text"), "the expression is not text"),
        (change_expressions(expression={"exp": "  "}), "empty sentence"),
        (change_expressions(more={"../up": expression("cat", 20)}), "the expression's name is not a plain file name"),
        (change_expressions(expression={"exp": "cat"}), f"the expression does not name its objects{KEPT}"),
        (
            change_expressions(expression={"exp": "cat", "obj_id": [1], "anno_id": [[20]]}),
            f"the expression's objects are not a list of whole numbers{KEPT}",
        ),
        (
            change_expressions(expression={"exp": "cat", "anno_id": [True]}),
            f"the expression's objects are not a list of whole numbers{KEPT}",
        ),
        (
            change_expressions(expression={"exp": "cat", "obj_id": [-1], "anno_id": [-1]}),
            f"the expression's objects are not a list of whole numbers{KEPT}",
        ),
        (
            change_expressions(expression={"exp": "cat", "obj_id": [1], "anno_id": []}),
            f"obj_id and anno_id of the expression differ in length{KEPT}",
        ),
        (
            change_expressions(expression=expression("cat", 20, 99)),
            f"mask_dict.json has no masks of an object of the expression{KEPT}",
        ),
    ],
)
def test_invalid_expression(raw: Path, change: Callable[[Path], Path], reason: str) -> None:
    """It is left out, or kept without ground truth; in training it is left out."""
    path = change(raw)
    reader = MeViS(raw)
    (item,) = [item for item in reader.skipped() if item.where.startswith(f"{path}: video {VALID_U}: expression ")]
    assert item.reason == reason
    pairs, _ = read_all(reader, VALID_U)
    assert [len(pair.sentences) for pair in pairs] == [4 + reason.endswith(KEPT)] * 3
    assert all((pair.sentences[-1].instance is None) == reason.endswith(KEPT) for pair in pairs)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        (["00001", "00000", "00002"], "the frames are not listed in order: their masks can't be assigned"),
        (["00000", "00000", "00001"], "the frames are not listed in order: their masks can't be assigned"),
        (["00000", "1", "00002"], "the frame's name is not a five-digit number"),
        (["00000", "../01", "00002"], "the frame's name is not a five-digit number"),
        (["00000", 1], "the frame's name is not a five-digit number"),
        ("00000", "malformed entry of a video"),
        ([], "video without a readable sentence or frame"),
    ],
)
def test_frames_that_masks_cannot_be_assigned_to(raw: Path, frames: Any, reason: str) -> None:
    change_expressions(frames=frames)(raw)
    reader = MeViS(raw)
    assert reader.splits() == ("train", "valid") and reason in {item.reason for item in reader.skipped()}


def change_masks(raw: Path, anno: int, change: Callable[[list], object]) -> None:
    masks = masks_of("valid_u")
    changed = change(masks[str(anno)])
    masks[str(anno)] = masks[str(anno)] if changed is None else changed
    write_masks(raw, "valid_u", masks)


REST = " the video has frames: the others are left out"
BIG = {"size": [2**20, 2**20], "counts": "a"}
CLAIMED = {"size": [8192, 8192], "counts": [2**26]}  # takes 64 MB
WIDE = rle(np.ones((WIDTH, HEIGHT), bool))


@pytest.mark.parametrize(
    ("change", "reason", "unknown"),
    [
        (lambda masks: masks[:2], "an object has fewer masks than" + REST, [2]),
        (
            lambda masks: masks + [None],
            "an object has more masks than the video has frames: the others are left out",
            [],
        ),
        (lambda masks: {"size": [1, 1]}, "the masks of an object can't be read", [0, 1, 2]),
        (lambda masks: masks.__setitem__(1, 5), "the mask can't be read", [1]),
        (lambda masks: masks.__setitem__(1, {"size": [48, 64], "counts": "abc"}), "the mask can't be read", [1]),
        (lambda masks: masks.__setitem__(1, {"size": [48, 64]}), "the mask can't be read", [1]),
        (lambda masks: masks.__setitem__(1, BIG), "the mask can't be read", [1]),
        (lambda masks: masks.__setitem__(1, WIDE), "the mask and the frame differ in size", [1]),
        (lambda masks: masks.__setitem__(1, CLAIMED), "the mask and the frame differ in size", [1]),
        (lambda masks: masks.__setitem__(1, rle(np.zeros((HEIGHT, WIDTH), bool))), None, []),
    ],
)
def test_damaged_masks(raw: Path, change: Callable[[list], object], reason: str | None, unknown: list[int]) -> None:
    """Object 20 is that of expression 0, and one of those of expression 3."""
    change_masks(raw, 20, change)
    tracemalloc.start()
    pairs, skipped = read_all(MeViS(raw), VALID_U)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24
    reasons = {item.reason for item in skipped}
    assert reason in reasons if reason else not reasons
    for pair in pairs:
        names = [sentence.expression for sentence in pair.sentences if sentence.instance is None]
        assert set(names) == ({"0", "3"} if pair.frame_index in unknown else set())
        assert len(pair.sentences) == 4 and pair.masks[0].shape == (HEIGHT, WIDTH)


def test_missing_frame_and_folder(raw: Path) -> None:
    path = raw / "valid_u/JPEGImages" / VALID_U / "00001.jpg"
    path.unlink()
    pairs, skipped = read_all(MeViS(raw), VALID_U)
    assert [pair.frame_index for pair in pairs] == [0, 2] and skipped == [Skipped(str(path), "frame missing")]
    shutil.rmtree(path.parent)
    note = Skipped(str(path.parent), "the video's folder of frames is missing")
    assert read_all(MeViS(raw), VALID_U) == ([], [note])


@pytest.mark.parametrize("file", ["mask_dict.json", "meta_expressions.json"])
def test_missing_file(raw: Path, file: str) -> None:
    (raw / "valid_u" / file).unlink()
    with pytest.raises(UserError, match=f"valid_u lacks {file}.*(?s:.*)henghuiding/MeViS"):
        MeViS(raw).splits()


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split that can be read(?s:.*)--dataset=mevis"):
        MeViS(tmp_path / "nowhere").splits()


@pytest.mark.parametrize("file", ["mask_dict.json", "meta_expressions.json"])
@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"videos": {"a": 1, "a": 2}, "a": {}, "a": {}}',
        '{"videos": {"a": [1, 2}',
        '{"videos": {"a": "b',
        '{"videos" {}}',
        '{"videos": {}} x',
        '{"videos": {},}',
        '{"videos": ' + "[" * 1000 + "]" * 1000 + "}",
    ],
)
def test_broken_json(raw: Path, file: str, content: str) -> None:
    (raw / "valid_u" / file).write_text(content)
    with pytest.raises(UserError, match=f"valid_u/{file} can't be read"):
        MeViS(raw).splits()


def test_video_in_two_splits(raw: Path) -> None:
    write_entries(raw, "valid", {VALID: entry(VALID), VALID_U: entry(VALID_U)})
    reader = MeViS(raw)
    assert reader.videos("valid") == [VALID] and "video in two splits" in {item.reason for item in reader.skipped()}


def test_reader_can_be_pickled(raw: Path) -> None:
    reader = MeViS(raw)
    reader.videos("train")
    assert len(read_all(pickle.loads(pickle.dumps(reader)), TRAIN)[0]) == 4


def test_memory_does_not_grow_with_the_files(raw: Path) -> None:
    """Ten times as many videos and masks, 20 MB of text, take 2 % of their size: where they lie in the files."""
    counts = "".join(rle(np.random.default_rng(0).random((HEIGHT, WIDTH)) > 0.5)["counts"])
    masks = [{"size": [HEIGHT, WIDTH], "counts": counts}] * 30

    def peak() -> int:
        tracemalloc.start()
        reader = MeViS(raw)
        assert len(read_all(reader, VALID_U)[0]) == 3
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    sizes, peaks = [], []
    for factor in (5, 50):  # both files of masks are longer than what is read at once
        videos = {f"{number:012x}": {**entry(VALID_U)} for number in range(20 * factor)}
        write_entries(raw, "valid_u", {**videos, VALID_U: entry(VALID_U)})
        others = {str(1000 + number): masks for number in range(10 * factor)}
        text = json.dumps({**others, **masks_of("valid_u")})
        sizes.append((raw / "valid_u/mask_dict.json").write_text(text))
        peaks.append(min(peak() for _ in range(3)))  # other threads of this process may take memory meanwhile
    assert sizes[1] - sizes[0] > 2e7 and len(OF_VIDEO[VALID_U]) == 3
    assert peaks[1] < peaks[0] + 0.02 * (sizes[1] - sizes[0])
