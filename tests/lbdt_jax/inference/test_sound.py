"""The sound of a clip stays in step with its frames (lbdt_jax/inference/sound.py)."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import write_clip

from lbdt_jax.inference.sound import Sound
from lbdt_jax.inference.video import ClipWriter, open_clip


def copy(source: Path, path: Path, sound: bool = True) -> None:
    clip = open_clip(source)
    with ClipWriter(path, (48, 64), clip, sound) as writer:
        for time, frame in clip:
            writer.write(time, frame)


def tone(path: Path) -> tuple[float, float]:
    """When the tone of a file begins and ends, in seconds."""
    with av.open(str(path)) as container:
        frames = [(frame.time, frame.to_ndarray()[0]) for frame in container.decode(audio=0)]
    samples = np.concatenate([samples for _, samples in frames])
    loud = np.flatnonzero(np.abs(samples) > 0.3) / 48000 + frames[0][0]
    return loud[0], loud[-1]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_sound_is_kept(tmp_path: Path, suffix: str) -> None:
    copy(write_clip(tmp_path / f"a.{suffix}", frames=24, beep=True), tmp_path / "copy.mp4")
    assert tone(tmp_path / "copy.mp4") == pytest.approx((0.4, 0.6), abs=0.03)
    assert open_clip(tmp_path / "copy.mp4").seconds == pytest.approx(1, abs=0.03)


def test_sound_before_the_first_frame_is_left_out(tmp_path: Path) -> None:
    copy(write_clip(tmp_path / "a.mp4", frames=72, times=[*range(27, 99)], beep=True), tmp_path / "copy.mp4")
    assert tone(tmp_path / "copy.mp4") == pytest.approx((1.2 - 27 / 24, 1.8 - 27 / 24), abs=0.03)


def test_sound_of_a_frame_that_lasts_long_is_not_collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, encode = [], Sound._encode
    monkeypatch.setattr(Sound, "_encode", lambda self, part: kept.append(self._samples.shape[1]) or encode(self, part))
    path = write_clip(tmp_path / "a.mp4", frames=24, beep=True)
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        sound = Sound(path, Fraction(0), output)
        sound.write_until(1)
        sound.close(1)
    assert tone(tmp_path / "sound.mp4") == pytest.approx((0.4, 0.6), abs=0.03) and max(kept) <= 2 * 1024


def test_sound_that_can_not_be_decoded(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=24, beep=True)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(audio=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets:
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    copy(path, tmp_path / "copy.mp4")
    assert len(list(open_clip(tmp_path / "copy.mp4"))) == 24


def test_no_sound_is_asked_for_or_there_is_none(tmp_path: Path) -> None:
    copy(write_clip(tmp_path / "a.mp4", beep=True), tmp_path / "1.mp4", sound=False)
    copy(write_clip(tmp_path / "b.mp4"), tmp_path / "2.mp4")
    for name in ("1.mp4", "2.mp4"):
        with av.open(str(tmp_path / name)) as container:
            assert [stream.type for stream in container.streams] == ["video"]
