"""Protocol "standard": the scores that the field reports, at the original resolution against the untouched masks.

Logits, not binary masks, are resized to the original frame (`resize_logits`); logit > 0 is the object.
- precision@K: share of samples with IoU > K; overall IoU: all intersections over all unions; mean IoU.
- coco_map: COCO's segmentation AP over (sample, mask, score), IoU .50:.05:.95, as MTTR and its successors compute it.
- j, f: region similarity and boundary accuracy of DAVIS, means over samples; J is the mean IoU by its DAVIS name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as run_length
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lbdt_jax.metrics.boundary import boundary_accuracy, region_similarity


def resize_logits(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes logits bilinearly, pixel centres at half-integers, no antialiasing, as the field's evaluators do.

    Args:
      logits: (H, W) float32.
      size: (h, w) of the original frame.

    Returns:
      (h, w) float32.

    Raises:
      ValueError: a logit is not finite.
    """
    if not np.isfinite(logits).all():
        raise ValueError("a logit is not finite: the model's weights are broken")
    height, width = size
    scale = (logits.shape[1] / width, 0, 0, 0, logits.shape[0] / height, 0)
    picture = Image.fromarray(logits).transform(
        (width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR
    )
    return np.asarray(picture)


def foreground_score(logits: np.ndarray) -> float:
    """A sample's score for COCO's ranking: the mean probability of the pixels where logit > 0; without any, 0.

    LBDT answers with one mask and no score of its own; this one is ours.
    """
    foreground = logits[logits > 0]
    return float(np.mean(1 / (1 + np.exp(-foreground)))) if foreground.size else 0.0


@dataclasses.dataclass
class StandardScores:
    """What is known of the samples so far; `StandardScores()` knows of none.

    Attributes:
      samples: per sample (J, intersection, union, F), areas in pixels.
      answers: per sample (predicted mask, true mask, score), masks as COCO run-length encodings: about 1 kB each.
    """

    samples: list[tuple[float, int, int, float]] = dataclasses.field(default_factory=list)
    answers: list[tuple[dict[str, Any], dict[str, Any], float]] = dataclasses.field(default_factory=list)

    def add(self, prediction: np.ndarray, mask: np.ndarray, score: float) -> float:
        """Scores one sample.

        Args:
          prediction: (h, w) bool, at the original resolution.
          mask: (h, w) bool, as annotated.
          score: by which COCO's AP ranks the predictions, such as `foreground_score`.

        Returns:
          IoU, 1 if both masks are empty.

        Raises:
          ValueError: shapes differ, or the score is not finite.
        """
        if prediction.shape != mask.shape:
            raise ValueError(f"prediction of shape {prediction.shape} and mask of shape {mask.shape} differ")
        if not np.isfinite(score):
            raise ValueError(f"score {score} is not finite: the model's weights are broken")
        iou = region_similarity(prediction, mask)
        intersection, union = np.count_nonzero(prediction & mask), np.count_nonzero(prediction | mask)
        self.samples.append((iou, intersection, union, boundary_accuracy(prediction, mask)))
        predicted, true = (run_length.encode(np.asfortranarray(each, np.uint8)) for each in (prediction, mask))
        self.answers.append((predicted, true, score))
        return iou

    def merge(self, other: StandardScores) -> StandardScores:
        """The scores of the samples of both, this one's first."""
        return StandardScores(self.samples + other.samples, self.answers + other.answers)

    def compute(self) -> dict[str, float]:
        """The table's row, fractions in [0, 1].

        Raises:
          ValueError: no sample was added.
        """
        if not self.samples:
            raise ValueError("no sample was scored")
        iou, intersection, union, f = np.array(self.samples).T
        return {
            "coco_map": _coco_average_precision(self.answers),
            **{f"precision@0.{tenth}": float(np.mean(iou > tenth / 10)) for tenth in range(5, 10)},
            "overall_iou": float(intersection.sum() / union.sum()) if union.any() else 1.0,
            "mean_iou": float(iou.mean()),
            "j": float(iou.mean()),
            "f": float(f.mean()),
            "j_and_f": float((iou.mean() + f.mean()) / 2),
        }


def _coco_average_precision(answers: list[tuple[dict[str, Any], dict[str, Any], float]]) -> float:
    """COCO's first number, AP over IoU .50:.05:.95; each sample is an image with one object and one detection."""
    truth, detections = COCO(), []
    truth.dataset = {"images": [], "annotations": [], "categories": [{"id": 1}]}
    for number, (predicted, true, score) in enumerate(answers, start=1):  # COCO takes id 0 for "no match"
        height, width = true["size"]
        truth.dataset["images"].append({"id": number, "height": height, "width": width})
        truth.dataset["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "segmentation": true,
                "area": float(run_length.area(true)),
                "iscrowd": 0,
            }
        )
        detections.append({"image_id": number, "category_id": 1, "segmentation": predicted, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(detections), "segm")
        evaluator.params.useCats = 0
        evaluator.params.areaRng, evaluator.params.areaRngLbl = evaluator.params.areaRng[:1], ["all"]
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])
