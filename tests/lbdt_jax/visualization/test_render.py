"""Overlays touch what they should, contact sheets hold any example, and files are written whole."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lbdt_jax.models.lbdt import normalize
from lbdt_jax.visualization import render
from lbdt_jax.visualization import text as text_rendering


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def disc(height: int, width: int, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[:height, :width]
    return (rows - height / 2) ** 2 + (columns - width / 2) ** 2 < radius**2


def example(height: int, width: int, mask: np.ndarray | None = None, **changes: object) -> render.Example:
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
    return render.Example(**(values | changes))


@pytest.mark.parametrize(("height", "width", "contour"), [(72, 96, 1), (720, 1280, 6)])
def test_overlay_fills_softly_draws_the_contour_and_leaves_the_rest(height: int, width: int, contour: int) -> None:
    frame, radius, color = noise(height, width), height / 4, render.PALETTE[0]
    painted = render.overlay(frame, disc(height, width, radius), color)
    beyond = ~disc(height, width, radius + contour + 1)
    np.testing.assert_array_equal(painted[beyond], frame[beyond])
    # On the row through the centre, from the left edge of the disc inwards: line, contour, fill.
    row, edge = height // 2, int(width / 2 - radius) + 1
    assert (painted[row, edge - contour : edge] < frame[row, edge - contour : edge] * 0.5 + 1).all()
    assert (painted[row, edge : edge + contour] == color).all()
    inside = disc(height, width, radius - contour - 1)
    np.testing.assert_allclose(painted[inside], 0.6 * frame[inside] + 0.4 * np.array(color), atol=0.51)


def test_overlay_of_nothing_one_pixel_and_everything() -> None:
    frame, color = noise(20, 30), (10, 200, 30)
    nothing = np.zeros((20, 30), bool)
    np.testing.assert_array_equal(render.overlay(frame, nothing, color), frame)
    one = nothing.copy()
    one[4, 5] = True
    assert tuple(render.overlay(frame, one, color)[4, 5]) == color
    everything = render.overlay(frame, ~nothing, color)
    np.testing.assert_allclose(everything, 0.6 * frame + 0.4 * np.array(color), atol=0.51)  # no contour on the border


def test_overlay_refuses_a_mask_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"\(30, 20\) does not fit a frame of shape \(20, 30, 3\)"):
        render.overlay(noise(20, 30), np.zeros((30, 20), bool), render.PALETTE[0])


def test_palette_has_no_two_colours_alike() -> None:
    palette = np.array(render.PALETTE, float)
    distances = np.linalg.norm(palette[:, None] - palette[None], axis=-1)
    assert distances[~np.eye(len(palette), dtype=bool)].min() > 60
    assert render.PREDICTION_COLOR != render.GROUND_TRUTH_COLOR


def test_frame_difference_is_dark_where_nothing_moves() -> None:
    earlier = noise(32, 32)
    frame = earlier.copy()
    frame[8:16, 8:16] = 255 - frame[8:16, 8:16]
    difference = render.frame_difference(frame, earlier)
    assert difference.dtype == np.uint8
    assert difference[8:16, 8:16].max() == 255
    difference[8:16, 8:16] = 0
    assert difference.max() == 0
    np.testing.assert_array_equal(render.frame_difference(frame, earlier), render.frame_difference(earlier, frame))


def test_frame_difference_is_the_one_the_model_makes() -> None:
    frame, earlier = noise(24, 24), noise(24, 24, seed=1)
    motion = np.abs(np.asarray(normalize(frame)) - np.asarray(normalize(earlier)))
    brightest = np.percentile(motion, 99.5)
    shown = render.frame_difference(frame, earlier) / 255 * brightest
    np.testing.assert_allclose(shown, np.minimum(motion, brightest), atol=brightest / 500)


def test_frame_difference_does_not_blow_up_faint_noise() -> None:
    earlier = np.full((16, 16, 3), 100, np.uint8)
    difference = render.frame_difference(earlier + np.uint8(2), earlier)
    # Two steps of 255, over the channels' deviations, are 3.4 to 3.6 hundredths of one deviation.
    np.testing.assert_array_equal(difference[0, 0], (9, 9, 9))


def test_contact_sheet_scales_every_frame_to_one_panel_width() -> None:
    tiny, huge = example(72, 96), example(720, 1280)
    sheets = [render.contact_sheet([row], "Best") for row in (tiny, huge)]
    both = render.contact_sheet([tiny, huge], "Best")
    assert {sheet.width for sheet in (*sheets, both)} == {1132}
    assert sheets[0].height - sheets[1].height == 256 * 72 // 96 - 256 * 720 // 1280
    header = 2 * sheets[0].height - render.contact_sheet([tiny, tiny], "Best").height
    assert both.height == sum(sheet.height for sheet in sheets) - header
    assert np.asarray(both).shape == (both.height, 1132, 3)


def test_contact_sheet_shows_ground_truth_and_prediction_in_their_colours() -> None:
    mask = disc(64, 64, 16)
    black = np.zeros((64, 64, 3), np.uint8)
    row = example(64, 64, mask, prediction=mask, frame=black, earlier_frame=black)
    bottom = np.asarray(render.contact_sheet([row], ""))[-18 - 128]  # the row of pixels through the panels' centres
    fills = [bottom[36 + 128 + column * 268] for column in range(4)]
    assert fills[0].max() == fills[1].max() == 0
    np.testing.assert_allclose(fills[2], 0.4 * np.array(render.GROUND_TRUTH_COLOR), atol=1)
    np.testing.assert_allclose(fills[3], 0.4 * np.array(render.PREDICTION_COLOR), atol=1)


def test_contact_sheet_wraps_and_cuts_long_sentences() -> None:
    def height(sentence: str) -> int:
        return render.contact_sheet([example(64, 64, sentence=sentence)], "Random").height

    one_line = height("the red circle")
    two_lines = height("the red circle " * 12)
    assert two_lines > one_line
    assert height("the red circle " * 1000) == height("x" * 10_000) == two_lines
    assert height("") == height("left\n\x00\ud800 of 红色 🙂") == one_line


def test_the_ellipsis_shows_where_a_sentence_was_cut() -> None:
    sheet = np.asarray(render.contact_sheet([example(64, 64, sentence="x" * 10_000)], "Random"))
    first, second = sheet[124:149], sheet[149:174]
    np.testing.assert_array_equal(first[:, :1060], second[:, :1060])
    assert (first[:, 1060:] != second[:, 1060:]).any()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (64, 2000), (1280, 720)])
def test_contact_sheet_holds_odd_sizes_and_empty_masks(size: tuple[int, int]) -> None:
    empty = np.zeros(size, bool)
    sheet = render.contact_sheet([example(*size, mask=empty), example(*size, mask=~empty)], "Worst")
    assert sheet.width == 1132


def test_the_smallest_object_of_a_large_frame_is_kept() -> None:
    mask = np.zeros((720, 1280), bool)
    mask[300, 500] = True
    without = example(720, 1280, mask, prediction=np.zeros_like(mask))
    pictures = [np.asarray(render.contact_sheet([row], "")).astype(int) for row in (example(720, 1280, mask), without)]
    assert np.abs(pictures[0] - pictures[1])[:, 840:].max() > 20


def test_contact_sheet_without_examples_says_so() -> None:
    with pytest.raises(ValueError, match='the contact sheet "Best" has no examples'):
        render.contact_sheet([], "Best")


@pytest.mark.parametrize("field", ["mask", "prediction"])
def test_contact_sheet_refuses_pictures_of_another_size(field: str) -> None:
    with pytest.raises(ValueError, match="clip/7/1: earlier frame, mask and prediction must be as large as the frame"):
        render.contact_sheet([example(64, 64, **{field: np.ones((32, 32), bool)})], "Best")


def test_save_makes_folders_and_replaces(tmp_path) -> None:
    path = tmp_path / "evaluation" / "best.png"
    for shade in (10, 200):
        render.save(Image.new("RGB", (4, 3), (shade,) * 3), path)
        with Image.open(path) as image:
            assert image.size == (4, 3) and image.getpixel((0, 0)) == (shade,) * 3
    assert [file.name for file in path.parent.iterdir()] == ["best.png"]


def test_save_that_fails_half_way_leaves_the_earlier_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "best.png"
    path.write_bytes(b"earlier")

    def fail(self: Image.Image, partial, kind) -> None:
        partial.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space"):
        render.save(Image.new("RGB", (4, 3)), path)
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["best.png"]


def test_letters_that_a_font_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rendering, "SYSTEM_FONTS", ())
    text_rendering.legible.cache_clear()
    assert text_rendering.legible(" the\tred dog ", 20)[0] == "the red dog"
    assert text_rendering.legible("un café", 20)[0] == "un cafe"
    assert (
        text_rendering.legible("一只狗 left\x00", 20)[0]
        == "(3 characters without a font) left(1 character without a font)"
    )

    # With a system font that has them they are drawn as they are; the size tells it from Pillow's own.
    own = text_rendering._load("", 20)
    monkeypatch.setattr(text_rendering, "SYSTEM_FONTS", ("missing.ttf", "all.ttf"))
    monkeypatch.setattr(
        text_rendering, "_load", lambda name, size: {"": own, "all.ttf": own.font_variant(size=21)}.get(name)
    )
    monkeypatch.setattr(
        text_rendering, "_has", lambda font, character: font.size == 21 or character.isascii() or character == "…"
    )
    text_rendering.legible.cache_clear()
    for text, size in (("café 一只狗", 21), ("cafe", 20)):
        assert (text_rendering.legible(text, 20)[0], text_rendering.legible(text, 20)[1].size) == (text, size)
    text_rendering.legible.cache_clear()
