"""What the page takes: which uploads and which sentences, and what it says of others.

Uploads are untrusted: their names are shown and never become paths, only formats that hold all of their content are
opened, and what a header promises is counted.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import av
import numpy as np

from input_pipeline.errors import UserError
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import open_clip

#: FFmpeg's names of formats whose files hold everything. Playlists would have it open other files, or the network.
FORMATS = ("mp4", "matroska", "avi", "gif", "mpegts", "mpeg", "ogg", "flv", "asf")
MOST_PIXELS = 4096 * 2304  # of a frame: several are held in memory
MOST_FRAMES_PER_SECOND = 60  # of --max_seconds: a clip of high speed may hold that many frames, and no more
MOST_CHARACTERS = 200  # of a sentence


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a visitor may ask; the flags of the command.

    Attributes:
      seconds: length of a clip.
      megabytes: size of its file, of 2^20 bytes.
      sentences: asked together.
    """

    seconds: float = 20.0
    megabytes: float = 50.0
    sentences: int = 7  # as many as there are colors


def check_clip(upload: Path, limits: Limits) -> str:
    """Reads an upload's packets, not its frames, which takes a moment; and never trusts what its header promises.

    Returns:
      Its name, size, length and number of frames, for people.

    Raises:
      UserError: it is no video that can be read, or exceeds a limit.
    """
    name, megabytes = upload.name, upload.stat().st_size / 2**20
    if megabytes > limits.megabytes:
        raise UserError(f"{name} has {megabytes:.1f} MB. This page takes clips of up to {limits.megabytes:g} MB.")
    frames, times = 0, []
    try:
        with av.open(str(upload), options={"format_whitelist": ",".join(FORMATS)}) as container:
            if not container.streams.video:
                raise UserError(f"{name} has no pictures, only {', '.join(s.type for s in container.streams)}.")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= MOST_PIXELS:
                raise UserError(
                    f"{name} has frames of {width} x {height} pixels. This page takes up to {MOST_PIXELS / 1e6:.1f} "
                    "million pixels."
                )
            rate = float(stream.average_rate or stream.guessed_rate or 30)
            for packet in container.demux(stream):
                frames += packet.size > 0
                times += [] if packet.pts is None else [float(packet.pts * packet.time_base)]
                if frames > limits.seconds * MOST_FRAMES_PER_SECOND or (
                    times and times[-1] - times[0] > limits.seconds
                ):
                    break
    except av.FFmpegError as error:
        raise UserError(
            f"{name} is no video that this page can read, or it is cut short ({error.strerror}). "
            "Try mp4, mov, webm, mkv, avi or gif."
        ) from error
    seconds = max(times) - min(times) + 1 / rate if times else frames / rate
    if seconds > limits.seconds + 1 / rate or frames > limits.seconds * MOST_FRAMES_PER_SECOND:
        raise UserError(
            f"{name} is too long: this page takes clips of up to {limits.seconds:g} seconds, "
            f"and {limits.seconds * MOST_FRAMES_PER_SECOND:g} frames. Cut a part out of it."
        )
    if not frames:
        raise UserError(f"{name} holds no frame. Is it cut short?")
    return f"{name}: {width} x {height} pixels, {frames} frames, {seconds:.1f} s"


def look(upload: Path, limits: Limits) -> tuple[str, np.ndarray]:
    """What `check_clip` says of an upload, and its first frame, (h, w, 3) uint8 RGB. Raises UserError."""
    described = check_clip(upload, limits)
    try:
        return described, next(iter(open_clip(upload)))[1]
    except UserError as error:
        raise UserError(str(error).replace(str(upload), upload.name)) from error


def read_sentences(text: str, limits: Limits) -> tuple[str, ...]:
    """The sentences, one a line; lines that are empty are left out.

    Raises:
      UserError: there is none, or there are too many, or one is too long.
    """
    sentences = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
    if not sentences:
        raise UserError("Type a sentence that says what to look for.")
    if len(sentences) > limits.sentences:
        raise UserError(f"These are {len(sentences)} sentences. This page takes {limits.sentences} at once.")
    for number, sentence in enumerate(sentences, start=1):
        if len(sentence) > MOST_CHARACTERS:
            raise UserError(f"Sentence {number} has {len(sentence)} letters. This page takes {MOST_CHARACTERS}.")
    return sentences


def unknown_words(segmenter: Segmenter, sentences: tuple[str, ...]) -> list[str]:
    """The words that the model reads as blanks.

    Raises:
      UserError: it knows no word of a sentence.
    """
    unknown = segmenter.unknown_words(sentences)
    for sentence in sentences:
        if not segmenter.knows(sentence):
            message = f"The model knows no word of “{sentence}”."
            if known := [word for word in segmenter.trained_words if word.isalpha()]:
                some = ", ".join(known[:: max(1, len(known) // 12)][:12])
                message += f" Among those that it was trained with are {some}."
            raise UserError(message)
    return unknown
