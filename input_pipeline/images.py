"""Images and masks: resizing as published, and their encoding in TFRecords."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

#: What Pillow raises for a file that is not a complete image, or that claims to be larger than any frame.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a frame to the model's input size with Pillow's antialiased bilinear filter, ignoring the aspect ratio.

    Args:
      frame: (h, w, 3) uint8 RGB.
      size: (H, W) in pixels.

    Returns:
      (H, W, 3) uint8, bit-identical to the preprocessing of LBDT's released code.
    """
    height, width = size
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))


def resize_target(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a mask as LBDT's released code resizes training targets: every pixel that the object touches is set.

    This is bilinear interpolation with aligned corners (output pixel i samples input position
    i * (n_in - 1) / (n_out - 1)) followed by a threshold at > 0, so objects grow slightly. Positions are computed in
    float32 as in the released code, because their rounding decides a few pixels.

    Args:
      mask: (h, w) bool, or numbers that are > 0 inside the object.
      size: (H, W) in pixels.

    Returns:
      (H, W) uint8 of 0 and 1.
    """
    touched = np.asarray(mask) > 0
    for axis, length in enumerate(size):
        lower, upper = _neighbors(touched.shape[axis], length)
        touched = touched.take(lower, axis) | touched.take(upper, axis)
    return touched.astype(np.uint8)


def _neighbors(length_in: int, length_out: int) -> tuple[np.ndarray, np.ndarray]:
    """For each output pixel, the indices of the input pixels below and above its position whose weight is > 0."""
    scale = np.float32(length_in - 1) / np.float32(max(length_out - 1, 1))
    position = np.arange(length_out, dtype=np.float32) * scale
    lower = np.minimum(position.astype(np.int64), length_in - 1)
    has_upper = (position > lower) & (lower < length_in - 1)
    return lower, lower + has_upper


def displayed_rgb(image: Image.Image) -> np.ndarray:
    """Converts an image of any kind to (h, w, 3) uint8 RGB as it is displayed.

    It is turned as its EXIF data say, transparent parts are shown over white, and 16 bits of gray become 8.

    Raises:
      ValueError: the values have no known range, as in images of floating point or 32-bit numbers.
    """
    png_16 = image.mode == "I" and image.format == "PNG"  # of Pillow before 11
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or png_16:
        gray = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return np.repeat(((gray * 255 + 32767) // 65535).astype(np.uint8)[..., None], 3, axis=-1)
    if image.mode in ("I", "F") or ";" in image.mode:
        raise ValueError(f"pixels of mode {image.mode}, whose range is unknown; convert them to 8 or 16 bits")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def encode_frame(frame: np.ndarray) -> bytes:
    """Encodes an (h, w, 3) uint8 RGB frame as JPEG of quality 95, without chroma subsampling to keep edges sharp."""
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "JPEG", quality=95, subsampling="4:4:4")
    return stream.getvalue()


def decode_frame(data: bytes) -> np.ndarray:
    """Decodes a JPEG or PNG file to (h, w, 3) uint8 RGB. Raises OSError if it is damaged or incomplete."""
    return _decode(data, "RGB")


def encode_mask(mask: np.ndarray) -> bytes:
    """Encodes an (h, w) bool mask as PNG with one bit per pixel."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(mask, bool)).save(stream, "PNG")
    return stream.getvalue()


def decode_mask(data: bytes) -> np.ndarray:
    """Decodes the output of `encode_mask` to (h, w) bool. Raises OSError if it is damaged or incomplete."""
    # Pillow's bool arrays hold the byte 255 for True, where numpy has 1.
    return _decode(data, "1").view(np.uint8) != 0


def encode_labels(labels: np.ndarray) -> bytes:
    """Encodes (h, w) uint8 labels as grayscale PNG."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(labels, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def decode_labels(data: bytes) -> np.ndarray:
    """Decodes the output of `encode_labels` to (h, w) uint8. Raises OSError if it is damaged or incomplete."""
    return _decode(data, "L")


def _decode(data: bytes, mode: str) -> np.ndarray:
    """Decodes a JPEG or PNG file to an array of a Pillow mode."""
    try:
        if data.startswith(b"\x89PNG"):  # Pillow checks the checksums of a PNG only in verify()
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            if image.mode.startswith("I"):  # Pillow would clip values above 255
                raise OSError("more than 8 bits of grayscale")
            image.info.pop("transparency", None)  # transparency of a palette is irrelevant, and Pillow warns about it
            return np.asarray(image.convert(mode))
    except UNREADABLE as error:
        raise OSError(f"broken image: {error}") from error
