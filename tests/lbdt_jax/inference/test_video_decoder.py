"""Files that are damaged, joined, cut, or hold more than one video (lbdt_jax/inference/video_decoder.py)."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from clips import damage_packets, frame_numbers, numbered_frame, write_clip

from input_pipeline.errors import UserError
from lbdt_jax.inference.video import open_clip


def read(path: Path) -> tuple[list[int], list[float], list[str]]:
    """The numbers of the frames of a clip, their times in units of 1/24 s, and all warnings."""
    warnings: list[str] = []
    clip = open_clip(path, warn=warnings.append)
    frames = [(float(time * clip.time_base), frame) for time, frame in clip]
    return frame_numbers(frames), [24 * time for time, _ in frames], warnings


@pytest.mark.parametrize(
    ("damaged", "left_out", "place"),
    [
        ([7], [7, 8, 9], "left out 3 frames, broken or based on broken ones, from 0.29 s to 0.42 s."),
        ([0], [0, 1, 2, 3, 4], "left out 5 frames"),
        ([9], [9], "left out 1 frame,"),
        ([6, 11], [6, 7, 8, 9, 11, 12, 13, 14], "from 0.25 s to 0.42 s, 0.46 s to 0.62 s."),
        ([19], [19], "to the end"),
        ([17], [17], "traces of the damage"),  # no key frame follows
    ],
)
def test_goes_on_with_the_next_whole_frame(tmp_path: Path, damaged: list[int], left_out: list[int], place: str) -> None:
    numbers, times, warnings = read(damage_packets(write_clip(tmp_path / "a.mp4", 20, key_frames=5), damaged))
    expected = [number for number in range(20) if number not in left_out]
    assert times == pytest.approx(expected, abs=0.01)
    if damaged != [17]:
        assert numbers == expected
    assert len(warnings) == 1 and place in warnings[0]


def packet_times(path: Path) -> list[int]:
    """When the frames of a clip's packets are shown, in units of 1/24 s."""
    with av.open(str(path)) as container:
        return [round(24 * packet.pts * packet.time_base) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("number", [1, 2, 11, 18, 19])
def test_frames_that_wait_for_later_ones_keep_their_times(tmp_path: Path, number: int) -> None:
    """B-frames: the decoder gives frames behind damage that is shown later, and some at the end without a word."""
    path = write_clip(tmp_path / "a.mp4", 20)
    damaged = packet_times(path)[number]
    _, times, warnings = read(damage_packets(path, [number]))
    assert times == pytest.approx([time for time in range(20) if time != damaged], abs=0.01)
    assert (
        len(warnings) == 1
        and f"left out 1 frame, broken or based on broken ones, from {damaged / 24:.2f} s to" in (warnings[0])
    )


@pytest.mark.parametrize("number", [1, 2, 12])
def test_a_key_frame_before_the_damage_heals_nothing(tmp_path: Path, number: int) -> None:
    """B-frames: the decoder gives the key frame behind the damage of a frame that refers to it."""
    path = write_clip(tmp_path / "a.mp4", 30, key_frames=10, delayed=True)
    numbers, times, warnings = read(damage_packets(path, [number]))
    left_out = range(number // 10 * 10 + 1, number // 10 * 10 + 10)
    expected = [time for time in range(28) if time not in left_out]
    assert numbers[:-2] == times[:-2] == expected
    assert len(warnings) == 1 and "left out 9 frames, broken or based on broken ones" in warnings[0]


@pytest.mark.parametrize(
    ("options", "number", "left_out", "place"),
    [({}, 0, 2, "0.00 s to 0.08 s"), ({"bf": "2"}, 0, 3, "0.00 s to 0.12 s"), ({}, 19, 1, "0.79 s to the end")],
)
def test_damage_at_the_ends_of_an_avi(
    tmp_path: Path, options: dict[str, str], number: int, left_out: int, place: str
) -> None:
    """FFmpeg makes up the time stamps of such files, and wrong ones where B-frames or damage make frames late."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24, options=options | {"g": "10"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for index in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(index), format="rgb24")))
        container.mux(stream.encode(None))
    numbers, times, warnings = read(damage_packets(path, [number]))
    expected = [*range(left_out, 20)] if number == 0 else [*range(19)]
    assert times == expected and np.abs(np.subtract(numbers, times)).max() <= 1
    assert len(warnings) == 1 and f"left out {left_out} frame" in warnings[0] and place in warnings[0]


def test_times_do_not_go_back_where_no_key_frame_is_left(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 30, key_frames=10, delayed=True)
    _, times, warnings = read(damage_packets(path, [20]))
    assert times == sorted(set(times)) and times[:18] == [*range(18)] and max(times) < 30
    assert len(warnings) == 1 and "traces of the damage" in warnings[0]


def test_lost_parts_of_a_transport_stream(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.ts", 20, size=(96, 128), key_frames=5)
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][6]
    content = path.read_bytes()
    path.write_bytes(content[: position + 188] + content[position + 3 * 188 :])
    numbers, times, warnings = read(path)
    assert times == pytest.approx(numbers, abs=0.03) and set(range(20)) - set(numbers) <= set(range(5, 10))
    assert 1 <= 20 - len(numbers) and "is damaged" in warnings[0]


def test_start_counts_from_the_first_frame_even_if_it_is_damaged(tmp_path: Path) -> None:
    clip = open_clip(damage_packets(write_clip(tmp_path / "a.mp4", 20, key_frames=5), [0]), warn=lambda _: None)
    assert [float(24 * time * clip.time_base) for time, _ in clip][0] == pytest.approx(5) and clip.reading.start == 0


def test_joined_recordings(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / "a.ts", 10), write_clip(tmp_path / "b.ts", 6)]
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in [*parts, parts[0]]))
    numbers, times, warnings = read(tmp_path / "joined.ts")
    assert numbers == [*range(10), *range(6), *range(10)] and times == pytest.approx(range(26), abs=0.02)
    assert "begin anew" in warnings[0]


@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_a_pause_with_sound_is_no_jump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, sound: bool
) -> None:
    for name in ("_LONGEST_GAP", "_LONGEST_GAP_IN_STREAMS"):
        monkeypatch.setattr(f"lbdt_jax.inference.video_decoder.{name}", 1)  # second
    stamps = [*range(10), *range(60, 122)]
    path = write_clip(tmp_path / f"a.{suffix}", 72, times=stamps, key_frames=5, beep=sound)
    _, times, warnings = read(path)
    if sound:
        assert times == pytest.approx(stamps, abs=0.03) and not warnings
    elif suffix != "mp4":  # which knows how long a frame is shown
        assert "jump" in warnings[0]


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4"])
def test_time_stamps_that_start_late(tmp_path: Path, suffix: str) -> None:
    numbers, times, warnings = read(write_clip(tmp_path / f"a.{suffix}", times=[24_000 + index for index in range(10)]))
    assert numbers == [*range(10)] and times == pytest.approx(range(10), abs=0.03) and not warnings


def test_cut_by_an_edit_list(tmp_path: Path) -> None:
    """Cutting without encoding anew keeps the frames from the last key frame on; an edit list hides them."""
    with (
        av.open(str(write_clip(tmp_path / "whole.mp4", 20, key_frames=10))) as source,
        av.open(str(tmp_path / "cut.mp4"), "w") as cut,
    ):
        stream = cut.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                shift = round(5 / 24 / Fraction(packet.time_base.numerator, packet.time_base.denominator))
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                cut.mux(packet)
    numbers, times, warnings = read(tmp_path / "cut.mp4")
    assert numbers == [*range(5, 20)] and times == pytest.approx(range(15), abs=0.01) and not warnings
    assert open_clip(tmp_path / "cut.mp4").frames == 15


def test_truncated_file(tmp_path: Path) -> None:
    content = write_clip(tmp_path / "a.mkv", frames=20).read_bytes()
    (tmp_path / "a.mkv").write_bytes(content[: len(content) * 4 // 5])
    assert "0.8 s according to its header, but only" in read(tmp_path / "a.mkv")[2][0]


def test_frames_that_an_avi_repeats_are_not_missing(tmp_path: Path) -> None:
    stamps = [0, 1, 2, 8, 9, 20, 21]
    numbers, times, warnings = read(write_clip(tmp_path / "a.avi", frames=7, times=stamps, key_frames=7))
    assert numbers == [*range(7)] and times == pytest.approx(stamps, abs=0.01) and not warnings


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_cover_picture_is_not_the_video(tmp_path: Path, suffix: str, attached: bool) -> None:
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        for codec, size in (("mjpeg", (96, 96)), ("libx264", (48, 64))):
            stream = container.add_stream(codec, rate=24)
            (stream.height, stream.width), stream.pix_fmt = size, "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.disposition = Disposition.default if codec == "mjpeg" else Disposition(0)
            if attached and codec == "mjpeg":
                stream.disposition = Disposition.attached_pic
        for stream, size, count in zip(container.streams.video, ((96, 96), (48, 64)), (1, 5), strict=True):
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(numbered_frame(index, size), format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    numbers, times, warnings = read(path)
    assert numbers == [*range(5)] and times == pytest.approx(range(5), abs=0.03)
    assert ["64 x 48 pixels, is used" in warning for warning in warnings] == [True]


def test_frames_that_change_their_size_are_scaled(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / "a.ts"), write_clip(tmp_path / "b.ts", size=(96, 32))]
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    warnings: list[str] = []
    frames = [frame for _, frame in open_clip(tmp_path / "joined.ts", warn=warnings.append)]
    assert len(frames) == 20 and {frame.shape for frame in frames} == {(48, 64, 3)}
    assert np.abs(frames[15].astype(int) - numbered_frame(5)).mean() < 4
    assert "frames of 32 x 96 pixels are scaled to the 64 x 48 of the first" in warnings[0]


def test_frames_that_become_too_large_are_left_out(tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / "a.ts"), write_clip(tmp_path / "b.ts", size=(96, 80))]
    (tmp_path / "joined.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    warnings: list[str] = []
    clip = open_clip(tmp_path / "joined.ts", warn=warnings.append, max_pixels=96 * 80 - 1)
    assert len([*clip]) == 10 and "left out 10 frames" in warnings[0]


def test_metadata_that_are_not_utf_8(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"Lavf", b"\xe4\xf6\xfc\xff"))
    assert content.count(b"Lavf") and read(path)[0] == [*range(10)]


def test_damaged_bytes_anywhere_are_never_a_crash(tmp_path: Path) -> None:
    """Every outcome is frames at increasing times, or an error for the user; a fixed seed keeps the test the same."""
    rng = np.random.default_rng(0)
    for suffix in ("mp4", "mkv", "ts", "gif", "webm"):
        content = write_clip(tmp_path / f"a.{suffix}").read_bytes()
        for _ in range(12):
            damaged = bytearray(content)
            for position in rng.integers(0, len(content), 8):
                damaged[position] = rng.integers(0, 256)
            (tmp_path / f"b.{suffix}").write_bytes(damaged[: rng.integers(len(content) // 2, len(content) + 1)])
            with contextlib.suppress(UserError):
                times = read(tmp_path / f"b.{suffix}")[1]
                assert (np.diff(times) > 0).all()
