"""Decoded frames as displayed: 8 bits of RGB with ITU-R BT.709's primaries, upright, without transparency."""

from __future__ import annotations

import functools
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc
from PIL import Image, ImageFilter

from input_pipeline.images import displayed_rgb

_REFERENCE_WHITE = 203.0  # nits of a sheet of white paper in HDR video (ITU-R BT.2408); white in SDR
_PEAK = 1000.0  # nits of the brightest highlight
_SDR_GAMMA = 2.4  # of displays (ITU-R BT.1886)
_LUT_SIZE = 65

_HDR = {int(ColorTrc.SMPTE2084): "PQ", int(ColorTrc.ARIB_STD_B67): "HLG"}
# From linear RGB with these primaries to BT.709's.
_TO_BT709 = {
    int(ColorPrimaries.BT2020): ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    int(ColorPrimaries.SMPTE432): ((1.2249, -0.2247, 0.0), (-0.0420, 1.0419, 0.0), (-0.0197, -0.0786, 1.0979)),
}
_BT2020_LUMINANCE = np.array((0.2627, 0.6780, 0.0593))


def describe_hdr(frame: av.VideoFrame) -> str | None:
    """The transfer function of HDR video, "HLG" or "PQ"; None for SDR."""
    return _HDR.get(int(frame.color_trc))


def upright_rgb(frame: av.VideoFrame) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a decoded frame.

    HDR is tone-mapped as ITU-R BT.2390 describes, for a display whose white is the reference white of HDR video. Wide
    gamuts are converted to BT.709's, transparent parts are shown over white.
    """
    if any(component.is_alpha for component in frame.format.components) or frame.format.name == "pal8":
        image = displayed_rgb(Image.fromarray(frame.to_ndarray(format="rgba")))
    else:
        image = frame.to_ndarray(format="rgb24")
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    if transfer in _HDR or primaries in _TO_BT709:
        image = np.asarray(Image.fromarray(image).filter(_display_lut(transfer, primaries)))
    return np.ascontiguousarray(orient(image, display_matrix(frame)))


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """The upper left (a, b, c, d) of a frame's display matrix: (x, y) is displayed at (a x + c y, b x + d y)."""
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    return a, b, c, d


def is_on_side(matrix: tuple[int, int, int, int]) -> bool:
    """Whether a display matrix swaps width and height."""
    a, b, c, d = map(abs, matrix)
    return b + c > a + d


def orient(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Turns and mirrors an image (h, w, ...) as its display matrix says: a view in one of eight orientations.

    Other angles, which no camera writes, are rounded to the nearest of them.
    """
    a, b, c, d = matrix
    if is_on_side(matrix):
        image, horizontal, vertical = image.swapaxes(0, 1), c, b
    else:
        horizontal, vertical = a, d
    return image[:: -1 if vertical < 0 else 1, :: -1 if horizontal < 0 else 1]


# -- Colors


@functools.cache
def _display_lut(transfer: int, primaries: int) -> ImageFilter.Color3DLUT:
    """A table from RGB as it is coded to RGB of an SDR display."""
    steps = np.linspace(0, 1, _LUT_SIZE)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")  # Pillow's order: red changes fastest
    rgb = np.stack([red, green, blue], -1)
    if transfer in _HDR:
        rgb = _tone_map(_hlg_to_nits(rgb) if _HDR[transfer] == "HLG" else _pq_to_nits(rgb)) / _REFERENCE_WHITE
    else:
        rgb = rgb**_SDR_GAMMA
    if primaries in _TO_BT709:
        rgb = rgb @ np.array(_TO_BT709[primaries]).T
    rgb = np.clip(rgb, 0, 1) ** (1 / _SDR_GAMMA)
    return ImageFilter.Color3DLUT(_LUT_SIZE, rgb.astype(np.float32).ravel().tolist())


def _pq_to_nits(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: the luminance of each channel."""
    power = signal ** (1 / 78.84375)
    return 10_000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)


def _nits_to_pq(nits: np.ndarray) -> np.ndarray:
    """The inverse of `_pq_to_nits`."""
    power = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def _hlg_to_nits(signal: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100's hybrid log-gamma, on a display of 1000 nits."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = (scene @ _BT2020_LUMINANCE)[..., None]
    return _PEAK * scene * luminance**0.2


def _tone_map(nits: np.ndarray) -> np.ndarray:
    """ITU-R BT.2390's EETF: (..., 3) nits up to _PEAK become nits up to _REFERENCE_WHITE; about half of it is kept.

    The curve is applied to the brightest channel, and the others are scaled with it, so that hues stay.
    """
    brightest = np.clip(nits.max(-1, keepdims=True), 1e-6, _PEAK)
    peak, target = _nits_to_pq(np.array([_PEAK, _REFERENCE_WHITE]))
    signal, highest = _nits_to_pq(brightest) / peak, target / peak
    knee = 1.5 * highest - 0.5
    t = (signal - knee) / (1 - knee)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * highest
    mapped = _pq_to_nits(peak * np.where(signal < knee, signal, spline))
    return np.minimum(nits, _PEAK) * (mapped / brightest)
