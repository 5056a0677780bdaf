"""Regenerates every input behind the golden numbers; only numpy is needed.

A case is one entry of cases.json: its name, set seed, size, batch, phrase
length, words per sample and (in one case) an image mask with holes.

    case = json.load(open("cases.json"))["open"]["base"]
    inputs = make_inputs(case)          # dict of arrays, batch first, NCHW
"""

import zlib

import numpy as np
from weights_rule import stream

WORD_DIM = 300
WORD_STD = 0.4


def make_inputs(case):
    """image, flow: float32 (B,3,H,W); phrase: float32 (B,N,300);
    phrase_mask: int64 (B,N); img_mask: int64 (B,H/32*W/32); target: float32 (B,H,W).

    image is the frame, flow is |frame - earlier frame|, both as the network gets
    them, that is after normalisation.
    """
    samples = [make_sample(case, index) for index in range(case["batch"])]
    inputs = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
    return inputs


def make_sample(case, index):
    rng = stream(f"{case['name']}/{index}", case["seed"])
    height, width = case["height"], case["width"]
    frame, earlier, target = make_frames(rng, height, width)
    phrase, phrase_mask = make_phrase(rng, case["phrase_len"], case["words"][index], case["unknown"][index])
    img_mask = np.ones(height // 32 * (width // 32), np.int64)
    if case["holes"]:  # cells that attention must not see
        img_mask[rng.random(img_mask.size) < case["holes"]] = 0
    return {
        "image": frame.astype(np.float32),
        "flow": np.abs(frame.astype(np.float32) - earlier.astype(np.float32)),
        "phrase": phrase,
        "phrase_mask": phrase_mask,
        "img_mask": img_mask,
        "target": target.astype(np.float32),
    }


def make_frames(rng, height, width):
    """A frame and an earlier one: four waves, six boxes that moved, and noise.
    The target is the union of the first two boxes of the frame."""
    y = (np.arange(height) + 0.5)[:, None] / height
    x = (np.arange(width) + 0.5)[None, :] / width
    waves = rng.random((3, 4, 4))  # channel, wave, (fy, fx, phase, size)
    background = np.zeros((3, height, width))
    for channel in range(3):
        for fy, fx, phase, size in waves[channel]:
            turns = 6 * fy * y + 6 * fx * x + phase
            background[channel] += size * triangle(turns)
    centre = rng.random((6, 2))
    half = 0.08 + 0.17 * rng.random((6, 2))
    colour = 4 * rng.random((6, 3)) - 2
    motion = 0.12 * rng.random((6, 2)) - 0.06
    noise = 0.3 * rng.standard_normal((2, 3, height, width))
    frames = []
    for step in range(2):  # 0: the frame, 1: the earlier one
        picture = background.copy()
        for box in reversed(range(6)):
            inside = box_mask(y, x, centre[box] - step * motion[box], half[box])
            picture[:, inside] = colour[box][:, None]
        frames.append(picture + noise[step])
    target = box_mask(y, x, centre[0], half[0]) | box_mask(y, x, centre[1], half[1])
    return frames[0], frames[1], target


def triangle(turns):
    """A triangle wave in -1..1: exact in IEEE arithmetic, unlike a sine."""
    return 4 * np.abs(turns % 1 - 0.5) - 1


def box_mask(y, x, centre, half):
    return (np.abs(y - centre[0]) < half[0]) & (np.abs(x - centre[1]) < half[1])


def make_phrase(rng, phrase_len, words, unknown):
    """Vectors of the real words, then zeros. A word listed in `unknown` has a
    zero vector too, as a word that GloVe lacks, but counts as a word."""
    phrase = np.zeros((phrase_len, WORD_DIM), np.float32)
    phrase[:words] = WORD_STD * rng.standard_normal((words, WORD_DIM))
    phrase[unknown] = 0
    phrase_mask = np.zeros(phrase_len, np.int64)
    phrase_mask[:words] = 1
    return phrase, phrase_mask


def checksum(array):
    """CRC-32 of the array's bytes, C order, little-endian."""
    array = np.ascontiguousarray(array)
    return zlib.crc32(array.astype(array.dtype.newbyteorder("<")).tobytes())


def make_picture(name, seed, height, width):
    """Two uint8 RGB frames (H,W,3), the picture and an earlier one."""
    rng = stream(f"picture/{name}", seed)
    frame, earlier, _ = make_frames(rng, height, width)
    return [
        np.clip(np.rint(50 * picture + 128), 0, 255).astype(np.uint8).transpose(1, 2, 0) for picture in (frame, earlier)
    ]
