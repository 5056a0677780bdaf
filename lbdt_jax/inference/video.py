"""Clips in and out, one frame at a time: whatever FFmpeg reads, or a folder of pictures; H.264 out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from input_pipeline.errors import UserError

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video file, or a folder of pictures in the order of their names, numbers in them counted as numbers.

    Attributes:
      path: the file or folder.
      rate: frames per second, for a file their average.
      time_base: seconds; frames' times are multiples of it.
      frames: how many the file says it has; 0 where it does not say.
      seconds: how long it says it lasts; None where it does not say.
      pixel_aspect: width of a pixel, as shown, by its height; 1 for nearly all.
    """

    path: Path
    rate: Fraction
    time_base: Fraction
    frames: int
    seconds: float | None
    pixel_aspect: Fraction = Fraction(1)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """(time in units of time_base, (h, w, 3) uint8 RGB) of every frame, upright, in the order they are shown.

        Raises:
          UserError: there is no frame, or a frame is broken; it is named. Those before it were given out.
        """
        pictures = _pictures(self.path) if self.path.is_dir() else _frames(self.path)
        count, size = 0, None
        for time, picture in pictures:
            size = size or picture.shape
            if picture.shape != size:
                raise UserError(
                    f"{self.path}: frame {count} is {picture.shape[1]} x {picture.shape[0]} pixels, those before it "
                    f"{size[1]} x {size[0]}."
                )
            yield time, picture
            count += 1
        if not count:
            raise UserError(f"{self.path} holds no frame that can be read. Is it cut short?")


def open_clip(path: str | Path, rate: float = 30.0) -> Clip:
    """Looks at a video file or a folder of pictures.

    Args:
      path: of the file or folder.
      rate: frames per second of a folder; a file has its own.

    Raises:
      UserError: there is nothing of that name, or it is no video.
    """
    path = Path(path)
    if path.is_dir():
        frames = len(_names(path))
        if not frames:
            raise UserError(f"{path} holds no picture ({', '.join(PICTURES)}).")
        exact = Fraction(rate).limit_denominator(1001)
        return Clip(path, exact, 1 / exact, frames, frames / rate)
    if not path.is_file():
        raise UserError(f"There is no video {path}.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(
                    f"{path} has no pictures, only {', '.join(s.type for s in container.streams) or 'nothing'}."
                )
            stream = container.streams.video[0]
            rate = stream.average_rate or stream.guessed_rate or Fraction(rate).limit_denominator(1001)
            seconds = container.duration / av.time_base if container.duration else None
            aspect = Fraction(stream.sample_aspect_ratio or 1)
            first = next(container.decode(stream), None)
            if first and round(first.rotation / 90) % 2:  # lies on its side, as do its pixels
                aspect = 1 / aspect
            return Clip(path, Fraction(rate), Fraction(stream.time_base), stream.frames, seconds, aspect)
    except av.FFmpegError as error:
        raise UserError(f"{path} is no video, or cut short: {error.strerror}.") from error


def _frames(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    count, last = 0, None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                # Some containers give no time to some frames; they follow at the average rate.
                step = max(1, round(1 / (stream.average_rate or 30) / stream.time_base))
                time = frame.pts if frame.pts is not None else 0 if last is None else last + step
                if last is not None and time <= last:
                    time = last + 1
                # The flag of a telephone held upright; rot90 and the flag both count against the clock.
                yield time, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
                count, last = count + 1, time
    except av.FFmpegError as error:
        raise UserError(
            f"{path}: frame {count} can't be read ({error.strerror}). Is the file cut short? "
            "What comes before it can be had: end earlier."
        ) from error


def _names(folder: Path) -> list[Path]:
    def by_number(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]

    names = (path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith("."))
    return sorted(names, key=by_number)


def _pictures(folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    for time, path in enumerate(_names(folder)):
        try:
            with Image.open(path) as picture:
                yield time, np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} can't be read: {error}") from error


class ClipWriter:
    """Writes frames as H.264 into an mp4 that is valid up to its last second even if the writing is killed.

    Frames keep their times, to a millisecond, their size and the aspect of their pixels. Colors are those of high
    definition (ITU-R BT.709), and said to be so. Where both sides are even they are stored at half resolution, as every
    player expects; H.264 has odd sizes only with full colors, which some players refuse.

    Args:
      path: of the new file.
      size: (h, w) in pixels.
      clip: has the rate, the unit of time and the aspect of a pixel.

    Raises:
      UserError: H.264 has no pictures of that size.
      OSError: the file can't be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], clip: Clip) -> None:
        # Every second is closed as it is written. Frames that wait for later ones ("bf") would shift all times.
        movable = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(path), "w", container_options=movable)
        options = {"crf": "18", "preset": "superfast", "bf": "0"}  # as good as "veryfast", in 2/3 of its time
        self._stream = self._container.add_stream("libx264", rate=clip.rate, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = self._time_base = clip.time_base
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.sample_aspect_ratio = clip.pixel_aspect
        self._second = -1
        try:
            context.open()
        except av.FFmpegError as error:
            self._container.close()
            raise UserError(f"{path}: H.264 can't hold pictures of {size[1]} x {size[0]} pixels.") from error

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def write(self, time: int, picture: np.ndarray) -> None:
        """Adds a frame (h, w, 3) uint8 RGB; times, in units of the clip's time_base, rise."""
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = time, self._time_base
        second = int(time * self._time_base)
        if second != self._second:
            frame.pict_type, self._second = PictureType.I, second
        self._container.mux(self._stream.encode(frame))
