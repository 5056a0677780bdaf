"""Draws the animation at the top of the README: python -m examples.make_readme_animation docs/example.gif

A clip of Moving Shapes' test split, enlarged, and the masks that the model in the package predicts for it.
"""

import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import lbdt_jax
from input_pipeline.moving_shapes.scenes import make_scene
from lbdt_jax.visualization.overlays import color_of, overlay

SCENE, FIRST_FRAME = 61, 3  # nothing has moved yet in the first frames
SENTENCES = ("the blue circle moving left", "the purple triangle", "the blue circle right of the triangle")
WIDTH, HEIGHT, GAP, LINE = 320, 240, 8, 30  # pixels: of a frame, between frames, of a line of text
FRAME_MS, LAST_FRAME_MS = 150, 900  # milliseconds


def main(path: str) -> None:
    """Writes the animation to `path`, a .gif."""
    clip = [Image.fromarray(frame) for frame in make_scene(0, "test", SCENE).frames]
    frames = np.stack([np.asarray(frame.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for frame in clip])
    masks, _ = lbdt_jax.load().segment(frames, SENTENCES)
    images = [draw(frame, frame_masks) for frame, frame_masks in zip(frames, masks, strict=True)][FIRST_FRAME:]
    # One palette for all frames and no dithering, so that nothing flickers and the file stays small.
    palette = Image.fromarray(np.concatenate([np.asarray(image) for image in images])).quantize(256)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [FRAME_MS] * (len(images) - 1) + [LAST_FRAME_MS]
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)


def draw(frame: np.ndarray, masks: np.ndarray) -> Image.Image:
    """The frame (h, w, 3), beside it its masks (S, h, w), and below them the sentences in the colors of the masks."""
    image = Image.new("RGB", (2 * WIDTH + GAP, HEIGHT + LINE * len(masks) + GAP), "white")
    image.paste(Image.fromarray(frame))
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(18)
    for index, (mask, sentence) in enumerate(zip(masks, SENTENCES, strict=True)):
        frame = overlay(frame, mask, color_of(index))
        middle = HEIGHT + GAP + LINE * index + LINE // 2
        canvas.rounded_rectangle((4, middle - 8, 20, middle + 8), 4, color_of(index))
        canvas.text((32, middle), sentence, "black", font, anchor="lm")
    image.paste(Image.fromarray(frame), (WIDTH + GAP, 0))
    return image


if __name__ == "__main__":
    main(sys.argv[1])
