"""Masks and sentences drawn on the frames of a video (lbdt_jax/visualization/video_strip.py)."""

from __future__ import annotations

import numpy as np
import pytest

from lbdt_jax.visualization import video_strip


def test_many_sentences_fit_below_a_frame() -> None:
    masks = np.zeros((200, 180, 240), bool)
    masks[0, 10:40, 10:40] = True
    blank = np.full((180, 240, 3), 200, np.uint8)
    few = video_strip.draw_segmentation(blank, masks[:1], ["the dog"])
    many = video_strip.draw_segmentation(blank, masks, ["the dog " * 50] * 200)
    for image in (few, many):
        assert image.shape == (180, 240, 3)
        assert (image[41:110] == 200).all()  # the text stays in the lower third
        assert (image[170:] < 190).any()
    assert (many[130:] != 200).sum() > 2 * (few[130:] != 200).sum()
    np.testing.assert_array_equal(
        video_strip.draw_segmentation(blank[:150], masks[1:2, :150], ["the dog"]), blank[:150]
    )


@pytest.mark.parametrize("shape", [(16384, 2), (2, 16384), (90, 160), (160, 90)])
@pytest.mark.parametrize("pixel_aspect", [1 / 8, 1, 8])
def test_sheets_of_extreme_shapes_stay_small(shape: tuple[int, int], pixel_aspect: float) -> None:
    sampler = video_strip.FrameSampler(max_frames=4, pixel_aspect=pixel_aspect)
    sampler.add(np.full((*shape, 3), 99, np.uint8), "a frame")
    sheet = sampler.sheet(["the dog"])
    height = 360 * shape[0] / shape[1] / pixel_aspect
    assert sheet.width == 1176 and sheet.height <= 1300
    shown = max(1, min(360, 360 * 1080 / height)), max(1, min(height, 1080))
    assert (np.asarray(sheet) == 99).all(-1).sum() == pytest.approx(shown[0] * shown[1], rel=0.06)
