"""Pictures for people: masks laid over frames, the frame difference, contact sheets of examples, and attention.

Evaluation draws its best, worst and random samples with `contact_sheet`, training sends the same sheets to
TensorBoard, and prediction lays masks over a user's video with `overlay`. `attention_sheet` draws what
`lbdt_jax.inference.explain` found. NumPy and Pillow only.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from lbdt_jax.cli import atomic_write
from lbdt_jax.visualization.text import write

if TYPE_CHECKING:
    from lbdt_jax.inference.explain import BridgeAttention, ChannelGates, Explanation

Color = tuple[int, int, int]

#: One color per sentence, told apart under every common color blindness: Okabe and Ito, "Color Universal Design"
#: (2008), without its black.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (240, 228, 66),  # yellow
    (213, 94, 0),  # vermilion
    (0, 114, 178),  # blue
)
PREDICTION_COLOR, GROUND_TRUTH_COLOR = PALETTE[:2]

# Of ImageNet's channels, by which the model divides its frames; the means cancel in a difference.
_CHANNEL_DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)

_COLUMNS = ("frame", "frame difference", "ground truth", "prediction")
_PANEL, _GAP, _MARGIN = 256, 12, 36  # pixels: a panel's longer side, between panels, around the sheet
PAPER, INK, QUIET, RULE = (255, 255, 255), (28, 30, 34), (128, 132, 140), (226, 228, 232)
_HEAT = np.array([(38, 24, 92), (160, 32, 110), (236, 92, 50), (255, 226, 96)])  # attention, from none to the most
_LABEL, _CELL_GAP, _LINE = 190, 4, 24  # pixels: the labels' column, between attention maps, one line of text


@dataclasses.dataclass(frozen=True)
class Example:
    """One sample with its prediction, as a contact sheet shows it.

    Attributes:
      frame: (h, w, 3) uint8 RGB.
      earlier_frame: (h, w, 3) uint8 RGB, the same video a few frames before.
      mask: (h, w) bool, the ground truth; None, a blank panel, where there is none.
      prediction: (h, w) bool.
      sentence: of any length, in any letters; see `lettering.legible`.
      iou: of prediction and mask, in [0, 1]; None without ground truth.
      name: of the sample, "video/frame/instance".
    """

    frame: np.ndarray
    earlier_frame: np.ndarray
    mask: np.ndarray | None
    prediction: np.ndarray
    sentence: str
    iou: float | None
    name: str


def overlay(frame: np.ndarray, mask: np.ndarray, color: Color) -> np.ndarray:
    """Lays a mask over a frame: a soft fill, its contour in full color, and a dark line around that.

    The contour lies inside the mask and is as wide as 1/200 of the frame's longer side (at least one pixel); the dark
    line lies outside, is as wide, and keeps the contour visible on an object of its own color. No contour runs along
    the frame's border, where the object goes on out of sight.

    Args:
      frame: (h, w, 3) uint8 RGB.
      mask: (h, w) bool.
      color: RGB, 0 to 255.

    Returns:
      (h, w, 3) uint8 RGB: a new array, equal to the frame beyond mask and dark line.

    Raises:
      ValueError: mask and frame differ in size.
    """
    if frame.shape != (*mask.shape, 3):
        raise ValueError(f"a mask of shape {mask.shape} does not fit a frame of shape {frame.shape}")
    painted = frame.copy()
    if not mask.any():
        return painted
    width = max(1, round(max(mask.shape) / 200))
    # Only the part that changes, and a margin beyond which the blur below reaches no more.
    rows, columns = (
        slice(max(0, touched[0] - 4 * width), touched[-1] + 4 * width + 1)
        for touched in (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    )
    mask = mask[rows, columns]
    # Blurred with deviation w, a straight edge reaches .84 of its height w pixels inside and .16 w pixels outside.
    edge = np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(width)))
    contour, line = mask & (edge < 0.84 * 255), ~mask & (edge > 0.16 * 255)
    part = Image.fromarray(painted[rows, columns])
    for tint, opacity in (
        (color, mask * np.uint8(102) | contour * np.uint8(255)),  # 102 of 255: .4
        ((0, 0, 0), line * np.uint8(140)),
    ):
        part.paste(tint, mask=Image.fromarray(opacity))
    painted[rows, columns] = np.asarray(part)
    return painted


def frame_difference(frame: np.ndarray, earlier_frame: np.ndarray) -> np.ndarray:
    """What the temporal stream sees: abs(normalised frame - normalised earlier frame), scaled for viewing.

    Its 99.5th percentile becomes white, as long as that is at least one deviation: still pictures stay dark.

    Args:
      frame: (h, w, 3) uint8 RGB.
      earlier_frame: (h, w, 3) uint8 RGB.

    Returns:
      (h, w, 3) uint8.
    """
    difference = np.abs(frame.astype(np.float32) - earlier_frame) / 255 / _CHANNEL_DEVIATION
    return (255 * np.clip(difference / max(1.0, np.percentile(difference, 99.5)), 0, 1)).round().astype(np.uint8)


def contact_sheet(examples: Sequence[Example], title: str) -> Image.Image:
    """One row per example: sentence, sample and IoU above frame, frame difference, ground truth and prediction.

    Frames may differ in size; each is scaled to a panel whose longer side has 256 pixels.

    Args:
      examples: at least one.
      title: a line above all rows.

    Returns:
      An RGB image 1132 pixels wide.

    Raises:
      ValueError: there is no example, or the pictures of an example differ in size.
    """
    if not examples:
        raise ValueError(f'the contact sheet "{title}" has no examples')
    rows = [_row(example) for example in examples]
    width, header = rows[0].width + 2 * _MARGIN, _MARGIN + 70
    sheet = Image.new("RGB", (width, header + sum(row.height + _MARGIN for row in rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (_MARGIN, _MARGIN), title, 26, INK, rows[0].width)
    for column, heading in enumerate(_COLUMNS):
        write(draw, (_MARGIN + column * (_PANEL + _GAP), header - 26), heading, 14, QUIET, _PANEL)
    top = header
    for row in rows:
        draw.line((_MARGIN, top, width - _MARGIN, top), RULE)
        sheet.paste(row, (_MARGIN, top + _MARGIN // 2))
        top += row.height + _MARGIN
    return sheet


def attention_sheet(example: Example, tokens: Sequence[str], explanation: Explanation, title: str) -> Image.Image:
    """Every attention map and channel gate behind a prediction, below the example as a contact sheet shows it.

    A block for each stage and layer of the duplex transfer has two strips for each direction: where each word looks
    in the source stream, and where the target stream takes from it. A strip has one map for each word, enlarged
    bilinearly over the grey frame, and one scale, from 0 to the number in its label. Beside them stands what the
    words take from each other: each row's word from each column's.

    Args:
      example: with the prediction that is explained.
      tokens: the n words that the model read, without padding, at least one.
      explanation: its maps have N >= n words; those beyond n are padding and left out.
      title: a line above everything.

    Returns:
      An RGB image at least 1132 pixels wide, and wider for long sentences.

    Raises:
      ValueError: as contact_sheet.
    """
    parts = [contact_sheet([example], title)]
    if explanation.gates:
        parts.append(_gates_block(explanation.gates))
    for _, directions in itertools.groupby(explanation.bridges, lambda bridge: (bridge.stage, bridge.layer)):
        parts.append(_bridges_block(example.frame, tokens, list(directions)))
    width = max(part.width for part in parts)
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    draw, top = ImageDraw.Draw(sheet), 0
    for part in parts:
        sheet.paste(part, (0, top))
        if top:
            draw.line((_MARGIN, top, width - _MARGIN, top), RULE)
        top += part.height
    return sheet


def save(image: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes a picture whole or not at all: an earlier file of that name stays until the new one is complete.

    Args:
      image: any.
      path: its ending decides the format (".png", ".jpg"); missing folders are made.

    Raises:
      ValueError: Pillow knows no format of that ending.
    """
    kind = Image.registered_extensions().get(pathlib.Path(path).suffix.lower())  # the unfinished file has no ending
    with atomic_write(pathlib.Path(path)) as unfinished:
        image.save(unfinished, kind)


def _row(example: Example) -> Image.Image:
    """The sentence, one line of sample and IoU, and four panels; as wide as the panels, without margin."""
    width = len(_COLUMNS) * (_PANEL + _GAP) - _GAP
    height, length, _ = example.frame.shape
    others = [example.earlier_frame[..., 0], example.prediction, *([] if example.mask is None else [example.mask])]
    if any(other.shape != (height, length) for other in others):
        raise ValueError(f"{example.name}: earlier frame, mask and prediction must be as large as the frame")
    scale = _PANEL / max(height, length)
    size = max(1, round(length * scale)), max(1, round(height * scale))
    double = 2 * size[0], 2 * size[1]  # masks are drawn at twice the panel's size, so that contours come out smooth
    frame = np.asarray(Image.fromarray(example.frame).resize(double, Image.Resampling.BICUBIC))
    truth = np.full_like(frame, RULE)
    if example.mask is not None:
        truth = overlay(frame, _resize_mask(example.mask, double), GROUND_TRUTH_COLOR)
    panels = [
        example.frame,
        frame_difference(example.frame, example.earlier_frame),
        truth,
        overlay(frame, _resize_mask(example.prediction, double), PREDICTION_COLOR),
    ]
    row = Image.new("RGB", (width, size[1] + 80), PAPER)
    draw = ImageDraw.Draw(row)
    bottom = write(draw, (0, 0), example.sentence.strip() or "(empty sentence)", 19, INK, width, lines=2)
    write(draw, (0, bottom + 4), example.name, 14, QUIET, width - _PANEL - _GAP)
    if example.iou is not None:
        write(draw, (width - _PANEL, bottom + 4), f"IoU {example.iou:.3f}", 14, QUIET, _PANEL)
    top = bottom + 30
    for column, panel in enumerate(panels):
        picture = Image.fromarray(panel).resize(size, Image.Resampling.BICUBIC)
        row.paste(picture, (column * (_PANEL + _GAP) + (_PANEL - size[0]) // 2, top))
    return row.crop((0, 0, width, top + size[1]))


def _bridges_block(frame: np.ndarray, tokens: Sequence[str], directions: Sequence[BridgeAttention]) -> Image.Image:
    """One layer of the duplex transfer: the strips of both directions, and what the words take from each other."""
    count = len(tokens)
    words = [" ".join(token.split()) or "(empty)" for token in tokens]
    height, length, _ = frame.shape
    scale = min(128, max(96, 640 // count)) / max(height, length)
    size = max(1, round(length * scale)), max(1, round(height * scale))
    gray = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC).convert("L").convert("RGB")
    strips = []
    for bridge in directions:
        strips.append((f"words from {bridge.source}", bridge.words_from_source[:count]))
        strips.append((f"{bridge.target} from words", np.moveaxis(bridge.target_from_words, -1, 0)[:count]))

    left, step, pitch = _MARGIN + _LABEL, size[0] + _CELL_GAP, max(size[1], 40) + _CELL_GAP
    beside, top = left + count * step + _MARGIN, _GAP + 2 * _LINE
    matrix = _words_matrix(words, directions[0].words_to_words[:count, :count], 4 * pitch)
    below = max(4 * pitch + _GAP, matrix.height - _LINE)
    block = Image.new("RGB", (beside + matrix.width + _MARGIN, top + below + _GAP), PAPER)
    block.paste(matrix, (beside, top - _LINE))
    draw = ImageDraw.Draw(block)
    across, down = strips[0][1].shape[:0:-1]
    name = f"Stage {directions[0].stage}, layer {directions[0].layer}: {across} x {down} cells"
    write(draw, (_MARGIN, _GAP), name, 16, INK, beside - _MARGIN)
    for column, word in enumerate(words):
        write(draw, (left + column * step, _GAP + _LINE), word, 13, INK, size[0])
    for row, (label, maps) in enumerate(strips):
        upper = top + row * pitch + row // 2 * _GAP
        write(draw, (_MARGIN, upper), label, 14, INK, _LABEL)
        _write_scale(block, (_MARGIN, upper + 20), maps.max())
        for column, weights in enumerate(maps):
            block.paste(_heat_over(gray, weights / maps.max()), (left + column * step, upper))
    return block


def _words_matrix(words: Sequence[str], weights: np.ndarray, side: int) -> Image.Image:
    """What each word (row) takes from each (column); about as wide as `side` below its heading, words at the right."""
    tile = min(24, max(10, side // len(words)))
    side = tile * len(words)
    picture = Image.new("RGB", (max(side + 90, 240), _LINE + side), PAPER)
    draw = ImageDraw.Draw(picture)
    write(draw, (0, 0), "words from words", 14, INK, 120)
    _write_scale(picture, (130, 0), weights.max())
    tiles = Image.fromarray(_heat(weights / weights.max()))
    picture.paste(tiles.resize((side, side), Image.Resampling.NEAREST), (0, _LINE))
    for row, word in enumerate(words):
        size = min(13, tile)
        write(draw, (side + 6, _LINE + row * tile + (tile - size) // 2 - 1), word, size, INK, 84)
    return picture


def _write_scale(picture: Image.Image, corner: tuple[int, int], most: float) -> None:
    """The colors of attention between the two numbers that they stand for."""
    left, top = corner
    draw = ImageDraw.Draw(picture)
    write(draw, (left, top), "0", 13, QUIET, 12)
    picture.paste(Image.fromarray(_heat(np.tile(np.linspace(0, 1, 44), (8, 1)))), (left + 12, top + 5))
    write(draw, (left + 62, top), f"{most:.2g}", 13, QUIET, 60)


def _gates_block(gates: dict[str, ChannelGates]) -> Image.Image:
    """The gates of both streams, side by side: a bar for each channel, a full one for 1."""
    half, label, height = 2 * _PANEL + _GAP, 90, 26
    size = 2 * (half + _MARGIN) + _GAP, 2 * _GAP + _LINE + 3 * (height + _CELL_GAP)
    block = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(block)
    for column, (stream, both) in enumerate(gates.items()):
        left = _MARGIN + column * (half + _GAP)
        write(draw, (left, _GAP), f"Bilateral Channel Activation, {stream} stream", 14, INK, half)
        rows = {"language": both.language, "enhance": both.enhance, "both": both.language * both.enhance}
        for row, (name, gate) in enumerate(rows.items()):
            top = _GAP + _LINE + row * (height + _CELL_GAP)
            write(draw, (left, top + 5), name, 13, QUIET, label)
            bars = gate[np.arange(half - label) * len(gate) // (half - label)]
            filled = np.arange(height)[::-1, None] + 0.5 < height * bars
            strip = np.where(filled[..., None], PALETTE[-1], RULE).astype(np.uint8)
            block.paste(Image.fromarray(strip), (left + label, top))
    return block


def _heat(values: np.ndarray) -> np.ndarray:
    """(...) in [0, 1] -> (..., 3) uint8 RGB."""
    steps = np.linspace(0, 1, len(_HEAT))
    return np.stack([np.interp(values, steps, channel) for channel in _HEAT.T], axis=-1).round().astype(np.uint8)


def _heat_over(gray: Image.Image, values: np.ndarray) -> Image.Image:
    """Lays a map (h, w) in [0, 1], enlarged to the picture's size, over a darkened picture: the more, the denser."""
    enlarged = Image.fromarray(values.astype(np.float32)).resize(gray.size, Image.Resampling.BILINEAR)
    density = 0.75 * np.asarray(enlarged)[..., None]
    painted = (1 - density) * 0.7 * np.asarray(gray, np.float32) + density * _heat(np.asarray(enlarged))
    return Image.fromarray(painted.round().astype(np.uint8))


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes to (width, height) where at least half of a pixel is covered; no object is too small to be kept."""
    coverage = np.asarray(Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    return (coverage > 0) & (coverage >= min(0.5, coverage.max()))
