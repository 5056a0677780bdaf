"""Attention sheets: the attention maps and channel gates behind a prediction, from `lbdt_jax.inference.explain`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from lbdt_jax.visualization.contact_sheet import Example, contact_sheet
from lbdt_jax.visualization.overlays import PALETTE
from lbdt_jax.visualization.sheet import BACKGROUND, GAP, LABEL_COLOR, LINE_COLOR, MARGIN, PANEL, TEXT_COLOR
from lbdt_jax.visualization.text import draw_text

if TYPE_CHECKING:
    from lbdt_jax.inference.explain import BridgeAttention, ChannelGates, Explanation

_COLORMAP = np.array([(38, 24, 92), (160, 32, 110), (236, 92, 50), (255, 226, 96)])  # from no attention to the most
_LABEL_WIDTH, _MAP_GAP, _LINE_HEIGHT = 190, 4, 24  # pixels


def attention_sheet(example: Example, tokens: Sequence[str], explanation: Explanation, title: str) -> Image.Image:
    """Draws every attention map and channel gate behind a prediction, below the example's row of a contact sheet.

    Each stage and layer of the duplex transfer has two strips of maps for each direction: where each word attends in
    the source stream, and where the target stream attends to the word. A strip has one map per word, enlarged
    bilinearly over the grayscale frame. All maps of a strip share one color scale, drawn below its label. Next to the
    strips is the attention between words: what each row's word takes from each column's.

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
    blocks = [contact_sheet([example], title)]
    if explanation.gates:
        blocks.append(_gates_block(explanation.gates))
    for _, directions in itertools.groupby(explanation.bridges, lambda bridge: (bridge.stage, bridge.layer)):
        blocks.append(_layer_block(example.frame, tokens, list(directions)))
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)), BACKGROUND)
    draw, top = ImageDraw.Draw(sheet), 0
    for block in blocks:
        sheet.paste(block, (0, top))
        if top:
            draw.line((MARGIN, top, width - MARGIN, top), LINE_COLOR)
        top += block.height
    return sheet


def _layer_block(frame: np.ndarray, tokens: Sequence[str], directions: Sequence[BridgeAttention]) -> Image.Image:
    """One layer of the duplex transfer: the strips of both directions, and the attention between words."""
    words = [" ".join(token.split()) or "(empty)" for token in tokens]
    count = len(words)
    gray = _small_gray_frame(frame, min(128, max(96, 640 // count)))
    strips = []
    for bridge in directions:
        strips.append((f"words from {bridge.source}", bridge.words_from_source[:count]))
        strips.append((f"{bridge.target} from words", np.moveaxis(bridge.target_from_words, -1, 0)[:count]))

    maps_left, column_pitch = MARGIN + _LABEL_WIDTH, gray.width + _MAP_GAP
    maps_top, row_pitch = GAP + 2 * _LINE_HEIGHT, max(gray.height, 40) + _MAP_GAP
    matrix = _word_matrix(words, directions[0].words_to_words[:count, :count], 4 * row_pitch)
    matrix_left = maps_left + count * column_pitch + MARGIN
    maps_height = max(4 * row_pitch + GAP, matrix.height - _LINE_HEIGHT)
    block = Image.new("RGB", (matrix_left + matrix.width + MARGIN, maps_top + maps_height + GAP), BACKGROUND)
    block.paste(matrix, (matrix_left, maps_top - _LINE_HEIGHT))

    draw = ImageDraw.Draw(block)
    height, width = strips[0][1].shape[1:]
    heading = f"Stage {directions[0].stage}, layer {directions[0].layer}: {width} x {height} positions"
    draw_text(draw, (MARGIN, GAP), heading, 16, TEXT_COLOR, matrix_left - MARGIN)
    for column, word in enumerate(words):
        left = maps_left + column * column_pitch
        draw_text(draw, (left, GAP + _LINE_HEIGHT), word, 13, TEXT_COLOR, gray.width)
    for row, (label, maps) in enumerate(strips):
        top = maps_top + row * row_pitch + row // 2 * GAP
        draw_text(draw, (MARGIN, top), label, 14, TEXT_COLOR, _LABEL_WIDTH)
        _draw_color_scale(block, (MARGIN, top + 20), maps.max())
        for column, weights in enumerate(maps):
            block.paste(_heatmap_over(gray, weights / maps.max()), (maps_left + column * column_pitch, top))
    return block


def _small_gray_frame(frame: np.ndarray, longer_side: int) -> Image.Image:
    """The frame in gray, as an RGB image."""
    height, width, _ = frame.shape
    scale = longer_side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC).convert("L").convert("RGB")


def _word_matrix(words: Sequence[str], weights: np.ndarray, size: int) -> Image.Image:
    """What each word (row) takes from each word (column); about `size` pixels wide, with the words at the right."""
    tile = min(24, max(10, size // len(words)))
    size = tile * len(words)
    image = Image.new("RGB", (max(size + 90, 240), _LINE_HEIGHT + size), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw_text(draw, (0, 0), "words from words", 14, TEXT_COLOR, 120)
    _draw_color_scale(image, (130, 0), weights.max())
    tiles = Image.fromarray(_apply_colormap(weights / weights.max()))
    image.paste(tiles.resize((size, size), Image.Resampling.NEAREST), (0, _LINE_HEIGHT))
    font_size = min(13, tile)
    for row, word in enumerate(words):
        top = _LINE_HEIGHT + row * tile + (tile - font_size) // 2 - 1
        draw_text(draw, (size + 6, top), word, font_size, TEXT_COLOR, 84)
    return image


def _draw_color_scale(image: Image.Image, corner: tuple[int, int], maximum: float) -> None:
    """The colormap between 0 and the maximum."""
    left, top = corner
    draw = ImageDraw.Draw(image)
    draw_text(draw, (left, top), "0", 13, LABEL_COLOR, 12)
    image.paste(Image.fromarray(_apply_colormap(np.tile(np.linspace(0, 1, 44), (8, 1)))), (left + 12, top + 5))
    draw_text(draw, (left + 62, top), f"{maximum:.2g}", 13, LABEL_COLOR, 60)


def _gates_block(gates: dict[str, ChannelGates]) -> Image.Image:
    """The gates of both streams, next to each other: one bar per channel, of full height for 1."""
    stream_width, label_width, height = 2 * PANEL + GAP, 90, 26
    size = 2 * (stream_width + MARGIN) + GAP, 2 * GAP + _LINE_HEIGHT + 3 * (height + _MAP_GAP)
    block = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(block)
    for column, (stream, gate) in enumerate(gates.items()):
        left = MARGIN + column * (stream_width + GAP)
        draw_text(draw, (left, GAP), f"Bilateral Channel Activation, {stream} stream", 14, TEXT_COLOR, stream_width)
        rows = {"language": gate.language, "enhance": gate.enhance, "both": gate.language * gate.enhance}
        for row, (name, values) in enumerate(rows.items()):
            top = GAP + _LINE_HEIGHT + row * (height + _MAP_GAP)
            draw_text(draw, (left, top + 5), name, 13, LABEL_COLOR, label_width)
            bars_width = stream_width - label_width
            bars = values[np.arange(bars_width) * len(values) // bars_width]
            filled = np.arange(height)[::-1, None] + 0.5 < height * bars
            image = np.where(filled[..., None], PALETTE[-1], LINE_COLOR).astype(np.uint8)
            block.paste(Image.fromarray(image), (left + label_width, top))
    return block


def _apply_colormap(values: np.ndarray) -> np.ndarray:
    """(...) in [0, 1] -> (..., 3) uint8 RGB."""
    steps = np.linspace(0, 1, len(_COLORMAP))
    return np.stack([np.interp(values, steps, channel) for channel in _COLORMAP.T], axis=-1).round().astype(np.uint8)


def _heatmap_over(gray: Image.Image, values: np.ndarray) -> Image.Image:
    """Draws a map (h, w) in [0, 1], enlarged to the image's size, over the darkened image: the higher, the denser."""
    enlarged = Image.fromarray(values.astype(np.float32)).resize(gray.size, Image.Resampling.BILINEAR)
    opacity = 0.75 * np.asarray(enlarged)[..., None]
    blended = (1 - opacity) * 0.7 * np.asarray(gray, np.float32) + opacity * _apply_colormap(np.asarray(enlarged))
    return Image.fromarray(blended.round().astype(np.uint8))
