"""Generates the inputs that the golden numbers were computed from. Needs numpy only.

A case is an entry of cases.json: its name, seed, image size, batch size, phrase length, words of each sample and, in
one case, the share of holes in the image mask.

    case = json.load(open("cases.json"))["open"]["base"]
    inputs = make_inputs(case)
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from weights_rule import stream

WORD_DIM = 300
WORD_STD = 0.4


def make_inputs(case: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns the network's inputs, under the names and in the layout of the published code.

    Returns:
      image: (B, 3, H, W) float32, the normalized frame.
      flow: (B, 3, H, W) float32, |frame - earlier frame|, both normalized.
      phrase: (B, N, 300) float32 word vectors.
      phrase_mask: (B, N) int64, 1 for words and 0 for padding.
      img_mask: (B, H/32 * W/32) int64, 0 where attention is masked.
      target: (B, H, W) float32, 1 inside the object.
    """
    samples = [make_sample(case, index) for index in range(case["batch"])]
    inputs = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    return inputs


def make_sample(case: dict[str, Any], index: int) -> dict[str, np.ndarray]:
    """Returns one sample of `make_inputs`, without the batch axis."""
    rng = stream(f"{case['name']}/{index}", case["seed"])
    height, width = case["height"], case["width"]
    frame, earlier, target = make_frames(rng, height, width)
    phrase, phrase_mask = make_phrase(rng, case["phrase_len"], case["words"][index], case["unknown"][index])
    img_mask = np.ones(height // 32 * (width // 32), np.int64)
    if case["holes"]:
        img_mask[rng.random(img_mask.size) < case["holes"]] = 0
    return {
        "image": frame.astype(np.float32),
        "flow": np.abs(frame.astype(np.float32) - earlier.astype(np.float32)),
        "phrase": phrase,
        "phrase_mask": phrase_mask,
        "img_mask": img_mask,
        "target": target.astype(np.float32),
    }


def make_frames(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a frame and an earlier frame, (3, H, W), of waves, six moving boxes and noise; and the target.

    The target, (H, W) bool, is the union of the first two boxes of the frame.
    """
    y = (np.arange(height) + 0.5)[:, None] / height
    x = (np.arange(width) + 0.5)[None, :] / width
    waves = rng.random((3, 4, 4))  # channel, wave, (fy, fx, phase, size)
    background = np.zeros((3, height, width))
    for channel in range(3):
        for fy, fx, phase, size in waves[channel]:
            turns = 6 * fy * y + 6 * fx * x + phase
            background[channel] += size * triangle(turns)
    center = rng.random((6, 2))
    half = 0.08 + 0.17 * rng.random((6, 2))
    color = 4 * rng.random((6, 3)) - 2
    motion = 0.12 * rng.random((6, 2)) - 0.06
    noise = 0.3 * rng.standard_normal((2, 3, height, width))
    frames = []
    for step in range(2):  # 0: the frame, 1: the earlier frame
        image = background.copy()
        for box in reversed(range(6)):
            inside = box_mask(y, x, center[box] - step * motion[box], half[box])
            image[:, inside] = color[box][:, None]
        frames.append(image + noise[step])
    target = box_mask(y, x, center[0], half[0]) | box_mask(y, x, center[1], half[1])
    return frames[0], frames[1], target


def triangle(turns: np.ndarray) -> np.ndarray:
    """A triangle wave from -1 to 1 with period 1: exact in IEEE arithmetic, unlike a sine."""
    return 4 * np.abs(turns % 1 - 0.5) - 1


def box_mask(y: np.ndarray, x: np.ndarray, center: np.ndarray, half: np.ndarray) -> np.ndarray:
    """The mask, (H, W) bool, of a box with the given center and half extents, each (y, x)."""
    return (np.abs(y - center[0]) < half[0]) & (np.abs(x - center[1]) < half[1])


def make_phrase(
    rng: np.random.Generator, phrase_len: int, words: int, unknown: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns word vectors, (N, 300) float32 with zeros for padding, and their mask, (N,) int64.

    The words at the positions `unknown` have zero vectors, like words without a GloVe vector, but are not masked.
    """
    phrase = np.zeros((phrase_len, WORD_DIM), np.float32)
    phrase[:words] = WORD_STD * rng.standard_normal((words, WORD_DIM))
    phrase[unknown] = 0
    phrase_mask = np.zeros(phrase_len, np.int64)
    phrase_mask[:words] = 1
    return phrase, phrase_mask


def checksum(array: np.ndarray) -> int:
    """Returns the CRC-32 of the array's bytes in C order, little-endian."""
    array = np.ascontiguousarray(array)
    return zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes())


def make_uint8_frames(name: str, seed: int, height: int, width: int) -> list[np.ndarray]:
    """Returns a frame and an earlier frame, (H, W, 3) uint8 RGB each."""
    rng = stream(f"picture/{name}", seed)
    frame, earlier, _ = make_frames(rng, height, width)
    return [
        np.clip(np.rint(50 * image + 128), 0, 255).astype(np.uint8).transpose(1, 2, 0) for image in (frame, earlier)
    ]
