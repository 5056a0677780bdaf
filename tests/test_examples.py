"""The notebook in examples/ runs and segments the right objects; the README's animation can be made again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from examples import make_readme_animation


def test_quickstart_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())["cells"]
    code_cells = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code_cells)

    variables: dict[str, object] = {}
    for cell in code_cells:
        exec("".join(cell["source"]), variables)
    plt, scene, masks = variables["plt"], variables["scene"], variables["masks"]
    try:
        assert len(plt.get_fignums()) == 2
        assert all(image.get_array().std() > 0 for axis in plt.gcf().axes for image in axis.images)
    finally:
        plt.close("all")
    # Compared with the ground truth of frame 15, counted from 1.
    descriptions = [(shape.color, shape.kind, shape.direction) for shape in scene.shapes]
    expected = [("blue", "circle", "left"), ("purple", "triangle", "left"), ("blue", "circle", "still")]
    for mask, description in zip(masks[15 - 1], expected, strict=True):
        truth = scene.masks[15][descriptions.index(description)]
        assert np.sum(mask & truth) / np.sum(mask | truth) > 0.8


def test_readme_animation(tmp_path: Path) -> None:
    make_readme_animation.main(str(tmp_path / "example.gif"))
    with Image.open(tmp_path / "example.gif") as image, Image.open(ROOT / "docs" / "example.gif") as published:
        assert (image.size, image.n_frames) == (published.size, published.n_frames)
