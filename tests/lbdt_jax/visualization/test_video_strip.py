"""Masks and sentences drawn on the frames of a video (lbdt_jax/visualization/video_strip.py)."""

from __future__ import annotations

import numpy as np

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
