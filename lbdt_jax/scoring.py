"""Scoring of predictions, by dataset, and the files that the benchmarks' own scorers read.

a2d_sentences, jhmdb_sentences, moving_shapes, refcoco, refcoco_plus, refcocog    scores over samples
own                  the same, and for each video
grefcoco             also the scores of GRES, for sentences about several objects or none
refer_youtube_vos    also J and F over expressions, and two zips for the evaluation server (no ground truth
                     needed): Annotations/<video>/<expression>/<%05d>.png, 0 and 255
mevis                the same with <video>/<expression>/<%05d>.png, and scores of whether predictions are empty
ref_davis17          also scores per expression, and for each of the four annotators one palette image per frame,
                     <folder>/anno_<0..3>/<video>/<%05d>.png, as davis2017-evaluation reads them (task unsupervised)
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from scipy.special import expit

from input_pipeline.errors import UserError
from input_pipeline.pipeline import EvaluationExample
from input_pipeline.readers.ref_davis17 import ANNOTATORS, MASKS_FOR_SCORES
from input_pipeline.types import NO_TARGET, Sentence
from lbdt_jax.cli import atomic_write
from lbdt_jax.metrics import (
    MAX_PROPOSALS,
    MatchedScores,
    PaperScores,
    StandardScores,
    foreground_score,
    merge_objects,
    resize_as_published,
    resize_logits,
)

REGION_AND_BOUNDARY = ("j", "f", "j_and_f")

#: The scores of both protocols.
ScorePair = tuple[PaperScores, StandardScores]

#: `Scorer.unscored`, and the scores of every group of sentences.
ScorerState = tuple[int, dict[str, ScorePair]]


class Scorer:
    """Scores in both protocols. A context manager, since the scorers of some datasets also write files.

    Args:
      path: of the files to write, without suffix: FOLDER/<dataset>-<split>.
      layout: of the raw data, see `report.load_report`. The layout that LBDT's released code prepares has only a part
        of the samples and no official expression names: enough for scores, but not for a benchmark's own scorer.

    Attributes:
      files: names of the files and folders written.
      unscored: number of predictions without ground truth.
    """

    def __init__(self, path: Path, layout: str = "raw") -> None:
        self.path, self.layout = path, layout
        self.files: list[str] = []
        self.unscored = 0
        self._scores: dict[str, ScorePair] = collections.defaultdict(lambda: (PaperScores(), StandardScores()))
        self._stack = contextlib.ExitStack()

    @staticmethod
    def check(example: EvaluationExample) -> None:
        """Raises UserError if the records lack what this scorer needs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def add(self, example: EvaluationExample, logits: np.ndarray) -> list[tuple[np.ndarray, float | None]]:
        """Scores the predictions for all S sentences of a frame pair.

        Args:
          example: its frame has (h, w) pixels.
          logits: (S, H, W) float32.

        Returns:
          For each sentence the prediction (h, w) bool, and its IoU; None where the ground truth is not public.
        """
        size = example.original_frame.shape[:2]
        results: list[tuple[np.ndarray, float | None]] = []
        for sentence, logit, mask, target in zip(
            example.sentences, logits, example.masks, example.targets, strict=True
        ):
            prediction = resize_logits(logit, size) > 0
            if mask is None or target is None:
                self.unscored += 1
                results.append((prediction, None))
                continue
            paper, standard = self._scores[sentence.group]
            paper.add(expit(logit), target, size)
            key = (example.video, sentence.expression) if sentence.expression else None
            results.append((prediction, standard.add(prediction, mask, foreground_score(logit), key)))
        return results

    def state(self) -> ScorerState:
        """The scores so far, for `merge`; they can be pickled."""
        return self.unscored, dict(self._scores)

    def merge(self, states: Sequence[ScorerState]) -> None:
        """Replaces the scores by those of all processes: their states, in order, this one's included."""
        self.unscored = sum(unscored for unscored, _ in states)
        self._scores.clear()
        for _, scores in states:
            for group, pair in scores.items():
                self._scores[group] = _merge_pairs(self._scores[group], pair)

    def compute(self) -> dict[str, Any]:
        """{"samples", "paper", "standard", "groups"}; "groups" has the first three for every group of sentences.

        Without any ground truth {"samples": number of predictions, "groups": {}}.
        """
        groups = {name: _compute_pair(self._scores[name]) for name in sorted(self._scores)}
        if not groups:
            return {"samples": self.unscored, "groups": {}}
        overall = functools.reduce(_merge_pairs, self._scores.values())
        return {**_compute_pair(overall), "groups": groups if len(groups) > 1 else {}}


def _merge_pairs(first: ScorePair, second: ScorePair) -> ScorePair:
    return first[0].merge(second[0]), first[1].merge(second[1])


def _compute_pair(scores: ScorePair) -> dict[str, Any]:
    paper, standard = scores
    return {"samples": len(standard.samples), "paper": paper.compute(), "standard": standard.compute()}


class ReferYouTubeVOSScorer(Scorer):
    """Refer-YouTube-VOS: "paper" also has J and F of the masks that the published code sent to the server."""

    #: Folder of the zips that holds the videos.
    FOLDER = "Annotations/"

    def __enter__(self) -> Self:
        self._zips: dict[str, zipfile.ZipFile] = {}
        for protocol in ("paper", "standard") if self.layout == "raw" else ():
            path = self.path.with_name(f"{self.path.name}-{protocol}.zip")
            unfinished = self._stack.enter_context(atomic_write(path))
            # Without compression, since PNGs are compressed already.
            self._zips[protocol] = self._stack.enter_context(zipfile.ZipFile(unfinished, "w"))
            self.files.append(path.name)
        self._submitted_scores = StandardScores()
        return self

    def add(self, example: EvaluationExample, logits: np.ndarray) -> list[tuple[np.ndarray, float | None]]:
        """See `Scorer.add`; also writes the predictions to the zips."""
        results = super().add(example, logits)
        for sentence, logit, mask, (prediction, _) in zip(
            example.sentences, logits, example.masks, results, strict=True
        ):
            submitted = resize_as_published(expit(logit) > 0.5, prediction.shape)
            predictions = {"paper": submitted, "standard": prediction}
            for protocol, file in self._zips.items():
                name = f"{self.FOLDER}{example.video}/{sentence.expression}/{example.frame_index:05d}.png"
                file.writestr(name, _encode_png(Image.fromarray(255 * predictions[protocol].astype(np.uint8))))
            if mask is not None:
                self._submitted_scores.add(
                    submitted, mask, foreground_score(logit), (example.video, sentence.expression)
                )
        return results

    def compute(self) -> dict[str, Any]:
        """See `Scorer.compute`."""
        result = super().compute()
        if "paper" in result:
            submitted = self._submitted_scores.compute()
            result["paper"] |= {measure: submitted[measure] for measure in REGION_AND_BOUNDARY}
        return result


class MeViSScorer(ReferYouTubeVOSScorer):
    """MeViS: J and F of "paper" and "standard" are means over the expressions that have a target.

    "all_expressions" has those of "standard" over all expressions; the two are the same in version 1. Whether version 2
    averages over expressions without a target is not published. If there are any, "standard" and "all_expressions" have

    n_acc   share of the expressions without a target whose predicted masks are empty in all frames
    t_acc   share of the expressions with a target whose predicted mask has a pixel in some frame
    final   mean of j_and_f, n_acc and t_acc
    """

    FOLDER = ""

    def compute(self) -> dict[str, Any]:
        """See `Scorer.compute`."""
        result = super().compute()
        if "standard" not in result:
            return result
        standard = result["standard"]
        result["all_expressions"] = {measure: standard[measure] for measure in REGION_AND_BOUNDARY}
        without = self._scores[NO_TARGET][1] if NO_TARGET in self._scores else None
        if without is None:
            return result
        targets = [scores for group, (_, scores) in self._scores.items() if group != NO_TARGET]
        with_target = functools.reduce(StandardScores.merge, targets, StandardScores())
        accuracy = {"n_acc": 1 - without.share_of_nonempty_keys()}
        submitted_keys = self._submitted_scores.select(with_target.keys) if with_target.keys else None
        for measure in REGION_AND_BOUNDARY:
            del standard[measure], result["paper"][measure]
        if submitted_keys is not None:
            accuracy["t_acc"] = with_target.share_of_nonempty_keys()
            standard |= {m: with_target.compute()[m] for m in REGION_AND_BOUNDARY}
            result["paper"] |= {m: submitted_keys.compute()[m] for m in REGION_AND_BOUNDARY}
        for scores in (standard, result["all_expressions"]):
            scores |= accuracy
            if len(parts := [scores[m] for m in ("j_and_f", "n_acc", "t_acc") if m in scores]) == 3:
                scores["final"] = float(np.mean(parts))
        return result


class GRefCOCOScorer(Scorer):
    """gRefCOCO: "gres" has the scores of Liu et al., CVPR 2023 (https://github.com/henghuiding/ReLA), which agree.

    giou             mean IoU, where a sentence without a target counts 1 if its predicted mask is empty, else 0
    ciou             sum of intersections over sum of unions, false masks included
    n_acc, t_acc     share of the sentences without (with) a target whose predicted mask is (is not) empty
    precision@K      share of the sentences with a target whose IoU is at least K
    """

    def compute(self) -> dict[str, Any]:
        """See `Scorer.compute`."""
        result = super().compute()
        for group, scores in (("", result), *result["groups"].items()):
            groups = [group] if group else list(self._scores)
            if "standard" in scores:
                scores["gres"] = _gres({name: self._scores[name][1].samples for name in groups})
        return result


def _gres(samples: dict[str, np.ndarray]) -> dict[str, float]:
    """The scores of `GRefCOCOScorer` from `StandardScores.samples` of each group."""
    without = np.concatenate([rows for group, rows in samples.items() if group == NO_TARGET] or [np.zeros((0, 7))])
    target = np.concatenate([rows for group, rows in samples.items() if group != NO_TARGET] or [np.zeros((0, 7))])
    right = without[:, 3] == 0
    intersection, predicted, true = target[:, 2:5].T
    union = predicted + true - intersection
    iou = intersection / np.maximum(union, 1)
    all_union = union.sum() + without[:, 3].sum()
    scores = {
        "giou": float(np.mean(np.concatenate([right, iou]))),
        "ciou": float(intersection.sum() / all_union) if all_union else 1.0,
    }
    if len(without):
        scores["n_acc"] = float(right.mean())
    if len(target):
        scores["t_acc"] = float(np.mean(predicted > 0))
        scores |= {f"precision@0.{tenth}": float(np.mean(iou >= tenth / 10)) for tenth in (7, 8, 9)}
    return scores


class RefDAVIS17Scorer(Scorer):
    """Ref-DAVIS17: J and F of "standard" are means over the four annotators, of predicted objects matched to true ones.

    "per_expression" has J and F of every sentence by itself.
    """

    def __enter__(self) -> Self:
        folder = self.path.with_name(f"{self.path.name}-annotators")
        self.files.append(folder.name)
        self._folder = self._stack.enter_context(atomic_write(folder))
        self._matched = {annotator: MatchedScores() for annotator in ANNOTATORS}
        return self

    @staticmethod
    def check(example: EvaluationExample) -> None:
        """See `Scorer.check`."""
        if example.labels is None:
            raise UserError(
                f"{example.video}, frame {example.frame_index}: the records have no objects to score on. Only split "
                f"val has them: put {MASKS_FOR_SCORES}, with a mask of every frame, beside the other folders of the "
                "raw data (report.json beside the records names masks that can't be read), delete the records and "
                "prepare again."
            )

    def add(self, example: EvaluationExample, logits: np.ndarray) -> list[tuple[np.ndarray, float | None]]:
        """See `Scorer.add`; also writes each annotator's label map."""
        self.check(example)
        assert example.labels is not None
        for annotator_index, (annotator, matched) in enumerate(self._matched.items()):
            labels = self._merge_predictions(example, logits, annotator)
            path = self._folder / f"anno_{annotator_index}" / example.video / f"{example.frame_index:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(labels)
            image.putpalette(PALETTE)
            path.write_bytes(_encode_png(image))
            matched.add(example.video, example.frame_index, labels, example.labels)
        return super().add(example, logits)

    def _merge_predictions(self, example: EvaluationExample, logits: np.ndarray, annotator: str) -> np.ndarray:
        """The label map (h, w) uint8 of the predictions for one annotator's sentences; see `merge_objects`."""
        indices = [index for index, sentence in enumerate(example.sentences) if sentence.group == annotator]
        size = example.original_frame.shape[:2]
        if not indices:
            return np.zeros(size, np.uint8)
        objects = [object_index(example.sentences[index]) for index in indices]
        if max(objects) >= MAX_PROPOSALS:
            raise UserError(f"{example.video} has sentences about more than {MAX_PROPOSALS} objects.")
        probabilities = np.zeros((max(objects) + 1, *size), np.float32)
        for index, object_ in zip(indices, objects, strict=True):
            probabilities[object_] = expit(resize_logits(logits[index], size))
        return merge_objects(probabilities)

    def compute(self) -> dict[str, Any]:
        """See `Scorer.compute`."""
        result = super().compute()
        by_annotator = {annotator: matched.compute() for annotator, matched in self._matched.items()}
        mean = {m: float(np.mean([scores[m] for scores in by_annotator.values()])) for m in REGION_AND_BOUNDARY}
        for annotator, scores in {None: result, **result["groups"]}.items():
            standard = scores.setdefault("standard", {})
            scores["per_expression"] = {m: standard[m] for m in REGION_AND_BOUNDARY if m in standard}
            standard |= by_annotator.get(annotator, mean)
        return result


class OwnScorer(Scorer):
    """Your own clips: the groups are the videos, if there are at most `MAX_GROUPS`."""

    MAX_GROUPS = 30

    def add(self, example: EvaluationExample, logits: np.ndarray) -> list[tuple[np.ndarray, float | None]]:
        """See `Scorer.add`."""
        sentences = tuple(dataclasses.replace(sentence, group=example.video) for sentence in example.sentences)
        return super().add(dataclasses.replace(example, sentences=sentences), logits)

    def compute(self) -> dict[str, Any]:
        """See `Scorer.compute`."""
        result = super().compute()
        return result if len(result["groups"]) <= self.MAX_GROUPS else {**result, "groups": {}}


def object_index(sentence: Sentence) -> int:
    """The index of the sentence's object in its video, from 0: expression = 4 * object + annotator."""
    return int(sentence.expression) // len(ANNOTATORS)


def _palette_color(label: int) -> list[int]:
    """RGB of a label in the palette of PASCAL VOC and DAVIS: bits 3k, 3k + 1 and 3k + 2 go to red, green and blue."""
    return [sum(((label >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]


PALETTE = [value for label in range(256) for value in _palette_color(label)]


def _encode_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


#: Dataset -> its scorer, where that is not `Scorer`.
SCORERS: dict[str, type[Scorer]] = {
    "grefcoco": GRefCOCOScorer,
    "mevis": MeViSScorer,
    "own": OwnScorer,
    "ref_davis17": RefDAVIS17Scorer,
    "refer_youtube_vos": ReferYouTubeVOSScorer,
}
