"""What evaluation does with each answer, by data set: scores, and files for the benchmarks' own scorers.

a2d_sentences, jhmdb_sentences, moving_shapes    scores over samples
refer_youtube_vos    the same, J and F over expressions, and two zips for the server:
                     Annotations/<video>/<expression>/<%05d>.png, 0 and 255; truth is not needed to write them
ref_davis17          the same per expression, and for each of the four annotators one palette picture per frame,
                     <folder>/anno_<0..3>/<video>/<%05d>.png, as davis2017-evaluation reads them (task unsupervised)
"""

from __future__ import annotations

import collections
import contextlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import expit

from input_pipeline.errors import UserError
from input_pipeline.pipeline import EvaluationExample
from input_pipeline.readers.ref_davis17 import ANNOTATORS, MASKS_FOR_SCORES
from input_pipeline.types import Sentence
from lbdt_jax.cli import atomic_write
from lbdt_jax.metrics import (
    MAX_PROPOSALS,
    MatchedScores,
    PaperScores,
    StandardScores,
    enlarge_as_published,
    foreground_score,
    merge_objects,
    resize_logits,
)

REGION_AND_BOUNDARY = ("j", "f", "j_and_f")


class Scoring:
    """Scores in both protocols; a context, since some data sets write files meanwhile.

    Args:
      path: of the files, without an ending: FOLDER/<dataset>-<split>.
      layout: of the raw data, see `report.load_report`. What LBDT's released code prepares is a choice of samples,
        with names of expressions that are ours: enough for scores, and nothing for a benchmark's own scorer.

    Attributes:
      files: what was written, for the result.
    """

    def __init__(self, path: Path, layout: str = "raw") -> None:
        self.path, self.layout = path, layout
        self.files: list[str] = []
        self.unscored = 0
        self._states = collections.defaultdict(lambda: (PaperScores(), StandardScores()))
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Scoring:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def add(self, example: EvaluationExample, logits: np.ndarray) -> list[tuple[np.ndarray, float | None]]:
        """Scores the answers to all sentences of a frame pair.

        Args:
          example: S sentences about a frame of (h, w) pixels.
          logits: (S, H, W) float32.

        Returns:
          For each sentence the prediction (h, w) bool, and its IoU, None where the truth is not published.
        """
        size = example.original_frame.shape[:2]
        answers = []
        for index, sentence in enumerate(example.sentences):
            prediction = resize_logits(logits[index], size) > 0
            if example.masks[index] is None:
                self.unscored += 1
                answers.append((prediction, None))
                continue
            paper, standard = self._states[sentence.group]
            paper.add(expit(logits[index]), example.targets[index], size)
            key = (example.video, sentence.expression) if sentence.expression else None
            iou = standard.add(prediction, example.masks[index], foreground_score(logits[index]), key)
            answers.append((prediction, iou))
        return answers

    def part(self) -> Any:
        """What the other processes want to know of this one's samples."""
        return self.unscored, dict(self._states)

    def join(self, parts: Sequence[Any]) -> None:
        """Goes on with the samples of all processes: their parts, in order, this one's among them."""
        self.unscored = sum(unscored for unscored, _ in parts)
        self._states.clear()
        for _, states in parts:
            for group, (paper, standard) in states.items():
                known_paper, known_standard = self._states[group]
                self._states[group] = known_paper.merge(paper), known_standard.merge(standard)

    def compute(self) -> dict[str, Any]:
        """{"samples", "paper", "standard"}, and "groups" with the same of every group of sentences.

        Without any truth only {"samples": how many were answered, "groups": {}}.
        """
        groups = {name: self._compute(*self._states[name]) for name in sorted(self._states)}
        if not groups:
            return {"samples": self.unscored, "groups": {}}
        whole = PaperScores(), StandardScores()
        for paper, standard in self._states.values():
            whole = whole[0].merge(paper), whole[1].merge(standard)
        return {**self._compute(*whole), "groups": groups if len(groups) > 1 else {}}

    def _compute(self, paper: PaperScores, standard: StandardScores) -> dict[str, Any]:
        return {"samples": len(standard.samples), "paper": paper.compute(), "standard": standard.compute()}


class ReferYouTubeVOSScoring(Scoring):
    """Refer-YouTube-VOS: "paper" also has J and F of the masks that the published code sent to the server."""

    def __enter__(self) -> ReferYouTubeVOSScoring:
        self._zips = {}
        for protocol in ("paper", "standard") if self.layout == "raw" else ():
            path = self.path.with_name(f"{self.path.name}-{protocol}.zip")
            unfinished = self._open.enter_context(atomic_write(path))
            self._zips[protocol] = self._open.enter_context(zipfile.ZipFile(unfinished, "w"))  # PNGs don't shrink
            self.files.append(path.name)
        self._sent = StandardScores()
        return self

    def add(self, example: EvaluationExample, logits: np.ndarray) -> list[tuple[np.ndarray, float | None]]:
        answers = super().add(example, logits)
        for index, sentence in enumerate(example.sentences):
            prediction, iou = answers[index]
            published = enlarge_as_published(expit(logits[index]) > 0.5, prediction.shape)
            masks = {"paper": published, "standard": prediction}
            for protocol, file in self._zips.items():
                name = f"Annotations/{example.video}/{sentence.expression}/{example.frame_index:05d}.png"
                file.writestr(name, _png(Image.fromarray(255 * masks[protocol].astype(np.uint8))))
            if iou is not None:
                key = (example.video, sentence.expression)
                self._sent.add(published, example.masks[index], foreground_score(logits[index]), key)
        return answers

    def compute(self) -> dict[str, Any]:
        result = super().compute()
        if "paper" in result:
            sent = self._sent.compute()
            result["paper"] |= {measure: sent[measure] for measure in REGION_AND_BOUNDARY}
        return result


class RefDAVIS17Scoring(Scoring):
    """Ref-DAVIS17: J and F of "standard" are means of the four annotators, whose objects are matched to the true ones.

    "per_expression" has J and F of every sentence by itself.
    """

    def __enter__(self) -> RefDAVIS17Scoring:
        folder = self.path.with_name(f"{self.path.name}-annotators")
        self.files.append(folder.name)
        self._folder = self._open.enter_context(atomic_write(folder))
        self._matched = {annotator: MatchedScores() for annotator in ANNOTATORS}
        return self

    def add(self, example: EvaluationExample, logits: np.ndarray) -> list[tuple[np.ndarray, float | None]]:
        if example.labels is None:
            raise UserError(
                f"{example.video}, frame {example.frame_index}: the records have no objects to score on. Only split "
                f"val has them: put {MASKS_FOR_SCORES} beside the other folders of the raw data, delete the records "
                "and prepare again."
            )
        size = example.labels.shape
        for number, (annotator, matched) in enumerate(self._matched.items()):
            asked = [index for index, sentence in enumerate(example.sentences) if sentence.group == annotator]
            labels = np.zeros(size, np.uint8)
            if asked:
                objects = object_numbers([example.sentences[index] for index in asked])
                if max(objects) >= MAX_PROPOSALS:
                    raise UserError(f"{example.video} has sentences about more than {MAX_PROPOSALS} objects.")
                probabilities = np.zeros((max(objects) + 1, *size), np.float32)
                for place, index in zip(objects, asked, strict=True):
                    probabilities[place] = expit(resize_logits(logits[index], size))
                labels = merge_objects(probabilities)
            path = self._folder / f"anno_{number}" / example.video / f"{example.frame_index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(labels)
            picture.putpalette(PALETTE)
            path.write_bytes(_png(picture))
            matched.add(example.video, example.frame_index, labels, example.labels)
        return super().add(example, logits)

    def compute(self) -> dict[str, Any]:
        result = super().compute()
        by_annotator = {annotator: matched.compute() for annotator, matched in self._matched.items()}
        mean = {m: float(np.mean([scores[m] for scores in by_annotator.values()])) for m in REGION_AND_BOUNDARY}
        for name, scores in {None: result, **result["groups"]}.items():
            standard = scores.setdefault("standard", {})
            scores["per_expression"] = {m: standard[m] for m in REGION_AND_BOUNDARY if m in standard}
            standard |= by_annotator.get(name, mean)
        return result


def object_numbers(sentences: Sequence[Sentence]) -> list[int]:
    """Which object of its video each sentence is about, from 0: expression = 4 * object + annotator."""
    return [int(sentence.expression) // len(ANNOTATORS) for sentence in sentences]


def _palette(number: int) -> tuple[int, int, int]:
    """The color of a label in PASCAL VOC's palette, which DAVIS uses: its bits dealt to red, green and blue."""
    return tuple(sum(((number >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3))


PALETTE = [value for number in range(256) for value in _palette(number)]


def _png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


#: Data set -> its scoring, where that is not `Scoring`.
SCORING = {"ref_davis17": RefDAVIS17Scoring, "refer_youtube_vos": ReferYouTubeVOSScoring}
