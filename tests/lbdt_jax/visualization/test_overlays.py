"""Overlays change the mask and its outline only; the frame difference equals the model's."""

from __future__ import annotations

import numpy as np
import pytest
from frames import disc, noise

from lbdt_jax.models.lbdt import normalize_frames
from lbdt_jax.visualization.overlays import GROUND_TRUTH_COLOR, PALETTE, PREDICTION_COLOR, frame_difference, overlay


@pytest.mark.parametrize(("height", "width", "contour"), [(72, 96, 1), (720, 1280, 6)])
def test_overlay_draws_fill_contour_and_outline_and_keeps_the_rest(height: int, width: int, contour: int) -> None:
    frame, radius, color = noise(height, width), height / 4, PALETTE[0]
    image = overlay(frame, disc(height, width, radius), color)
    outside = ~disc(height, width, radius + contour + 1)
    np.testing.assert_array_equal(image[outside], frame[outside])
    # On the row through the center, around the left edge of the disc: outline, contour, then fill.
    row, edge = height // 2, int(width / 2 - radius) + 1
    assert (image[row, edge - contour : edge] < frame[row, edge - contour : edge] * 0.5 + 1).all()
    assert (image[row, edge : edge + contour] == color).all()
    inside = disc(height, width, radius - contour - 1)
    np.testing.assert_allclose(image[inside], 0.6 * frame[inside] + 0.4 * np.array(color), atol=0.51)


def test_overlay_of_no_pixel_one_pixel_and_all_pixels() -> None:
    frame, color = noise(20, 30), (10, 200, 30)
    empty = np.zeros((20, 30), bool)
    np.testing.assert_array_equal(overlay(frame, empty, color), frame)
    one = empty.copy()
    one[4, 5] = True
    assert tuple(overlay(frame, one, color)[4, 5]) == color
    full = overlay(frame, ~empty, color)
    np.testing.assert_allclose(full, 0.6 * frame + 0.4 * np.array(color), atol=0.51)  # no contour on the border


def test_overlay_rejects_a_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(30, 20\) does not fit a frame of shape \(20, 30, 3\)"):
        overlay(noise(20, 30), np.zeros((30, 20), bool), PALETTE[0])


def test_palette_colors_are_distinct() -> None:
    palette = np.array(PALETTE, float)
    distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
    assert distances[~np.eye(len(palette), dtype=bool)].min() > 60
    assert PREDICTION_COLOR != GROUND_TRUTH_COLOR


def test_frame_difference_is_zero_where_nothing_moves() -> None:
    earlier = noise(32, 32)
    frame = earlier.copy()
    frame[8:16, 8:16] = 255 - frame[8:16, 8:16]
    difference = frame_difference(frame, earlier)
    assert difference.dtype == np.uint8
    assert difference[8:16, 8:16].max() == 255
    difference[8:16, 8:16] = 0
    assert difference.max() == 0
    np.testing.assert_array_equal(frame_difference(frame, earlier), frame_difference(earlier, frame))


def test_frame_difference_equals_the_models() -> None:
    frame, earlier = noise(24, 24), noise(24, 24, seed=1)
    difference = np.abs(np.asarray(normalize_frames(frame)) - np.asarray(normalize_frames(earlier)))
    brightest = np.percentile(difference, 99.5)
    shown = frame_difference(frame, earlier) / 255 * brightest
    np.testing.assert_allclose(shown, np.minimum(difference, brightest), atol=brightest / 500)


def test_frame_difference_does_not_amplify_faint_noise() -> None:
    earlier = np.full((16, 16, 3), 100, np.uint8)
    difference = frame_difference(earlier + np.uint8(2), earlier)
    # 2 of 255 is 3.4 to 3.6 hundredths of a channel's standard deviation.
    np.testing.assert_array_equal(difference[0, 0], (9, 9, 9))
