"""Augmentation of training samples: mirrored, scaled and cropped, recolored; both frames of a pair alike.

What happens to both frames is one function of the pixel, so that what doesn't move between them stays the same to the
bit, and no false motion arises. A draw depends on config.seed, the epoch, the samples on the frame pair and the kind of
augmentation, and on nothing else: it is the same for any number of processes and after resuming, and turning one kind
on does not change the draws of another.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.images import resize_frame, resize_target
from input_pipeline.text.mirroring import mirror_sentence

Size = tuple[int, int]
Color = tuple[int, int, int]
Resize = Callable[[np.ndarray, Size], np.ndarray]
#: From the kind of an augmentation to three random numbers in [0, 1).
Draw = Callable[[str], tuple[float, float, float]]

#: How often a crop is drawn again that would leave an object out; then the whole frame is kept.
CROP_DRAWS = 10
#: What surrounds a frame that is made smaller: ImageNet's mean color, which the model's normalization maps to 0.
PADDING_COLOR = (124, 116, 104)

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as in torchvision
_FROM_RGB = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])  # to YIQ, where hue is an angle


class SampleGroup(NamedTuple):
    """K training samples on one frame pair.

    Attributes:
      frame: (h, w, 3) uint8 RGB.
      earlier_frame: (h, w, 3) uint8 RGB.
      targets: K of (h, w), bool or uint8, nonzero inside the object.
      sentences: K sentences.
      names: K names as in `input_pipeline.batch`, with the sentences of the dataset.
    """

    frame: np.ndarray
    earlier_frame: np.ndarray
    targets: tuple[np.ndarray, ...]
    sentences: tuple[str, ...]
    names: tuple[str, ...]


class Crop(NamedTuple):
    """How a frame fills the picture for the model.

    Attributes:
      scale: of the objects. Above 1, a part of the frame fills the picture; below 1, the frame fills a part of it.
      top: position of the part, from 0 (at the upper border) to 1 (at the lower one).
      left: the same, from the left to the right border.
    """

    scale: float = 1.0
    top: float = 0.0
    left: float = 0.0

    def part(self, height: int, width: int) -> tuple[slice, slice]:
        """The rows and columns of the part, of a whole of (height, width) pixels."""
        share = min(self.scale, 1 / self.scale)
        rows, columns = (max(1, round(share * length)) for length in (height, width))
        top = min(int(self.top * (height - rows + 1)), height - rows)
        left = min(int(self.left * (width - columns + 1)), width - columns)
        return slice(top, top + rows), slice(left, left + columns)

    def apply(self, image: np.ndarray, size: Size, resize: Resize, padding: Color | int) -> np.ndarray:
        """Returns the picture, (H, W, ...)."""
        if self.scale >= 1:
            return resize(image[self.part(*image.shape[:2])], size)
        rows, columns = self.part(*size)
        resized = resize(image, (rows.stop - rows.start, columns.stop - columns.start))
        picture = np.full((*size, *image.shape[2:]), padding, np.uint8)
        picture[rows, columns] = resized
        return picture


class ColorChange(NamedTuple):
    """Changes of color, all 0 for none.

    Attributes:
      brightness: change of the factor of all channels: 0.1 for a factor of 1.1.
      contrast: change of the factor of the distance to the frame's mean gray.
      saturation: change of the factor of the distance to the pixel's gray.
      hue: shift in turns of the color wheel.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float


class Augmentation(NamedTuple):
    """What was drawn for a frame pair.

    Attributes:
      mirrored: whether left and right change places.
      crop: scale and position.
      colors: changes of color.
    """

    mirrored: bool
    crop: Crop
    colors: ColorChange


def is_augmented(config: ConfigDict) -> bool:
    """Returns whether any augmentation is on."""
    return bool(config.augment_flip) or is_scaled(config) or any(range_ for _, range_ in _color_ranges(config))


def is_scaled(config: ConfigDict) -> bool:
    """Returns whether frames are scaled and cropped, for which they are needed at their original size."""
    return tuple(config.augment_scale) != (1, 1)


def augment(config: ConfigDict, epoch: int, group: SampleGroup) -> tuple[SampleGroup, Augmentation]:
    """Draws an augmentation for the samples on a frame pair, and applies it.

    Args:
      config: uses the fields seed, image_size and augment_*.
      epoch: counted from 0.
      group: at the original size if `is_scaled`, else at the model's size. Its arrays are not changed.

    Returns:
      The samples at the model's size, targets uint8 of 0 and 1; and what was drawn.
    """
    draw = partial(_draw, config.seed, epoch, group.names)
    frame, earlier_frame, targets, sentences, names = group
    crop = Crop()
    if is_scaled(config):
        crop, targets = _draw_crop(config, draw, targets)
        frame, earlier_frame = (
            crop.apply(image, tuple(config.image_size), resize_frame, PADDING_COLOR) for image in (frame, earlier_frame)
        )
    colors = ColorChange(*(range_ and range_ * (2 * draw(kind)[0] - 1) for kind, range_ in _color_ranges(config)))
    if any(colors):
        matrix = _color_matrix(colors, frame)
        frame, earlier_frame = (
            np.asarray(Image.fromarray(image).convert("RGB", matrix)) for image in (frame, earlier_frame)
        )
    mirrored_sentences = _draw_mirrored(config, draw, sentences)
    if mirrored_sentences is not None:
        columns = np.arange(frame.shape[1])[::-1]
        frame, earlier_frame, *mirrored_targets = (  # ten times as fast as to copy image[:, ::-1]
            image.take(columns, axis=1) for image in (frame, earlier_frame, *targets)
        )
        targets, sentences = tuple(mirrored_targets), mirrored_sentences
    augmentation = Augmentation(mirrored_sentences is not None, crop, colors)
    return SampleGroup(frame, earlier_frame, targets, sentences, names), augmentation


def _color_ranges(config: ConfigDict) -> list[tuple[str, float]]:
    return [(kind, config[f"augment_{kind}"]) for kind in ColorChange._fields]


def _draw(seed: int, epoch: int, names: Sequence[str], kind: str) -> tuple[float, float, float]:
    """Three random numbers in [0, 1), the same on every machine and with every version of every library."""
    key = json.dumps([seed, epoch, kind, *sorted(names)])
    digest = hashlib.sha256(key.encode()).digest()
    first, second, third = (int.from_bytes(digest[start : start + 8], "little") >> 11 for start in (0, 8, 16))
    return first / 2**53, second / 2**53, third / 2**53


def _draw_mirrored(config: ConfigDict, draw: Draw, sentences: tuple[str, ...]) -> tuple[str, ...] | None:
    """The mirrored sentences if the frame pair is to be mirrored and every sentence can be, else None."""
    if not config.augment_flip or draw("flip")[0] >= config.augment_flip:
        return None
    mirrored = [mirror_sentence(sentence) for sentence in sentences]
    return None if None in mirrored else tuple(sentence for sentence in mirrored if sentence is not None)


def _draw_crop(config: ConfigDict, draw: Draw, masks: tuple[np.ndarray, ...]) -> tuple[Crop, tuple[np.ndarray, ...]]:
    """Draws a crop that keeps config.augment_min_visible of every object.

    Returns:
      The crop, the whole frame after `CROP_DRAWS` draws that keep too little; and the targets, (H, W) uint8.
    """
    size, (low, high) = tuple(config.image_size), config.augment_scale
    for attempt in range(CROP_DRAWS + 1):
        crop = Crop()
        if attempt < CROP_DRAWS:
            scale, top, left = draw(f"scale {attempt}")
            crop = Crop(low * (high / low) ** scale, top, left)
        targets = tuple(crop.apply(mask, size, resize_target, 0) for mask in masks)
        if all(map(partial(_keeps_object, config.augment_min_visible, crop), masks, targets)):
            break
    return crop, targets


def _keeps_object(min_visible: float, crop: Crop, mask: np.ndarray, target: np.ndarray) -> bool:
    """Whether enough of an object is left, and any of it after resizing; or there was none."""
    total = np.count_nonzero(mask)
    if not min_visible or not total:
        return True
    visible = np.count_nonzero(mask[crop.part(*mask.shape)]) if crop.scale > 1 else total
    return bool(visible >= min_visible * total and target.any())


def _color_matrix(change: ColorChange, frame: np.ndarray) -> tuple[float, ...]:
    """The change as one linear function of a pixel's RGB: 12 numbers for `PIL.Image.Image.convert`.

    Args:
      change: its hue rotates the plane of colors of the same luma.
      frame: (H, W, 3) uint8, for the gray that contrast leaves as it is.
    """
    brightness, contrast, saturation, hue = change
    matrix = np.eye(3) * (1 + brightness) * (1 + contrast)
    means = frame.sum(0, dtype=np.uint32).sum(0) / (frame.shape[0] * frame.shape[1])  # fifty times as fast as mean()
    gray = -contrast * (1 + brightness) * (_LUMA @ means)
    matrix = (1 + saturation) * matrix - saturation * np.outer(np.ones(3), _LUMA @ matrix)
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = np.linalg.inv(_FROM_RGB) @ rotation @ _FROM_RGB @ matrix
    return tuple(np.column_stack([matrix, np.full(3, gray)]).ravel().tolist())
