"""Checks and results of the demo page (lbdt_jax/demo/checks.py and work.py); test_page.py tests it in a browser."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import threading
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import damage_packets, write_sound
from demo_files import LIMITS, TEXT, write_checkpoint, write_clip
from PIL import Image
from pycocotools import mask as coco_mask

import lbdt_jax
from input_pipeline.errors import UserError
from input_pipeline.images import decode_mask
from lbdt_jax.demo import checks, work
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import open_clip
from lbdt_jax.visualization.overlays import color_of, overlay


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return lbdt_jax.load(write_checkpoint(tmp_path_factory.mktemp("untrained")))


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.ts", "a.gif"])
def test_clips_within_the_limits_are_accepted(tmp_path: Path, name: str) -> None:
    description, first_frame = checks.preview_clip(write_clip(tmp_path / name), LIMITS)
    assert description.startswith(f"{name}: 64 x 48 pixels, 6 frames, 0.")
    assert first_frame.shape == (48, 64, 3) and abs(first_frame[24:].mean() - 34) < 6


def not_a_video(path: Path) -> str:
    path.write_text("nothing to see")
    return "a.mp4 is not a video, but a text file"


def playlist(path: Path) -> str:
    """FFmpeg would open the file that it names, which may be any on the server, or a network address."""
    write_clip(path.with_name("private.mp4"))
    path.write_text("ffconcat version 1.0\nfile private.mp4\n")
    with av.open(str(path)) as container:
        assert container.streams.video[0].width == 64
    return "Playlists and lists of files are not followed"


def truncated(path: Path) -> str:
    content = write_clip(path).read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])  # the index is at the end
    return "not a video of a format that is read, or is truncated"


def no_frame(path: Path) -> str:
    path.write_bytes(write_clip(path).read_bytes()[:-200])
    return "a.mp4 contains no frames. Is the file truncated?"


def still_image(path: Path) -> str:
    Image.new("RGB", (64, 48)).save(path, "png")
    return "a.mp4 is not a video"


def sound_only(path: Path) -> str:
    write_sound(path)
    return "a.mp4 has no video stream, only audio"


def many_frames(path: Path) -> str:
    write_clip(path, range(26))
    return "a.mp4 is too long. The limits are 1 seconds"


def two_frames_far_apart(path: Path) -> str:
    write_clip(path, [0, 26])
    return "is too long"


def too_fast(path: Path) -> str:
    """1000 frames per second: short enough, but too many frames."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return "and 60 frames"


def large_file(path: Path) -> str:
    path.write_bytes(bytes(105_000))
    return "a.mp4 has 0.1 MB. The limit is 0.1 MB"


def large_frames(path: Path) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4098, 2304, "yuv420p"
        gray = np.full((2304 * 3 // 2, 4098), 128, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(gray, format="yuv420p")))
        container.mux(stream.encode(None))
    return "frames of 4098 x 2304 pixels. The limit is 9.4 million"


@pytest.mark.parametrize(
    "write_bad_clip",
    [
        not_a_video,
        playlist,
        truncated,
        no_frame,
        still_image,
        sound_only,
        many_frames,
        two_frames_far_apart,
        too_fast,
        large_file,
        large_frames,
    ],
)
def test_other_uploads_are_rejected(tmp_path: Path, write_bad_clip: Callable[[Path], str]) -> None:
    message = write_bad_clip(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=message) as error:
        checks.check_clip(tmp_path / "a.mp4", LIMITS)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Type a sentence"),
        (" \n\t\n", "Type a sentence"),
        ("the dog\n" * 4, "There are 4 sentences. The limit is 3"),
        ("the dog\n" + "a" * 201, "Sentence 2 has 201 characters"),
    ],
)
def test_invalid_sentences_are_rejected(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.read_sentences(text, LIMITS)


@pytest.mark.parametrize("sentence", ["那只狗", "flurbl", "!!!"])
def test_sentences_without_a_known_word(segmenter: Segmenter, sentence: str) -> None:
    with pytest.raises(UserError, match=f"knows no word of “{sentence}”.* trained with words like .*black"):
        checks.unknown_words(segmenter, ("the red dog", sentence))
    assert checks.unknown_words(segmenter, ("the red dog", "a flurbl cat")) == ["flurbl"]


def test_a_clip_is_segmented(segmenter: Segmenter, tmp_path: Path) -> None:
    upload, root = write_clip(tmp_path / "my clip.mp4"), tmp_path / "root"
    root.mkdir()
    result = work.segment_clip(segmenter, upload, f"{TEXT}\nthe flurbl", root, LIMITS)
    assert result.sentences == ("the red dog", "a black cat", "the flurbl") and result.name == "my clip.mp4"
    assert list(root.iterdir()) == [result.folder]
    assert len(result.notes) == 1 and "“flurbl”" in result.notes[0]
    np.testing.assert_allclose(result.times, np.arange(6) / 24, atol=1e-6)

    # The zip holds the library's masks, and no path of the server.
    clip = open_clip(upload)
    frames = [(float(time * clip.time_base), frame) for time, frame in clip]
    predictions = list(segmenter.segment_frame_pairs(segmenter.frame_pairs(frames), result.sentences))
    assert 0.1 < np.mean([prediction.masks for prediction in predictions]) < 0.9
    with zipfile.ZipFile(result.folder / "result.zip") as archive:
        assert str(tmp_path).encode() not in b"".join(archive.read(name) for name in archive.namelist())
        assert json.loads(archive.read("settings.json"))["video"] == "my clip.mp4"
        lines = [json.loads(line) for line in archive.read("masks.jsonl").splitlines()]
        for line in lines:
            frame, sentence = line["frame"], line["sentence"] - 1
            expected = predictions[frame].masks[sentence]
            np.testing.assert_array_equal(coco_mask.decode(line["segmentation"]).astype(bool), expected)
            np.testing.assert_array_equal(decode_mask(archive.read(f"masks/{sentence + 1}/{frame:06d}.png")), expected)
            assert result.confidence[frame, sentence] == line["confidence"]
        assert len(lines) == 18
        with Image.open(io.BytesIO(archive.read("contact_sheet.png"))) as sheet:
            assert sheet.width > 1000
        (tmp_path / "overlay.mp4").write_bytes(archive.read("overlay.mp4"))
    assert [frame.shape for _, frame in open_clip(tmp_path / "overlay.mp4")] == [(48, 64, 3)] * 6

    # The page shows the same masks enlarged; their contours are smoother.
    video = [frame.astype(int) for _, frame in open_clip(result.folder / "display.mp4")]
    for index, prediction in enumerate(predictions):
        expected = prediction.frame_pair.frame.original
        for sentence, mask in enumerate(prediction.masks):
            expected = overlay(expected, mask, color_of(sentence))
        with Image.open(result.frame(index)) as image:
            assert image.size == (512, 384)
            small = np.asarray(image.resize((64, 48), Image.Resampling.BOX), int)
        assert np.abs(small - expected).mean() < 15 < np.abs(small - prediction.frame_pair.frame.original).mean()
        with Image.open(result.frame(index)) as image:
            assert np.abs(video[index] - np.asarray(image)).mean() < 6

    path = work.draw_attention(segmenter, result, 3, 1)
    modified = path.stat().st_mtime_ns
    with Image.open(path) as image:
        assert image.width > 1000
    assert work.draw_attention(segmenter, result, 3, 1) == path and path.stat().st_mtime_ns == modified
    with pytest.raises(UserError, match="has expired"):
        work.draw_attention(segmenter, result, 6, 1)
    with pytest.raises(UserError, match="no such sentence"):
        work.draw_attention(segmenter, result, 3, 3)
    with pytest.raises(UserError, match="takes longer"):
        work.draw_attention(segmenter, result, 3, 0, work.Deadline(dataclasses.replace(LIMITS, minutes=0)))
    work.remove(result)
    work.remove(None)
    assert not list(root.iterdir())
    with pytest.raises(UserError, match="has expired"):
        result.frame(3)


def test_a_result_that_is_deleted_while_its_attention_is_drawn_stays_deleted(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, root, explain = write_clip(tmp_path / "a.mp4"), tmp_path / "root", Segmenter.explain
    root.mkdir()
    result = work.segment_clip(segmenter, upload, "the red dog", root, LIMITS)

    def delete_and_explain(*arguments: Any) -> Any:
        work.remove(result)  # as the storage does when it is full
        return explain(*arguments)

    monkeypatch.setattr(Segmenter, "explain", delete_and_explain)
    with pytest.raises(UserError, match="has expired"):
        work.draw_attention(segmenter, result, 3, 0)
    assert not list(root.iterdir())


def test_non_square_pixels_are_shown_square(segmenter: Segmenter, tmp_path: Path) -> None:
    upload = write_clip(tmp_path / "a.mp4", range(1), aspect=Fraction(2))
    result = work.segment_clip(segmenter, upload, "the red dog", tmp_path, LIMITS)
    with Image.open(result.frame(0)) as image:
        assert image.size == (640, 240)
    video = open_clip(result.folder / "display.mp4")
    assert video.pixel_aspect == 1 and [frame.shape for _, frame in video] == [(240, 640, 3)]


def test_visitors_are_told_what_was_left_out_of_a_clip(segmenter: Segmenter, tmp_path: Path) -> None:
    damaged = damage_packets(write_clip(tmp_path / "a.mp4"), [5])
    result = work.segment_clip(segmenter, damaged, "the red dog", tmp_path, LIMITS)
    message = "a.mp4 is damaged: left out 1 frame, broken or based on broken ones, from 0.21 s to the end."
    assert len(result.times) == 5 and result.notes[0].startswith(message)
    joined = write_clip(tmp_path / "a.ts")  # whose header has no number of frames
    joined.write_bytes(2 * joined.read_bytes())
    result = work.segment_clip(segmenter, joined, "the red dog", tmp_path, LIMITS)
    assert len(result.times) == 12 and result.notes[0].startswith("a.ts: time stamps jump or begin anew")


def test_a_failed_segmentation_leaves_no_files(segmenter: Segmenter, tmp_path: Path) -> None:
    upload, root = damage_packets(write_clip(tmp_path / "all damaged.mp4"), [*range(6)]), tmp_path / "root"
    root.mkdir()
    with pytest.raises(UserError, match="^all damaged.mp4 contains no readable frame"):
        work.segment_clip(segmenter, upload, "the red dog", root, LIMITS)
    assert not list(root.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("time", "^This takes longer than 0 minutes, the limit"),
        ("stop", "^The page is being stopped"),
        ("size", "^The result grows too large"),
        ("frames", "^The clip has frames of 64 x 48 pixels. The limit is 0.0 million"),
        ("count", "^The clip is too long. The limits are 1 seconds and 0 frames"),
        ("narrow", "^The clip has frames of 64 x 48 pixels, which are too narrow"),
        ("disk", "^The page can't write its files: No space left on device"),
    ],
)
def test_limits_are_kept_at_every_frame(
    segmenter: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, message: str
) -> None:
    """Whatever the header says, and however much is left to do."""
    upload, root, limits, stopping = write_clip(tmp_path / "a.mp4"), tmp_path / "root", LIMITS, threading.Event()
    root.mkdir()
    segment = work.predict.predict

    def start(*arguments: Any, **limits: int) -> None:  # after the header was looked at
        if change == "stop":
            stopping.set()
        if change == "frames":
            monkeypatch.setattr(checks, "MAX_PIXELS", 64 * 48 - 1)
        if change == "count":
            monkeypatch.setattr(checks, "MAX_FRAME_RATE", 0)
        if change == "narrow":
            monkeypatch.setattr(checks, "MAX_ASPECT", 1.3)
        if change == "disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        segment(*arguments, **limits)

    monkeypatch.setattr(work.predict, "predict", start)
    if change == "time":
        limits = dataclasses.replace(LIMITS, minutes=0)
    if change == "size":
        monkeypatch.setattr(work, "MAX_RESULT_OF_LIMIT", 0)
    with pytest.raises(UserError, match=message):
        work.segment_clip(segmenter, upload, "the red dog", root, limits, stopping)
    assert not list(root.iterdir())
