"""Segments a video.

    python -m lbdt_jax.predict --video=clip.mp4 --text="the dog" [--text="the cat"] --output=DIR [--checkpoint=DIR]

--video is a video file of any common format, or a folder of images. Without --checkpoint, the small model in the
package is used, which knows colored shapes only. --output then holds

    overlay.mp4             the video with the masks, one color per sentence, at its own size and frame times, and
                            with its sound if all frames are segmented
    masks/1/000012.png      the mask of sentence 1 in frame 12, numbered as in masks.jsonl: one bit per pixel, 1 in the
                            object
    masks.jsonl             one line per frame and sentence: {"frame": from 0, "time": seconds, "sentence": from 1,
                            "confidence": mean probability of the mask's pixels, 0 for an empty mask,
                            "segmentation": {"size": [h, w], "counts": ...}, COCO's compressed run-length encoding}
    masks.sha256            one line per frame: the checksum of its lines in masks.jsonl, by which --resume knows them
    contact_sheet.png       evenly spaced frames of the video
    explain/000012-1.png    with --explain=12: the inputs and all attention maps of frame 12, sentence 1
    settings.json           the settings of the run

Memory does not grow with the length of the video. A run that was killed keeps its masks; --resume continues it. Only
one run at a time writes to a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import lbdt_jax
from input_pipeline.datasets import training_datasets
from input_pipeline.errors import UserError, exit_on_error, first_few, printable, say
from input_pipeline.files import read_limited
from input_pipeline.images import encode_mask
from input_pipeline.pictures import MAX_PIXELS
from lbdt_jax import checksums
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.cli import atomic_write, in_range, path_flag
from lbdt_jax.config import encoder_name
from lbdt_jax.inference.results import PredictionStore
from lbdt_jax.inference.segmenter import Segmentation, Segmenter, TimedFramePair
from lbdt_jax.inference.stopwatch import Stopwatch
from lbdt_jax.inference.video import Clip, ClipWriter, open_clip
from lbdt_jax.metrics import resize_logits
from lbdt_jax.visualization.attention import attention_sheet
from lbdt_jax.visualization.contact_sheet import Example
from lbdt_jax.visualization.sheet import save_image
from lbdt_jax.visualization.video_strip import FrameSampler, draw_segmentation

SHEET_FRAMES = 12  # at most, on the contact sheet
MAX_MASK_BYTES = 2**32  # of all sentences in a frame: 460 sentences about frames of 4096 x 2304 pixels

#: Least and greatest value of each number in the settings: frames, seconds, seconds, frames per second.
RANGES: dict[str, tuple[Any, Any]] = {
    "every": (1, 10**9),
    "start": (0.0, 1e9),
    "end": (0.0, 1e9),
    "rate": (0.1, 1e5),
}


@dataclasses.dataclass(frozen=True)
class PredictionSettings:
    """What is segmented; written to settings.json. A run can only be resumed with the same settings.

    Attributes:
      checkpoint: the folder of the model.
      video: a video file, or a folder of images.
      text: the sentences.
      every: segment every Nth frame.
      start, end: seconds from the first frame; `end` None means the whole video.
      rate: frames per second of a folder.

    Raises:
      UserError: a number is out of its range.
    """

    checkpoint: str
    video: str
    text: tuple[str, ...]
    every: int = 1
    start: float = 0.0
    end: float | None = None
    rate: float = 30.0

    def __post_init__(self) -> None:
        for name, (minimum, maximum) in RANGES.items():
            value = getattr(self, name)
            if name == "end" and value is None:
                continue
            kinds = (int, np.integer) if name == "every" else (int, float, np.integer, np.floating)
            if not isinstance(value, kinds) or not minimum <= value <= maximum:  # nan is in no range
                raise UserError(f"{name} must be a number from {minimum:g} to {maximum:g}, and not {value!r:.100}.")
            # A number of numpy can't be written as json.
            object.__setattr__(self, name, int(value) if name == "every" else float(value))
        if self.end is not None and self.start > self.end:
            raise UserError(f"The start, {self.start} s, is later than the end, {self.end} s.")


def predict(
    segmenter: Segmenter,
    settings: PredictionSettings,
    output: Path,
    explain_frames: Iterable[int] = (),
    resume: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> None:
    """Segments a video and writes all the files that the module docstring lists.

    Args:
      segmenter: the model.
      settings: the video and the sentences.
      output: a new or empty folder; with `resume`, that of a run with the same settings.
      explain_frames: the indices of frames whose attention is drawn.
      resume: continue after the frames that are stored.
      max_pixels: of a frame, see `lbdt_jax.inference.clip.Clip`.

    Raises:
      UserError: the video or a sentence can't be used, or the folder holds something else.
    """
    output = Path(output)
    clip = open_clip(settings.video, settings.rate, max_pixels=max_pixels)
    explain_frames, stopwatch = set(explain_frames), Stopwatch()
    check_frames_exist(explain_frames, clip)
    # Before the frames up to the first one are decoded, which may take long.
    unknown = check_sentences(segmenter, settings.text)
    if not resume:
        PredictionStore(output, len(settings.text)).check_empty()
    frame_pairs = stopwatch.iterate(
        "decoding", select_frame_pairs(segmenter, clip, settings.every, settings.start, settings.end)
    )
    first = next(frame_pairs, None)
    if first is None:
        raise UserError(f"{settings.video} has no frame between --start and --end.")
    check_memory(first, settings.text)

    with contextlib.closing(PredictionStore(output, len(settings.text))) as store:
        stored_settings = dataclasses.asdict(settings) | {
            "unknown_words": unknown,
            "video_size": video_size(clip),
            "checkpoint_sha256": checkpoint_digest(segmenter.checkpoint),
        }
        if not resume:
            store.create(stored_settings)
        elif store.resume(stored_settings):
            draw_explanations(segmenter, clip, settings.text, explain_frames, output / "explain")
            say(f"Nothing to do, this run is complete: {output}")
            return

        frame_pairs = itertools.chain([first], frame_pairs)
        stored = load_segmentations(store, frame_pairs)
        predicted = stopwatch.iterate("model", segmenter.segment_frame_pairs(frame_pairs, settings.text))
        segmentations = itertools.chain(stored, store_segmentations(store, predicted))
        started = time.monotonic()
        frames, confidence = draw_segmentations(segmentations, settings, clip, first, output, stopwatch)
        seconds = time.monotonic() - started
        draw_explanations(segmenter, clip, settings.text, explain_frames, output / "explain")
        store.finish()

    for sentence, mean in zip(settings.text, confidence, strict=True):
        say(f"{sentence!r:.200}: mean confidence {mean:.2f}")
    measured = sum(stopwatch.seconds.values())
    shares = ", ".join(f"{part} {spent / measured:.0%}" for part, spent in stopwatch.seconds.items())
    say(f"{frames} frames in {seconds:.1f} s, {frames / seconds:.1f} frames/s ({shares}): {output}")


# -- Before anything is written


def check_frames_exist(frames: Iterable[int], clip: Clip) -> None:
    """Raises UserError if a clip, according to its header, ends before one of these frames."""
    missing = sorted(frame for frame in frames if frame < 0 or 0 < clip.frames <= frame)
    if missing:
        raise UserError(f"--explain: {clip.path} has no frame {first_few(missing)}.")


def check_sentences(segmenter: Segmenter, sentences: Sequence[str]) -> list[str]:
    """Prints which words the model can't read, and returns the unknown ones.

    Raises:
      UserError: the model knows no word of a sentence.
    """
    left_out = segmenter.words_left_out(sentences)
    unknown = segmenter.unknown_words(sentences)
    segmenter.encode(sentences)
    for message in left_out:
        say(message)
    if unknown:
        say(f"Words that the model does not know, read as blanks: {first_few([*map(repr, unknown)])}")
    return unknown


def check_memory(frame_pair: TimedFramePair, sentences: Sequence[str]) -> None:
    """Raises UserError if the masks of all sentences in a frame would not fit into memory."""
    height, width, _ = frame_pair.frame.original.shape
    if height * width * len(sentences) > MAX_MASK_BYTES:
        raise UserError(
            f"{len(sentences):,} sentences about frames of {width} x {height} pixels take {MAX_MASK_BYTES >> 30} GB of "
            "memory or more. Give fewer sentences."
        )


def video_size(clip: Clip) -> int:
    """The bytes of a file, or the frames of a folder, by which `resume` recognizes a changed video."""
    return clip.frames if clip.path.is_dir() else clip.path.stat().st_size


def checkpoint_digest(checkpoint: Checkpoint) -> str | None:
    """The checksum of a checkpoint's checksums, by which `resume` recognizes other weights; None if it has none."""
    path = checkpoint.path / checksums.FILE_NAME
    return hashlib.sha256(read_limited(path, checksums.MAX_BYTES)).hexdigest() if path.exists() else None


def expected_frames(clip: Clip, settings: PredictionSettings) -> int | None:
    """How many frames will be segmented according to the clip's header; None if it has no duration."""
    if clip.seconds is None:
        return None
    seconds = min(clip.seconds, math.inf if settings.end is None else settings.end) - settings.start
    return max(1, math.ceil(seconds * clip.rate / settings.every))


# -- Frames in, segmentations out


def select_frame_pairs(
    segmenter: Segmenter, clip: Clip, every: int = 1, start: float = 0.0, end: float | None = None
) -> Iterator[TimedFramePair]:
    """Yields every Nth frame pair between two times, in seconds from the first frame.

    Frames before `start` are decoded too, since they are the earlier frames of later ones.
    """
    timed_frames = ((float(units * clip.time_base), frame) for units, frame in clip)
    for frame_pair in segmenter.frame_pairs(timed_frames):
        seconds = frame_pair.time - float(clip.reading.start * clip.time_base)
        if end is not None and seconds > end:
            return
        if seconds >= start and frame_pair.index % every == 0:
            yield frame_pair


def load_segmentations(store: PredictionStore, frame_pairs: Iterator[TimedFramePair]) -> Iterator[Segmentation]:
    """Yields the segmentations of the first frame pairs, which are stored. Raises UserError if they don't fit."""
    for prediction in store.load():
        frame_pair = next(frame_pairs, None)
        if (
            frame_pair is None
            or prediction.index != frame_pair.index
            or abs(prediction.time - frame_pair.time) > 1e-3
            or prediction.size != frame_pair.frame.original.shape[:2]
        ):
            raise UserError(f"{store.folder} holds the masks of another video. Choose another --output.")
        yield Segmentation(frame_pair, prediction.decode_masks(), np.array(prediction.scores, np.float32))


def store_segmentations(store: PredictionStore, segmentations: Iterable[Segmentation]) -> Iterator[Segmentation]:
    """Appends each segmentation to the store, and yields it."""
    for segmentation in segmentations:
        frame_pair = segmentation.frame_pair
        store.append(frame_pair.index, frame_pair.time, segmentation.masks, segmentation.scores)
        yield segmentation


# -- Drawing


def draw_segmentations(
    segmentations: Iterable[Segmentation],
    settings: PredictionSettings,
    clip: Clip,
    first: TimedFramePair,
    output: Path,
    stopwatch: Stopwatch,
) -> tuple[int, np.ndarray]:
    """Writes overlay.mp4, masks/ and contact_sheet.png, and shows the progress.

    Returns:
      The number of frames, and the mean confidence (S,) of each sentence.
    """
    sampler = FrameSampler(SHEET_FRAMES, float(clip.pixel_aspect))
    frames, scores = 0, np.zeros(len(settings.text))
    height, width, _ = first.frame.original.shape
    (output / "overlay.mp4").unlink(missing_ok=True)  # a link would lead elsewhere
    all_frames = settings.every == 1 and not settings.start and settings.end is None
    name = printable(clip.path.name).replace("\n", " ")
    with (
        ClipWriter(output / "overlay.mp4", (height, width), clip, sound=all_frames) as overlay,
        tqdm(total=expected_frames(clip, settings), desc=name, unit="frame") as progress,
    ):
        for segmentation in segmentations:
            with stopwatch.measure("drawing"):
                frame_pair = segmentation.frame_pair
                image = draw_segmentation(frame_pair.frame.original, segmentation.masks, settings.text)
                overlay.write(round(frame_pair.time / clip.time_base), image)
                sampler.add(image, f"frame {frame_pair.index}, {frame_pair.time:.2f} s")
                write_masks(segmentation, output / "masks")
            frames += 1
            scores += segmentation.scores
            progress.update()
    save_image(sampler.sheet(settings.text), output / "contact_sheet.png")
    return frames, scores / frames


def write_masks(segmentation: Segmentation, folder: Path) -> None:
    """Writes FOLDER/<sentence, from 1>/<frame>.png for each sentence."""
    for number, mask in enumerate(segmentation.masks, start=1):
        with atomic_write(folder / str(number) / f"{segmentation.frame_pair.index:06d}.png") as unfinished:
            unfinished.write_bytes(encode_mask(mask))


def draw_explanations(
    segmenter: Segmenter, clip: Clip, sentences: Sequence[str], frames: Iterable[int], folder: Path
) -> None:
    """Draws the attention in some frames to FOLDER/<frame>-<sentence, from 1>.png.

    Raises:
      UserError: the clip ends before one of the frames.
    """
    remaining = set(frames)
    for frame_pair in select_frame_pairs(segmenter, clip) if remaining else ():
        if frame_pair.index in remaining:
            remaining.remove(frame_pair.index)
            for number, sentence in enumerate(sentences, start=1):
                path = folder / f"{frame_pair.index:06d}-{number}.png"
                draw_explanation(segmenter, frame_pair, sentence, f"{clip.path.name}, frame {frame_pair.index}", path)
        if not remaining:
            return
    if remaining:
        raise UserError(f"--explain: {clip.path} has no frame {first_few(sorted(remaining))}.")


def draw_explanation(segmenter: Segmenter, frame_pair: TimedFramePair, sentence: str, name: str, path: Path) -> None:
    """Draws the attention for one sentence in one frame; `name` is written above the frame."""
    explanation = segmenter.explain(frame_pair, sentence)
    frame = frame_pair.frame.original
    example = Example(
        frame=frame,
        earlier_frame=frame_pair.earlier_frame.original,
        mask=None,
        prediction=resize_logits(explanation.logits, frame.shape[:2]) > 0,
        sentence=sentence,
        iou=None,
        name=name,
    )
    sheet = attention_sheet(example, segmenter.tokens(sentence), explanation, "What the model attends to")
    save_image(sheet, path)


# -- The command


def describe_model(checkpoint: Checkpoint) -> str:
    """One line about a model, and for the one in the package another line on what it can segment."""
    config = checkpoint.config
    text_encoder = "" if config.text_encoder == "glove_lstm" else f" and the text encoder {config.text_encoder}"
    average = "; moving average of the weights" if checkpoint.weights == "ema" else ""
    description = (
        f"Model: LBDT-{config.model.transfer_layers} with {encoder_name(config.model)}{text_encoder} of "
        f"{checkpoint.path}, {checkpoint.step} steps on {' and '.join(training_datasets(config))}{average}."
    )
    if checkpoint.path.is_relative_to(lbdt_jax.DEFAULT_CHECKPOINT):
        description += (
            "\nIt comes with the package and knows colored shapes and how they move, as in "
            '"the red circle moving left", and nothing else. --checkpoint selects another one.'
        )
    return description


def arguments() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lbdt_jax.predict", description="Segments a video.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        default=lbdt_jax.DEFAULT_CHECKPOINT,
        help="a checkpoint's folder, WORKDIR for its newest one, WORKDIR/best for its best one, or OWNER/NAME on "
        "the Hugging Face Hub (default: a small model of colored shapes)",
    )
    add("--video", required=True, type=path_flag, help="a clip, or a folder of images")
    add("--text", required=True, type=sentence, action="append", help="a sentence; may be given several times")
    add("--output", required=True, type=path_flag, help="a new folder for the results")
    add("--every", type=in_range(int, *RANGES["every"]), default=1, help="segment every Nth frame (default: every one)")
    add("--start", type=in_range(float, *RANGES["start"]), default=0.0, help="seconds to skip at the beginning")
    add("--end", type=in_range(float, *RANGES["end"]), help="stop after these seconds of the video")
    add(
        "--rate",
        type=in_range(float, *RANGES["rate"]),
        default=30.0,
        help="frames per second of a folder (default: 30)",
    )
    add("--word_vectors", default="", help="where to look up words that the checkpoint doesn't hold")
    add(
        "--explain",
        type=in_range(int, 0, 10**9),
        action="append",
        default=[],
        metavar="FRAME",
        help="draw its attention",
    )
    add("--resume", action="store_true", help="continue the run that was interrupted in --output")
    return parser


def sentence(text: str) -> str:
    """An argparse type: a text, read as UTF-8 even where the locale has another encoding."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def main() -> None:
    """Parses the command line and segments the video."""
    args = arguments().parse_args()
    resumable = f"The masks predicted so far are in {args.output}; the same command with --resume continues."

    def describe_os_error(error: OSError) -> str:
        started = os.path.isfile(args.output / "settings.json")  # False if the folder can't be read
        return f"Can't read or write: {error}." + (f" {resumable}" if started else "")

    with exit_on_error(f"\nStopped. {resumable}", describe_os_error):
        segmenter = lbdt_jax.load(args.checkpoint, args.word_vectors)
        print(describe_model(segmenter.checkpoint))
        settings = PredictionSettings(
            checkpoint=str(segmenter.checkpoint.path),
            video=os.path.realpath(args.video),  # Path.resolve raises RuntimeError for links in a circle
            text=tuple(args.text),
            every=args.every,
            start=args.start,
            end=args.end,
            rate=args.rate,
        )
        predict(segmenter, settings, args.output, args.explain, args.resume)


if __name__ == "__main__":
    main()
