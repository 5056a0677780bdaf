"""Segments your own video.

    python -m lbdt_jax.predict --video=clip.mp4 --text="the dog" [--text="the cat"] --output=DIR [--checkpoint=DIR]

--checkpoint is the model; without it, the small one in the package answers, which knows coloured shapes only. --video
is any clip that FFmpeg reads, or a folder of pictures. All sentences are asked about each frame together. In --output
then are

    overlay.mp4             the masks over the video, a color for each sentence; frames and times are the video's
    masks/1/000012.png      sentence 1 in frame 12, both as counted in masks.jsonl; one bit a pixel, white is the object
    masks.jsonl             a line for each frame and sentence: {"frame": from 0, "time": seconds, "sentence": from 1,
                            "confidence": mean probability of the pixels found, 0 where none are,
                            "segmentation": {"size": [h, w], "counts": ...}, COCO's compressed run-length encoding}
    contact_sheet.png       frames from all over the video
    explain/000012-1.png    with --explain=12: the inputs and all attention of frame 12, sentence 1
    settings.json           what was asked

Memory does not grow with the video. A run that was killed leaves what it had found; --resume goes on after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

import lbdt_jax
from input_pipeline.errors import UserError, exit_on_error
from input_pipeline.images import encode_mask
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.cli import atomic_write
from lbdt_jax.inference.results import PredictionSettings, Stopwatch, answered, begin, finish
from lbdt_jax.inference.segmenter import Segmenter, TimedFramePair
from lbdt_jax.inference.video import Clip, ClipWriter, open_clip
from lbdt_jax.metrics import resize_logits
from lbdt_jax.visualization import render, video_strip

SHEET_FRAMES = 12  # at most, on the contact sheet

Number = TypeVar("Number", int, float)


def predict(
    segmenter: Segmenter,
    settings: PredictionSettings,
    output: Path,
    explained: Iterable[int] = (),
    resume: bool = False,
) -> None:
    """Segments a video and writes everything that the head of this file lists.

    Args:
      segmenter: the model.
      settings: the video and the sentences.
      output: a new or empty folder; with `resume`, one that a run with the same settings has left.
      explained: frames whose attention is drawn.
      resume: go on after the frames that are there.

    Raises:
      UserError: the video or a sentence can't be used, or the folder holds something else.
    """
    clip = open_clip(settings.video, settings.rate)
    unknown = segmenter.unknown_words(settings.text)
    segmenter.encode(settings.text)  # complains before anything is written
    if unknown:
        print(f"Words that the model does not know, read as blanks: {' '.join(map(repr, unknown))}")
    watch = Stopwatch()
    frame_pairs = watch.each("decoding", selected(segmenter, clip, settings))
    first = next(frame_pairs, None)
    if first is None:
        raise UserError(f"{settings.video} has no frame between --start and --end.")
    absent = [frame for frame in explained if 0 < clip.frames <= frame]
    if absent:
        raise UserError(f"--explain: {clip.path} has no frame {', '.join(map(str, absent))}.")
    if begin(settings, unknown, clip, output, resume):
        explain(segmenter, clip, settings, output / "explain", set(explained))
        print(f"Nothing was left to do: {output}")
        return

    strip, confidence, frames = (
        video_strip.FrameSampler(SHEET_FRAMES, clip.pixel_aspect),
        np.zeros(len(settings.text)),
        0,
    )
    frame_pairs = itertools.chain([first], frame_pairs)
    answers = answered(segmenter, frame_pairs, settings.text, output / "masks.jsonl", watch)
    total = None
    if clip.seconds is not None:
        seconds = min(clip.seconds, math.inf if settings.end is None else settings.end) - settings.start
        total = max(1, math.ceil(seconds * clip.rate / settings.every))
    started = time.monotonic()
    with (
        ClipWriter(output / "overlay.mp4", first.original_frame.shape[:2], clip) as writer,
        tqdm(total=total, desc=Path(settings.video).name, unit="frame") as progress,
    ):
        for answer in answers:
            since = time.monotonic()
            picture = video_strip.draw_segmentation(answer.frame_pair.original_frame, answer.masks, settings.text)
            writer.write(round(answer.frame_pair.time / clip.time_base), picture)
            for number, mask in enumerate(answer.masks, start=1):
                with atomic_write(output / "masks" / str(number) / f"{answer.frame_pair.index:06d}.png") as unfinished:
                    unfinished.write_bytes(encode_mask(mask))
            strip.add(picture, f"frame {answer.frame_pair.index}, {answer.frame_pair.time:.2f} s")
            confidence += answer.scores
            frames += 1
            progress.update()
            watch.add("drawing", since)
    seconds = time.monotonic() - started
    render.save(strip.sheet(settings.text), output / "contact_sheet.png")
    explain(segmenter, clip, settings, output / "explain", set(explained))
    finish(output)

    for sentence, mean in zip(settings.text, confidence / frames, strict=True):
        print(f"{sentence!r}: mean confidence {mean:.2f}")
    whole_time = sum(watch.seconds.values())
    shares = ", ".join(f"{part} {spent / whole_time:.0%}" for part, spent in watch.seconds.items())
    print(f"{frames} frames in {seconds:.1f} s, {frames / seconds:.1f} frames/s ({shares}): {output}")


def selected(segmenter: Segmenter, clip: Clip, settings: PredictionSettings) -> Iterator[TimedFramePair]:
    """The frame_pairs of a clip that are asked about; those before --start are decoded too, as earlier frames."""
    origin = None
    timed = ((float(units * clip.time_base), picture) for units, picture in clip)
    for frame_pair in segmenter.frame_pairs(timed):
        origin = frame_pair.time if origin is None else origin
        if settings.end is not None and frame_pair.time - origin > settings.end:
            return
        if frame_pair.time - origin >= settings.start and frame_pair.index % settings.every == 0:
            yield frame_pair
    if frame_pair.index + 2 < clip.frames:  # some whole AVI files count one too many
        said, found = f"has {clip.frames} frames", f"holds {frame_pair.index + 1}"
    elif not clip.frames and frame_pair.time - origin + 1 < (clip.seconds or 0):
        said, found = f"lasts {clip.seconds:.1f} s", f"ends after {frame_pair.time - origin:.1f} s"
    else:
        return
    tqdm.write(f"{clip.path} says that it {said}, and {found}. Is it cut short?", file=sys.stderr)


def explain(segmenter: Segmenter, clip: Clip, settings: PredictionSettings, folder: Path, frames: set[int]) -> None:
    """Draws the attention of some frames, for every sentence."""
    everything = dataclasses.replace(settings, every=1, start=0.0, end=None)
    for frame_pair in selected(segmenter, clip, everything) if frames else ():
        if frame_pair.index in frames:
            frames = frames - {frame_pair.index}
            for number, sentence in enumerate(settings.text, start=1):
                explanation = segmenter.explain(frame_pair, sentence)
                example = render.Example(
                    frame=frame_pair.original_frame,
                    earlier_frame=frame_pair.original_earlier_frame,
                    mask=None,
                    prediction=resize_logits(explanation.logits, frame_pair.original_frame.shape[:2]) > 0,
                    sentence=sentence,
                    iou=None,
                    name=f"{clip.path.name}, frame {frame_pair.index}",
                )
                sheet = render.attention_sheet(
                    example, segmenter.tokens(sentence), explanation, "What the model attends to"
                )
                render.save(sheet, folder / f"{frame_pair.index:06d}-{number}.png")
        if not frames:
            return
    if frames:
        raise UserError(f"--explain: {clip.path} has no frame {', '.join(map(str, sorted(frames)))}.")


def describe_model(checkpoint: Checkpoint) -> str:
    """Says which model answers; of the one in the package also what it knows."""
    config = checkpoint.config
    text_encoder = "" if config.text_encoder == "glove_lstm" else f" and the text encoder {config.text_encoder}"
    words = (
        f"Model: LBDT-{config.model.transfer_layers} with ResNet-{config.model.resnet_depth}{text_encoder} of "
        f"{checkpoint.path}, {checkpoint.step} steps on {config.dataset}."
    )
    if checkpoint.path.is_relative_to(lbdt_jax.DEFAULT_CHECKPOINT):
        words += (
            "\nIt comes with the package and knows coloured shapes and how they move, as in "
            '"the red circle moving left", and nothing else. --checkpoint names another.'
        )
    return words


def arguments() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m lbdt_jax.predict", description="Segments your own video.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        default=lbdt_jax.DEFAULT_CHECKPOINT,
        help="a checkpoint's folder, or WORKDIR for its newest one (default: a small one that knows coloured shapes)",
    )
    add("--video", required=True, help="a clip, or a folder of pictures")
    add("--text", required=True, action="append", help="a sentence; may be given several times")
    add("--output", required=True, type=Path, help="a new folder for the results")
    add("--every", type=at_least(int, 1), default=1, help="ask about each so-manieth frame (default: every frame)")
    add("--start", type=at_least(float, 0), default=0.0, help="seconds to leave out at the video's beginning")
    add("--end", type=at_least(float, 0), help="seconds after which to stop")
    add("--rate", type=at_least(float, 0.1), default=30.0, help="frames per second of a folder (default: 30)")
    add("--word_vectors", default="", help="where to look up words that the checkpoint does not hold")
    add("--explain", type=at_least(int, 0), action="append", default=[], metavar="FRAME", help="draw its attention")
    add("--resume", action="store_true", help="go on in an --output that a killed run has left")
    return parser


def at_least(kind: Callable[[str], Number], least: Number) -> Callable[[str], Number]:
    """A parser of numbers that are not below `least`."""

    def parse(text: str) -> Number:
        number = kind(text)
        if not (number >= least and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"{text} is below {least}, or not finite")
        return number

    parse.__name__ = kind.__name__  # argparse names it where a text is no number
    return parse


def main() -> None:
    """Parses the command line and predicts; exits with status 2 and one message for what the user must mend."""
    asked = arguments().parse_args()
    with exit_on_error(
        f"\nStopped. What was found is in {asked.output}; the same command with --resume goes on.",
        lambda error: f"Can't read or write: {error}",
    ):
        segmenter = lbdt_jax.load(asked.checkpoint, asked.word_vectors)
        print(describe_model(segmenter.checkpoint))
        settings = PredictionSettings(
            str(segmenter.checkpoint.path),
            str(Path(asked.video).resolve()),
            tuple(asked.text),
            asked.every,
            asked.start,
            asked.end,
            asked.rate,
        )
        predict(segmenter, settings, asked.output, asked.explain, asked.resume)


if __name__ == "__main__":
    main()
