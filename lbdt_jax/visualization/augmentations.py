"""The contact sheet of augmented training samples, to see whether picture, mask and sentence still agree."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from input_pipeline.augmentation import Augmentation, SampleGroup, is_augmented
from input_pipeline.datasets import training_datasets
from input_pipeline.errors import UserError
from input_pipeline.pipeline import augmented_groups
from input_pipeline.prepare import prepare_for
from lbdt_jax.parallel import is_first_process, run_sequentially
from lbdt_jax.visualization.contact_sheet import draw_mask
from lbdt_jax.visualization.overlays import GROUND_TRUTH_COLOR, frame_difference
from lbdt_jax.visualization.sheet import (
    BACKGROUND,
    GAP,
    LABEL_COLOR,
    PANEL,
    TEXT_COLOR,
    panel_size,
    save_image,
    stack_rows,
)
from lbdt_jax.visualization.text import draw_text

#: The mask is that of the frame, also over the earlier frame, where it shows which way the object moves.
_COLUMNS = ("earlier frame", "frame", "difference", "earlier frame, augmented", "frame, augmented", "difference")


def save_augmentations(config: ConfigDict, path: Path) -> None:
    """Draws the first config.contact_sheet_samples frame pairs that training will get, before and after; says where.

    Raises:
      UserError: there are no records, or nothing to draw.
    """
    if not is_augmented(config) or not config.contact_sheet_samples:
        raise UserError(
            "Nothing is augmented, or no sample drawn: set config.augment_flip, augment_scale, augment_brightness, "
            "augment_contrast, augment_saturation or augment_hue, and config.contact_sheet_samples."
        )
    run_sequentially(lambda: prepare_for(config))
    if not is_first_process():
        return
    groups = itertools.islice(augmented_groups(config), config.contact_sheet_samples)
    rows = [_draw_row(*group) for group in groups]
    save_image(stack_rows(rows, _COLUMNS, f"{', '.join(training_datasets(config))} train, augmented"), path)
    print(f"Augmented samples: {path}")


def _draw_row(original: SampleGroup, augmented: SampleGroup, augmentation: Augmentation) -> Image.Image:
    """A sentence before and after, a line on what was done, and six panels; as wide as the panels.

    Of several sentences on the frame pair, the first one that changes is shown, or else the first one.
    """
    before, after = original.sentences, augmented.sentences
    shown = next((number for number, sentence in enumerate(before) if after[number] != sentence), 0)
    sizes = [panel_size(*group.frame.shape[:2]) for group in (original, augmented)]
    panel_height = max(height for _, height in sizes)
    row = Image.new("RGB", (len(_COLUMNS) * (PANEL + GAP) - GAP, panel_height + 110), BACKGROUND)
    draw = ImageDraw.Draw(row)
    bottom = draw_text(draw, (0, 0), before[shown], 19, TEXT_COLOR, row.width)
    bottom = draw_text(draw, (0, bottom), after[shown], 19, TEXT_COLOR, row.width)
    description = f"{original.names[shown].partition(':')[0]}: {describe(augmentation)}"
    top = draw_text(draw, (0, bottom + 4), description, 14, LABEL_COLOR, row.width) + 10
    for number, (group, size) in enumerate(zip((original, augmented), sizes, strict=True)):
        mask = group.targets[shown].astype(bool)
        panels = [
            draw_mask(np.ascontiguousarray(frame), mask, size, GROUND_TRUTH_COLOR, filled=False)
            for frame in (group.earlier_frame, group.frame)
        ]
        panels.append(frame_difference(group.frame, group.earlier_frame))
        for column, panel in enumerate(panels, len(panels) * number):
            image = Image.fromarray(panel).resize(size, Image.Resampling.BICUBIC)
            row.paste(image, (column * (PANEL + GAP) + (PANEL - size[0]) // 2, top))
    return row.crop((0, 0, row.width, top + panel_height))


def describe(augmentation: Augmentation) -> str:
    """In words, such as "mirrored, scale 1.32, brightness 0.91"; "unchanged" if nothing was done."""
    crop, colors = augmentation.crop, augmentation.colors
    parts = ["mirrored"] * augmentation.mirrored + [f"scale {crop.scale:.2f}"] * (crop.scale != 1)
    parts += [
        f"{kind} {change:+.2f} turns" if kind == "hue" else f"{kind} {1 + change:.2f}"
        for kind, change in colors._asdict().items()
        if change
    ]
    return ", ".join(parts) or "unchanged"
