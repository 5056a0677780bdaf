"""Opens clips (video files, moving pictures or folders of pictures), and writes H.264."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace

from input_pipeline.colors import describe_hdr, display_matrix, is_on_side
from input_pipeline.errors import UserError, first_few
from input_pipeline.files import check_regular_file
from input_pipeline.pictures import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    Picture,
    is_picture,
    list_pictures,
    open_picture,
    read_picture,
)
from lbdt_jax.inference.clip import LISTED, Clip, print_warning
from lbdt_jax.inference.container import choose_stream, fraction, frame_count, has_discontinuities, open_container
from lbdt_jax.inference.sound import Sound

__all__ = ["Clip", "ClipWriter", "open_clip"]

_MAX_PIXEL_ASPECT = 8  # and 1/8; that of real video is between 1/2 and 2
_SLOWEST, _FASTEST = Fraction(1, 3600), 100_000  # frames per second
_FINEST = Fraction(1, 10**9)  # time base that mp4 files take


def open_clip(
    path: str | Path,
    rate: float = 30.0,
    warn: Callable[[str], None] = print_warning,
    max_pixels: int = MAX_PIXELS,
) -> Clip:
    """Reads the header of a video file or of a moving picture, or those of all pictures in a folder.

    Args:
      path: of the file or folder.
      rate: frames per second of a folder; a file has its own.
      warn, max_pixels: see `Clip`.

    Raises:
      UserError: there is no such file or folder, or it is not a video.
    """
    path, default_rate = Path(path), Fraction(rate).limit_denominator(1001)
    if path.is_dir():
        return _open_folder(path, default_rate, warn)
    if not path.exists():
        advice = " Addresses are not fetched; download it first." if ":/" in str(path) else ""
        raise UserError(f"There is no video {path}.{advice}")
    check_regular_file(path)
    return _open_picture(path, warn) if is_picture(path) else _open_video(path, default_rate, warn, max_pixels)


def _open_folder(path: Path, rate: Fraction, warn: Callable[[str], None]) -> Clip:
    files, others = list_pictures(path)
    if not files:
        raise UserError(f"{path} contains no images ({', '.join(IMAGE_SUFFIXES)}).")
    if others:
        names = first_few([other.name for other in others], LISTED)
        warn(f"{path}: left out what is no picture of a kind that is read: {names}.")
    pictures: list[Picture | None] = []
    first: Picture | None = None
    damaged, frames = [], 0
    for file in files:
        try:
            picture = open_picture(file)
        except (UserError, OSError) as error:
            damaged.append(str(error))
            pictures.append(None)
            continue
        first = first or picture
        if picture.size != first.size:
            (height, width), (first_height, first_width) = picture.size, first.size
            raise UserError(
                f"{path}: frame {frames} is {width} x {height} pixels, those before it {first_width} x {first_height} "
                f"({picture.path.name}, {first.path.name}). Scale all to one size, or remove what is no frame."
            )
        pictures.append(picture)
        frames += picture.frames
    for message in damaged[:LISTED]:
        warn(f"Left out, but its time is kept: {message}")
    if damaged[LISTED:]:
        warn(f"{path}: left out {len(damaged)} pictures in all.")
    return Clip(path, rate, 1 / rate, frames, frames / float(rate), pictures=tuple(pictures), warn=warn)


def _open_picture(path: Path, warn: Callable[[str], None]) -> Clip:
    picture = open_picture(path)
    durations = [seconds for seconds, _ in itertools.islice(read_picture(path), 1)]
    seconds = picture.frames * durations[0]
    rate = Fraction(1 / durations[0]).limit_denominator(1001)
    return Clip(path, rate, Fraction(1, 1000), picture.frames, seconds, pictures=(picture,), warn=warn)


def _open_video(path: Path, default_rate: Fraction, warn: Callable[[str], None], max_pixels: int) -> Clip:
    with open_container(path) as container:
        stream = choose_stream(container, path)
        if len(container.streams.video) > 1:
            size = f"{stream.codec_context.width} x {stream.codec_context.height}"
            warn(
                f"{path} has {len(container.streams.video)} video streams and pictures; number {stream.index}, of "
                f"{size} pixels, is used."
            )
        rates = (fraction(value) for value in (stream.average_rate, stream.guessed_rate) if value)
        rate = next((rate for rate in rates if _SLOWEST <= rate <= _FASTEST), default_rate)
        seconds = container.duration / av.time_base if container.duration else None
        if seconds and stream.start_time and not has_discontinuities(container):  # then it counts from time stamp 0
            seconds = max(0.0, seconds - float(stream.start_time * stream.time_base)) or None
        aspect = fraction(stream.sample_aspect_ratio or 1)
        if not 1 / _MAX_PIXEL_ASPECT <= aspect <= _MAX_PIXEL_ASPECT:
            warn(
                f"{path}: its pixels are said to be {float(aspect):g} times as wide as high; they are taken as square."
            )
            aspect = Fraction(1)
        stream.codec_context.options = {"max_pixels": str(max_pixels)}
        try:
            first = next(container.decode(stream), None)
        except av.FFmpegError:
            first = None  # damaged; there may be others
        if first and is_on_side(display_matrix(first)):
            aspect = 1 / aspect
        if first and (transfer := describe_hdr(first)):
            warn(f"{path} is HDR video ({transfer}). Its frames are tone-mapped to SDR (ITU-R BT.2390).")
        frames = frame_count(container, stream)
        time_base = fraction(stream.time_base)
        return Clip(path, rate, time_base, frames, seconds, aspect, stream.index, max_pixels=max_pixels, warn=warn)


class ClipWriter:
    """Writes frames as H.264 to an mp4 file, which can be played up to its last second even if the writer is killed.

    Frames keep their times (to a millisecond), their size and their pixel aspect. Colors are ITU-R BT.709, and flagged
    as such. If height and width are even, colors are subsampled (4:2:0), as every player expects; odd sizes need full
    chroma (4:4:4), which some players refuse.

    Args:
      path: of the new file.
      size: (h, w) in pixels.
      clip: has the rate, time base and pixel aspect. If all its frames have been read, the last one is shown until its
        end.
      sound: whether to keep the clip's sound, which is right if all of its frames are written.

    Raises:
      UserError: H.264 can't store frames of that size.
      OSError: the file can't be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], clip: Clip, sound: bool = False) -> None:
        # A fragment is closed every second. B-frames ("bf"), which wait for later frames, would shift all times.
        fragmented = {"movflags": "frag_keyframe+delay_moov+default_base_moof", "flush_packets": "1"}
        self._path = path
        # A path with a colon is no protocol.
        self._container = av.open(f"file:{os.path.abspath(path)}", "w", container_options=fragmented)
        options = {"crf": "18", "preset": "superfast", "bf": "0"}  # same quality as "veryfast" in 2/3 of its time
        self._stream = self._container.add_stream("libx264", rate=clip.rate, options=options)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        context = self._stream.codec_context
        context.time_base = self._stream.time_base = self._time_base = max(clip.time_base, _FINEST)
        context.colorspace = context.color_primaries = context.color_trc = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.sample_aspect_ratio = clip.pixel_aspect
        self._clip, self._second, self._last = clip, -1, 0
        self._keep_sound = sound and clip.stream is not None
        self._sound: Sound | None = None
        try:
            context.open()
        except av.FFmpegError as error:
            self._container.close()
            raise UserError(f"{path}: H.264 can't store frames of {size[1]} x {size[0]} pixels.") from error

    def __enter__(self) -> ClipWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            packets = self._stream.encode(None)
            end = self._clip.reading.end
            if packets and end is not None and end > self._last:
                packets[-1].duration = round((end - self._last) * self._clip.time_base / self._time_base)
            self._mux(packets)
            if self._sound:
                self._sound.close(float((self._last + 1 if end is None else end) * self._clip.time_base))
        finally:
            self._container.close()

    def write(self, time: int, image: np.ndarray) -> None:
        """Adds a frame.

        Args:
          time: in units of the clip's time_base, later than the frame before.
          image: (h, w, 3) uint8 RGB.
        """
        if self._keep_sound and self._sound is None and self._clip.reading.origin is not None:
            self._sound = Sound(self._clip.path, self._clip.reading.origin, self._container)
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format=self._stream.pix_fmt, dst_colorspace=Colorspace.ITU709)
        frame.pts, frame.time_base = round(time * self._clip.time_base / self._time_base), self._time_base
        second = int(time * self._clip.time_base)
        if second != self._second:
            frame.pict_type, self._second = PictureType.I, second
        self._mux(self._stream.encode(frame))
        self._last = time
        if self._sound:
            self._sound.write_until(float(time * self._clip.time_base))

    def _mux(self, packets: list[av.Packet]) -> None:
        try:
            self._container.mux(packets)
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # such as a full disk
                raise
            raise UserError(f"{self._path} can't be written: {error.strerror}.") from error
