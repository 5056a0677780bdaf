"""Reading and writing clips (lbdt_jax/inference/video.py)."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import numbered_frame, read_frames, write_clip, write_sound
from PIL import Image

from input_pipeline.errors import UserError
from lbdt_jax.inference.video import Clip, ClipWriter, open_clip


def set_rotation(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Sets the rotation flag of an mp4: the upper left of its track's matrix."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4
    # Version 0: version and flags, two dates, track, reserved, length, 2 x reserved, layer, group, volume, reserved.
    offset = start + 4 + 4 * 5 + 8 + 8
    assert struct.unpack_from(">2i", content, offset) == (65536, 0)
    a, b, c, d = (value * 65536 for value in matrix)
    struct.pack_into(">9i", content, offset, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


# -- reading


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm", "a.mkv", "a.gif"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_reads_every_frame_of_every_format(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    frames = read_frames(write_clip(tmp_path / name, size=size))
    assert [frame.shape for _, frame in frames] == [(*size, 3)] * 10
    tolerance = 40 if name.endswith("gif") else 4  # a gif has 256 colors
    for index, (time, frame) in enumerate(frames):
        assert time == pytest.approx(index / 24, abs=0.011 if name.endswith("gif") else 0.001)
        assert np.abs(frame.astype(int) - numbered_frame(index, size)).mean() < tolerance


def test_variable_frame_rates_keep_their_times(tmp_path: Path) -> None:
    times = [0, 1, 2, 6, 7, 20, 21, 22, 40, 41]
    clip = write_clip(tmp_path / "a.mp4", times=times)
    assert [time for time, _ in read_frames(clip)] == pytest.approx([time / 24 for time in times])


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((0, 1, -1, 0), "upper right"),
        ((-1, 0, 0, -1), "lower right"),
        ((0, -1, 1, 0), "lower left"),
        ((-1, 0, 0, 1), "upper right"),
        ((1, 0, 0, -1), "lower left"),
        ((0, 1, 1, 0), "upper left"),
        ((0, -1, -1, 0), "lower right"),
    ],
)
def test_rotated_and_mirrored_clips_are_upright(tmp_path: Path, matrix: tuple[int, int, int, int], corner: str) -> None:
    (_, frame), *_ = read_frames(set_rotation(write_clip(tmp_path / "a.mp4"), matrix))
    assert frame.shape == ((64, 48, 3) if matrix[0] == 0 else (48, 64, 3))
    vertical, horizontal = corner.split()
    pixel = frame[-1 if vertical == "lower" else 0, -1 if horizontal == "right" else 0].astype(int)
    assert np.abs(pixel - (220, 30, 30)).max() < 30


def test_folder_of_images_is_sorted_by_number(tmp_path: Path) -> None:
    for index in (10, 9, 2, 100):
        Image.fromarray(numbered_frame(index // 4)).save(tmp_path / f"frame {index}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    clip = open_clip(tmp_path, rate=12)
    assert [(float(time * clip.time_base), frame[-1, -1, 0]) for time, frame in clip] == [
        (position / 12, 30 + 8 * (index // 4)) for position, index in enumerate((2, 9, 10, 100))
    ]


def not_a_video(path: Path) -> str:
    path.write_text("some text")
    return "is not a video"


def truncated(path: Path) -> str:
    write_clip(path)
    path.write_bytes(path.read_bytes()[:-200])
    return "no readable frame. Is the file truncated?"


def sound_only(path: Path) -> str:
    write_sound(path)
    return "has no video stream, only audio"


def missing(path: Path) -> str:
    return "There is no video"


def empty_folder(path: Path) -> str:
    path.mkdir()
    return "contains no images"


def different_sizes(path: Path) -> str:
    path.mkdir()
    for index, size in enumerate([(48, 64), (48, 64), (64, 48)]):
        Image.fromarray(numbered_frame(index, size)).save(path / f"{index}.png")
    return "frame 2 is 48 x 64 pixels, those before it 64 x 48"


def broken_images(path: Path) -> str:
    path.mkdir()
    (path / "0.png").write_bytes(b"junk")
    (path / "1.png").write_bytes(b"")
    return "no readable frame"


def playlist(path: Path) -> str:
    write_clip(path.with_name("b.mp4"))
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nb.mp4\n#EXT-X-ENDLIST\n")
    return "Playlists and lists of files are not followed"


def list_of_files(path: Path) -> str:
    write_clip(path.with_name("b.mp4"))
    path.write_text("ffconcat version 1.0\nfile b.mp4\n")
    return "Playlists and lists of files are not followed"


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is a named pipe"


def endless(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "is a device"


def empty(path: Path) -> str:
    path.touch()
    return "an empty file"


@pytest.mark.parametrize(
    "write_bad_video",
    [
        *(not_a_video, truncated, sound_only, missing, empty_folder, different_sizes, broken_images),
        *(playlist, list_of_files, pipe, endless, empty),
    ],
)
def test_errors_for_unreadable_videos(tmp_path: Path, write_bad_video: Callable[[Path], str]) -> None:
    message = write_bad_video(tmp_path / "a.mp4")
    with pytest.raises(UserError, match=message):
        read_frames(tmp_path / "a.mp4")


# -- writing


def test_written_clips_are_read_back(tmp_path: Path) -> None:
    for size in ((48, 64), (47, 63)):
        source = open_clip(write_clip(tmp_path / "source.mp4", size=size, times=[0, 1, 5, 6, 7, 8, 9, 10, 30, 31]))
        path = tmp_path / f"copy{size[0]}.mp4"
        with ClipWriter(path, size, source) as writer:
            for time, frame in source:
                writer.write(time, frame)
        pairs = list(zip(read_frames(source.path), read_frames(path), strict=True))
        assert len(pairs) == 10
        for (time, frame), (copied_time, copy) in pairs:
            assert copied_time == pytest.approx(time, abs=1e-4) and copy.shape == frame.shape
            assert np.abs(copy.astype(int) - frame).mean() < 4


def test_names_with_a_colon_are_no_protocols(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.mp4").rename(tmp_path / "http:a.mp4")
    monkeypatch.chdir(tmp_path)
    clip = open_clip("http:a.mp4")
    with ClipWriter(Path("concat:b.mp4"), (48, 64), clip) as writer:
        for time, frame in clip:
            writer.write(time, frame)
    assert len(read_frames(Path("concat:b.mp4"))) == 10


def test_control_characters_in_names_are_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(numbered_frame(0)).save(tmp_path / "0.png")
    (tmp_path / "a\x1b[31m\nb.txt").touch()
    open_clip(tmp_path)
    assert "a?[31m?b.txt" in capsys.readouterr().err


@pytest.mark.parametrize("rotation", [None, (0, 1, -1, 0)])
def test_pixel_aspect_is_kept(tmp_path: Path, rotation: tuple[int, int, int, int] | None) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(0), format="rgb24")))
        container.mux(stream.encode(None))
    source = open_clip(set_rotation(tmp_path / "a.mp4", rotation) if rotation else tmp_path / "a.mp4")
    assert source.pixel_aspect == (Fraction(3, 4) if rotation else Fraction(4, 3))
    ((time, frame),) = source
    with ClipWriter(tmp_path / "copy.mp4", frame.shape[:2], source) as writer:
        writer.write(time, frame)
    assert open_clip(tmp_path / "copy.mp4").pixel_aspect == source.pixel_aspect


def test_killed_writer_leaves_a_valid_file(tmp_path: Path) -> None:
    clip = Clip(tmp_path, Fraction(1000), Fraction(1, 24), 0, None)  # its nominal rate is not that of its times
    writer = ClipWriter(tmp_path / "a.mp4", (48, 64), clip)
    for index in range(24 * 10):
        writer.write(index, numbered_frame(index % 24))
    (tmp_path / "killed.mp4").write_bytes((tmp_path / "a.mp4").read_bytes())
    assert len(read_frames(tmp_path / "killed.mp4")) >= 24 * 8
    writer.__exit__()


def test_frames_too_large_for_h264(tmp_path: Path) -> None:
    clip = Clip(tmp_path, Fraction(24), Fraction(1, 24), 1, None)
    with pytest.raises(UserError, match="can't store frames of 20000 x 4 pixels"):
        ClipWriter(tmp_path / "a.mp4", (4, 20_000), clip)
