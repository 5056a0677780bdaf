"""Drawing the scenes of Moving Shapes: antialiased shapes over a textured background that stands still."""

from __future__ import annotations

import numpy as np
from PIL import Image

from input_pipeline.moving_shapes.shapes import ANNOTATED_FRAMES, COLORS, HEIGHT, NUM_FRAMES, WIDTH, Shape


def draw(shapes: tuple[Shape, ...], rng: np.random.Generator) -> tuple[np.ndarray, dict[int, np.ndarray], float]:
    """Draws a scene.

    Args:
      shapes: later ones hide earlier ones.
      rng: for the background and the exact colors.

    Returns:
      The frames, (NUM_FRAMES, HEIGHT, WIDTH, 3) uint8 RGB; annotated frame, counted from 1 -> masks of the visible
      parts, (shapes, HEIGHT, WIDTH) bool; and the smallest visible fraction of any shape in an annotated frame.
    """
    frames = np.repeat(_background(rng)[None], NUM_FRAMES, axis=0)
    annotated = np.array(ANNOTATED_FRAMES) - 1
    full = np.zeros((len(shapes), len(ANNOTATED_FRAMES), HEIGHT, WIDTH), bool)
    for i, shape in enumerate(shapes):
        color = np.array(COLORS[shape.color]) + rng.uniform(-12, 12, 3)
        coverage, rows, columns = _coverage(shape)
        region = frames[:, rows, columns]
        region += coverage[..., None] * (color.astype(np.float32) - region)
        full[i, :, rows, columns] = coverage[annotated] > 0.5
    covered = np.flip(np.logical_or.accumulate(np.flip(full, 0), axis=0), 0)  # by this shape or a later one
    visible = full.copy()
    visible[:-1] &= ~covered[1:]
    fractions = visible.sum((2, 3)) / full.sum((2, 3))
    masks = {frame: visible[:, index] for index, frame in enumerate(ANNOTATED_FRAMES)}
    return np.clip(frames + 0.5, 0, 255).astype(np.uint8), masks, float(fractions.min())


def _coverage(shape: Shape) -> tuple[np.ndarray, slice, slice]:
    """The fraction of every pixel that a shape covers, computed from its signed distance.

    Returns:
      (NUM_FRAMES, rows, columns) float32, and the rows and columns of the frame through which the shape moves.
    """
    x, y = shape.centers(np.arange(1, NUM_FRAMES + 1))
    half_width, half_height = shape.half_extent
    columns = slice(int(min(x[0], x[-1]) - half_width) - 1, int(max(x[0], x[-1]) + half_width) + 2)
    rows = slice(int(min(y[0], y[-1]) - half_height) - 1, int(max(y[0], y[-1]) + half_height) + 2)
    right = (np.arange(columns.start, columns.stop) + 0.5 - x[:, None, None]).astype(np.float32)
    below = (np.arange(rows.start, rows.stop)[:, None] + 0.5 - y[:, None, None]).astype(np.float32)
    if shape.kind == "circle":
        distance = np.sqrt(right**2 + below**2) - half_width
    elif shape.kind == "square":
        distance = np.maximum(np.abs(right), np.abs(below)) - half_width
    else:  # an equilateral triangle on its base: two slanted sides and the base
        slanted = np.float32(0.75**0.5) * np.abs(right) - 0.5 * (below + half_height)
        distance = np.maximum(slanted, below - half_height)
    return np.clip(0.5 - distance, 0, 1), rows, columns


def _background(rng: np.random.Generator) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) float32: a muted texture of blotches, slanted stripes and noise."""
    blotches = rng.integers(60, 150) + rng.uniform(-25, 25, (5, 6, 1)) + rng.uniform(-14, 14, (5, 6, 3))
    image = Image.fromarray(blotches.clip(0, 255).astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    across = np.arange(WIDTH) * np.cos(angle) + np.arange(HEIGHT)[:, None] * np.sin(angle)
    stripes = rng.uniform(0, 12) * np.sin(2 * np.pi * across / period)
    noise = rng.normal(0, 3, (HEIGHT, WIDTH))
    return np.asarray(image, np.float32) + (stripes + noise).astype(np.float32)[..., None]
