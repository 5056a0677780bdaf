"""Raw files that never end, are far too long or of another shape; missing lists; evaluation splits alone."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_datasets import CLAP, VIDEOSET, write_a2d, write_jhmdb, write_lbdt_layout
from fake_video_folders import (
    CAR,
    DOGS,
    FILES,
    FRAMES,
    MAN,
    MASKS,
    MASKS_FOR_SCORES,
    NEW,
    OLD,
    TEXTS,
    TRAIN,
    VALID,
    write_expressions,
    write_ref_davis17,
    write_refer_youtube_vos,
)
from reader_checks import read_all

from input_pipeline import record_writer
from input_pipeline.errors import UserError
from input_pipeline.prepare import prepare
from input_pipeline.readers import a2d_sentences, raw_files, video_folders
from input_pipeline.readers.a2d_sentences import A2DSentences
from input_pipeline.readers.jhmdb_sentences import JHMDBSentences
from input_pipeline.readers.lbdt_layout import LBDTLayoutA2D, LBDTLayoutJHMDB, LBDTLayoutReferYouTubeVOS
from input_pipeline.readers.ref_davis17 import RefDAVIS17
from input_pipeline.readers.refer_youtube_vos import ReferYouTubeVOS
from input_pipeline.report import format_skipped
from input_pipeline.types import FramePair, Reader, Skipped

READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Reader]]] = {
    "a2d": (write_a2d, A2DSentences),
    "jhmdb": (write_jhmdb, JHMDBSentences),
    "davis": (write_ref_davis17, RefDAVIS17),
    "rvos": (write_refer_youtube_vos, ReferYouTubeVOS),
    "lbdt_a2d": (lambda raw: write_lbdt_layout(raw) / "a2d", LBDTLayoutA2D),
    "lbdt_jhmdb": (lambda raw: write_lbdt_layout(raw) / "jhmdb", LBDTLayoutJHMDB),
    "lbdt_ytvos": (lambda raw: write_lbdt_layout(raw) / "ytvos", LBDTLayoutReferYouTubeVOS),
}
INSTANCES = "text_annotations/a2d_annotation_with_instances"
H5 = f"{INSTANCES}/walker/00007.h5"
MAT = f"puppet_mask/clap/{CLAP}/puppet_mask.mat"
SENTENCES = "text_annotations/a2d_annotation.txt"
LISTS = "DAVIS/ImageSets/2017"
EXPRESSIONS = "meta_expressions/{}/meta_expressions.json"


@pytest.fixture
def raw(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The made-up dataset that the test's parameter `dataset` names, or A2D-Sentences."""
    dataset = request.node.callspec.params.get("dataset", "a2d") if hasattr(request.node, "callspec") else "a2d"
    return READERS[dataset][0](tmp_path / "raw")


def read(dataset: str, raw: Path) -> tuple[Reader, int, list[Skipped]]:
    """Reads everything. Returns the reader, the number of frame pairs, and what was left out."""
    reader = READERS[dataset][1](raw)
    found = [read_all(reader, video) for split in reader.splits() for video in reader.videos(split)]
    skipped = [*reader.skipped(), *(item for _, items in found for item in items)]
    return reader, sum(len(pairs) for pairs, _ in found), skipped


# -- not a file


@pytest.mark.parametrize(
    ("dataset", "file"),
    [
        ("a2d", "Release/videoset.csv"),
        ("a2d", SENTENCES),
        ("a2d", "text_annotations/a2d_missed_videos.txt"),
        ("a2d", H5),
        ("a2d", "Release/clips320H/walker.mp4"),
        ("jhmdb", "jhmdb_annotation.txt"),
        ("jhmdb", "jhmdb_sentences_samples_metadata.json"),
        ("jhmdb", MAT),
        ("jhmdb", f"Rename_Images/clap/{CLAP}/00005.png"),
        ("davis", f"{LISTS}/train.txt"),
        ("davis", f"{TEXTS}/Davis17_annot2.txt"),
        ("davis", f"{MASKS}/{DOGS}/00001.png"),
        ("davis", f"{MASKS_FOR_SCORES}/{DOGS}/00001.png"),
        ("rvos", EXPRESSIONS.format("valid")),
        ("rvos", EXPRESSIONS.format("test")),
        ("rvos", f"train/JPEGImages/{NEW}/00010.jpg"),
        ("lbdt_a2d", "val.txt"),
        ("lbdt_jhmdb", "val.txt"),
        ("lbdt_ytvos", "train.txt"),
    ],
)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_only_regular_files_are_read(raw: Path, dataset: str, file: str, kind: str) -> None:
    """A pipe would be waited for, and /dev/zero never ends: an error names the file, or the sample is left out."""
    _, whole, _ = read(dataset, raw)
    (raw / file).unlink()
    os.mkfifo(raw / file) if kind == "pipe" else (raw / file).symlink_to("/dev/zero")
    try:
        _, pairs, skipped = read(dataset, raw)
    except UserError as error:
        assert str(raw / file) in str(error) and kind in str(error)
    else:
        path = raw / file
        assert any(str(path) in item.where or str(path.parent) in item.where for item in skipped)
        assert pairs < whole or "unsupervised" in file or DOGS in file


def test_folders_that_lead_back(raw: Path, tmp_path: Path) -> None:
    jhmdb = write_jhmdb(tmp_path / "jhmdb")
    for folder in (raw / "Release", raw / "text_annotations", jhmdb / "Rename_Images", jhmdb / "Rename_Images/clap"):
        (folder / "up").symlink_to("..")
        (folder / "circle").symlink_to("circle")
    assert read("a2d", raw)[1] == 5
    assert read("jhmdb", jhmdb)[1] == 6


# -- lists of samples, and evaluation alone


def remove(*paths: str) -> Callable[[Path], None]:
    def change(raw: Path) -> None:
        for path in paths:
            shutil.rmtree(raw / path) if (raw / path).is_dir() else (raw / path).unlink()

    return change


def write(path: str, content: str) -> Callable[[Path], object]:
    return lambda raw: (raw / path).write_text(content)


def only_validation_texts(raw: Path) -> None:
    for path in (raw / TEXTS).iterdir():
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if line.startswith(b"dog")))


NO_TRAIN = raw_files.NO_TRAINING_DATA


@pytest.mark.parametrize(
    ("dataset", "change", "splits", "pairs", "note"),
    [
        ("a2d", remove("Release/clips320H/walker.mp4", "Release/clips320H/runner.mp4"), "test", 1, NO_TRAIN),
        ("a2d", write("Release/videoset.csv", VIDEOSET.splitlines()[2]), "test", 1, NO_TRAIN),
        ("a2d", remove(f"{INSTANCES}/walker", f"{INSTANCES}/runner"), "test", 1, NO_TRAIN),
        ("davis", remove(f"{LISTS}/train.txt"), "val", 3, NO_TRAIN),
        ("davis", remove(f"{MASKS}/{CAR}"), "val", 3, NO_TRAIN),
        ("davis", write(f"{LISTS}/train.txt", "\n"), "val", 3, NO_TRAIN),
        ("davis", remove(f"{FRAMES}/{CAR}", f"{MASKS}/{CAR}"), "val", 3, NO_TRAIN),
        ("davis", only_validation_texts, "val", 3, NO_TRAIN),
        ("rvos", remove("train"), "valid", 2, "split train left out: its folder has"),
        ("rvos", remove("train/JPEGImages", "train/Annotations"), "valid", 2, "split train left out: its folder has"),
        ("rvos", remove("valid"), "train", 6, "split valid left out: its folder has"),
        ("rvos", remove(f"train/Annotations/{NEW}", f"train/Annotations/{OLD}"), "valid", 2, NO_TRAIN),
        ("rvos", remove("train", "meta_expressions/train"), "valid", 2, "split train left out: its folder has"),
        ("rvos", remove(f"train/JPEGImages/{NEW}", f"train/JPEGImages/{OLD}"), "valid", 2, NO_TRAIN),
        ("rvos", write(EXPRESSIONS.format("train"), '{"videos": {}}'), "valid", 2, NO_TRAIN),
        ("rvos", remove("valid", "meta_expressions/valid"), "train", 6, "split valid left out: its folder has"),
        ("rvos", write(EXPRESSIONS.format("valid"), '{"videos": {}}'), "train", 6, "split valid left out: it has no"),
        ("lbdt_a2d", remove("train.txt"), "test", 1, "list of samples missing: split train left out"),
        ("lbdt_a2d", remove("val.txt"), "train", 2, "list of samples missing: split test left out"),
        ("lbdt_a2d", write("val.txt", ""), "train", 2, "list of samples without a valid row: split test left out"),
        ("lbdt_a2d", write("val.txt", "a;b"), "train", 2, "list of samples without a valid row: split test left out"),
        ("lbdt_a2d", remove("images/walker"), "test", 1, NO_TRAIN),
        ("lbdt_ytvos", remove("train"), "valid", 3, NO_TRAIN),
        ("lbdt_ytvos", remove("val.txt"), "train", 3, "list of samples missing: split valid left out"),
    ],
)
def test_split_that_is_not_there(
    raw: Path, dataset: str, change: Callable[[Path], object], splits: str, pairs: int, note: str
) -> None:
    change(raw)
    reader, count, skipped = read(dataset, raw)
    assert (reader.splits(), count) == ((splits,), pairs)
    assert any(item.reason.startswith(note) for item in skipped)


@pytest.mark.parametrize(
    ("dataset", "change", "message"),
    [
        ("a2d_sentences", write("Release/videoset.csv", ""), "video is not in videoset.csv"),
        ("a2d_sentences", write("Release/videoset.csv", "walker;0\n"), "malformed line of videoset.csv, first .*:1"),
        ("a2d_sentences", write(SENTENCES, ""), "video without a sentence"),
        ("jhmdb_sentences", write("jhmdb_annotation.txt", ""), "video has no sentence in jhmdb_annotation.txt"),
        ("jhmdb_sentences", write("jhmdb_sentences_samples_metadata.json", "[]"), "without a frame in the list"),
        ("jhmdb_sentences", write("jhmdb_sentences_samples_metadata.json", "{}"), "not the list of samples"),
        ("ref_davis17", write(f"{LISTS}/val.txt", ""), "video is neither in train.txt nor in val.txt"),
        ("ref_davis17", write(f"{LISTS}/val.txt", "/JPEGImages/480p/x/00000.jpg /y.png"), "not a plain file name"),
        ("refer_youtube_vos", remove("meta_expressions/valid"), "lacks meta_expressions/valid"),
        ("refer_youtube_vos", write(EXPRESSIONS.format("valid"), "[]"), "holds no expressions"),
        ("a2d", remove("train.txt", "val.txt"), "no sample in train.txt and val.txt.*split test left out, first .*val"),
        ("ytvos", remove("train.txt", "val.txt"), "no sample in train.txt and val.txt.*split valid left out"),
        ("jhmdb", write("val.txt", "clap"), "no sample in val.txt.*does not have the form.*first .*val.txt:1"),
    ],
)
def test_a_list_that_is_missing_empty_or_of_another_shape_is_told(
    tmp_path: Path, dataset: str, change: Callable[[Path], object], message: str
) -> None:
    names = {
        "a2d_sentences": ("a2d", "lbdt_a2d"),
        "jhmdb_sentences": ("jhmdb", "lbdt_jhmdb"),
        "ref_davis17": ("davis",),
        "refer_youtube_vos": ("rvos", "ytvos", "lbdt_ytvos"),
    }
    full_name = next(full for full, short in names.items() if dataset == full or dataset in short)
    maker = names[full_name][0] if dataset == full_name else f"lbdt_{dataset}"
    raw = READERS[maker][0](tmp_path / "raw")
    change(raw)
    with pytest.raises(UserError, match=f"(?s){message}"):
        prepare(full_name, raw, tmp_path / "data")


# -- JSON and text


def older_form(videos: int, names: int) -> dict[str, Any]:
    objects = {
        str(index): {"frames": [f"{names * index + k:05d}" for k in range(names)], "expressions": ["a seal"]}
        for index in range(1, videos)
    }
    return {**TRAIN, "long": {"objects": objects}}


def test_many_frames_in_the_older_form(tmp_path: Path) -> None:
    """Once took quadratic time: hours for these 90,000 names."""
    raw = write_refer_youtube_vos(tmp_path / "rvos")
    write_expressions(raw, "train", older_form(91, 1000))
    assert len(ReferYouTubeVOS(raw).annotations.videos["train"]["long"].frames) == 90_000
    assert ReferYouTubeVOS(raw).videos("train") == [NEW, OLD, "long"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"videos": {"x": {}, "y": {}, "x": {}}}', "'x' occurs twice"),
        (json.dumps({"videos": VALID}).replace('"1": {"exp"', '"0": {"exp"'), "'0' occurs twice"),
        ('{"videos": {"x": {"frames": [' + "9" * 5000 + "]}}}", "holds no expressions"),
        ('{"videos": ' + "[" * 10**5 + "]" * 10**5 + "}", "holds no expressions"),
        ('{"videos": {}, "padding": "' + "x" * 1000 + '"}', "The limit is"),
    ],
    ids=["video twice", "expression twice", "long number", "deep", "large"],
)
def test_json_that_is_refused(tmp_path: Path, content: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_refer_youtube_vos(tmp_path / "rvos")
    (raw / EXPRESSIONS.format("valid")).write_text(content)
    if "limit" in message:
        monkeypatch.setattr(raw_files, "MAX_JSON_BYTES", 800)
    with pytest.raises(UserError, match=f"valid/meta_expressions.json.*{message}"):
        ReferYouTubeVOS(raw).splits()


def nested(depth: int) -> object:
    value: object = "1"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("value", [nested(300), float("inf"), float("nan"), 10**4000, -1, {"a": 1}, "x" * 10**6])
def test_json_values_of_other_kinds(tmp_path: Path, value: object) -> None:
    raw = write_refer_youtube_vos(tmp_path / "rvos")
    named = {"0": {"exp": "a man", "obj_id": "1"}, "1": {"exp": "a horse", "obj_id": value}}
    write_expressions(raw, "train", {**TRAIN, "x": {"expressions": named, "frames": ["00000", value]}})
    first, second = ReferYouTubeVOS(raw).skipped()
    assert first.reason == "the object is not a number from 1 to 255"
    assert second.reason == "the frame's name is not a five-digit number"
    assert len(first.where) < 500 and len(second.where) < 1000


@pytest.mark.parametrize(
    ("name", "limit", "content", "message"),
    [
        ("MAX_LINE_BYTES", 200, b"walker,0," + b"x" * 300, "a2d_annotation.txt:7: the line has more than"),
        ("MAX_LINES", 6, b"\n" * 100, "a2d_annotation.txt:7: the file has more than"),
        ("MAX_TEXT_BYTES", 300, b"x" * 300, "a2d_annotation.txt has .*The limit is"),
        ("MAX_SKIPPED", 20, b"x\n" * 30, "a2d_annotation.txt:26: malformed line .*after 20 others"),
    ],
)
def test_text_that_is_far_too_long(
    raw: Path, name: str, limit: int, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (raw / SENTENCES).open("ab") as file:
        file.write(content)
    monkeypatch.setattr(raw_files, name, limit)
    with pytest.raises(UserError, match=message):
        A2DSentences(raw).splits()


@pytest.mark.parametrize(
    ("dataset", "file", "line"),
    [
        ("a2d", SENTENCES, "walker,0,the \0man\n"),
        ("davis", f"{TEXTS}/{FILES[0]}.txt", 'dog-scale 3 "the \0dog"\n'),
        ("lbdt_a2d", "train.txt", "walker/00002,48,64,0,the \0man,12\n"),
    ],
)
def test_sentence_with_a_nul(raw: Path, dataset: str, file: str, line: str) -> None:
    with (raw / file).open("ab") as stream:
        stream.write(line.encode())
    assert "the expression is not text" in {item.reason for item in READERS[dataset][1](raw).skipped()}


# -- memory, and one fault in a long job


def test_masks_beyond_the_limit_are_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_refer_youtube_vos(tmp_path / "rvos")
    before = [read_all(ReferYouTubeVOS(raw), video) for video in (NEW, OLD, MAN)]
    monkeypatch.setattr(video_folders, "MAX_LABEL_BYTES", 4000)  # one mask
    after = [read_all(ReferYouTubeVOS(raw), video) for video in (NEW, OLD, MAN)]
    for (pairs, skipped), (same_pairs, same_skipped) in zip(before, after, strict=True):
        assert skipped == same_skipped
        for pair, same in zip(pairs, same_pairs, strict=True):
            assert pair.sentences == same.sentences
            np.testing.assert_equal(pair.masks, same.masks)


def test_clip_with_too_many_annotated_frames(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(a2d_sentences, "MAX_CLIP_BYTES", 3 * 48 * 64 * 3)
    clip = str(raw / "Release/clips320H/walker.mp4")
    reason = "the clip's annotated frames take too much memory"
    assert read_all(A2DSentences(raw), "walker") == ([], [Skipped(clip, reason)])
    assert len(read_all(A2DSentences(raw), "runner")[0]) == 1


def test_sentences_of_a_video_without_a_readable_mask_are_named(tmp_path: Path) -> None:
    raw = write_ref_davis17(tmp_path / "davis")
    for path in (raw / MASKS / CAR).iterdir():
        path.write_bytes(b"")
    pairs, skipped = read_all(RefDAVIS17(raw), CAR)
    reason = "no mask of the video can be read: the instance is left out"
    named = [item.where for item in skipped if item.reason == reason]
    assert pairs == [] and len(named) == 8
    assert named[4].startswith(f"{raw / MASKS / CAR}: instance 2 (")


@pytest.mark.parametrize("error", [OSError("the disk is gone"), MemoryError(), UserError("damaged")], ids=repr)
def test_a_video_that_fails_is_counted_and_named(raw: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(A2DSentences):
        def read(self, video: str) -> Iterator[FramePair | Skipped]:
            yield next(iter(super().read(video)))
            raise error

    monkeypatch.setattr(record_writer, "_reader", Failing(raw), raising=False)
    records, skipped, files = record_writer._encode_video("walker")
    assert len(records) == 1 and str(raw / "Release/clips320H/walker.mp4") in files
    reason = f"the rest of the video can't be read ({type(error).__name__})"
    assert skipped == [Skipped(f"{raw}: video walker: {error}", reason)]


def test_control_characters_are_not_printed() -> None:
    assert format_skipped([Skipped("a \x1b[31mred\ncar", "reason")]) == r"  1 x reason, first a \x1b[31mred\ncar"


def test_frames_and_masks_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_refer_youtube_vos(tmp_path / "rvos")
    for module, reason in ((raw_files, "the frame can't be read"), (video_folders, "the mask can't be read")):
        with monkeypatch.context() as patch:
            patch.setattr(module, "MAX_PIXELS", 48 * 64 - 1)
            pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
        assert pairs == [] and reason in {item.reason for item in skipped}
