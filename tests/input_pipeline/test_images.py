"""Resized frames and masks equal those of the released code, and encoding and decoding are inverse."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
from inputs_rule import checksum, make_uint8_frames
from paths import GOLDEN

from input_pipeline.images import decode_frame, decode_mask, encode_frame, encode_mask, resize_frame, resize_target

FRAMES = json.loads((GOLDEN / "preprocess.json").read_text())["pictures"]

SIZE = (320, 320)
MASKS = np.load(GOLDEN / "preprocess.npz")
MASK_NAMES = [name.removesuffix("/in") for name in MASKS if name.endswith("/in")]


@pytest.mark.parametrize("case", FRAMES, ids=lambda case: f"{case['height']}x{case['width']}")
def test_resized_frames_equal_the_released_code(case) -> None:
    height, width = case["height"], case["width"]
    frame, earlier_frame = make_uint8_frames(f"{height}x{width}", 0, height, width)
    assert checksum(resize_frame(frame, SIZE)) == case["crc_resized_frame"]
    assert checksum(resize_frame(earlier_frame, SIZE)) == case["crc_resized_earlier"]


@pytest.mark.parametrize("name", MASK_NAMES)
def test_targets_equal_the_released_code(name) -> None:
    height, width = map(int, name.split("/")[1].split("x"))
    mask = np.unpackbits(MASKS[f"{name}/in"], count=height * width).reshape(height, width).astype(bool)
    target = resize_target(mask, SIZE)
    assert target.dtype == np.uint8 and target.shape == SIZE
    np.testing.assert_array_equal(np.packbits(target), MASKS[f"{name}/out"])


def test_upsampled_masks_equal_those_saved_by_the_released_code() -> None:
    """It upsamples masks for the Refer-YouTube-VOS server by the same rule."""
    probability = np.load(GOLDEN / "metrics.npz")["probability_x64"]
    for pair in json.loads((GOLDEN / "metrics.json").read_text())["pairs"]:
        saved = resize_target(probability[pair["index"]] > 32, (pair["height"], pair["width"]))
        assert (checksum(saved), saved.sum()) == (pair["crc_saved"], pair["areas"]["saved"])


def test_images_of_one_pixel() -> None:
    assert resize_frame(np.full((1, 1, 3), 7, np.uint8), (2, 3)).tolist() == [[[7] * 3] * 3] * 2
    assert resize_target(np.array([[False, True]]), (2, 3)).tolist() == [[0, 1, 1], [0, 1, 1]]
    assert resize_target(np.array([[True, False], [False, False]]), (1, 1)).tolist() == [[1]]
    assert resize_target(np.array([[False, False], [False, True]]), (1, 1)).tolist() == [[0]]


def test_masks_are_encoded_without_loss_and_frames_nearly() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((37, 53)) > 0.5
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)
    assert decode_mask(encode_mask(mask)).dtype == bool
    assert decode_mask(encode_mask(mask)).view(np.uint8).max() == 1  # Pillow's bools hold 255
    stripes = np.zeros((40, 48, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)  # chroma subsampling would blur them into one color
    decoded = decode_frame(encode_frame(stripes))
    assert decoded.dtype == np.uint8 and np.abs(decoded.astype(int) - stripes).max() < 20


@pytest.mark.parametrize("length", [0, 3, 20, 60, 150])
def test_truncated_images_raise_oserror(length) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    for encode, decode, image in (
        (encode_frame, decode_frame, noise),
        (encode_mask, decode_mask, noise[..., 0] > 99),
    ):
        with pytest.raises(OSError):
            decode(encode(image)[:length])


def test_broken_png_header_raises_oserror() -> None:
    data = bytearray(encode_mask(np.eye(9, dtype=bool)))
    data[11] = 5  # length of the header
    with pytest.raises(OSError, match="broken image"):
        decode_mask(bytes(data))


def test_image_that_claims_to_be_huge_raises_oserror() -> None:
    data = bytearray(encode_mask(np.eye(9, dtype=bool)))
    data[16:24] = struct.pack(">2I", 60_000, 60_000)  # width and height
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(OSError, match="broken image"):
        decode_mask(bytes(data))
