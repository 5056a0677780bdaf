"""Reading the files of raw datasets: text with any line endings, and frames that may be damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_datasets import frame
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.readers.raw_files import numbered_lines, read_frame


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no mark", "byte order mark"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_line_endings_and_byte_order_mark(tmp_path: Path, line_end: bytes, mark: bytes, encoding: str) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(mark + line_end.join([b"first", b" ", "caf\xe9 ".encode(encoding)]) + line_end)
    assert list(numbered_lines(path, latin_1=True)) == [(f"{path}:1", "first"), (f"{path}:3", "caf\xe9 ")]


def test_damaged_png_is_rejected(tmp_path: Path) -> None:
    """PNG files have checksums."""
    path = tmp_path / "frame.png"
    Image.fromarray(frame(5)).save(path)
    intact, failures = path.read_bytes(), 0
    positions = range(8, len(intact) - 12, 3)
    for position in positions:
        path.write_bytes(intact[:position] + bytes([intact[position] ^ 4]) + intact[position + 1 :])
        try:
            np.testing.assert_array_equal(read_frame(path, "frame")[0], frame(5))
        except UserError:
            failures += 1
    assert failures == len(positions)


def test_palette_frames_have_colors_and_16_bit_frames_are_rejected(tmp_path: Path) -> None:
    """Pillow would cut off 16-bit grayscale."""
    path = tmp_path / "frame.png"
    for transparency in (None, 0, bytes(range(256))):
        image = Image.fromarray(frame(5)).quantize()
        image.save(path, **({} if transparency is None else {"transparency": transparency}))
        np.testing.assert_array_equal(read_frame(path, "frame")[0], frame(5))
    Image.fromarray(frame(5)[..., 0].astype(np.uint16) * 257).save(path)
    with pytest.raises(UserError, match="the frame can't be read"):
        read_frame(path, "frame")
