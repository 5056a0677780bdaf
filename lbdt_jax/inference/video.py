"""Reads clips frame by frame, from any file that FFmpeg decodes or from a folder of images, and writes H.264."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageOps

from input_pipeline.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclasses.dataclass(frozen=True)
class Clip:
    """A video file, or a folder of images in the order of their names, where 10 comes after 9.

    Attributes:
      path: the file or folder.
      rate: frames per second, for a file their average.
      time_base: in seconds; the times of all frames are multiples of it.
      frames: number of frames according to the file's header; 0 if that is unknown.
      seconds: the duration according to the file's header; None if that is unknown.
      pixel_aspect: width of a displayed pixel divided by its height; 1 for nearly all clips.
    """

    path: Path
    rate: Fraction
    time_base: Fraction
    frames: int
    seconds: float | None
    pixel_aspect: Fraction = Fraction(1)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (time in units of time_base, (h, w, 3) uint8 RGB) of every frame, upright, in display order.

        Raises:
          UserError: there is no frame, or a frame can't be decoded or has another size; the frames before it have been
            yielded.
        """
        frames = _read_images(self.path) if self.path.is_dir() else _decode_video(self.path)
        count, shape = 0, None
        for time, frame in frames:
            shape = shape or frame.shape
            if frame.shape != shape:
                raise UserError(
                    f"{self.path}: frame {count} is {frame.shape[1]} x {frame.shape[0]} pixels, those before it "
                    f"{shape[1]} x {shape[0]}."
                )
            yield time, frame
            count += 1
        if not count:
            raise UserError(f"{self.path} contains no readable frame. Is the file truncated?")


def open_clip(path: str | Path, rate: float = 30.0) -> Clip:
    """Reads the header of a video file, or lists a folder of images.

    Args:
      path: of the file or folder.
      rate: frames per second of a folder; a file has its own.

    Raises:
      UserError: there is no such file or folder, or it is not a video.
    """
    path, default_rate = Path(path), Fraction(rate).limit_denominator(1001)
    if path.is_dir():
        frames = len(_image_paths(path))
        if not frames:
            raise UserError(f"{path} contains no images ({', '.join(IMAGE_SUFFIXES)}).")
        return Clip(path, default_rate, 1 / default_rate, frames, frames / rate)
    if not path.is_file():
        raise UserError(f"There is no video {path}.")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                streams = ", ".join(stream.type for stream in container.streams)
                raise UserError(f"{path} has no video stream, only {streams or 'no stream at all'}.")
            stream = container.streams.video[0]
            file_rate = stream.average_rate or stream.guessed_rate or default_rate
            seconds = container.duration / av.time_base if container.duration else None
            aspect = _fraction(stream.sample_aspect_ratio or 1)
            first = next(container.decode(stream), None)
            if first and round(first.rotation / 90) % 2:  # stored on its side, and so are its pixels
                aspect = 1 / aspect
            return Clip(path, _fraction(file_rate), _time_base(stream), stream.frames, seconds, aspect)
    except av.FFmpegError as error:
        raise UserError(f"{path} is not a video, or is truncated: {error.strerror}.") from error


def _time_base(stream: av.VideoStream) -> Fraction:
    """The unit, in seconds, of the times of a stream's frames."""
    assert stream.time_base is not None  # every stream of a container that is read has one
    return _fraction(stream.time_base)


def _fraction(value: Any) -> Fraction:
    """A Fraction from an integer, a Fraction, or the rational number type of PyAV 19."""
    return Fraction(value.numerator, value.denominator)


def _decode_video(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The frames of a file with their times, which always increase."""
    count, last = 0, None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                # Frames without a time, which some containers have, follow at the average rate.
                step = max(1, round(1 / (stream.average_rate or Fraction(30)) / _time_base(stream)))
                time = frame.pts if frame.pts is not None else 0 if last is None else last + step
                if last is not None and time <= last:
                    time = last + 1
                # Phones held upright set this flag. Like rot90, it counts counterclockwise.
                yield time, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))
                count, last = count + 1, time
    except av.FFmpegError as error:
        raise UserError(
            f"{path}: frame {count} can't be decoded ({error.strerror}). Is the file truncated? "
            "The frames before it can be used: choose an earlier --end."
        ) from error


def _image_paths(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name, with runs of digits as numbers."""

    def sort_key(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]

    visible = (path for path in folder.iterdir() if not path.name.startswith("."))
    return sorted((path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES), key=sort_key)


def _read_images(folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The images of a folder, numbered from 0."""
    for index, path in enumerate(_image_paths(folder)):
        try:
            with Image.open(path) as image:
                yield index, np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} can't be read: {error}") from error


class ClipWriter:
    """Writes frames as H.264 to an mp4 file, which can be played up to its last second even if the writer is killed.

    Frames keep their times (to a millisecond), their size and their pixel aspect. Colors are ITU-R BT.709, and flagged
    as such. If height and width are even, colors are subsampled (4:2:0), as every player expects; odd sizes need full
    chroma (4:4:4), which some players refuse.

    Args:
      path: of the new file.
      size: (h, w) in pixels.
      clip: has the rate, time base and pixel aspect.

    Raises:
      UserError: H.264 can't store frames of that size.
      OSError: the file can't be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], clip: Clip) -> None:
        # A fragment is closed every second. B-frames ("bf"), which wait for later frames, would shift all times.
        fragmented = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
        self._container = av.open(str(path), "w", container_options=fragmented)
        options = {"crf": "18", "preset": "superfast", "bf": "0"}  # same quality as "veryfast" in 2/3 of its time
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
            raise UserError(f"{path}: H.264 can't store frames of {size[1]} x {size[0]} pixels.") from error

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()

    def write(self, time: int, image: np.ndarray) -> None:
        """Adds a frame.

        Args:
          time: in units of the clip's time_base, later than the frame before.
          image: (h, w, 3) uint8 RGB.
        """
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = time, self._time_base
        second = int(time * self._time_base)
        if second != self._second:
            frame.pict_type, self._second = PictureType.I, second
        self._container.mux(self._stream.encode(frame))
