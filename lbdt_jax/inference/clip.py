"""A clip: what is known of it before its frames are read, the frames, and what is known after them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from input_pipeline.colors import upright_rgb
from input_pipeline.errors import UserError
from input_pipeline.pictures import MAX_PIXELS, Picture, read_picture
from lbdt_jax.inference.video_decoder import VideoDecoder

LISTED = 10  # names, at most, in a warning


def print_warning(message: str) -> None:
    """Prints a message to stderr, above a progress bar, without control characters of file names in it."""
    tqdm.write("".join(letter if letter.isprintable() else "?" for letter in message), file=sys.stderr)


@dataclasses.dataclass
class Reading:
    """What is known once the frames of a clip have been read.

    Attributes:
      origin: of a video file: the time stamp, in seconds, that became time 0; None if there is none.
      start: time of the first frame, whole or not, in units of the clip's time base; nearly always 0.
      end: when the last frame ends, in units of the clip's time base; None unless all frames have been read.
      warnings: those that were given while the frames were read.
    """

    origin: Fraction | None = None
    start: int = 0
    end: int | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video file, a moving picture, or a folder of pictures in the order of their names, where 10 comes after 9.

    Attributes:
      path: the file or folder.
      rate: frames per second, for a file their average.
      time_base: in seconds; the times of all frames are multiples of it.
      frames: number of frames according to the file's header; 0 if that is unknown.
      seconds: the duration according to the file's header; None if that is unknown.
      pixel_aspect: width of a displayed pixel divided by its height; 1 for nearly all clips.
      stream: index of a file's video stream; None for pictures.
      pictures: those of a folder, or the moving one, as far as their headers can be read; None at a damaged one.
      max_pixels: of a frame of a video file. Its size may change, and larger frames are left out as damaged.
      warn: is called with each remark on what was read otherwise than it lies in the file, or was left out.
      reading: is filled as the frames are read.
    """

    path: Path
    rate: Fraction
    time_base: Fraction
    frames: int
    seconds: float | None
    pixel_aspect: Fraction = Fraction(1)
    stream: int | None = None
    pictures: tuple[Picture | None, ...] = ()
    max_pixels: int = MAX_PIXELS
    warn: Callable[[str], None] = print_warning
    reading: Reading = dataclasses.field(default_factory=Reading, compare=False)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (time in units of time_base, (h, w, 3) uint8 RGB) of every whole frame, upright, in display order.

        Times increase, and start at 0 unless the file itself shows nothing at first, for less than a second. All frames
        have the size of the first, to which others are scaled.

        Raises:
          UserError: there is no whole frame, or the file can't be opened.
        """
        frames = self._read_pictures() if self.stream is None else self._decode(self.stream)
        shape = None
        for time, frame in frames:
            shape = shape or frame.shape
            if frame.shape != shape:
                size = shape[1], shape[0]
                self._warn(
                    f"{self.path} changes its size: frames of {frame.shape[1]} x {frame.shape[0]} pixels are scaled to "
                    f"the {size[0]} x {size[1]} of the first."
                )
                frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
            yield time, frame
        if shape is None:
            raise UserError(f"{self.path} contains no readable frame. Is the file truncated?")

    def _warn(self, message: str) -> None:
        """Gives a warning once, however often the clip is read."""
        if message not in self.reading.warnings:
            self.reading.warnings.append(message)
            self.warn(message)

    def _read_pictures(self) -> Iterator[tuple[int, np.ndarray]]:
        """The frames of a moving picture at their times, or those of all pictures of a folder at its rate."""
        is_folder, time, damaged = self.path.is_dir(), 0, 0
        for picture in self.pictures:
            read = 0
            try:
                for seconds, frame in read_picture(picture.path) if picture else ():
                    yield time, frame
                    time, read = time + (1 if is_folder else max(1, round(seconds / self.time_base))), read + 1
            except UserError as error:
                damaged += 1
                if not is_folder:
                    self._warn(f"{self.path} is damaged: {read} of {self.frames} frames can be read ({error}).")
                elif damaged <= LISTED:
                    self._warn(f"Left out, but its time is kept: {error}")
            if is_folder:  # the time of a damaged one
                time += (picture.frames if picture else 1) - read
        if damaged > LISTED:
            self._warn(f"{self.path}: left out {damaged} pictures in all.")
        self.reading.end = time

    def _decode(self, index: int) -> Iterator[tuple[int, np.ndarray]]:
        """The whole frames of a video file."""
        decoder = VideoDecoder(self.path, index, self.rate, self.time_base, self.max_pixels)
        try:
            for time, frame in decoder:
                self.reading.origin, self.reading.start = decoder.origin, decoder.start
                yield time, upright_rgb(frame)
            self.reading.end = decoder.end
        finally:
            for remark in decoder.remarks(self.frames):
                self._warn(remark)
