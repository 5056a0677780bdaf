"""The A2D-Sentences reader: the oddities of the real files, and every way in which they can be damaged."""

from __future__ import annotations

import codecs
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from fake_datasets import HEIGHT, WIDTH, box, frame, write_a2d, write_clip, write_h5
from reader_checks import read_all

from input_pipeline.errors import UserError
from input_pipeline.readers import a2d_sentences
from input_pipeline.readers.a2d_sentences import A2DSentences
from input_pipeline.types import Sentence, Skipped

MASKS = "text_annotations/a2d_annotation_with_instances"
SENTENCES = "text_annotations/a2d_annotation.txt"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_a2d(tmp_path / "a2d")


def append_line(path: Path, line: str) -> None:
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")


def test_splits_and_sentences(raw: Path) -> None:
    reader = A2DSentences(raw, interval=6)
    assert reader.splits() == ("train", "test")
    assert reader.videos("train") == ["runner", "walker"]
    assert reader.videos("test") == ["Cat_-1"]
    (copy,) = reader.skipped()
    assert copy.where.endswith("a2d_annotation.txt:4: '1 (copy)'")
    assert reader.inventory()["sentences"] == (4, 6655)
    assert reader.inventory()["clips"] == (4, 3782)
    pairs, _ = read_all(reader, "walker")
    assert pairs[0].sentences == (Sentence("the man in red walking left", 0), Sentence("Woman  standing, still", 1))


def test_masks_are_read_by_id_and_transposed(raw: Path) -> None:
    pairs, skipped = read_all(A2DSentences(raw), "walker")
    assert [pair.frame_index for pair in pairs] == [1, 7, 12]
    expected = [{0: box(4, 4), 1: box(30, 8)}, {0: box(4, 10), 1: box(30, 12)}, {1: box(30, 20)}]
    for pair, masks in zip(pairs, expected, strict=True):
        assert pair.masks.keys() == masks.keys()
        for instance, mask in masks.items():
            np.testing.assert_array_equal(pair.masks[instance], mask)
    (absent,) = skipped
    assert absent.reason == "the instance is not in the frame"
    assert "walker/00012.h5: instance 0 (the man in red" in absent.where
    (runner,), _ = read_all(A2DSentences(raw), "runner")
    np.testing.assert_array_equal(runner.masks[15], box(10, 10))


@pytest.mark.parametrize(
    "interval, earlier", [(6, [1, 1, 6]), (10, [1, 1, 2]), (2, [1, 5, 10])], ids=lambda value: str(value)
)
def test_frames_and_their_earlier_frames(raw: Path, interval: int, earlier: list[int]) -> None:
    pairs, _ = read_all(A2DSentences(raw, interval), "walker")
    for pair, earlier_index in zip(pairs, earlier, strict=True):
        assert pair.frame.shape == (HEIGHT, WIDTH, 3) and pair.frame.dtype == np.uint8
        np.testing.assert_allclose(pair.frame[10:].mean(), frame(pair.frame_index - 1)[10:].mean(), atol=3)
        np.testing.assert_allclose(pair.earlier_frame[10:].mean(), frame(earlier_index - 1)[10:].mean(), atol=3)
        assert pair.frame[2, 2, 0] > pair.frame[2, 2, 2] + 50  # RGB, not BGR
    rules = [pair.earlier_rule for pair in pairs]
    second = "index - 6" if interval == 10 else "interval"
    assert rules == ["first frame", second, "interval"]


def test_further_columns_are_no_part_of_the_sentence(raw: Path) -> None:
    rows = (
        "video_id,instance_id,query,short_query",
        "walker,0,the man in red ,the man",
        "runner,15,a dog, that runs,a dog",
    )
    (raw / SENTENCES).write_text("\n".join(rows))
    reader = A2DSentences(raw)
    assert reader.annotations.sentences == {"walker": (Sentence("the man in red", 0),)}
    assert Skipped(f"{raw / SENTENCES}:3", "malformed line of a2d_annotation.txt") in reader.skipped()


def test_reader_can_be_pickled(raw: Path) -> None:
    reader = A2DSentences(raw)
    reader.videos("train")
    (raw / SENTENCES).unlink()  # the annotations are pickled with it and not read again
    assert len(read_all(pickle.loads(pickle.dumps(reader)), "walker")[0]) == 3


def test_empty_folder_raises_download_instructions(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        A2DSentences(tmp_path / "nowhere").videos("train")
    for part in ("Release/clips320H", "jjcorso", "kgavrilyuk", "input_pipeline.prepare --dataset=a2d_sentences"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("walker;0;the man", "malformed line of a2d_annotation.txt"),
        ("walker,0", "malformed line of a2d_annotation.txt"),
        ("../../x,0,the man", "the video's name is not a plain file name"),
        ("/etc/x,0,the man", "the video's name is not a plain file name"),
        ("..,0,the man", "the video's name is not a plain file name"),
        ("a\0b,0,the man", "the video's name is not a plain file name"),
        ("x" * 300 + ",0,the man", "the video's name is not a plain file name"),
        ("stranger,0,the man", "video is not in videoset.csv"),
        ("walker,one,the man", "the instance is not a whole number"),
        ("walker,-1,the man", "the instance is not a whole number"),
        ("walker,0,  ", "empty sentence"),
    ],
    ids=lambda value: value[:40].replace("\0", "NUL"),
)
def test_invalid_sentence_line_is_skipped_with_its_line_number(raw: Path, line: str, reason: str) -> None:
    append_line(raw / SENTENCES, line)
    reader = A2DSentences(raw)
    _, skipped = reader.skipped()
    assert skipped.reason == reason
    assert f"{raw / SENTENCES}:7" in skipped.where
    assert reader.inventory()["sentences"][0] == 4


@pytest.mark.parametrize(
    "line, reason",
    [
        ("walker", "malformed line of videoset.csv"),
        ("../x,1,0,0,48,64,16,3,0", "the video's name is not a plain file name"),
        ("walker,1,0,0,48,64,16,3,1", "video listed twice"),
        ("other,1,0,0,48,64,16,3,7", "unknown subset"),
        ("other,1,0,0,48,64,16,3,1", "video without a sentence"),
    ],
)
def test_invalid_videoset_line_is_skipped(raw: Path, line: str, reason: str) -> None:
    append_line(raw / "Release/videoset.csv", line)
    skipped = A2DSentences(raw).skipped()[-1] if "without" in reason else A2DSentences(raw).skipped()[0]
    assert skipped.reason == reason
    assert "videoset.csv:" in skipped.where
    assert A2DSentences(raw).videos("train") == ["runner", "walker"]


def test_windows_line_endings_and_byte_order_mark(raw: Path) -> None:
    before = A2DSentences(raw).annotations
    for path in (raw / SENTENCES, raw / "Release/videoset.csv"):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert A2DSentences(raw).annotations == before


def test_folder_instead_of_a_file(raw: Path) -> None:
    (raw / SENTENCES).unlink()
    (raw / SENTENCES).mkdir()
    with pytest.raises(UserError, match="a2d_annotation.txt can't be read .Is a directory"):
        A2DSentences(raw).videos("train")


def test_text_that_is_not_utf8(raw: Path) -> None:
    with (raw / SENTENCES).open("ab") as file:
        file.write(b"walker,0,caf\xe9\n")
    with pytest.raises(UserError, match="a2d_annotation.txt:7: not UTF-8 .* save it as UTF-8"):
        A2DSentences(raw).videos("train")


def test_sentence_of_ten_thousand_characters_is_kept(raw: Path) -> None:
    append_line(raw / SENTENCES, "Cat_-1,2," + "very " * 2000 + "fat cat")
    (pair,), _ = read_all(A2DSentences(raw), "Cat_-1")
    assert len(pair.sentences[1].text) == 10007


def test_truncated_h5_file_is_skipped_and_the_rest_is_read(raw: Path) -> None:
    h5 = raw / MASKS / "walker/00007.h5"
    h5.write_bytes(h5.read_bytes()[:700])
    pairs, skipped = read_all(A2DSentences(raw), "walker")
    assert [pair.frame_index for pair in pairs] == [1, 12]
    assert skipped[0] == Skipped(str(h5), "the h5 file can't be read")


def test_h5_file_without_masks(raw: Path) -> None:
    path = raw / MASKS / "runner/00016.h5"
    with h5py.File(path, "w") as file:
        file["instance"] = [15]
    assert read_all(A2DSentences(raw), "runner") == ([], [Skipped(str(path), "the h5 file can't be read")])


def test_masks_and_frame_of_different_size(raw: Path) -> None:
    path = raw / MASKS / "runner/00016.h5"
    write_h5(path, [15], [np.ones((WIDTH, HEIGHT), bool)])
    assert read_all(A2DSentences(raw), "runner") == ([], [Skipped(str(path), "the mask and the frame differ in size")])


def test_mask_that_is_not_a_number(raw: Path) -> None:
    path = raw / MASKS / "runner/00016.h5"
    with h5py.File(path, "r+") as file:
        values = file["reMask"][()] * np.float32("nan")
        del file["reMask"]
        file["reMask"] = values
    reason = "the mask holds values that are not a number"
    assert read_all(A2DSentences(raw), "runner") == ([], [Skipped(str(path), reason)])


def test_fewer_masks_than_ids(raw: Path) -> None:
    path = raw / MASKS / "runner/00016.h5"
    write_h5(path, [15, 16, 17], [box(0, 0), box(1, 1)])
    assert read_all(A2DSentences(raw), "runner") == (
        [],
        [Skipped(str(path), "the h5 file has fewer masks than instances")],
    )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.uint8])
@pytest.mark.parametrize("planes", [box(10, 10).T, box(10, 10).T[None]], ids=["(W, H)", "(1, W, H)"])
def test_single_instance_in_any_shape(raw: Path, shape: tuple[int, ...], dtype: type, planes: np.ndarray) -> None:
    with h5py.File(raw / MASKS / "runner/00016.h5", "w") as file:
        file["instance"], file["reMask"] = np.full(shape, 15, dtype), planes.astype(np.uint8)
    (pair,), _ = read_all(A2DSentences(raw), "runner")
    assert pair.masks.keys() == {15}
    np.testing.assert_array_equal(pair.masks[15], box(10, 10))


NOT_A_LIST, NOT_WHOLE = (
    "the instances of the h5 file are not a list of numbers",
    "the instances of the h5 file are not whole numbers",
)


@pytest.mark.parametrize(
    "instance, reason",
    [
        (15.5, NOT_WHOLE),
        (np.inf, NOT_WHOLE),
        (np.nan, NOT_WHOLE),
        (15j, NOT_A_LIST),
        (b"15", NOT_A_LIST),
        (True, NOT_A_LIST),
        (np.zeros((0,)), "no sample"),
    ],
    ids=str,
)
def test_instances_that_are_not_ids(raw: Path, instance: object, reason: str) -> None:
    path = raw / MASKS / "runner/00016.h5"
    with h5py.File(path, "w") as file:
        file["instance"], file["reMask"] = instance, box(10, 10).T[None].astype(np.uint8)
    pairs, (skipped,) = read_all(A2DSentences(raw), "runner")
    assert pairs == [] and skipped.reason == ("the instance is not in the frame" if reason == "no sample" else reason)


def test_h5_file_that_claims_a_huge_size(raw: Path) -> None:
    """A chunked dataset takes no space for what was never written, until it is read."""
    path = raw / MASKS / "runner/00016.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("instance", (10**13,), "f8", chunks=(1000,))
        file["reMask"] = box(10, 10).T[None].astype(np.uint8)
    assert read_all(A2DSentences(raw), "runner") == ([], [Skipped(str(path), NOT_A_LIST)])
    with h5py.File(path, "w") as file:
        file["instance"] = [14, 15]
        planes = file.create_dataset("reMask", (10**9, WIDTH, HEIGHT), "u1", chunks=(1, WIDTH, HEIGHT))
        planes[1] = box(10, 10).T
    (pair,), _ = read_all(A2DSentences(raw), "runner")
    np.testing.assert_array_equal(pair.masks[15], box(10, 10))


@pytest.mark.parametrize("name", ["last", "00000", "1", "000016", "9" * 20])
def test_h5_file_whose_name_is_not_a_frame_number(raw: Path, name: str) -> None:
    path = raw / MASKS / f"runner/{name}.h5"
    write_h5(path, [15], [box(0, 0)])
    (pair,), skipped = read_all(A2DSentences(raw), "runner")
    where = f"{path.parent}: '{name}.h5'"
    assert skipped == [Skipped(where, "the name of the h5 file is not a frame number")]
    np.testing.assert_array_equal(pair.masks[15], box(10, 10))


def test_missing_clip_and_missing_h5_file(raw: Path) -> None:
    clip = raw / "Release/clips320H/runner.mp4"
    clip.unlink()
    assert read_all(A2DSentences(raw), "runner") == ([], [Skipped(str(clip), "clip missing")])
    (raw / MASKS / "Cat_-1/00008.h5").unlink()
    assert read_all(A2DSentences(raw), "Cat_-1")[1][0].reason == "no h5 file for the video"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_truncated_clip(raw: Path, share: float) -> None:
    clip = raw / "Release/clips320H/walker.mp4"
    clip.write_bytes(clip.read_bytes()[: int(share * clip.stat().st_size)])
    pairs, skipped = read_all(A2DSentences(raw), "walker")
    assert pairs == []
    assert {item.reason for item in skipped} == {"the clip is damaged or ends before the frame"}
    assert all("walker.mp4: frame" in item.where for item in skipped)


@pytest.mark.parametrize(
    "content", ["ffconcat version 1.0\nfile runner.mp4\n", "#EXTM3U\n#EXTINF:1,\nrunner.mp4\n#EXT-X-ENDLIST\n"]
)
def test_clip_that_is_a_playlist(raw: Path, content: str) -> None:
    """FFmpeg would follow it to the frames of another video if it were free to guess the format."""
    (raw / "Release/clips320H/walker.mp4").write_text(content)
    pairs, skipped = read_all(A2DSentences(raw), "walker")
    assert pairs == []
    assert {item.reason for item in skipped} == {"the clip is damaged or ends before the frame"}


def test_clip_whose_frames_change_size(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = {0: frame(0)[:32], 5: frame(5), 6: frame(6), 11: frame(11)}
    monkeypatch.setattr(a2d_sentences, "decode_frames", lambda clip, indices: frames)
    pairs, skipped = read_all(A2DSentences(raw), "walker")
    assert [pair.frame_index for pair in pairs] == [12]
    assert [item.reason for item in skipped[:2]] == [
        "the mask and the frame differ in size",
        "the earlier frame and the frame differ in size",
    ]


def test_clip_that_ends_too_early(raw: Path) -> None:
    write_clip(raw / "Release/clips320H/walker.mp4", length=8)
    pairs, skipped = read_all(A2DSentences(raw), "walker")
    assert [pair.frame_index for pair in pairs] == [1, 7]
    assert skipped[0].where.endswith("walker.mp4: frame 12")


def test_damaged_clip_yields_no_wrong_frame(raw: Path) -> None:
    clip = raw / "Release/clips320H/walker.mp4"
    sound = {pair.frame_index: pair.frame for pair in read_all(A2DSentences(raw), "walker")[0]}
    content = bytearray(clip.read_bytes())
    middle = content.index(b"mdat") + 900
    content[middle : middle + 400] = bytes(400)
    clip.write_bytes(content)
    pairs, skipped = read_all(A2DSentences(raw), "walker")
    assert any("walker.mp4" in item.where for item in skipped)
    for pair in pairs:
        np.testing.assert_array_equal(pair.frame, sound[pair.frame_index])
