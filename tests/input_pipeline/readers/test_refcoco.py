"""The readers of RefCOCO and its kin: masks equal to pycocotools', pickles that execute nothing, warps, damage."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_datasets import HEIGHT, WIDTH
from fake_refcoco import (
    GREFS,
    NAMES,
    REFS,
    SEGMENTATIONS,
    annotation,
    image,
    ref,
    textured,
    write_converted,
    write_refcoco,
)
from pycocotools import mask as coco_mask
from reader_checks import read_all

from input_pipeline.coco_masks import check_rle, decode_rle, rasterize_polygons
from input_pipeline.errors import UserError
from input_pipeline.readers.plain_pickle import read_plain_pickle
from input_pipeline.readers.refcoco import GRefCOCO, RefCOCO, RefCOCOg, RefCOCOPlus, warp
from input_pipeline.types import Sentence, Skipped

SIZE = (HEIGHT, WIDTH)


def expected_mask(*annos: int) -> np.ndarray:
    """The union of annotations as the public loaders compute it."""
    union = np.zeros(SIZE, bool)
    for anno in annos:
        encoded = coco_mask.frPyObjects(SEGMENTATIONS[anno], *SIZE)
        planes = coco_mask.decode(encoded)
        union |= planes.any(axis=2) if planes.ndim == 3 else planes.astype(bool)
    return union


def test_images_become_frame_pairs_with_all_their_sentences(tmp_path: Path) -> None:
    reader = RefCOCO(write_refcoco(tmp_path))
    assert reader.splits() == ("train", "val", "testA") and reader.skipped() == ()
    assert reader.videos("train") == [NAMES[1]] and reader.videos("testA") == [f"{NAMES[1]}-testA"]
    (pair,), skipped = read_all(reader, NAMES[1])
    assert skipped == [] and pair.earlier_rule == "warp of the image"
    assert pair.sentences == (
        Sentence("the left man", 1, "", "100"),
        Sentence("man in red", 1, "", "101"),
        Sentence("two parts", 2, "", "102"),
    )
    assert pair.masks.keys() == {1, 2}
    np.testing.assert_array_equal(pair.masks[1], expected_mask(11))
    np.testing.assert_array_equal(pair.masks[2], expected_mask(12))
    assert pair.files[0] == (tmp_path / f"train2014/{NAMES[1]}.jpg").read_bytes()
    (top,), _ = read_all(reader, f"{NAMES[1]}-testA")
    np.testing.assert_array_equal(top.masks[1], expected_mask(14))
    np.testing.assert_array_equal(top.earlier_frame, pair.earlier_frame)


def test_polygons_equal_those_of_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(n) for n in rng.integers(1, 80, 2))
        polygons = [
            (rng.uniform(-0.3, 1.3, (int(rng.integers(3, 9)), 2)) * (width, height)).round(2).ravel().tolist()
            for _ in range(rng.integers(1, 4))
        ]
        expected = coco_mask.decode(coco_mask.frPyObjects(polygons, height, width)).any(axis=2)
        np.testing.assert_array_equal(rasterize_polygons(polygons, (height, width)), expected)


@pytest.mark.parametrize(
    "polygons",
    [
        [],
        [[1, 1, 5, 5]],
        [[1, 1, 5, 5, 5]],
        [[1, 1, 5, 5, 5, float("nan")]],
        [[1, 1, 5, 5, 5, float("-inf")]],
        [[1, 1, 5, 5, 5, 10**400]],
        [[1, 1, 5, 5, 5, 1e12]],
        [[0, 0, 4e6, 0, 0, 4e6]],
        [[0, 0, 5, 5, 5, "9"]],
        ["x"],
        [{"a": 1}],
    ],
)
def test_what_is_no_polygon(polygons: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        rasterize_polygons(polygons, SIZE)


def test_masks_of_another_size_take_no_memory() -> None:
    tracemalloc.start()
    with pytest.raises(UserError, match="the mask and the frame differ in size"):
        decode_rle({"size": [8192, 8192], "counts": [2**26]}, SIZE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("size", [[[0] * 100_000, 1], [10**400, 1], [True, 1], [0, 5], [-1, -1], [2**13, 2**13 + 1]])
def test_what_is_no_size_of_a_mask(size: Any) -> None:
    with pytest.raises(ValueError, match="^a mask without a height and a width, or a larger one than any$"):
        decode_rle({"size": size, "counts": [1]}, SIZE)


def test_runs_whose_sum_overflows() -> None:
    """Modulo 2**64 they fill the mask: np.repeat would write beyond it."""
    step = 2**34 - 1  # the largest number of seven characters
    peak = math.isqrt(2**64 // (2 * step))
    levels = [*range(1, peak + 1), *range(peak - 1, -1, -1)]
    missing, last = divmod(2**64 + HEIGHT * WIDTH - 2 * step * peak**2, step)
    runs = [0, *(step * level for level in levels for _ in range(2)), *[step] * missing, last]
    assert sum(runs) == 2**64 + HEIGHT * WIDTH
    numbers = [run - before for run, before in zip(runs, [0, 0, 0, *runs[1:]], strict=False)]
    text = "".join(chr(48 + (n >> 5 * k & 31) + 32 * (k < 6)) for n in numbers for k in range(7))
    with pytest.raises(ValueError, match="runs that do not fill the mask"):
        check_rle([HEIGHT, WIDTH], text)


def test_warp_is_small_and_follows_from_the_name() -> None:
    image = textured(1)
    first, again, other = warp(image, "0/a.jpg"), warp(image, "0/a.jpg"), warp(image, "1/a.jpg")
    np.testing.assert_array_equal(first, again)
    assert first.shape == image.shape and (first != other).any() and (first != image).any()
    position = np.zeros((100, 200, 3), np.uint8)
    position[..., 0], position[..., 1] = np.arange(200), np.arange(100)[:, None]
    for number in range(20):
        moved = warp(position, str(number))[20:-20, 20:-20].astype(int) - position[20:-20, 20:-20]
        assert np.abs(moved[..., 0]).max() < 20 and np.abs(moved[..., 1]).max() < 20  # at most .1 of the width


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol_and_converted_files_give_the_same(tmp_path: Path, protocol: int) -> None:
    published = RefCOCO(write_refcoco(tmp_path / "a", protocol=protocol))
    converted = RefCOCO(write_converted(tmp_path / "b"))
    assert published.splits() == converted.splits()
    for split in published.splits():
        assert published.videos(split) == converted.videos(split)
        for video in published.videos(split):
            (first,), (second,) = read_all(published, video)[0], read_all(converted, video)[0]
            assert [s.text for s in first.sentences] == [s.text for s in second.sentences]
            for one, two in zip(first.sentences, second.sentences, strict=True):
                np.testing.assert_array_equal(first.masks[one.instance], second.masks[two.instance])


def test_the_other_sets_and_places_of_files(tmp_path: Path) -> None:
    plus = write_refcoco(tmp_path / "plus", "refcoco+")
    assert RefCOCOPlus(plus).splits() == RefCOCOPlus(plus / "refcoco+").splits() == ("train", "val", "testA")
    assert len(read_all(RefCOCOPlus(plus / "refcoco+"), NAMES[1])[0]) == 1  # the images lie beside the folder
    google = write_refcoco(tmp_path / "g", "refcocog", "refs(google).p", [ref(11, "val", 1, "a man")])
    assert RefCOCOg(google).splits() == ("val",) and RefCOCOg(google).skipped() == ()
    (google / "refcocog/refs(umd).p").write_bytes(pickle.dumps([ref(11, "test", 1, "a man")]))
    assert RefCOCOg(google).splits() == ("test",)
    (item,) = RefCOCOg(google).skipped()
    assert item.reason == "not read, since refs(umd).p lies beside it"


@pytest.mark.parametrize("file", ["grefs(unc).json", "grefs(unc).p"])
def test_grefcoco_has_unions_and_sentences_without_a_target(tmp_path: Path, file: str) -> None:
    raw = write_refcoco(tmp_path, "grefcoco", file)
    (pair,), _ = read_all(GRefCOCO(raw, no_target_sentences=True), NAMES[1])
    groups = ["one object", "several objects", "several objects", "no target"]
    assert [sentence.group for sentence in pair.sentences] == groups
    for sentence, annos in zip(pair.sentences, ((11,), (11, 13), (11, 13), ()), strict=True):
        np.testing.assert_array_equal(pair.masks[sentence.instance], expected_mask(*annos))
    assert pair.sentences[3].instance == 0
    (pair,), _ = read_all(GRefCOCO(raw), NAMES[1])
    assert len(pair.sentences) == 3 and "left out of train" in GRefCOCO(raw).skipped()[0].reason
    (pair,), _ = read_all(GRefCOCO(raw), NAMES[2])
    assert [sentence.instance for sentence in pair.sentences] == [1, 0] and not pair.masks[0].any()


# -- damage


class Evil:
    """What executes code when an ordinary unpickler reads it."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps([Evil()], 0),
        pickle.dumps([Evil()], 2),
        pickle.dumps([Evil()], 4),
        pickle.dumps([np.int64(3)]),
        pickle.dumps([{1, 2}]),
        b"cos\nsystem\n(S'echo'\ntR.",
        b"(ios\nsystem\n.",
        b"P1\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_pickles_that_are_not_plain(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    write_refcoco(tmp_path)
    (tmp_path / "refcoco/refs(unc).p").write_bytes(content)
    with pytest.raises(UserError, match=r"refs\(unc\).p, byte \d+: [A-Z0-9_]+, which plain lists"):
        RefCOCO(tmp_path).splits()
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read"),
        (pickle.dumps(REFS)[:-20], "can't be read"),
        (b"]r\xff\xff\xff\x7f.", "index 2147483647 of a stored value"),  # would take 16 GB
        (b"\x80\x02]q\x00h\x07.", "can't be read"),
        (b"}(]K\x01u.", "can't be read"),
        (pickle.dumps({"a": 1}), "holds no list of references"),
    ],
)
def test_damaged_pickles(tmp_path: Path, content: bytes, message: str) -> None:
    write_refcoco(tmp_path)
    (tmp_path / "refcoco/refs(unc).p").write_bytes(content)
    with pytest.raises(UserError, match=f"refs.unc..p.*{message}"):
        RefCOCO(tmp_path).splits()


def test_pickles_that_unpack_to_more_than_they_hold(tmp_path: Path) -> None:
    sentences: list[Any] = [{"sent_id": 1, "sent": "x"}] * 4000
    path = tmp_path / "x.p"
    for protocol in (0, 2, 4):
        path.write_bytes(pickle.dumps([ref(11, "train", 1) | {"sentences": sentences} for _ in range(4000)], protocol))
        assert path.stat().st_size < 2**20
        with pytest.raises(UserError, match=r"x\.p unpacks to more than 512 MB"):
            read_plain_pickle(path)
    sentences.append(sentences)
    path.write_bytes(pickle.dumps(sentences))
    with pytest.raises(UserError, match=r"x\.p unpacks to more than"):
        read_plain_pickle(path)


def test_plain_pickles_of_python_2(tmp_path: Path) -> None:
    (tmp_path / "x.p").write_bytes(b"(lp0\n(dp1\nS'sent'\np2\nU\x04caf\xe9p3\nsa.")
    assert read_plain_pickle(tmp_path / "x.p") == [{"sent": "caf\u00e9"}]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("text", "malformed reference"),
        ({"ann_id": 11}, "malformed reference"),
        (ref(11, "dev", 900, "x"), "unknown split"),
        (ref("11", "train", 900, "x"), "the objects of the reference are not ids of annotations"),
        (ref([11], "train", 900, "x"), "the objects of the reference are not ids of annotations"),
        (ref(-1, "train", 900, "x"), "the objects of the reference are not ids of annotations"),
        (ref(99, "train", 900, "x"), "the image has no annotation of an object of the sentence"),
        (ref(21, "train", 900, "x"), "the image has no annotation of an object of the sentence"),  # of another image
        (ref(11, "train", 900, " "), "empty sentence"),
        ({**ref(11, "train", 900), "sentences": [{"sent": "x"}]}, "malformed sentence"),
        ({**ref(11, "train", 900), "sentences": [{"sent": "x", "sent_id": True}]}, "malformed sentence"),
        ({**ref(11, "train", 900), "sentences": [{"sent": "x", "sent_id": 10**5000}]}, "malformed sentence"),
        (ref(True, "train", 900, "x"), "the objects of the reference are not ids of annotations"),
        (ref(2**63, "train", 900, "x"), "the objects of the reference are not ids of annotations"),
        (ref(11, "train", -5, "x"), "malformed sentence"),
        (ref(11, "train", 100, "x"), "the id occurs twice: the first is used"),
        ({**ref(11, "train", 900, "x"), "image_id": True}, "malformed reference"),
        ({**ref(11, "train", 900, "x"), "image_id": 77}, "instances.json has no valid image of this id"),
        (
            ref(15, "train", 900, "x"),
            "an object of the sentence is a crowd (iscrowd), which has no mask: the",
        ),
    ],
)
def test_invalid_reference_is_skipped(tmp_path: Path, bad: Any, reason: str) -> None:
    reader = RefCOCO(write_refcoco(tmp_path, refs=[*REFS, bad]))
    (skipped,) = reader.skipped()
    assert skipped.reason.startswith(reason) and f"{tmp_path}/refcoco/refs(unc).p: reference 4" in skipped.where
    assert len(read_all(reader, NAMES[1])[0][0].sentences) == 3


def test_crowds_are_left_out_of_unions(tmp_path: Path) -> None:
    refs = [*GREFS, ref([13, 15], "val", 300, "many"), ref([], "val", 301, "x"), ref([-1, 11], "val", 302, "x")]
    reader = GRefCOCO(write_refcoco(tmp_path, "grefcoco", "grefs(unc).json", refs))
    (pair,), _ = read_all(reader, f"{NAMES[1]}-val")
    assert pair.sentences == (Sentence("many", 1, "one object", "300"),)
    np.testing.assert_array_equal(pair.masks[1], expected_mask(13))
    reasons = [item.reason for item in reader.skipped()]
    assert reasons.count("the objects of the reference are not ids of annotations") == 2


def change_instances(raw: Path, change: Callable[[dict], object]) -> None:
    path = raw / "refcoco/instances.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["annotations"][0].update(segmentation=[[1, 2]]), "the mask can't be read"),
        (lambda c: c["annotations"][0].update(segmentation=None), "the mask can't be read"),
        (lambda c: c["annotations"][0].pop("segmentation"), "the mask can't be read"),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [1, 2], "counts": [0, 2]}),
            "the mask can't be read",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation={"size": [48, 64], "counts": [2**40]}),
            "the mask can't be read",
        ),
        (
            lambda c: c["annotations"][0].update(segmentation=[[900, 900, 950, 900, 950, 950]]),
            "the instance is not in the frame",
        ),
    ],
)
def test_damaged_mask(tmp_path: Path, change: Callable[[dict], object], reason: str) -> None:
    raw = write_refcoco(tmp_path)
    change_instances(raw, change)
    (pair,), skipped = read_all(RefCOCO(raw), NAMES[1])
    assert [s.text for s in pair.sentences] == ["two parts"] and [item.reason for item in skipped] == [reason] * 2


def test_ids_that_occur_twice(tmp_path: Path) -> None:
    """The first one counts: a sentence never gets another's image or mask."""
    raw = write_refcoco(tmp_path)

    def repeat(content: dict) -> None:
        content["images"] += [
            {**image(1), "file_name": f"{NAMES[2]}.jpg"},
            {**image(2), "id": True},
            {**image(2), "id": 5},  # of no reference
            {**image(2), "id": 5},
        ]
        content["annotations"] += [{**annotation(12), "id": 11}, {**annotation(12), "image_id": True}]

    (before,), _ = read_all(RefCOCO(raw), NAMES[1])
    change_instances(raw, repeat)
    reader, path = RefCOCO(raw), raw / "refcoco/instances.json"
    assert reader.skipped() == (
        Skipped(f"{path}: image 1", "the id occurs twice: the first is used"),
        Skipped(f"{path}: image True", "the id is not a whole number of 64 bits"),
        Skipped(f"{path}: annotation 11", "the id occurs twice: the first is used"),
    )
    (pair,), _ = read_all(reader, NAMES[1])
    assert pair.sentences == before.sentences
    np.testing.assert_equal(pair.masks, before.masks)


def test_images_of_one_name(tmp_path: Path) -> None:
    """Two ids of one file are one image; other files of its name are others, and none loses a sentence."""
    numbers = range(1, 6)
    raw = write_refcoco(tmp_path, refs=[{**ref(i, "train", i, f"sentence {i}"), "image_id": i} for i in numbers])
    files = ["a.jpg", "a.jpg", "a.png", "a.jpeg", "a-val.jpg"]

    def change(content: dict) -> None:
        content["images"] = [{**image(1), "id": i, "file_name": files[i - 1]} for i in numbers]
        content["annotations"] = [{**annotation(11), "id": i, "image_id": i} for i in numbers]

    change_instances(raw, change)
    for file in files:
        shutil.copy(raw / f"train2014/{NAMES[1]}.jpg", raw / "train2014" / file)
    reader = RefCOCO(raw)
    assert reader.videos("train") == ["a", "a-train", "a-val"]
    assert {name: [s.text for s in read_all(reader, name)[0][0].sentences] for name in reader.videos("train")} == {
        "a": ["sentence 1", "sentence 2"],
        "a-train": ["sentence 3"],
        "a-val": ["sentence 5"],
    }
    assert reader.skipped() == (Skipped(f"{raw}: image a.jpeg of train", "two images before it have the image's name"),)


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/x.jpg", "", "...jpg"])
def test_image_names_that_are_paths(tmp_path: Path, name: str) -> None:
    raw = write_refcoco(tmp_path)
    change_instances(raw, lambda content: content["images"][0].update(file_name=name))
    assert RefCOCO(raw).splits() == ("val",)


@pytest.mark.parametrize(
    ("fault", "reason"), [("missing", "image missing"), ("other", "the mask and the frame differ")]
)
def test_missing_or_other_image(tmp_path: Path, fault: str, reason: str) -> None:
    raw = write_refcoco(tmp_path)
    path = raw / f"train2014/{NAMES[1]}.jpg"
    if fault == "missing":
        path.unlink()
    else:
        change_instances(raw, lambda content: content["images"][0].update(height=5))
    pairs, (skipped,) = read_all(RefCOCO(raw), NAMES[1])
    assert pairs == [] and skipped.where == str(path) and skipped.reason.startswith(reason)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "5",
        "{}",
        '{"images": []}',
        '{"images": [1, 2',
        '{"images": {}, "annotations": []}',
        '{"images": [1], "images": [2], "annotations": []}',
        '{"images": [], "annotations": [],}',
    ],
)
def test_broken_instances(tmp_path: Path, content: str) -> None:
    raw = write_refcoco(tmp_path)
    (raw / "refcoco/instances.json").write_text(content)
    with pytest.raises(UserError, match="instances.json can't be read"):
        RefCOCO(raw).splits()


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks refcoco/instances.json(?s:.*)cocodataset.org"):
        RefCOCO(tmp_path).splits()
    raw = write_refcoco(tmp_path / "raw", refs=["text"])
    with pytest.raises(UserError, match="has no valid sentence.\n  1 x malformed reference"):
        RefCOCO(raw).splits()
    (tmp_path / "raw/train2014").rename(tmp_path / "elsewhere")
    write_refcoco(tmp_path / "b").joinpath("train2014").rename(tmp_path / "other")
    with pytest.raises(UserError, match="lacks train2014, the folder of images"):
        read_all(RefCOCO(tmp_path / "b"), NAMES[1])


def test_broken_converted_file(tmp_path: Path) -> None:
    raw = write_converted(tmp_path)
    path = raw / "refcoco/instances_refcoco_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["caption"] = 5
    content["images"][1]["file_name"] = "../x"
    content["annotations"][2]["image_id"] = 50
    content["images"] += ["x", {**content["images"][2], "caption": "another"}]
    content["annotations"].append({**content["annotations"][2], "image_id": 3})
    path.write_text(json.dumps(content))
    reader = RefCOCO(raw)
    assert reader.splits() == ("val", "testA")
    assert {item.reason for item in reader.skipped()} == {
        "the image has no caption",
        "the image's name is not a plain file name",
        "the image has no annotation of an object of the sentence",
        "malformed entry of images",
        "the id occurs twice: the first is used",
    }
