"""Checks on what visitors upload and enter, with messages for them.

Uploads are untrusted: a file's name is displayed but never used as a path, only self-contained formats are opened,
and frames are counted rather than taken from the header.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import av
import numpy as np

from input_pipeline.errors import UserError
from lbdt_jax.inference.container import choose_stream, open_container
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import open_clip

MAX_PIXELS = 4096 * 2304  # of a frame; several frames are held in memory
MAX_ASPECT = 20  # of a frame: longer by shorter side
MAX_FRAME_RATE = 60  # at most this many frames per allowed second, however short a high-speed clip is
MAX_CHARACTERS = 200  # of a sentence


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a visitor may upload and enter; all but `sentences` are flags of the command.

    Attributes:
      seconds: length of a clip.
      megabytes: size of its file, in units of 2^20 bytes.
      sentences: per request.
      minutes: to segment a clip.
    """

    seconds: float = 20.0
    megabytes: float = 50.0
    sentences: int = 7  # the number of colors
    minutes: float = 10.0

    @property
    def bytes(self) -> int:
        """The size of the largest file."""
        return int(self.megabytes * 2**20)


def check_clip(upload: Path, limits: Limits) -> str:
    """Checks an upload by its packets, without decoding frames or trusting the header's length.

    Returns:
      Its name, frame size, number of frames and length, for display.

    Raises:
      UserError: it is not a readable video, or exceeds a limit.
    """
    name, megabytes = upload.name, upload.stat().st_size / 2**20
    if megabytes > limits.megabytes:
        raise UserError(f"{name} has {megabytes:.1f} MB. The limit is {limits.megabytes:g} MB.")
    max_frames = limits.seconds * MAX_FRAME_RATE
    packets, frames, times = 0, 0, []
    try:
        with open_container(upload) as container:
            stream = choose_stream(container, upload)
            width, height = stream.codec_context.width, stream.codec_context.height
            check_frame_size(width, height, name)
            rate = float(stream.average_rate or stream.guessed_rate or 30)
            for packet in container.demux(stream):
                packets += 1  # also those without a frame, which some AVI files have
                frames += packet.size > 0
                times += [] if packet.pts is None else [float(packet.pts * packet.time_base)]
                if (
                    frames > max_frames
                    or packets > 10 * max_frames
                    or (times and times[-1] - times[0] > limits.seconds)
                ):
                    break
    except av.FFmpegError as error:
        raise UserError(
            f"{name} is not a video that this page can read, or the file is truncated ({error.strerror}). "
            "Try mp4, mov, webm, mkv, avi or gif."
        ) from error
    except UserError as error:
        raise UserError(str(error).replace(str(upload), name)) from error
    seconds = max(times) - min(times) + 1 / rate if times else frames / rate
    too_long = seconds > limits.seconds + 1 / rate or packets > 10 * max_frames
    check_frame_count(math.inf if too_long else frames, name, limits)
    if not frames:
        raise UserError(f"{name} contains no frames. Is the file truncated?")
    return f"{name}: {width} x {height} pixels, {frames} frames, {seconds:.1f} s"


def check_frame_count(frames: float, name: str, limits: Limits) -> None:
    """Raises UserError if there are too many frames; `name` says whose they are."""
    max_frames = limits.seconds * MAX_FRAME_RATE
    if frames > max_frames:
        raise UserError(
            f"{name} is too long. The limits are {limits.seconds:g} seconds and {max_frames:g} frames: "
            "please cut out a part of it."
        )


def check_frame_size(width: int, height: int, name: str) -> None:
    """Raises UserError if frames have no pixel, too many, or are too narrow; `name` says whose they are."""
    if not 0 < width * height <= MAX_PIXELS:
        raise UserError(
            f"{name} has frames of {width} x {height} pixels. The limit is {MAX_PIXELS / 1e6:.1f} million pixels."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"{name} has frames of {width} x {height} pixels, which are too narrow to be shown.")


def preview_clip(upload: Path, limits: Limits) -> tuple[str, np.ndarray]:
    """Checks an upload and decodes its first frame.

    Returns:
      The description from `check_clip`, and the first frame, (h, w, 3) uint8 RGB.

    Raises:
      UserError: it is not a readable video, or exceeds a limit.
    """
    description = check_clip(upload, limits)
    try:
        _, frame = next(iter(open_clip(upload, max_pixels=MAX_PIXELS)))
    except UserError as error:
        raise UserError(str(error).replace(str(upload), upload.name)) from error
    check_frame_size(frame.shape[1], frame.shape[0], upload.name)  # the header may say less
    return description, frame


def read_sentences(text: str, limits: Limits) -> tuple[str, ...]:
    """Splits the text field into sentences, one per line; empty lines are dropped.

    Raises:
      UserError: there is no sentence, there are too many, or one is too long.
    """
    sentences = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
    if not sentences:
        raise UserError("Type a sentence that describes an object.")
    if len(sentences) > limits.sentences:
        raise UserError(f"There are {len(sentences)} sentences. The limit is {limits.sentences}.")
    for number, sentence in enumerate(sentences, start=1):
        if len(sentence) > MAX_CHARACTERS:
            raise UserError(f"Sentence {number} has {len(sentence)} characters. The limit is {MAX_CHARACTERS}.")
    return sentences


def unknown_words(segmenter: Segmenter, sentences: tuple[str, ...]) -> list[str]:
    """The words that the model does not know, which it reads as blanks.

    Raises:
      UserError: the model knows no word of a sentence.
    """
    unknown = segmenter.unknown_words(sentences)
    for sentence in sentences:
        if not segmenter.knows(sentence):
            message = f"The model knows no word of “{sentence}”."
            if vocabulary := [word for word in segmenter.trained_words if word.isalpha()]:
                sample = vocabulary[:: max(1, len(vocabulary) // 12)][:12]
                message += f" It was trained with words like {', '.join(sample)}."
            raise UserError(message)
    return unknown
