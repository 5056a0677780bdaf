"""The files of one of your own videos: a clip or a folder of frames, and the masks of its labelled frames."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from PIL import Image

from input_pipeline.coco_masks import decode_rle, is_empty_rle
from input_pipeline.colors import upright_rgb
from input_pipeline.errors import UserError, first_few
from input_pipeline.files import MAX_IMAGE_BYTES, check_regular_file, read_limited
from input_pipeline.images import decode_frame, encode_frame
from input_pipeline.pictures import IMAGE_SUFFIXES, MAX_PIXELS, list_pictures, number_key, read_picture
from input_pipeline.readers.json_index import JsonIndex, index_json
from input_pipeline.readers.raw_files import BAD_VIDEO_NAME, is_plain_name, parse_object_id, read_frames, shorten
from input_pipeline.readers.refer_youtube_vos import find_earlier
from input_pipeline.readers.video_folders import FrameCache, object_ids, read_labels
from input_pipeline.types import Skipped

CLIPS = (".mp4", ".mov", ".m4v")
#: Gray values from 128 to 254 that are the numbers of no object: as many, beside white, come from soft edges.
SOFT_EDGE_VALUES = 4

#: Frame, its image, the earlier frame's, the rule that selected that, and the contents of both files or None.
Pair = tuple[int, np.ndarray, np.ndarray, str, tuple[bytes, bytes] | None]


@dataclasses.dataclass(frozen=True)
class OwnVideo:
    """A video and its masks.

    Attributes:
      path: a clip, or a folder of frames.
      frames: the files of the frames, in order; () for a clip.
      masks: labelled frame -> its mask file, or its key in `index`.
      index: of the JSON file with the masks; None if they are image files.
    """

    path: Path
    frames: tuple[Path, ...]
    masks: dict[int, str]
    index: JsonIndex | None

    def where_mask(self, index: int) -> str:
        """The place of a frame's mask, for messages."""
        return self.masks[index] if self.index is None else f"{self.index.path}: frame {self.masks[index]}"

    def read_frame_rate(self) -> float | None:
        """Frames per second of a clip, on average; None for a folder, and for a clip that can't be opened."""
        if self.frames:
            return None
        try:
            with _open_clip(self.path) as container:
                rate = container.streams.video[0].average_rate
        except UserError:  # `read_pairs` says why
            return None
        return float(rate) if rate else None

    def find_frame(self, text: str) -> int | None:
        """The first frame from the one on that `text` names as a mask would; None if it names none."""
        text = composed(text)
        number = int(text) if re.fullmatch("[0-9]{1,9}", text) else None
        names = [composed(file.stem) for file in self.frames]
        if not names or text in names:
            return names.index(text) if names else number
        if number is None or not all(re.fullmatch("[0-9]{1,9}", name) for name in names):
            return None
        return sum(int(name) < number for name in names)

    def find_objects(self, objects: Collection[int]) -> set[int]:
        """The objects in the masks of all labelled frames, which are read only until all of `objects` are found.

        A mask that can't be read holds none: `read_mask` says what is wrong with it.
        """
        found: set[int] = set()
        for index in sorted(self.masks):
            if found.issuperset(objects):
                break
            with contextlib.suppress(UserError):
                found |= self._objects_in_mask(index, objects)
        return found

    def read_mask(self, index: int, objects: Collection[int], size: tuple[int, int]) -> dict[int, np.ndarray]:
        """Reads the mask of a labelled frame.

        Args:
          index: of the frame.
          objects: those that sentences name.
          size: (h, w) of the frame.

        Returns:
          Object -> its mask, bool, for those of `objects` that the mask holds: (h, w), or of the size of a mask file,
          which also gives an empty one for each of the others.

        Raises:
          UserError: the mask can't be read, or has soft edges, whose gray values would be taken for objects; or masks
            in a JSON file are of another size.
        """
        if self.index is None:
            labels, _ = self._read_labels(index, objects)
            return {i: labels == i for i in objects}
        with _unreadable_mask():
            return {i: decode_rle(rle, size) for i, rle in self._read_entry(self.index, index).items() if i in objects}

    def _objects_in_mask(self, index: int, objects: Collection[int]) -> set[int]:
        """All objects in a mask, of any size; those in a JSON file that are not in `objects` may be empty."""
        if self.index is None:
            return self._read_labels(index, objects)[1]
        with _unreadable_mask():
            entry = self._read_entry(self.index, index)
            return {i for i, rle in entry.items() if i not in objects or not is_empty_rle(rle)}

    def _read_labels(self, index: int, objects: Collection[int]) -> tuple[np.ndarray, set[int]]:
        """The object of every pixel of a mask file, (h, w) uint8, and all objects in it."""
        labels = read_labels(Path(self.masks[index]))
        present = object_ids(labels) - {0}
        if present == {255}:
            labels, present = (labels == 255).view(np.uint8), {1}
        unnamed = present.difference(objects)
        if 255 in unnamed and sum(i >= 128 for i in unnamed) > SOFT_EDGE_VALUES:
            raise UserError("a black-and-white mask with soft edges: save it with 0 and 255 only")
        return labels, present

    def _read_entry(self, masks: JsonIndex, index: int) -> dict[int, Any]:
        """Object -> its mask in a JSON file, not checked yet."""
        entry = masks.read(self.masks[index])
        if not isinstance(entry, dict):
            raise ValueError("expected {object: mask}")
        rles = {parse_object_id(text): rle for text, rle in entry.items()}
        if None in rles:
            raise ValueError("an object that is not a number from 1 to 255")
        return {i: rle for i, rle in rles.items() if i is not None}

    def read_pairs(self, indices: Sequence[int], interval: int) -> Iterator[Pair | Skipped]:
        """Yields the frame pairs of some frames, which are in order, or why there is none."""
        if self.frames:
            yield from self._read_folder(indices, interval)
        else:
            yield from self._read_clip(indices, interval)

    def _read_folder(self, indices: Sequence[int], interval: int) -> Iterator[Pair | Skipped]:
        cache = FrameCache(_read_displayed)
        for index in indices:
            earlier, rule = find_earlier(index, interval, range(len(self.frames)))
            try:
                frame, earlier_frame, files = read_frames(self.frames[index], self.frames[earlier], cache.read)
            except UserError as error:
                yield Skipped(str(self.frames[index]), str(error))
                continue
            yield index, frame, earlier_frame, rule, files

    def _read_clip(self, indices: Sequence[int], interval: int) -> Iterator[Pair | Skipped]:
        """Decodes the clip once, and keeps a frame until it is no longer needed."""
        earlier_of = {index: find_earlier(index, interval, range(index + 1)) for index in indices}
        last_use = {earlier: index for index, (earlier, _) in sorted(earlier_of.items())}
        kept: dict[int, np.ndarray] = {}
        count = 0
        try:
            for position, image in enumerate(_decode(self.path)):
                count = position + 1
                if position in last_use or position in earlier_of:
                    kept[position] = upright_rgb(image)
                if position in earlier_of:
                    earlier, rule = earlier_of[position]
                    if kept[earlier].shape == kept[position].shape:
                        yield position, kept[position], kept[earlier], rule, None
                    else:
                        yield Skipped(f"{self.path}: frame {position}", "the clip changes its size before the frame")
                kept = {index: frame for index, frame in kept.items() if last_use.get(index, -1) > position}
                if position >= indices[-1]:
                    break
        except UserError as error:
            yield Skipped(str(self.path), str(error))
        for index in indices:
            if index >= count:
                where = f"{self.path}: frame {index} of {count} that can be decoded"
                reason = "the clip is damaged, ends before the frame, or was unpacked with repeated ones (docs/data.md)"
                yield Skipped(where, reason)


@contextlib.contextmanager
def _unreadable_mask() -> Iterator[None]:
    """Turns whatever an entry of a JSON file raises into a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"the mask can't be read: {error}") from error


def _read_displayed(path: Path, name: str) -> tuple[np.ndarray, bytes]:
    """As `read_frame`, but the picture is as `predict` shows it: upright, over white, 8 of 16 bits of gray.

    Masks are drawn on what is displayed. Where `decode_frame` would give other pixels, the content is encoded anew.
    """
    try:
        content = read_limited(path, MAX_IMAGE_BYTES)
        if content.startswith(b"\x89PNG"):  # Pillow checks the checksums of a PNG only in verify()
            Image.open(io.BytesIO(content), formats=("PNG",)).verify()
        (_, image), *others = itertools.islice(read_picture(path), 2)
    except FileNotFoundError as error:
        raise UserError(f"{name} missing") from error
    except Exception as error:  # whatever Pillow raises for a damaged file, struct.error among others
        raise UserError(f"the {name} can't be read") from error
    if others:
        raise UserError(f"the {name} is a moving picture: save its frames as files of their own")
    try:
        is_stored = np.array_equal(decode_frame(content), image)
    except OSError:  # of a kind that records don't hold
        is_stored = False
    return image, content if is_stored else encode_frame(image)


@contextlib.contextmanager
def _open_clip(path: Path) -> Iterator[InputContainer]:
    """Opens a clip that has a video. Raises UserError if it can't be opened."""
    try:
        check_regular_file(path)
        # If FFmpeg may guess the format, it also follows playlists to other files.
        container = av.open(str(path), format="mp4", options={"err_detect": "explode"})
    except UserError:
        raise
    except (OSError, ValueError) as error:  # av.FFmpegError among others
        raise UserError("the clip is damaged, or no MP4 or QuickTime file") from error
    with container:
        if not container.streams.video or container.streams.video[0].codec_context is None:
            raise UserError("the clip has no video, or is of an unknown kind")
        yield container


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    """The frames of a clip up to the first damage. Raises UserError if it can't be opened."""
    with _open_clip(path) as container:
        codec = container.streams.video[0].codec_context
        codec.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        codec.thread_count = 1  # several clips are read in parallel already
        frames = container.decode(video=0)
        while True:
            try:
                frame = next(frames)
            except (StopIteration, av.FFmpegError, ValueError):
                return  # the caller reports every missing frame
            if frame.is_corrupt:
                return
            yield frame


def composed(name: str) -> str:
    """A name with its accents as other systems write them: in names of files, macOS may store them as own letters."""
    return unicodedata.normalize("NFC", name)


def find_videos(folder: Path, masks: Path, skipped: list[Skipped]) -> dict[str, OwnVideo]:
    """Name -> video, for all clips and folders of pictures in a folder. Reports every file that is not used."""
    videos: dict[str, OwnVideo] = {}
    json_files: dict[str, Path] = {}
    mask_folders: dict[str, Path] = {}
    for path in _visible(masks):
        if path.is_dir():
            mask_folders.setdefault(composed(path.name), path)
        elif path.suffix.lower() == ".json":
            json_files.setdefault(composed(path.stem), path)
    for path in _visible(folder):
        frames: tuple[Path, ...] = ()
        others: list[Path] = []
        where = str(path)
        if path.is_dir():
            pictures, others = list_pictures(path)
            name, frames = composed(path.name), tuple(pictures)
            reason = "" if frames else f"the folder has no pictures ({', '.join(IMAGE_SUFFIXES)})"
            if duplicates := _find_duplicates(frames):
                where, reason = f"{path}: {duplicates}", "two pictures of one number: the video is left out"
        else:
            name = composed(path.stem)
            reason = (
                "" if path.suffix.lower() in CLIPS else f"neither a folder of frames nor a clip ({', '.join(CLIPS)})"
            )
        if name in videos:
            reason = "a clip and a folder, or two clips, of one name: the first is used"
        if not reason and not (is_plain_name(name) and "," not in name):
            reason = f"{BAD_VIDEO_NAME}, or has a comma"
        if reason:
            skipped.append(Skipped(where, reason))
            continue
        for file in others:
            skipped.append(Skipped(str(file), f"not a picture ({', '.join(IMAGE_SUFFIXES)})"))
        videos[name] = _with_masks(path, frames, mask_folders.get(name), json_files.get(name), skipped)
    for path in _visible(masks):
        if path not in (*mask_folders.values(), *json_files.values()):
            skipped.append(Skipped(str(path), "neither a folder of masks nor the JSON file of a video"))
        elif composed(path.name if path.is_dir() else path.stem) not in videos:
            skipped.append(Skipped(str(path), "no video of this name is used"))
    return videos


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name[0] != ".") if folder.is_dir() else []


def _find_duplicates(frames: Sequence[Path]) -> str:
    """The names of two pictures of one number, as 1.jpg and 01.jpg, or 1.jpg and 1.png; "" if there are none."""
    numbered: dict[tuple[tuple[int, str], ...], Path] = {}
    for file in frames:
        first = numbered.setdefault(tuple(number_key(composed(file.stem))), file)
        if first != file:
            return f"{first.name} and {file.name}"
    return ""


def _with_masks(
    path: Path, frames: tuple[Path, ...], masks: Path | None, json_file: Path | None, skipped: list[Skipped]
) -> OwnVideo:
    """A video with its masks: the files of a folder `masks`, or a JSON file."""
    index: JsonIndex | None = None
    entries: list[tuple[str, str]] = []
    if masks is not None:
        for file in _visible(masks):
            if file.suffix.lower() == ".png":
                entries.append((file.stem, str(file)))
            else:
                skipped.append(Skipped(str(file), "not a PNG file"))
        if json_file is not None:
            skipped.append(Skipped(str(json_file), "not read, since a folder of masks lies beside it"))
    elif json_file is not None:
        try:
            index = index_json(json_file)
            entries = [(key, key) for key in index.entries]
        except (OSError, ValueError, RecursionError) as error:
            skipped.append(Skipped(f"{json_file}: {error}", "the file of masks can't be read"))
    positions = {composed(file.stem): position for position, file in enumerate(frames)}
    labelled: dict[int, str] = {}
    for frame, entry in entries:
        position = positions.get(composed(frame))
        if not frames and re.fullmatch("[0-9]{1,9}", frame):
            position = int(frame)
        where = f"{json_file}: frame {shorten(frame)}" if index else entry
        if position is None:
            known = f"; the first ones are {first_few(list(positions), 3)}" if frames else ""
            reason = "no frame has the mask's name" if frames else "the mask's name is not the number of a frame"
            skipped.append(Skipped(f"{where}{known}", reason))
        elif position in labelled:
            skipped.append(Skipped(where, "two masks of one frame: the first is used"))
        else:
            labelled[position] = entry
    return OwnVideo(path, frames, labelled, index)
