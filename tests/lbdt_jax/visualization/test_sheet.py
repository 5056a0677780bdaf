"""Images are written atomically (lbdt_jax/visualization/sheet.py)."""

from __future__ import annotations

import pytest
from PIL import Image

from lbdt_jax.visualization.sheet import save_image


def test_save_creates_folders_and_replaces(tmp_path) -> None:
    path = tmp_path / "evaluation" / "best.png"
    for shade in (10, 200):
        save_image(Image.new("RGB", (4, 3), (shade,) * 3), path)
        with Image.open(path) as image:
            assert image.size == (4, 3) and image.getpixel((0, 0)) == (shade,) * 3
    assert [file.name for file in path.parent.iterdir()] == ["best.png"]


def test_save_that_fails_halfway_leaves_the_earlier_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "best.png"
    path.write_bytes(b"earlier")

    def fail(self: Image.Image, temporary, image_format) -> None:
        temporary.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space"):
        save_image(Image.new("RGB", (4, 3)), path)
    assert path.read_bytes() == b"earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["best.png"]
