"""Moving pictures, and folders of pictures of all kinds (input_pipeline/pictures.py)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from clips import frame_numbers, numbered_frame
from PIL import ExifTags, Image

from input_pipeline.errors import UserError
from lbdt_jax.inference.video import Clip, ClipWriter, open_clip

DURATIONS = (100, 200, 300, 3000)  # ms


def write_moving(path: Path, **options: object) -> Path:
    first, *others = (Image.fromarray(numbered_frame(index)) for index in range(4))
    first.save(path, save_all=True, append_images=others, duration=DURATIONS, **options)
    return path


@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.gif", "webp", "a.tif"])
def test_moving_pictures(tmp_path: Path, name: str) -> None:
    options = {"format": "WEBP"} if name == "webp" else {}
    clip = open_clip(write_moving(tmp_path / name, **({"lossless": True} if "webp" in name else {}), **options))
    frames = [(float(time * clip.time_base), frame) for time, frame in clip]
    assert frame_numbers(frames) == [0, 1, 2, 3] and clip.frames == 4
    has_times = name != "a.tif"
    assert [time for time, _ in frames] == pytest.approx([0, 0.1, 0.3, 0.6] if has_times else [0, 0.1, 0.2, 0.3])

    # The last frame is shown as long in the copy.
    with ClipWriter(tmp_path / "copy.mp4", (48, 64), clip) as writer:
        for time, frame in clip:
            writer.write(time, frame)
    assert open_clip(tmp_path / "copy.mp4").seconds == pytest.approx(3.6 if has_times else 0.4, abs=0.01)


def test_moving_pictures_in_a_folder(tmp_path: Path) -> None:
    for name in ("1.webp", "2.png", "3.gif", "4.tif"):
        write_moving(tmp_path / name)
    Image.fromarray(numbered_frame(9)).save(tmp_path / "5.bmp")
    clip = open_clip(tmp_path, rate=10)
    assert clip.frames == 17 and frame_numbers([(0, frame) for _, frame in clip]) == [*range(4)] * 4 + [9]
    assert [time for time, _ in clip] == [*range(17)]


def all_kinds() -> dict[str, Image.Image]:
    """The same gray picture in the modes that Pillow knows."""
    gray = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
    picture = Image.fromarray(gray)
    deep = gray.astype(np.uint16) * 257
    images = {"l.png": picture, "rgb.png": picture.convert("RGB"), "p.png": picture.convert("P")}
    images |= {
        "cmyk.tif": picture.convert("CMYK"),
        "la.png": picture.convert("LA"),
        "rgba.webp": picture.convert("RGBA"),
    }
    return images | {"16.png": Image.fromarray(deep), "16.tif": Image.fromarray(deep), "p.gif": picture}


def test_depths_and_modes(tmp_path: Path) -> None:
    images = all_kinds()
    for name, image in images.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    clip = open_clip(tmp_path)
    for name, (_, frame) in zip(sorted(images, key=lambda name: (not name[0].isdigit(), name)), clip, strict=True):
        np.testing.assert_allclose(frame, np.asarray(images["rgb.png"]), atol=1, err_msg=name)


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    image = np.full((4, 6, 4), 50, np.uint8)
    image[..., 3] = [0, 255, 255, 51, 51, 51]
    Image.fromarray(image).save(tmp_path / "a.png")
    ((_, frame),) = open_clip(tmp_path)
    assert frame[0, :, 0].tolist() == [255, 50, 50, 214, 214, 214]


def test_what_can_not_be_read_is_left_out(tmp_path: Path) -> None:
    for index in (0, 5, 7):
        Image.fromarray(numbered_frame(index)).save(tmp_path / f"{index}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:100])
    (tmp_path / "2.jpg").write_bytes(b"junk")
    Image.fromarray(np.zeros((48, 64), np.float32)).save(tmp_path / "3.tif")
    os.mkfifo(tmp_path / "4.png")
    (tmp_path / "6.png").symlink_to("/dev/zero")
    (tmp_path / "8.heic").touch()
    warnings: list[str] = []
    clip = open_clip(tmp_path, warn=warnings.append)
    assert [(time, frame_numbers([(0, frame)])) for time, frame in clip] == [(0, [0]), (5, [5]), (7, [7])]
    said = "\n".join(warnings)
    assert clip.reading.end == 8 and len(warnings) == 6
    for part in (
        "8.heic",
        "1.png can't be read",
        "2.jpg is no picture",
        "3.tif can't be read: pixels of mode F",
        "a named pipe",
    ):
        assert part in said


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    Image.new("1", (9000, 9000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="9000 x 9000 pixels. The limit is 67 million"):
        open_clip(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    os.truncate(tmp_path / "b.png", 2**30)  # a gigabyte behind its end, which takes no space on the disk
    with pytest.raises(UserError, match=r"b.png has 1,024.0 MB or more. The limit is 256.0 MB"):
        open_clip(tmp_path / "b.png")
    # Each frame of a TIFF has its own size.
    large = Image.new("1", (9000, 9000))
    Image.new("1", (4, 4)).save(tmp_path / "c.tif", save_all=True, append_images=[large], compression="tiff_deflate")
    warnings: list[str] = []
    assert len([*open_clip(tmp_path / "c.tif", warn=warnings.append)]) == 1 and "9000 x 9000 pixels" in warnings[0]


def test_frames_of_a_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnail = Image.new("RGB", (16, 12))
    thumbnail.encoderinfo = {"tiffinfo": {ExifTags.Base.NewSubfileType: 1}}
    pages = [Image.fromarray(numbered_frame(1)), thumbnail]
    Image.fromarray(numbered_frame(0)).save(tmp_path / "a.tif", save_all=True, append_images=pages)
    assert open_clip(tmp_path / "a.tif").frames == len([*open_clip(tmp_path / "a.tif")]) == 2
    monkeypatch.setattr("input_pipeline.pictures._MAX_TIFF_FRAMES", 2)
    with pytest.raises(UserError, match="more than 2 frames"):
        open_clip(tmp_path / "a.tif")


def test_orientation_of_exif_counts_for_the_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(numbered_frame(0)).save(tmp_path / "0.jpg", exif=exif)
    Image.fromarray(numbered_frame(1, (64, 48))).save(tmp_path / "1.png")
    clip: Clip = open_clip(tmp_path)
    assert [frame.shape for _, frame in clip] == [(64, 48, 3)] * 2
