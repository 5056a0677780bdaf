"""Contact sheets show examples of any size, with any sentence (lbdt_jax/visualization/contact_sheet.py)."""

from __future__ import annotations

import numpy as np
import pytest
from frames import disc, noise

from lbdt_jax.visualization.contact_sheet import Example, contact_sheet
from lbdt_jax.visualization.overlays import GROUND_TRUTH_COLOR, PREDICTION_COLOR


def example(height: int, width: int, mask: np.ndarray | None = None, **changes: object) -> Example:
    mask = disc(height, width, height / 4) if mask is None else mask
    values = {
        "frame": noise(height, width),
        "earlier_frame": noise(height, width, seed=1),
        "mask": mask,
        "prediction": np.roll(mask, 3, axis=1),
        "sentence": "the red circle moving left",
        "iou": 0.75,
        "name": "clip/7/1",
    }
    return Example(**(values | changes))


def test_contact_sheet_scales_every_frame_to_one_panel_width() -> None:
    tiny, huge = example(72, 96), example(720, 1280)
    sheets = [contact_sheet([row], "Best") for row in (tiny, huge)]
    both = contact_sheet([tiny, huge], "Best")
    assert {sheet.width for sheet in (*sheets, both)} == {1132}
    assert sheets[0].height - sheets[1].height == 256 * 72 // 96 - 256 * 720 // 1280
    header = 2 * sheets[0].height - contact_sheet([tiny, tiny], "Best").height
    assert both.height == sum(sheet.height for sheet in sheets) - header
    assert np.asarray(both).shape == (both.height, 1132, 3)


def test_contact_sheet_shows_ground_truth_and_prediction_in_their_colors() -> None:
    mask = disc(64, 64, 16)
    black = np.zeros((64, 64, 3), np.uint8)
    row = example(64, 64, mask, prediction=mask, frame=black, earlier_frame=black)
    bottom = np.asarray(contact_sheet([row], ""))[-18 - 128]  # the row of pixels through the panels' centers
    fills = [bottom[36 + 128 + column * 268] for column in range(4)]
    assert fills[0].max() == fills[1].max() == 0
    np.testing.assert_allclose(fills[2], 0.4 * np.array(GROUND_TRUTH_COLOR), atol=1)
    np.testing.assert_allclose(fills[3], 0.4 * np.array(PREDICTION_COLOR), atol=1)


def test_contact_sheet_wraps_and_cuts_long_sentences() -> None:
    def height(sentence: str) -> int:
        return contact_sheet([example(64, 64, sentence=sentence)], "Random").height

    one_line = height("the red circle")
    two_lines = height("the red circle " * 12)
    assert two_lines > one_line
    assert height("the red circle " * 1000) == height("x" * 10_000) == two_lines
    assert height("") == height("left\n\x00\ud800 of 红色 🙂") == one_line


def test_the_ellipsis_shows_where_a_sentence_was_cut() -> None:
    sheet = np.asarray(contact_sheet([example(64, 64, sentence="x" * 10_000)], "Random"))
    first, second = sheet[124:149], sheet[149:174]
    np.testing.assert_array_equal(first[:, :1060], second[:, :1060])
    assert (first[:, 1060:] != second[:, 1060:]).any()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (64, 2000), (1280, 720)])
def test_contact_sheet_accepts_extreme_sizes_and_empty_masks(size: tuple[int, int]) -> None:
    empty = np.zeros(size, bool)
    sheet = contact_sheet([example(*size, mask=empty), example(*size, mask=~empty)], "Worst")
    assert sheet.width == 1132


def test_an_object_of_one_pixel_in_a_large_frame_is_visible() -> None:
    mask = np.zeros((720, 1280), bool)
    mask[300, 500] = True
    without = example(720, 1280, mask, prediction=np.zeros_like(mask))
    images = [np.asarray(contact_sheet([row], "")).astype(int) for row in (example(720, 1280, mask), without)]
    assert np.abs(images[0] - images[1])[:, 840:].max() > 20


def test_contact_sheet_without_examples_is_an_error() -> None:
    with pytest.raises(ValueError, match='the contact sheet "Best" has no examples'):
        contact_sheet([], "Best")


@pytest.mark.parametrize("field", ["mask", "prediction"])
def test_contact_sheet_rejects_masks_of_another_size(field: str) -> None:
    with pytest.raises(ValueError, match="clip/7/1: earlier frame, mask and prediction must be as large as the frame"):
        contact_sheet([example(64, 64, **{field: np.ones((32, 32), bool)})], "Best")
