"""Segments an uploaded clip and writes the files that the page shows; error messages name no folder of the server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from tqdm import tqdm

from input_pipeline.errors import UserError
from lbdt_jax import predict
from lbdt_jax.demo.checks import (
    MAX_PIXELS,
    Limits,
    check_clip,
    check_frame_count,
    check_frame_size,
    read_sentences,
    unknown_words,
)
from lbdt_jax.demo.storage import size_of
from lbdt_jax.inference.results import PredictionStore
from lbdt_jax.inference.segmenter import Segmenter, TimedFramePair
from lbdt_jax.inference.video import ClipWriter, open_clip
from lbdt_jax.visualization.overlays import color_of, overlay

EXPIRED_CLIP = "The clip has expired. Please upload it again."
EXPIRED = "This result has expired. Please segment the clip again."

MAX_RESULT_OF_LIMIT = 20  # a result is at most this many times as large as the largest upload
_MAX_SIDE = 640  # pixels of the longer side of a frame on the page
_MAX_SCALE = 8  # small clips are enlarged up to this factor, so that mask contours look smooth


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """A segmented clip of T frames and S sentences; its files lie in a folder of its own.

    Attributes:
      folder: holds the upload as "clip", the output of `predict` in "prediction" and zipped as "result.zip", and what
        the page shows: "display.mp4", "frames" and "attention".
      name: the file name of the upload, for display.
      sentences: S of them.
      notes: remarks for the visitor.
      times: (T,) time of each frame in seconds.
      confidence: (T, S) in [0, 1], as in `Segmentation.scores`.
    """

    folder: Path
    name: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    times: np.ndarray
    confidence: np.ndarray

    def frame(self, index: int) -> Path:
        """The image of a frame with its masks. Raises UserError if the result has expired or has no such frame."""
        path = self.folder / "frames" / f"{index:06d}.jpg"
        if not path.is_file():
            raise UserError(EXPIRED)
        return path


class Deadline:
    """Ends what takes too long, grows too large or would keep the server from stopping, between two frames.

    Args:
      limits: how long it may take, and how large an upload may be.
      stopping: is set when the server stops.
    """

    def __init__(self, limits: Limits, stopping: threading.Event | None = None) -> None:
        self._limits, self._stopping = limits, stopping or threading.Event()
        self._end, self._next_look = time.monotonic() + 60 * limits.minutes, 0.0

    def check(self, folder: Path | None = None) -> None:
        """Raises UserError if the time is over, the server stops, or a folder has grown too large."""
        now = time.monotonic()
        if self._stopping.is_set():
            raise UserError("The page is being stopped.")
        if now > self._end:
            raise UserError(
                f"This takes longer than {self._limits.minutes:g} minutes, the limit. "
                "Please choose a shorter clip, smaller frames or fewer sentences."
            )
        if folder and now > self._next_look:
            self._next_look = now + 1
            if size_of(folder) > MAX_RESULT_OF_LIMIT * self._limits.bytes:
                raise UserError("The result grows too large. Please choose a shorter clip or smaller frames.")

    def watch(self, frames: Iterable[tuple[Any, np.ndarray]], folder: Path) -> Iterator[tuple[Any, np.ndarray]]:
        """Yields the frames of a clip, with their times; checks the deadline, the folder, and their size and number."""
        for count, (frame_time, frame) in enumerate(frames):
            self.check(folder)
            check_frame_count(count + 1, "The clip", self._limits)
            check_frame_size(frame.shape[1], frame.shape[0], "The clip")
            yield frame_time, frame


class _WatchedSegmenter:
    """A segmenter that stops at a deadline."""

    def __init__(self, segmenter: Segmenter, deadline: Deadline, folder: Path) -> None:
        self._segmenter, self._deadline, self._folder = segmenter, deadline, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._segmenter, name)

    def frame_pairs(self, frames: Iterable[tuple[float, np.ndarray]]) -> Iterator[TimedFramePair]:
        return self._segmenter.frame_pairs(self._deadline.watch(frames, self._folder))


def segment_clip(
    segmenter: Segmenter,
    upload: Path,
    text: str,
    root: Path,
    limits: Limits,
    stopping: threading.Event | None = None,
) -> Result:
    """Checks a clip and its sentences, then segments every frame.

    Args:
      segmenter: the model.
      upload: the clip.
      text: the sentences, one per line.
      root: where a new folder is made for the result; it is removed if anything fails.
      limits: what is accepted.
      stopping: is set when the server stops, which ends this.

    Raises:
      UserError: the clip or a sentence can't be used; the message is for the visitor.
    """
    deadline = Deadline(limits, stopping)
    sentences = read_sentences(text, limits)
    if not upload.is_file():
        raise UserError(EXPIRED_CLIP)
    check_clip(upload, limits)
    unknown = unknown_words(segmenter, sentences)
    folder = Path(tempfile.mkdtemp(dir=root))
    clip = folder / "clip"

    def without_folder(message: str) -> str:
        return message.replace(str(clip), upload.name).replace(f"{folder}/", "")

    try:
        shutil.copyfile(upload, clip)
        settings = predict.PredictionSettings(segmenter.checkpoint.path.name, str(clip), sentences)
        watched = cast(Segmenter, _WatchedSegmenter(segmenter, deadline, folder))
        predict.predict(watched, settings, folder / "prediction", max_pixels=MAX_PIXELS)
        remarks: list[str] = []
        times, confidence = zip(*_draw_frames(folder, len(sentences), deadline, remarks.append), strict=True)
        _write_zip(folder, upload.name)
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(without_folder(str(error))) from error
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"The page can't write its files: {error.strerror}.") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    notes = segmenter.words_left_out(sentences) + [without_folder(remark) for remark in remarks]
    if unknown:
        notes.append(f"Words unknown to the model, read as blanks: {', '.join(f'“{word}”' for word in unknown)}.")
    return Result(folder, upload.name, sentences, tuple(notes), np.array(times), np.array(confidence))


def draw_attention(
    segmenter: Segmenter, result: Result, frame: int, sentence: int, deadline: Deadline | None = None
) -> Path:
    """Returns the path of the attention sheet for one frame and sentence; draws it unless it exists.

    Args:
      segmenter: the model that segmented the clip.
      result: the segmented clip.
      frame: index, from 0.
      sentence: index, from 0.
      deadline: when to give up.

    Raises:
      UserError: the result has expired, has no such frame or sentence, or the deadline has come.
    """
    result.frame(frame)
    if not 0 <= sentence < len(result.sentences):
        raise UserError("There is no such sentence. Please segment the clip again.")
    folder = result.folder / "attention" / str(sentence)
    sheet = folder / f"{frame:06d}-1.png"
    if not sheet.exists():
        clip = open_clip(result.folder / "clip", max_pixels=MAX_PIXELS)
        if deadline:
            segmenter = cast(Segmenter, _WatchedSegmenter(segmenter, deadline, result.folder))
        predict.draw_explanations(segmenter, clip, [result.sentences[sentence]], {frame}, folder)
        try:
            result.frame(frame)
        except UserError:  # deleted meanwhile by the storage, and the drawing has made its folder again
            remove(result)
            raise
    return sheet


def remove(result: Result | None) -> None:
    """Deletes all files of a result."""
    if result:
        shutil.rmtree(result.folder, ignore_errors=True)


def _draw_frames(
    folder: Path, sentences: int, deadline: Deadline, warn: Callable[[str], None]
) -> Iterator[tuple[float, list[float]]]:
    """Draws the frames and the video with masks; yields each frame's time and its confidences.

    `warn` is called with each remark on what was left out of the clip, or read otherwise than it lies in the file.
    """
    clip = open_clip(folder / "clip", warn=warn, max_pixels=MAX_PIXELS)
    (folder / "frames").mkdir()
    writer, square_pixels = None, dataclasses.replace(clip, pixel_aspect=Fraction(1))
    predictions = list(PredictionStore(folder / "prediction", sentences).load())
    with contextlib.ExitStack() as stack:
        for (time, frame), prediction in tqdm(
            zip(deadline.watch(clip, folder), predictions, strict=True), "drawing", len(predictions), unit="frame"
        ):
            size = _display_size(frame, clip.pixel_aspect)
            image = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
            for index, mask in enumerate(prediction.decode_masks()):
                mask_image = Image.fromarray(255 * mask.astype(np.uint8))
                enlarged = np.asarray(mask_image.resize(size, Image.Resampling.BICUBIC)) >= 128
                image = overlay(image, enlarged, color_of(index))
            Image.fromarray(image).save(folder / "frames" / f"{prediction.index:06d}.jpg", quality=90)
            writer = writer or stack.enter_context(ClipWriter(folder / "display.mp4", image.shape[:2], square_pixels))
            writer.write(time, image)
            yield prediction.time, [*prediction.scores]


def _display_size(frame: np.ndarray, pixel_aspect: Fraction) -> tuple[int, int]:
    """(width, height) at which a frame (h, w, 3) is shown, with square pixels.

    Both are even, as H.264 with subsampled colors requires, the only kind that every browser plays.
    """
    height, width = frame.shape[0], frame.shape[1] * float(pixel_aspect)
    scale = min(_MAX_SIDE / max(height, width), _MAX_SCALE)
    return max(2, 2 * round(scale * width / 2)), max(2, 2 * round(scale * height / 2))


def _write_zip(folder: Path, name: str) -> None:
    """Zips the output of `predict`, with the name of the upload in place of the server's path."""
    prediction = folder / "prediction"
    settings = json.loads((prediction / "settings.json").read_text()) | {"video": name}
    with zipfile.ZipFile(folder / "result.zip", "w") as archive:
        for path in sorted(prediction.rglob("*")):
            if path.is_file() and path.name not in ("settings.json", "masks.sha256"):  # only --resume needs the latter
                archive.write(path, path.relative_to(prediction))
        archive.writestr("settings.json", json.dumps(settings, indent=2) + "\n", zipfile.ZIP_DEFLATED)
