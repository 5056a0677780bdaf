"""What the page does for a visitor, without the page: checks an upload, answers, draws, packs and cleans up.

Uploads are untrusted. Their names are shown and never become paths, they are opened as self-contained video formats
only, and messages name no folder of the server.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from PIL import Image
from pycocotools import mask as run_length
from tqdm import tqdm

from input_pipeline.readers import DataError
from lbdt_jax import film, predict, render
from lbdt_jax.segmenter import Segmenter
from lbdt_jax.video import ClipWriter, open_clip

#: FFmpeg's names of formats whose files hold everything. Playlists would have it open other files, or the network.
FORMATS = ("mp4", "matroska", "avi", "gif", "mpegts", "mpeg", "ogg", "flv", "asf")
MOST_PIXELS = 4096 * 2304  # of a frame: several are held in memory
MOST_FRAMES_PER_SECOND = 60  # of --max_seconds: a clip of high speed may hold that many frames, and no more
MOST_CHARACTERS = 200  # of a sentence
_SIDE = 640  # pixels of the longer side of pictures on the page
_MOST_ENLARGED = 8  # times, so that masks of a small clip have a smooth contour


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a visitor may ask; the flags of the command.

    Attributes:
      seconds: length of a clip.
      megabytes: size of its file, 10^6 bytes.
      sentences: asked together.
    """

    seconds: float = 20.0
    megabytes: float = 50.0
    sentences: int = 7  # as many as there are colours


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
        """The picture of a frame, with masks. Raises DataError if its time is over and it was removed."""
        path = self.folder / "frames" / f"{index:06d}.jpg"
        if not path.is_file():
            raise DataError("This result has been removed. Ask again.")
        return path


def check_clip(upload: Path, limits: Limits) -> str:
    """Reads an upload's packets, not its frames, which takes a moment; and never trusts what its header promises.

    Returns:
      Its name, size, length and number of frames, for people.

    Raises:
      DataError: it is no video that can be read, or exceeds a limit.
    """
    name = upload.name
    if upload.stat().st_size > limits.megabytes * 1e6:
        raise DataError(
            f"{name} has {upload.stat().st_size / 1e6:.1f} MB. This page takes clips of up to {limits.megabytes:g} MB."
        )
    frames, times = 0, []
    try:
        with av.open(str(upload), options={"format_whitelist": ",".join(FORMATS)}) as container:
            if not container.streams.video:
                raise DataError(f"{name} has no pictures, only {', '.join(s.type for s in container.streams)}.")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if not 0 < width * height <= MOST_PIXELS:
                raise DataError(
                    f"{name} has frames of {width} x {height} pixels. This page takes up to {MOST_PIXELS / 1e6:.1f} "
                    "million pixels."
                )
            rate = float(stream.average_rate or stream.guessed_rate or 30)
            for packet in container.demux(stream):
                frames += packet.size > 0
                times += [] if packet.pts is None else [float(packet.pts * packet.time_base)]
                if frames > limits.seconds * MOST_FRAMES_PER_SECOND or (
                    times and times[-1] - times[0] > limits.seconds
                ):
                    break
    except av.FFmpegError as error:
        raise DataError(
            f"{name} is no video that this page can read, or it is cut short ({error.strerror}). "
            "Try mp4, mov, webm, mkv, avi or gif."
        ) from error
    seconds = max(times) - min(times) + 1 / rate if times else frames / rate
    if seconds > limits.seconds + 1 / rate or frames > limits.seconds * MOST_FRAMES_PER_SECOND:
        raise DataError(
            f"{name} is too long: this page takes clips of up to {limits.seconds:g} seconds, "
            f"and {limits.seconds * MOST_FRAMES_PER_SECOND:g} frames. Cut a part out of it."
        )
    if not frames:
        raise DataError(f"{name} holds no frame. Is it cut short?")
    return f"{name}: {width} x {height} pixels, {frames} frames, {seconds:.1f} s"


def look(upload: Path, limits: Limits) -> tuple[str, np.ndarray]:
    """What `check_clip` says of an upload, and its first frame, (h, w, 3) uint8 RGB. Raises DataError."""
    described = check_clip(upload, limits)
    try:
        return described, next(iter(open_clip(upload)))[1]
    except DataError as error:
        raise DataError(str(error).replace(str(upload), upload.name)) from error


def read_sentences(text: str, limits: Limits) -> tuple[str, ...]:
    """The sentences, one a line; lines that are empty are left out.

    Raises:
      DataError: there is none, or there are too many, or one is too long.
    """
    sentences = tuple(" ".join(line.split()) for line in text.splitlines() if line.strip())
    if not sentences:
        raise DataError("Type a sentence that says what to look for.")
    if len(sentences) > limits.sentences:
        raise DataError(f"These are {len(sentences)} sentences. This page takes {limits.sentences} at once.")
    for number, sentence in enumerate(sentences, start=1):
        if len(sentence) > MOST_CHARACTERS:
            raise DataError(f"Sentence {number} has {len(sentence)} letters. This page takes {MOST_CHARACTERS}.")
    return sentences


def unknown_words(segmenter: Segmenter, sentences: tuple[str, ...]) -> list[str]:
    """The words that the model reads as blanks.

    Raises:
      DataError: it knows no word of a sentence.
    """
    unknown = segmenter.unknown_words(sentences)
    for sentence in sentences:
        if set(segmenter.tokens(sentence)) <= {*unknown, ""}:
            known = [word for word in segmenter.checkpoint.word_vectors.words if word.isalpha()]
            raise DataError(
                f"The model knows no word of “{sentence}”. Among those that it was trained with are "
                f"{', '.join(known[:: max(1, len(known) // 12)][:12])}."
            )
    return unknown


def answer(segmenter: Segmenter, upload: Path, text: str, root: Path, limits: Limits) -> Result:
    """Checks everything, then asks all sentences about a clip; in a new folder below `root`, gone if that fails.

    Raises:
      DataError: the clip or a sentence can't be used, in words for the visitor.
    """
    sentences = read_sentences(text, limits)
    check_clip(upload, limits)
    unknown = unknown_words(segmenter, sentences)
    folder = Path(tempfile.mkdtemp(dir=root))
    try:
        clip = folder / "clip"
        shutil.copyfile(upload, clip)
        settings = predict.Settings(segmenter.checkpoint.path.name, str(clip), sentences)
        predict.predict(segmenter, settings, folder / "found")
        times, confidence = zip(*_draw(folder, len(sentences)), strict=True)
        _pack(folder, upload.name)
    except DataError as error:
        message = str(error).replace(str(folder / "clip"), upload.name).replace(f"{folder}/", "")
        shutil.rmtree(folder, ignore_errors=True)
        raise DataError(message) from error
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
      DataError: the result was removed, or has no such frame.
    """
    result.frame(frame)
    folder = result.folder / "attention" / str(sentence)
    sheet = folder / f"{frame:06d}-1.png"
    if not sheet.exists():
        clip = open_clip(result.folder / "clip")
        settings = predict.Settings("", str(clip.path), (result.sentences[sentence],))
        predict.explain(segmenter, clip, settings, folder, {frame})
    return sheet


def remove(result: Result | None) -> None:
    """Deletes everything that belongs to a result."""
    if result:
        shutil.rmtree(result.folder, ignore_errors=True)


def _draw(folder: Path, sentences: int) -> Iterator[tuple[float, list[float]]]:
    """Draws frames and video for the page; gives each frame's time and confidences."""
    clip, found = open_clip(folder / "clip"), folder / "found" / "masks.jsonl"
    (folder / "frames").mkdir()
    writer = None
    answers = [lines for _, lines in predict.stored(found, sentences)]
    with contextlib.ExitStack() as stack:
        for (time, frame), lines in tqdm(zip(clip, answers, strict=True), "drawing", len(answers), unit="frame"):
            height, width, _ = frame.shape
            scale = min(_SIDE / max(height, width), _MOST_ENLARGED)
            # Even sides: H.264 with colours at half resolution, which every browser plays.
            size = max(2, 2 * round(scale * width / 2)), max(2, 2 * round(scale * height / 2))
            picture = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
            for number, line in enumerate(lines):
                mask = Image.fromarray(255 * run_length.decode(line["segmentation"]))
                mask = np.asarray(mask.resize(size, Image.Resampling.BICUBIC)) >= 128
                picture = render.overlay(picture, mask, film.color_of(number))
            Image.fromarray(picture).save(folder / "frames" / f"{lines[0]['frame']:06d}.jpg", quality=90)
            writer = writer or stack.enter_context(ClipWriter(folder / "shown.mp4", picture.shape[:2], clip))
            writer.write(time, picture)
            yield lines[0]["time"], [line["confidence"] for line in lines]


def _pack(folder: Path, name: str) -> None:
    """Zips what predict wrote, the clip called by its own name instead of the server's."""
    found = folder / "found"
    settings = json.loads((found / "settings.json").read_text()) | {"video": name}
    with zipfile.ZipFile(folder / "result.zip", "w") as archive:
        for path in sorted(found.rglob("*")):
            if path.is_file() and path.name != "settings.json":
                archive.write(path, path.relative_to(found))
        archive.writestr("settings.json", json.dumps(settings, indent=2) + "\n", zipfile.ZIP_DEFLATED)
