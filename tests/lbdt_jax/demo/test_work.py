"""What the page does for a visitor (lbdt_jax/demo/checks.py and work.py); tests/test_demo_page.py has a browser."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from demo_files import write_checkpoint, write_clip
from PIL import Image
from pycocotools import mask as run_length

import lbdt_jax
from input_pipeline.errors import UserError
from input_pipeline.images import decode_mask
from lbdt_jax.demo import checks, work
from lbdt_jax.demo.checks import Limits
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import open_clip
from lbdt_jax.visualization import render, video_strip

LIMITS = Limits(seconds=1.0, megabytes=0.1, sentences=3)
TEXT = "the red dog\n\n  a black   cat "


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return lbdt_jax.load(write_checkpoint(tmp_path_factory.mktemp("untrained")))


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.ts", "a.gif"])
def test_clips_within_the_limits_are_taken(tmp_path: Path, name: str) -> None:
    described, first = checks.look(write_clip(tmp_path / name), LIMITS)
    assert described.startswith(f"{name}: 64 x 48 pixels, 6 frames, 0.")
    assert first.shape == (48, 64, 3) and abs(first[24:].mean() - 34) < 6


def not_a_video(path: Path) -> str:
    path.write_text("nothing to see")
    return "a.mp4 is no video that this page can read, or it is cut short"


def playlist(path: Path) -> str:
    """FFmpeg would open what it names: any clip of the server's, or an address."""
    write_clip(path.with_name("private.mp4"))
    path.write_text("ffconcat version 1.0\nfile private.mp4\n")
    with av.open(str(path)) as container:
        assert container.streams.video[0].width == 64
    return "no video that this page can read"


def cut_short(path: Path) -> str:
    content = write_clip(path).read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])  # its table of contents stands at the end
    return "no video that this page can read, or it is cut short"


def no_frame(path: Path) -> str:
    path.write_bytes(write_clip(path).read_bytes()[:-200])
    return "a.mp4 holds no frame. Is it cut short?"


def picture(path: Path) -> str:
    Image.new("RGB", (64, 48)).save(path, "png")
    return "no video that this page can read"


def sound_only(path: Path) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return "a.mp4 has no pictures, only audio"


def many_frames(path: Path) -> str:
    write_clip(path, range(26))
    return "a.mp4 is too long: this page takes clips of up to 1 seconds"


def two_frames_far_apart(path: Path) -> str:
    write_clip(path, [0, 26])
    return "is too long"


def too_fast(path: Path) -> str:
    """A thousand frames in the second that is allowed: no length, and all the work."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        for _ in range(100):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    return "and 60 frames"


def large_file(path: Path) -> str:
    path.write_bytes(bytes(105_000))
    return "a.mp4 has 0.1 MB. This page takes clips of up to 0.1 MB"


def large_frames(path: Path) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4098, 2304, "yuv420p"
        grey = np.full((2304 * 3 // 2, 4098), 128, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="yuv420p")))
        container.mux(stream.encode(None))
    return "frames of 4098 x 2304 pixels. This page takes up to 9.4 million"


@pytest.mark.parametrize(
    "fault",
    [
        not_a_video,
        playlist,
        cut_short,
        no_frame,
        picture,
        sound_only,
        many_frames,
        two_frames_far_apart,
        too_fast,
        large_file,
        large_frames,
    ],
)
def test_other_uploads_are_refused(tmp_path: Path, fault: Callable[[Path], str]) -> None:
    message = fault(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=message) as error:
        checks.check_clip(tmp_path / "a.mp4", LIMITS)
    assert str(tmp_path) not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Type a sentence"),
        (" \n\t\n", "Type a sentence"),
        ("the dog\n" * 4, "These are 4 sentences. This page takes 3"),
        ("the dog\n" + "a" * 201, "Sentence 2 has 201 letters"),
    ],
)
def test_sentences_that_cannot_be_asked(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.read_sentences(text, LIMITS)


@pytest.mark.parametrize("sentence", ["那只狗", "flurbl", "!!!"])
def test_sentences_without_a_known_word(segmenter: Segmenter, sentence: str) -> None:
    with pytest.raises(UserError, match=f"knows no word of “{sentence}”.* trained with are .*black"):
        checks.unknown_words(segmenter, ("the red dog", sentence))
    assert checks.unknown_words(segmenter, ("the red dog", "a flurbl cat")) == ["flurbl"]


def test_a_clip_is_answered(segmenter: Segmenter, tmp_path: Path) -> None:
    upload, root = write_clip(tmp_path / "my clip.mp4"), tmp_path / "root"
    root.mkdir()
    result = work.answer(segmenter, upload, f"{TEXT}\nthe flurbl", root, LIMITS)
    assert result.sentences == ("the red dog", "a black cat", "the flurbl") and result.name == "my clip.mp4"
    assert [path for path in root.iterdir()] == [result.folder]
    assert len(result.notes) == 1 and "“flurbl”" in result.notes[0]
    np.testing.assert_allclose(result.times, np.arange(6) / 24, atol=1e-6)

    # The zip holds what the library says, and nothing of where it was made.
    clip = open_clip(upload)
    frames = [(float(time * clip.time_base), frame) for time, frame in clip]
    answers = list(segmenter.segment_frame_pairs(segmenter.frame_pairs(frames), result.sentences))
    assert 0.1 < np.mean([answer.masks for answer in answers]) < 0.9
    with zipfile.ZipFile(result.folder / "result.zip") as archive:
        assert str(tmp_path).encode() not in b"".join(archive.read(name) for name in archive.namelist())
        assert json.loads(archive.read("settings.json"))["video"] == "my clip.mp4"
        lines = [json.loads(line) for line in archive.read("masks.jsonl").splitlines()]
        for line in lines:
            frame, sentence = line["frame"], line["sentence"] - 1
            expected = answers[frame].masks[sentence]
            np.testing.assert_array_equal(run_length.decode(line["segmentation"]).astype(bool), expected)
            np.testing.assert_array_equal(decode_mask(archive.read(f"masks/{sentence + 1}/{frame:06d}.png")), expected)
            assert result.confidence[frame, sentence] == line["confidence"]
        assert len(lines) == 18
        with Image.open(io.BytesIO(archive.read("contact_sheet.png"))) as sheet:
            assert sheet.width > 1000
        (tmp_path / "overlay.mp4").write_bytes(archive.read("overlay.mp4"))
    assert [frame.shape for _, frame in open_clip(tmp_path / "overlay.mp4")] == [(48, 64, 3)] * 6

    # What the page shows is enlarged: the same masks, as far as their contours allow.
    shown = [frame.astype(int) for _, frame in open_clip(result.folder / "shown.mp4")]
    for index, answer in enumerate(answers):
        expected = answer.frame_pair.frame.original
        for number, mask in enumerate(answer.masks):
            expected = render.overlay(expected, mask, video_strip.color_of(number))
        with Image.open(result.frame(index)) as picture:
            assert picture.size == (512, 384)
            small = np.asarray(picture.resize((64, 48), Image.Resampling.BOX), int)
        assert np.abs(small - expected).mean() < 15 < np.abs(small - answer.frame_pair.frame.original).mean()
        with Image.open(result.frame(index)) as picture:
            assert np.abs(shown[index] - np.asarray(picture)).mean() < 6

    sheet = work.attention(segmenter, result, 3, 1)
    written = sheet.stat().st_mtime_ns
    with Image.open(sheet) as picture:
        assert picture.width > 1000
    assert work.attention(segmenter, result, 3, 1) == sheet and sheet.stat().st_mtime_ns == written
    with pytest.raises(UserError, match="has been removed"):
        work.attention(segmenter, result, 6, 1)
    work.remove(result)
    work.remove(None)
    assert not list(root.iterdir())
    with pytest.raises(UserError, match="has been removed"):
        result.frame(3)


def test_wide_pixels_are_shown_wide(segmenter: Segmenter, tmp_path: Path) -> None:
    upload = write_clip(tmp_path / "a.mp4", range(1), aspect=Fraction(2))
    result = work.answer(segmenter, upload, "the red dog", tmp_path, LIMITS)
    with Image.open(result.frame(0)) as picture:
        assert picture.size == (640, 240)
    shown = open_clip(result.folder / "shown.mp4")
    assert shown.pixel_aspect == 1 and [frame.shape for _, frame in shown] == [(240, 640, 3)]


def test_what_fails_on_the_way_leaves_nothing(segmenter: Segmenter, tmp_path: Path) -> None:
    upload, root = tmp_path / "two sizes.ts", tmp_path / "root"
    root.mkdir()
    parts = [write_clip(tmp_path / name, size=size) for name, size in (("a.ts", (48, 64)), ("b.ts", (64, 48)))]
    upload.write_bytes(b"".join(path.read_bytes() for path in parts))
    with pytest.raises(UserError, match="^two sizes.ts: frame 6 is 48 x 64 pixels"):
        work.answer(segmenter, upload, "the red dog", root, LIMITS)
    assert not list(root.iterdir())
