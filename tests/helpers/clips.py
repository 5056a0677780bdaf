"""Small clips whose frames are distinguishable, and a tiny model to segment them."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from tiny import WORD_VECTOR_SIZE, tiny_config, tiny_variables

from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import open_clip

SOUND_RATE = 48000  # samples per second
SENTENCES = ("the red dog", "a black cat")


@functools.cache
def tiny_checkpoint() -> Checkpoint:
    """An untrained model with the words of SENTENCES; the seed is one whose masks are neither empty nor full."""
    words = load_word_vectors(f"random:{WORD_VECTOR_SIZE}", {"the", "red", "dog", "a", "black", "cat"})
    return Checkpoint(tiny_variables(seed=3), tiny_config(), words, 0, Path("tiny"))


@functools.cache
def tiny_segmenter() -> Segmenter:
    """A segmenter of the tiny checkpoint, shared so that it is compiled once."""
    return Segmenter(tiny_checkpoint())


def numbered_frame(index: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A frame (h, w, 3) whose brightness grows with its index, with a red upper left corner."""
    frame = np.full((*size, 3), 30 + 8 * (index % 28), np.uint8)
    frame[: size[0] // 4, : size[1] // 4] = (220, 30, 30)
    return frame


def write_clip(
    path: Path,
    frames: int = 10,
    size: tuple[int, int] = (48, 64),
    times: list[int] | None = None,
    key_frames: int | None = None,
    delayed: bool = False,
    beep: bool = False,
) -> Path:
    """Writes numbered frames. Returns the path.

    Args:
      path: of the new file; its suffix determines the format.
      frames: how many.
      size: (h, w) in pixels.
      times: of the frames, in units of 1/24 s; None means 24 frames per second.
      key_frames: every so many frames.
      delayed: whether there are frames that refer to later ones, also with `key_frames`.
      beep: whether the file has sound: silence, but for a tone in the middle fifth.
    """
    codec, pixel_format = {".gif": ("gif", "rgb8"), ".webm": ("libvpx-vp9", "yuv444p")}.get(
        path.suffix, ("libx264", "yuv444p")
    )
    with av.open(str(path), "w") as container:
        options = {} if codec == "gif" else {"crf": "5"}
        if key_frames:
            options |= {"g": str(key_frames), "sc_threshold": "0", "bf": "3" if delayed else "0"}
        stream = container.add_stream(codec, rate=24, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        if beep:
            sound_stream = container.add_stream("aac", rate=SOUND_RATE)
            sound_stream.layout = "mono"
            positions = np.linspace(0, 1, frames * SOUND_RATE // 24, dtype=np.float32)
            tone = np.sin(np.arange(len(positions), dtype=np.float32)) * (abs(positions - 0.5) < 0.1)
            sound = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index, size), format="rgb24")
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if beep:
            container.mux(sound_stream.encode(sound))
            container.mux(sound_stream.encode(None))
    return path


def write_sound(path: Path) -> None:
    """Writes a file with an audio stream only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def read_frames(path: Path) -> list[tuple[float, np.ndarray]]:
    """All frames of a clip with their times in seconds."""
    clip = open_clip(path)
    return [(float(time * clip.time_base), frame) for time, frame in clip]


def frame_numbers(frames: list[tuple[float, np.ndarray]]) -> list[int]:
    """Which of the numbered frames these are, by their brightness."""
    return [round((int(frame[-1, -1, 0]) - 30) / 8) for _, frame in frames]


def damage_packets(path: Path, numbers: list[int]) -> Path:
    """Overwrites some video packets of a file, all bytes of each. Returns the path."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for number in numbers:
        position, size = packets[number].pos, packets[number].size
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    return path
