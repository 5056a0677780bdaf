"""What the page does for a visitor: answers, draws, packs and cleans up; messages name no folder of the server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from input_pipeline.errors import UserError
from lbdt_jax import predict
from lbdt_jax.demo.checks import Limits, check_clip, read_sentences, unknown_words
from lbdt_jax.inference.results import PredictionStore
from lbdt_jax.inference.segmenter import Segmenter
from lbdt_jax.inference.video import ClipWriter, open_clip
from lbdt_jax.visualization.overlays import color_of, overlay

_SIDE = 640  # pixels of the longer side of pictures on the page
_MOST_ENLARGED = 8  # times, so that masks of a small clip have a smooth contour


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What was found in a clip; its files lie in a folder of its own.

    Attributes:
      folder: holds "clip", the upload, and what is made of it: "found" (what predict writes), "result.zip" of that,
        "shown.mp4" and "frames" with the masks over the clip, as the page shows it, and "attention".
      name: of the upload, to be shown.
      sentences: S of them.
      notes: what the visitor should know about the answer.
      times: (T,) seconds of each frame.
      confidence: (T, S) in [0, 1], as in `Answer.scores`.
    """

    folder: Path
    name: str
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    times: np.ndarray
    confidence: np.ndarray

    def frame(self, index: int) -> Path:
        """The picture of a frame, with masks. Raises UserError if its time is over and it was removed."""
        path = self.folder / "frames" / f"{index:06d}.jpg"
        if not path.is_file():
            raise UserError("This result has been removed. Ask again.")
        return path


def answer(segmenter: Segmenter, upload: Path, text: str, root: Path, limits: Limits) -> Result:
    """Checks everything, then asks all sentences about a clip; in a new folder below `root`, gone if that fails.

    Raises:
      UserError: the clip or a sentence can't be used, in words for the visitor.
    """
    sentences = read_sentences(text, limits)
    check_clip(upload, limits)
    unknown = unknown_words(segmenter, sentences)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        clip = folder / "clip"
        shutil.copyfile(upload, clip)
        settings = predict.PredictionSettings(segmenter.checkpoint.path.name, str(clip), sentences)
        predict.predict(segmenter, settings, folder / "found")
        times, confidence = zip(*_draw(folder, len(sentences)), strict=True)
        _pack(folder, upload.name)
    except UserError as error:
        message = str(error).replace(str(folder / "clip"), upload.name).replace(f"{folder}/", "")
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(message) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    notes = (
        [f"The model does not know {', '.join(f'“{word}”' for word in unknown)}: read as blanks."] if unknown else []
    )
    promised = open_clip(clip).frames
    if len(times) < promised:
        notes.append(f"The clip promises {promised} frames and holds {len(times)}. Is it cut short?")
    return Result(folder, upload.name, sentences, tuple(notes), np.array(times), np.array(confidence))


def attention(segmenter: Segmenter, result: Result, frame: int, sentence: int) -> Path:
    """Draws, once, what the model attends to in a frame; frame and sentence are counted from 0.

    Raises:
      UserError: the result was removed, or has no such frame.
    """
    result.frame(frame)
    folder = result.folder / "attention" / str(sentence)
    sheet = folder / f"{frame:06d}-1.png"
    if not sheet.exists():
        clip = open_clip(result.folder / "clip")
        predict.draw_explanations(segmenter, clip, [result.sentences[sentence]], {frame}, folder)
    return sheet


def remove(result: Result | None) -> None:
    """Deletes everything that belongs to a result."""
    if result:
        shutil.rmtree(result.folder, ignore_errors=True)


def _draw(folder: Path, sentences: int) -> Iterator[tuple[float, list[float]]]:
    """Draws frames and video for the page; gives each frame's time and confidences."""
    clip = open_clip(folder / "clip")
    (folder / "frames").mkdir()
    writer, square = None, dataclasses.replace(clip, pixel_aspect=Fraction(1))
    predictions = list(PredictionStore(folder / "found", sentences).load())
    with contextlib.ExitStack() as stack:
        for (time, frame), prediction in tqdm(
            zip(clip, predictions, strict=True), "drawing", len(predictions), unit="frame"
        ):
            height, width = frame.shape[0], frame.shape[1] * float(clip.pixel_aspect)
            scale = min(_SIDE / max(height, width), _MOST_ENLARGED)
            # Even sides: H.264 with colors at half resolution, which every browser plays.
            size = max(2, 2 * round(scale * width / 2)), max(2, 2 * round(scale * height / 2))
            picture = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
            for number, mask in enumerate(prediction.decode_masks()):
                mask = Image.fromarray(255 * mask.astype(np.uint8))
                mask = np.asarray(mask.resize(size, Image.Resampling.BICUBIC)) >= 128
                picture = overlay(picture, mask, color_of(number))
            Image.fromarray(picture).save(folder / "frames" / f"{prediction.index:06d}.jpg", quality=90)
            writer = writer or stack.enter_context(ClipWriter(folder / "shown.mp4", picture.shape[:2], square))
            writer.write(time, picture)
            yield prediction.time, [*prediction.scores]


def _pack(folder: Path, name: str) -> None:
    """Zips what predict wrote, the clip called by its own name instead of the server's."""
    found = folder / "found"
    settings = json.loads((found / "settings.json").read_text()) | {"video": name}
    with zipfile.ZipFile(folder / "result.zip", "w") as archive:
        for path in sorted(found.rglob("*")):
            if path.is_file() and path.name != "settings.json":
                archive.write(path, path.relative_to(found))
        archive.writestr("settings.json", json.dumps(settings, indent=2) + "\n", zipfile.ZIP_DEFLATED)
