"""The J-HMDB-Sentences reader: its frames, the list that published scores are computed on, and damaged files."""

from __future__ import annotations

import codecs
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import CLAP, HEIGHT, JHMDB_SAMPLES, RUN, WIDTH, box, frame, write_jhmdb, write_puppet_mask
from PIL import Image
from reader_checks import read_all
from scipy.io import savemat

from configs.jhmdb import get_config
from input_pipeline.errors import UserError
from input_pipeline.pipeline import evaluation_examples, steps_per_epoch
from input_pipeline.prepare import prepare
from input_pipeline.readers.jhmdb_sentences import JHMDBSentences, choose_frames
from input_pipeline.text.word_vectors import load_word_vectors
from input_pipeline.types import Sentence, Skipped

SENTENCES = "jhmdb_annotation.txt"
SAMPLES = "jhmdb_sentences_samples_metadata.json"
CLAP_FRAMES = f"Rename_Images/clap/{CLAP}"
CLAP_MASKS = f"puppet_mask/clap/{CLAP}/puppet_mask.mat"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_jhmdb(tmp_path / "jhmdb")


def append_line(raw: Path, line: str) -> None:
    with (raw / SENTENCES).open("a") as file:
        file.write(line + "\n")


def replace_entry(raw: Path, position: int, entry: object) -> None:
    """Replaces the entry at `position` (from 1) of the list of samples."""
    entries = json.loads((raw / SAMPLES).read_text())
    entries[position - 1] = entry
    (raw / SAMPLES).write_text(json.dumps(entries))


def test_videos_and_sentences(raw: Path) -> None:
    reader = JHMDBSentences(raw)
    assert reader.splits() == ("test",)
    assert reader.videos("test") == [CLAP, RUN]
    assert reader.skipped() == ()
    assert reader.inventory() == {
        "videos": (2, 928),
        "mask files": (2, 928),
        "sentences": (2, 928),
        "listed samples": (6, 2784),
    }


@pytest.mark.parametrize(
    "video, interval, earlier, rules",
    [
        (CLAP, 5, [1, 1, 1], ["first frame", "first frame", "interval"]),
        (RUN, 5, [2, 3, 4], ["interval"] * 3),
        (RUN, 8, [1, 1, 1], ["first frame", "first frame", "interval"]),
    ],
)
def test_listed_frames_with_their_earlier_frames_and_masks(
    raw: Path, video: str, interval: int, earlier: list[int], rules: list[str]
) -> None:
    pairs, skipped = read_all(JHMDBSentences(raw, interval), video)
    assert skipped == []
    _, _, text, indices = next(sample for sample in JHMDB_SAMPLES if sample[1] == video)
    assert [(pair.video, pair.frame_index) for pair in pairs] == [(video, index) for index in indices]
    assert [pair.earlier_rule for pair in pairs] == rules
    for pair, earlier_index in zip(pairs, earlier, strict=True):
        np.testing.assert_array_equal(pair.frame, frame(pair.frame_index - 1))
        np.testing.assert_array_equal(pair.earlier_frame, frame(earlier_index - 1))
        assert pair.sentences == (Sentence(text, 0),) and pair.masks.keys() == {0}
        np.testing.assert_array_equal(pair.masks[0], box(pair.frame_index, 2 * pair.frame_index))
        assert pair.masks[0].dtype == bool and pair.masks[0].shape == (HEIGHT, WIDTH)


def test_single_mask(raw: Path) -> None:
    write_puppet_mask(raw / CLAP_MASKS, [box(1, 2)])
    pairs, skipped = read_all(JHMDBSentences(raw), CLAP)
    assert [pair.frame_index for pair in pairs] == [1]
    np.testing.assert_array_equal(pairs[0].masks[0], box(1, 2))
    assert [item.where for item in skipped] == [f"{raw / CLAP_FRAMES}: frame {index}" for index in (5, 6)]
    assert {item.reason for item in skipped} == {"the masks end before the frame"}


def test_without_the_list_three_frames_with_masks_are_chosen_by_hash(raw: Path) -> None:
    (raw / SAMPLES).unlink()
    reader = JHMDBSentences(raw)
    assert reader.videos("test") == [CLAP, RUN]
    assert reader.inventory()["listed samples"] == (0, 2784)
    (note,) = reader.skipped()
    assert note.where == str(raw / SAMPLES) and "fixed rule" in note.reason
    chosen = {video: [pair.frame_index for pair in read_all(JHMDBSentences(raw), video)[0]] for video in (CLAP, RUN)}
    assert chosen == {CLAP: [6, 9, 13], RUN: [3, 5, 7]}  # sha256sum agrees
    all_chosen = {index for i in range(200) for index in choose_frames(f"video {i}", range(1, 10))}
    assert all_chosen == set(range(1, 10))


def test_without_the_list_and_with_too_few_masks(raw: Path) -> None:
    (raw / SAMPLES).unlink()
    write_puppet_mask(raw / CLAP_MASKS, [box(0, 0), box(1, 1)])
    pairs, skipped = read_all(JHMDBSentences(raw), CLAP)
    assert [pair.frame_index for pair in pairs] == [1, 2]
    assert skipped == [Skipped(str(raw / CLAP_FRAMES), "fewer than 3 frames with a mask")]


def test_reader_can_be_pickled(raw: Path) -> None:
    reader = JHMDBSentences(raw)
    reader.videos("test")
    (raw / SENTENCES).unlink()  # the annotations are pickled with it and not read again
    assert len(list(pickle.loads(pickle.dumps(reader)).read(RUN))) == 3


def test_empty_folder_raises_download_instructions(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        JHMDBSentences(tmp_path / "nowhere").videos("test")
    for part in ("lacks Rename_Images", "jhmdb.is.tue.mpg.de", "kgavrilyuk", "mttr2021", "--dataset=jhmdb_sentences"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "line, reason",
    [
        (RUN, "malformed line of jhmdb_annotation.txt"),
        (f"{RUN};a woman", "malformed line of jhmdb_annotation.txt"),
        (f"{RUN},{'long ' * 30000}", "malformed line of jhmdb_annotation.txt"),
        ("../../x,a woman", "the video's name is not a plain file name"),
        ("/etc/x,a woman", "the video's name is not a plain file name"),
        ("..,a woman", "the video's name is not a plain file name"),
        ("a\0b,a woman", "the video's name is not a plain file name"),
        ("stranger,a woman", "video is not in Rename_Images"),
        (f"{RUN},  ", "empty sentence"),
        (f"{RUN},another sentence", "video listed twice"),
    ],
    ids=lambda value: value[:40],
)
def test_invalid_line_is_skipped_with_its_line_number(raw: Path, line: str, reason: str) -> None:
    append_line(raw, line)
    (skipped,) = JHMDBSentences(raw).skipped()
    assert skipped.reason == reason
    assert skipped.where.startswith(f"{raw / SENTENCES}:4")
    assert JHMDBSentences(raw).inventory()["sentences"][0] == 2


def test_video_without_a_sentence_and_video_under_two_actions(raw: Path) -> None:
    (raw / "Rename_Images/wave/silent").mkdir(parents=True)
    (raw / "Rename_Images/wave" / RUN).mkdir()
    skipped = JHMDBSentences(raw).skipped()
    reasons = {item.reason: item.where for item in skipped}
    assert reasons["video without a sentence"] == f"{raw / SENTENCES}: video silent"
    assert reasons["video under two actions"] == f"{raw / 'Rename_Images'}: {RUN} in run, wave"
    assert JHMDBSentences(raw).videos("test") == [CLAP]


def test_windows_line_endings_and_byte_order_mark(raw: Path) -> None:
    before = JHMDBSentences(raw).annotations
    path = raw / SENTENCES
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    assert JHMDBSentences(raw).annotations == before


def test_folder_whose_name_is_not_utf8(raw: Path) -> None:
    before = JHMDBSentences(raw).annotations.actions
    os.mkdir(os.fsencode(raw / "Rename_Images/clap") + b"/caf\xe9")
    (skipped,) = JHMDBSentences(raw).skipped()
    assert skipped.reason == "the video's name is not a plain file name"
    assert r"clap/caf\udce9" in skipped.where and skipped.where.isprintable()
    assert JHMDBSentences(raw).annotations.actions == before


def test_text_that_is_not_utf8(raw: Path) -> None:
    with (raw / SENTENCES).open("ab") as file:
        file.write(b"x,caf\xe9\n")
    with pytest.raises(UserError, match="jhmdb_annotation.txt:4: not UTF-8"):
        JHMDBSentences(raw).videos("test")


OTHER_VIDEO = "the frame's path does not belong to the video"
PATH = f"Rename_Images/clap/{CLAP}/00001.png"


@pytest.mark.parametrize(
    "entry, reason",
    [
        (None, f"malformed entry of {SAMPLES}"),
        ([CLAP, PATH], f"malformed entry of {SAMPLES}"),
        ([CLAP, 1, "", 16, "Man in black, clapping"], f"malformed entry of {SAMPLES}"),
        ([CLAP, "00001.png", "", 16, "Man in black, clapping"], f"malformed entry of {SAMPLES}"),
        ([CLAP, PATH.replace("00001", "00000"), "", 16, "Man in black, clapping"], f"malformed entry of {SAMPLES}"),
        ([CLAP, PATH.replace("00001", "last"), "", 16, "Man in black, clapping"], f"malformed entry of {SAMPLES}"),
        (["../../x", PATH, "", 16, "Man in black, clapping"], f"video has no sentence in {SENTENCES}"),
        (
            [CLAP, f"run/{CLAP}/00001.png", "", 16, "Man in black, clapping"],
            OTHER_VIDEO,
        ),
        (
            [CLAP, "../../x/00001.png", "", 16, "Man in black, clapping"],
            OTHER_VIDEO,
        ),
        ([CLAP, PATH, "", 16, "a woman, running"], f"the sentence differs from the one in {SENTENCES}"),
        ([CLAP, PATH.replace("00001", "00005"), "", 16, "Man in black, clapping"], "frame listed twice"),
    ],
)
def test_invalid_entry_of_the_list_is_skipped_with_its_position(raw: Path, entry: object, reason: str) -> None:
    replace_entry(raw, 1, entry)
    (skipped,) = JHMDBSentences(raw).skipped()
    assert skipped.reason == reason
    assert skipped.where.startswith(f"{raw / SAMPLES}: entry {2 if 'twice' in reason else 1}")
    assert [pair.frame_index for pair in read_all(JHMDBSentences(raw), CLAP)[0]] == [5, 6]


def test_video_without_a_frame_in_the_list(raw: Path) -> None:
    (raw / SAMPLES).write_text(json.dumps(json.loads((raw / SAMPLES).read_text())[:3]))
    assert JHMDBSentences(raw).videos("test") == [CLAP]
    assert JHMDBSentences(raw).skipped() == (
        Skipped(f"{raw / SAMPLES}: video {RUN}", "video without a frame in the list of samples"),
    )


@pytest.mark.parametrize("content", [b'[["a", ', b"\xff\xfe", b'{"videos": 1}', b"[" * 100_000])
def test_list_that_is_not_json(raw: Path, content: bytes) -> None:
    (raw / SAMPLES).write_bytes(content)
    with pytest.raises(UserError, match=f"{SAMPLES} is not the list of samples.*Download it again"):
        JHMDBSentences(raw).videos("test")


@pytest.mark.parametrize(
    "name, reason, frames", [("00006", "frame", [1, 5]), ("00001", "earlier frame", [])], ids=["frame", "earlier frame"]
)
def test_missing_and_truncated_frames(raw: Path, name: str, reason: str, frames: list[int]) -> None:
    path = raw / CLAP_FRAMES / f"{name}.png"
    path.write_bytes(path.read_bytes()[:-40])
    pairs, skipped = read_all(JHMDBSentences(raw), CLAP)
    assert [pair.frame_index for pair in pairs] == frames
    assert skipped[-1] == Skipped(f"{raw / CLAP_FRAMES}: frame 6", f"the {reason} can't be read")
    path.unlink()
    pairs, skipped = read_all(JHMDBSentences(raw), CLAP)
    assert [pair.frame_index for pair in pairs] == frames
    assert skipped[-1] == Skipped(f"{raw / CLAP_FRAMES}: frame 6", f"{reason} missing")


def test_masks_and_frame_of_different_size(raw: Path) -> None:
    write_puppet_mask(raw / CLAP_MASKS, [np.ones((WIDTH, HEIGHT), bool)] * 16)
    pairs, skipped = read_all(JHMDBSentences(raw), CLAP)
    assert pairs == [] and [item.reason for item in skipped] == ["the mask and the frame differ in size"] * 3


def test_earlier_frame_of_different_size(raw: Path) -> None:
    Image.fromarray(frame(0)[:, :32]).save(raw / CLAP_FRAMES / "00001.png")
    assert read_all(JHMDBSentences(raw), CLAP)[1][-1].reason == "the earlier frame and the frame differ in size"


def test_empty_mask(raw: Path) -> None:
    masks = [box(index, 2 * index) for index in range(1, 17)]
    masks[4][:] = False
    write_puppet_mask(raw / CLAP_MASKS, masks)
    pairs, skipped = read_all(JHMDBSentences(raw), CLAP)
    assert [pair.frame_index for pair in pairs] == [1, 6]
    assert skipped == [Skipped(f"{raw / CLAP_FRAMES}: frame 5", "the mask is empty")]


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"mask": np.ones((HEIGHT, WIDTH, 16), np.uint8)}, "puppet_mask.mat contains no part_mask"),
        ({"part_mask": np.ones((HEIGHT, WIDTH, 2, 8), np.uint8)}, "part_mask is not a stack of masks"),
        ({"part_mask": "a mask"}, "part_mask is not a stack of masks"),
        ({"part_mask": np.ones((HEIGHT, WIDTH, 16)) * 1j}, "part_mask is not a stack of masks"),
        ({"part_mask": np.array([[box(0, 0)]], object)}, "part_mask is not a stack of masks"),
        ({"part_mask": {"mask": 1}}, "part_mask is not a stack of masks"),
    ],
)
def test_mat_file_without_a_stack_of_masks(raw: Path, content: dict, reason: str) -> None:
    savemat(raw / CLAP_MASKS, content)
    assert read_all(JHMDBSentences(raw), CLAP) == ([], [Skipped(str(raw / CLAP_MASKS), reason)])


def test_missing_mask_file(raw: Path) -> None:
    (raw / CLAP_MASKS).unlink()
    assert read_all(JHMDBSentences(raw), CLAP) == ([], [Skipped(str(raw / CLAP_MASKS), "puppet_mask.mat missing")])
    assert JHMDBSentences(raw).inventory()["mask files"] == (1, 928)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_truncated_mask_file(raw: Path, share: float) -> None:
    path = raw / CLAP_MASKS
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert read_all(JHMDBSentences(raw), CLAP) == ([], [Skipped(str(path), "puppet_mask.mat can't be read")])


def test_damaged_mask_file_yields_no_wrong_mask(raw: Path) -> None:
    path = raw / CLAP_MASKS
    sound = path.read_bytes()
    for position in range(128, len(sound), 7):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x55]) + sound[position + 1 :])
        for pair in read_all(JHMDBSentences(raw), CLAP)[0]:
            np.testing.assert_array_equal(pair.masks[0], box(pair.frame_index, 2 * pair.frame_index))


def test_from_raw_files_to_evaluation_examples(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = get_config()
    config.data_dir, config.raw, config.image_size = str(tmp_path / "data"), str(raw), (32, 64)
    before = {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()}
    report = prepare(config.dataset, config.raw, config.data_dir, config.frame_interval)
    assert {path: path.read_bytes() for path in raw.rglob("*") if path.is_file()} == before
    assert report["splits"].keys() == {"test"}
    assert report["splits"]["test"]["sentences"] == 6
    assert report["splits"]["test"]["earlier_frames"] == {"first frame": 2, "interval": 4}
    assert "6 listed samples of 2784 in the full dataset" in capsys.readouterr().out

    word_vectors = load_word_vectors("random:8", report["tokens"])
    examples = list(evaluation_examples(config, config.evaluation_split, word_vectors))
    assert {(example.video, example.frame_index) for example in examples} == {
        (video, index) for _, video, _, indices in JHMDB_SAMPLES for index in indices
    }
    texts = {video: text for _, video, text, _ in JHMDB_SAMPLES}
    for example in examples:
        index = example.frame_index
        assert example.sentences == (Sentence(texts[example.video], 0),)
        np.testing.assert_array_equal(example.masks[0], box(index, 2 * index))
        np.testing.assert_allclose(example.original_frame[10:].mean(), frame(index - 1)[10:].mean(), atol=1)
        earlier = frame(max(index - 5, 1) - 1)
        np.testing.assert_allclose(example.original_earlier_frame[10:].mean(), earlier[10:].mean(), atol=1)

    with pytest.raises(UserError, match="no split 'train'; it has test. It is for evaluation only: --mode=evaluate"):
        steps_per_epoch(config)
