"""Video files, read by FFmpeg: which formats and which stream, and how reading goes on after damaged parts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition

from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file, open_regular_file
from input_pipeline.pictures import MAX_PIXELS

#: FFmpeg's formats that consist of the file itself. Playlists and lists of files would make it open other files.
FORMATS = (
    *("mov", "mp4", "matroska", "webm", "avi", "gif", "apng", "jpegxl_anim", "mpegts", "mpegtsraw", "mpeg", "ogg"),
    *("mpegvideo", "m4v", "mjpeg", "mjpeg_2000", "h261", "h263", "h264", "hevc", "vvc", "evc", "av1", "obu", "ivf"),
    *("vc1", "vc1test", "cavsvideo", "avs2", "avs3", "dirac", "dnxhd", "flv", "live_flv", "kux", "asf", "asf_o", "rm"),
    *("mxf", "gxf", "nut", "nuv", "dv", "wtv", "ty", "dhav", "yuv4mpegpipe", "swf", "flic", "smjpeg", "lmlm4", "pva"),
)
_LONGEST_FRAME = 3600  # seconds; time-lapse videos may be slow
_PICTURE_CODECS = ("mjpeg", "png", "bmp", "webp", "tiff", "gif")
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails
# Before version 19, PyAV fails at metadata that are not UTF-8.
_METADATA_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
_MAX_FAILURES = 100  # to read the next packet, one after the other


def open_container(path: Path) -> InputContainer:
    """Opens a video file, and nothing that it may name.

    Raises:
      UserError: it is not a regular file, or not a video.
      OSError: there is no such file, or it can't be read.
    """
    check_regular_file(path)
    whitelists = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
    url = f"file:{os.path.abspath(path)}"
    try:
        container: InputContainer = av.open(url, container_options=whitelists, **_METADATA_OPTIONS)
        return container
    except av.FFmpegError as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(_not_a_video(path, str(error.strerror))) from error


def _not_a_video(path: Path, reason: str) -> str:
    with open_regular_file(path) as file:
        head = file.read(4096)
    if not head:
        return f"{path} is not a video, but an empty file."
    if head.isascii() and b"\0" not in head:
        return f"{path} is not a video, but a text file. Playlists and lists of files are not followed: name the video."
    return f"{path} is not a video of a format that is read, or is truncated: {reason}."


def choose_stream(container: InputContainer, path: Path) -> Any:
    """The video stream of a file that players show, and no cover picture: the default one, or that of most pixels.

    Raises:
      UserError: there is none, or its frames are too large.
    """
    streams = [stream for stream in container.streams.video if not stream.disposition & _COVERS]
    if streams and not any(stream.codec_context for stream in streams):
        raise UserError(f"{path} has video of a codec that FFmpeg does not know.")
    streams = [stream for stream in streams if stream.codec_context]
    if not streams:
        found = ["a cover picture" if stream.type == "video" else stream.type for stream in container.streams]
        raise UserError(f"{path} has no video stream, only {', '.join(found) or 'no stream at all'}.")

    def rank(stream: Any) -> tuple[bool, bool, bool, bool, int]:
        codec = stream.codec_context
        pixels = codec.width * codec.height
        is_default = bool(stream.disposition & Disposition.default)
        return pixels > 0, stream.frames != 1, codec.name not in _PICTURE_CODECS, is_default, pixels

    stream: Any = max(streams, key=rank)  # the first of equals
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{path} has frames of {width} x {height} pixels. The limit is {MAX_PIXELS / 1e6:.0f} million pixels."
        )
    if stream.time_base > _LONGEST_FRAME:
        raise UserError(f"{path} is damaged: its header says that a frame lasts {float(stream.time_base):.0f} seconds.")
    return stream


def frame_count(container: InputContainer, stream: Any) -> int:
    """How many frames a stream has according to the file's header; 0 if that is unknown."""
    # mp4 counts the frames that an edit list has cut off; FFmpeg leaves them out of its index, or marks them.
    if stream.frames and container.format.name.startswith("mov") and hasattr(stream, "index_entries"):
        return sum(not entry.is_discard for entry in stream.index_entries)
    return int(stream.frames)


def header_end(container: InputContainer, stream: Any) -> float | None:
    """When a stream ends, as a time stamp in seconds, according to the file's header; None if that is unknown."""
    for name, value in stream.metadata.items():
        # Matroska's, of one stream: "00:01:02.500000000".
        if name.upper().startswith("DURATION") and (match := re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", value)):
            hours, minutes, seconds = map(float, match.groups())
            return 3600 * hours + 60 * minutes + seconds
    if container.duration and len(container.streams) == 1 and not has_discontinuities(container):
        return float(container.duration / av.time_base)
    return None


def has_discontinuities(container: InputContainer) -> bool:
    """Whether time stamps may jump in files of this format, as in MPEG transport streams."""
    return bool(container.format.flags & 0x0200)  # AVFMT_TS_DISCONT


def fraction(value: Any) -> Fraction:
    """A Fraction from an integer, a Fraction, or the rational number type of PyAV 19."""
    return Fraction(value.numerator, value.denominator)


def read_packets(container: InputContainer, stream: Any) -> Iterator[Any]:
    """Yields the packets of a stream, and None where the file is damaged between them."""
    failures = 0
    while failures < _MAX_FAILURES:
        try:
            for packet in container.demux(stream):
                failures = 0
                yield packet
            return
        except av.FFmpegError:
            if not failures:
                yield None
            failures += 1
