"""Videos as folders of frames and masks: missing, damaged and unusual files, read through the readers that use them."""

from __future__ import annotations

import functools
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fake_datasets import HEIGHT, WIDTH, frame, write_jpeg
from fake_video_folders import (
    CAR,
    FRAMES,
    MAN,
    MASKS,
    NEW,
    walking_mask,
    write_labels,
    write_ref_davis17,
    write_refer_youtube_vos,
)
from PIL import Image
from reader_checks import check_pair, read_all

from input_pipeline.errors import UserError
from input_pipeline.readers import video_folders
from input_pipeline.readers.raw_files import read_frame
from input_pipeline.readers.ref_davis17 import RefDAVIS17
from input_pipeline.readers.refer_youtube_vos import ReferYouTubeVOS
from input_pipeline.readers.video_folders import read_labels
from input_pipeline.types import Skipped


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_refer_youtube_vos(tmp_path / "rvos")


def grayscale_png(values: np.ndarray, bits: int) -> bytes:
    """The bytes of a grayscale PNG file, of low bit depths too, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape
    planes = np.unpackbits(values.astype(np.uint8)[..., None], axis=2)[..., -bits:]
    rows = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in planes)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    "index, frames, name",
    [(15, [5, 10], "frame"), (0, [10, 15], "earlier frame")],
    ids=["frame", "earlier frame"],
)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_frame(raw: Path, index: int, frames: list[int], name: str, kept: float) -> None:
    path = raw / "train/JPEGImages" / NEW / f"{index:05d}.jpg"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == frames
    where = str(path.with_name(f"{index or 5:05d}.jpg"))
    assert Skipped(where, f"the {name} can't be read") in skipped


def test_missing_mask(raw: Path) -> None:
    path = raw / "train/Annotations" / NEW / "00005.png"
    path.unlink()
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0] == Skipped(str(path), "mask missing")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_truncated_mask(raw: Path, kept: float) -> None:
    path = raw / "train/Annotations" / NEW / "00005.png"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0] == Skipped(str(path), "the mask can't be read")


def test_mask_and_frame_of_different_size(raw: Path) -> None:
    Image.fromarray(np.ones((WIDTH, HEIGHT), np.uint8)).save(raw / "train/Annotations" / NEW / "00005.png")
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    where = str(raw / "train/JPEGImages" / NEW / "00005.jpg")
    assert skipped[0] == Skipped(where, "the mask and the frame differ in size")


def test_earlier_frame_of_different_size(raw: Path) -> None:
    Image.fromarray(frame(0)[:, :32]).save(raw / "train/JPEGImages" / NEW / "00000.jpg")
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0].reason == "the earlier frame and the frame differ in size"


@pytest.mark.parametrize("part", ["JPEGImages", "Annotations"])
@pytest.mark.parametrize("kind", ["folder", "dangling", "circle"])
def test_folder_or_broken_link_instead_of_a_file(raw: Path, part: str, kind: str) -> None:
    (path,) = (raw / "train" / part / NEW).glob("00015.*g")
    path.unlink()
    path.mkdir() if kind == "folder" else path.symlink_to(path.name if kind == "circle" else "nowhere")
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [5, 10]
    what = "frame" if part == "JPEGImages" else "mask"
    reason = f"{what} missing" if kind == "dangling" else f"the {what} can't be read"
    assert Skipped(str(path), reason) in skipped


def test_damaged_mask_is_rejected_or_read_correctly(raw: Path) -> None:
    path = raw / "valid/Annotations" / MAN / "00005.png"
    intact, labels, failures = path.read_bytes(), read_labels(path), 0
    for position in range(len(intact)):
        path.write_bytes(intact[:position] + bytes([intact[position] ^ 4]) + intact[position + 1 :])
        try:
            np.testing.assert_array_equal(read_labels(path), labels)
        except UserError:
            failures += 1
    assert failures > len(intact) - 20  # damage at the end of the file is harmless


def test_color_image_instead_of_a_mask(raw: Path) -> None:
    path = raw / "train/Annotations" / NEW / "00005.png"
    Image.fromarray(frame(0)).save(path)
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0] == Skipped(str(path), "the mask is neither a palette image nor 8-bit grayscale: no object ids")


def test_grayscale_mask(raw: Path) -> None:
    labels = np.where(walking_mask(1, 5), 1, 0) + np.where(walking_mask(2, 5), 2, 0)
    Image.fromarray(labels.astype(np.uint8)).save(raw / "train/Annotations" / NEW / "00005.png")
    check_pair(raw / "train/JPEGImages", read_all(ReferYouTubeVOS(raw), NEW)[0][0], 0)


def test_mask_of_low_bit_depth(raw: Path) -> None:
    """Palette indices are read as they are; gray values would be scaled by Pillow: 1 to 17 at 4 bits."""
    path = raw / "train/Annotations" / NEW / "00005.png"
    labels = np.where(walking_mask(1, 5), 1, 0) + np.where(walking_mask(2, 5), 2, 0)
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(range(12))
    image.save(path, bits=4)
    check_pair(raw / "train/JPEGImages", read_all(ReferYouTubeVOS(raw), NEW)[0][0], 0)
    path.write_bytes(grayscale_png(labels, bits=4))
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [10, 15]
    assert skipped[0] == Skipped(str(path), "the mask is neither a palette image nor 8-bit grayscale: no object ids")


@pytest.mark.parametrize("length", [10_000, 60_000])
@pytest.mark.parametrize("part, what", [("Annotations", "mask"), ("JPEGImages", "frame")])
def test_image_that_claims_a_huge_size(raw: Path, part: str, what: str, length: int) -> None:
    path = raw / "train" / part / NEW / ("00015.png" if what == "mask" else "00015.jpg")
    content = bytearray(grayscale_png(np.ones((HEIGHT, WIDTH)), bits=8))
    content[16:24] = struct.pack(">II", length, length)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    pairs, skipped = read_all(ReferYouTubeVOS(raw), NEW)
    assert [pair.frame_index for pair in pairs] == [5, 10]
    assert Skipped(str(path), f"the {what} can't be read") in skipped


@pytest.mark.parametrize("interval, reads", [(2, 24), (12, 48)])
def test_few_frames_of_a_long_video_are_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval: int, reads: int
) -> None:
    """At a short interval every frame is read once; at a long one, earlier frames are read again."""
    raw = write_ref_davis17(tmp_path / "davis")
    for index in range(24):
        write_jpeg(raw / FRAMES / CAR / f"{index:05d}.jpg", frame(index % 20))
        write_labels(raw / MASKS / CAR / f"{index:05d}.png", {1: walking_mask(1, index)})
    count: Counter[str] = Counter()

    def counting(path: Path, name: str) -> tuple[np.ndarray, bytes]:
        count[name] += 1
        return read_frame(path, name)

    monkeypatch.setattr(video_folders, "FrameCache", functools.partial(video_folders.FrameCache, counting))
    pairs, _ = read_all(RefDAVIS17(raw, interval), CAR)
    assert len(pairs) == 24 and count.total() == reads
    for pair in pairs:
        index = pair.frame_index
        check_pair(raw / FRAMES, pair, index - interval if index >= interval else index + interval)
