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
    frame = np.full((*size, 3), 30 + 8 * index, np.uint8)
    frame[: size[0] // 4, : size[1] // 4] = (220, 30, 30)
    return frame


def write_clip(path: Path, frames: int = 10, size: tuple[int, int] = (48, 64), times: list[int] | None = None) -> Path:
    """Writes numbered frames at 24 frames per second, or at the given times in units of 1/24 s. Returns the path."""
    codec, pixel_format = {".gif": ("gif", "rgb8"), ".webm": ("libvpx-vp9", "yuv444p")}.get(
        path.suffix, ("libx264", "yuv444p")
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"crf": "5"} if codec != "gif" else {})
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered_frame(index, size), format="rgb24")
            frame.pts, frame.time_base = times[index] if times else index, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
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
