"""Still and moving pictures, and folders of them, read by Pillow."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from input_pipeline.errors import UserError
from input_pipeline.files import MAX_IMAGE_BYTES, open_regular_file
from input_pipeline.images import displayed_rgb

MAX_PIXELS = 2**26  # of a frame; twice the largest there are, of 8192 x 4320
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".apng", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".avif")

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "AVIF")
_MOVING = ("PNG", "WEBP", "GIF", "AVIF")  # JPEG files may hold several views of one picture
_MAX_TIFF_FRAMES = 10_000
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_DEFAULT_SECONDS = 0.1  # of a frame without a duration, and of one of 0.01 s or less, as in browsers


@dataclasses.dataclass(frozen=True)
class Picture:
    """A file with one or more frames of one size.

    Attributes:
      path: of the file.
      frames: how many it has.
      size: (h, w) in pixels, as displayed.
    """

    path: Path
    frames: int
    size: tuple[int, int]


def is_picture(path: Path) -> bool:
    """Whether Pillow, not FFmpeg, is to read a regular file as a clip: pictures of all kinds but GIF and AVIF."""
    with open_regular_file(path) as file:
        head = file.read(16)
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    is_jpeg = head[:3] == b"\xff\xd8\xff" and path.suffix.lower() in (".jpg", ".jpeg")  # else it may be Motion JPEG
    return is_webp or is_jpeg or head.startswith(_MAGIC)


def open_picture(path: Path) -> Picture:
    """Reads the header of a picture.

    Raises:
      UserError: it can't be read, is too large or no regular file.
    """
    with _open(path) as image:
        size = image.height, image.width
        if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):  # stored on its side
            size = size[::-1]
        return Picture(path, len(_frame_numbers(image)), size)


def read_picture(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    """Yields (duration in seconds, (h, w, 3) uint8 RGB) of each frame of a picture.

    Raises:
      UserError: a frame can't be read; those before it have been yielded.
    """
    with _open(path) as image:
        for number in _frame_numbers(image):
            image.seek(number)
            _check_size(image, path)  # of its own, in a TIFF
            rgb = displayed_rgb(image)
            seconds = image.info.get("duration", 0) / 1000
            yield seconds if seconds > 0.01 else _DEFAULT_SECONDS, rgb


def list_pictures(folder: Path) -> tuple[list[Path], list[Path]]:
    """The visible files of a folder, sorted by name with runs of digits as numbers: pictures, and all others."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    visible.sort(key=lambda path: (number_key(path.name), path.name))
    pictures = [path for path in visible if path.suffix.lower() in IMAGE_SUFFIXES]
    return pictures, [path for path in visible if path.suffix.lower() not in IMAGE_SUFFIXES]


def number_key(name: str) -> list[tuple[int, str]]:
    """Sorts names by the numbers in them: frame2 before frame10. Those of frame2 and frame02 are equal."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    """Opens a picture of a kind that is read. Raises UserError for whatever is wrong with it, also in the block."""
    try:
        # Pillow warns of what it can't use of a file, such as broken metadata.
        with warnings.catch_warnings(action="ignore"), open_regular_file(path, MAX_IMAGE_BYTES) as file:
            with _identify(file) as image:
                _check_size(image, path)
                yield image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no picture of a kind that is read ({', '.join(_FORMATS)})") from error
    except Exception as error:  # Pillow raises nearly anything for a broken file
        raise UserError(f"{path} can't be read: {error or type(error).__name__}") from error


def _check_size(image: Image.Image, path: Path) -> None:
    if image.width * image.height > MAX_PIXELS:
        limit = f"The limit is {MAX_PIXELS / 1e6:.0f} million."
        raise UserError(f"{path} has {image.width} x {image.height} pixels. {limit}")


def _identify(file: BinaryIO) -> Image.Image:
    Image.init()
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


def _frame_numbers(image: Image.Image) -> Sequence[int]:
    """The numbers of the frames that are shown; an APNG may have a picture of its own for viewers of still pictures."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _tiff_frame_numbers(image)
    count = getattr(image, "n_frames", 1) if image.format in _MOVING else 1
    return range(1 if count > 1 and image.info.get("default_image") else 0, count)


def _tiff_frame_numbers(image: TiffImagePlugin.TiffImageFile) -> Sequence[int]:
    """Those of a TIFF but for thumbnails. Pillow finds them one after the other, in quadratic time."""
    numbers: list[int] = []
    for number in range(_MAX_TIFF_FRAMES + 1):
        try:
            image.seek(number)
        except EOFError:
            return numbers
        if number == 0 or not image.tag_v2.get(ExifTags.Base.NewSubfileType, 0) & 1:
            numbers.append(number)
    raise ValueError(f"it has more than {_MAX_TIFF_FRAMES:,} frames; save them as files of their own")
