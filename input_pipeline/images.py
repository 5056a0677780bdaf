"""Pictures and masks: their sizes, as published, and their bytes in the TFRecords."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

#: What Pillow raises where a file is no whole picture, or claims to be larger than any frame.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a frame to the model's size by Pillow's antialiased bilinear filter; the aspect is not kept.

    Args:
      frame: (h, w, 3) uint8 RGB.
      size: (H, W) in pixels.

    Returns:
      (H, W, 3) uint8, to the bit what LBDT's released code makes.
    """
    height, width = size
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def resize_target(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask as LBDT's released code makes its training targets: every pixel that the object touches.

    Bilinear with aligned corners (target pixel i reads position i * (n_in - 1) / (n_out - 1)), then > 0. Objects grow
    a little by it. The positions are computed in float32, as there: rounding decides a few pixels.

    Args:
      mask: (h, w) bool, or any number where > 0 is the object.
      size: (H, W) in pixels.

    Returns:
      (H, W) uint8 of 0 and 1.
    """
    touched = np.asarray(mask) > 0
    for axis, length in enumerate(size):
        lower, upper = _neighbours(touched.shape[axis], length)
        touched = touched.take(lower, axis) | touched.take(upper, axis)
    return touched.astype(np.uint8)


def _neighbours(length_in: int, length_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each target pixel, the source pixels below and above its position that have a weight > 0."""
    scale = np.float32(length_in - 1) / np.float32(max(length_out - 1, 1))
    position = np.arange(length_out, dtype=np.float32) * scale
    lower = np.minimum(position.astype(np.int64), length_in - 1)
    has_upper = (position > lower) & (lower < length_in - 1)
    return lower, lower + has_upper


def encode_frame(frame: np.ndarray) -> bytes:
    """(h, w, 3) uint8 RGB -> JPEG, quality 95, color at full resolution: shapes' edges stay sharp."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=95, subsampling="4:4:4")
    return stream.getvalue()


def decode_frame(data: bytes) -> np.ndarray:
    """The bytes of a JPEG or PNG file -> (h, w, 3) uint8 RGB. Raises OSError if they are no whole picture."""
    return _decode(data, "RGB")


def encode_mask(mask: np.ndarray) -> bytes:
    """(h, w) bool -> PNG with one bit a pixel, without loss."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(mask, bool)).save(stream, "PNG")
    return stream.getvalue()


def decode_mask(data: bytes) -> np.ndarray:
    """The bytes of `encode_mask` -> (h, w) bool. Raises OSError if they are no whole picture."""
    # Pillow makes bools whose bytes are 255, which other code may not take for one.
    return _decode(data, "1").view(np.uint8) != 0


def encode_labels(labels: np.ndarray) -> bytes:
    """(h, w) uint8 -> grey PNG, without loss."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(labels, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def decode_labels(data: bytes) -> np.ndarray:
    """The bytes of `encode_labels` -> (h, w) uint8. Raises OSError if they are no whole picture."""
    return _decode(data, "L")


def _decode(data: bytes, mode: str) -> np.ndarray:
    try:
        if data.startswith(b"\x89PNG"):  # its checksums, which Pillow does not look at when it decodes
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if picture.mode.startswith("I"):  # Pillow would cut off what is above 255
                raise OSError("more than 8 bits of grey")
            picture.info.pop("transparency", None)  # of a palette: Pillow would warn, and colors are colors
            return np.asarray(picture.convert(mode))
    except UNREADABLE as error:
        raise OSError(f"broken picture: {error}") from error
