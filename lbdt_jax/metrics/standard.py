"""Protocol "standard": the scores that the field reports, at the original resolution against the untouched masks.

Logits, not binary masks, are resized to the original frame (`resize_logits`); logit > 0 is the object.
- precision@K: share of samples with IoU > K; overall IoU: all intersections over all unions; mean IoU.
- coco_map: COCO's segmentation AP over (sample, mask, score), IoU .50:.05:.95, as MTTR and its successors compute it.
- j, f: region similarity and boundary accuracy of DAVIS, means over samples, or over the frames of each expression and
  then over expressions (Refer-YouTube-VOS).
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import io
from collections.abc import Hashable

import numpy as np
from PIL import Image
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
    picture, (height, width) = Image.fromarray(logits), size
    if height >= picture.height and width >= picture.width:
        # The same in a quarter of the time: `resize` antialiases only what it shrinks.
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    scale = (picture.width / width, 0, 0, 0, picture.height / height, 0)
    picture = picture.transform((width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)
    return np.asarray(picture)


def foreground_score(logits: np.ndarray) -> float:
    """A sample's score for COCO's ranking: the mean probability of the pixels where logit > 0; without any, 0.

    LBDT answers with one mask and no score of its own; this one is ours.
    """
    foreground = logits[logits > 0]
    return float(np.mean(1 / (1 + np.exp(-foreground)))) if foreground.size else 0.0


@dataclasses.dataclass
class StandardScores:
    """What is known of the samples so far; `StandardScores()` knows of none. A sample takes 56 bytes.

    Attributes:
      numbers: the rows of `samples` one after the other, float64.
      keys: each key of samples -> its number, in order of appearance.
    """

    numbers: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))
    keys: dict[Hashable, int] = dataclasses.field(default_factory=dict)

    @property
    def samples(self) -> np.ndarray:
        """(number of samples, 7) float64: J, F, intersection, predicted area, true area, score, number of the key.

        Areas are in pixels; the key's number is -1 for a sample that stands alone.
        """
        return np.array(self.numbers).reshape(-1, 7)

    def add(self, prediction: np.ndarray, mask: np.ndarray, score: float, of: Hashable = None) -> float:
        """Scores one sample.

        Args:
          prediction: (h, w) bool, at the original resolution.
          mask: (h, w) bool, as annotated.
          score: by which COCO's AP ranks the predictions, such as `foreground_score`.
          of: what the sample is a frame of, such as (video, expression): j and f are means over the frames of each
            and then over these. None is a sample that stands alone.

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
        areas = (np.count_nonzero(each) for each in (prediction & mask, prediction, mask))
        key = -1 if of is None else self.keys.setdefault(of, len(self.keys))
        self.numbers.extend((iou, boundary_accuracy(prediction, mask), *areas, score, key))
        return iou

    def merge(self, other: StandardScores) -> StandardScores:
        """The scores of the samples of both, this one's first.

        Where predictions tie in their scores, COCO's AP takes them in order: parts must be merged in theirs.
        """
        keys = dict(self.keys)
        numbers = {-1: -1} | {number: keys.setdefault(key, len(keys)) for key, number in other.keys.items()}
        merged = self.numbers + other.numbers
        merged[len(self.numbers) + 6 :: 7] = array.array("d", [numbers[key] for key in other.numbers[6::7]])
        return StandardScores(merged, keys)

    def compute(self) -> dict[str, float]:
        """The table's row, fractions in [0, 1], and COCO's other five AP (`coco_average_precision`).

        Raises:
          ValueError: no sample was added.
        """
        if not self.numbers:
            raise ValueError("no sample was scored")
        j, f, intersection, predicted, true, score, key = self.samples.T
        union = predicted + true - intersection
        j_mean, f_mean = (_mean_over_keys(each, key.astype(int)) for each in (j, f))
        return {
            **coco_average_precision(intersection, predicted, true, score),
            **{f"precision@0.{tenth}": float(np.mean(j > tenth / 10)) for tenth in range(5, 10)},
            "overall_iou": float(intersection.sum() / union.sum()) if union.any() else 1.0,
            "mean_iou": float(j.mean()),
            "j": j_mean,
            "f": f_mean,
            "j_and_f": (j_mean + f_mean) / 2,
        }


def _mean_over_keys(values: np.ndarray, key: np.ndarray) -> float:
    """The mean of the means of the keys' samples; a sample of key -1 counts like a key."""
    alone, keyed = values[key < 0], key[key >= 0]
    means = np.bincount(keyed, values[key >= 0]) / np.bincount(keyed)
    return float(np.mean(np.concatenate([alone, means])))


def coco_average_precision(
    intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray, score: np.ndarray
) -> dict[str, float]:
    """COCO's segmentation AP of N images with one object and one detection each, through pycocotools.

    With one of each an image's detection is right if its IoU reaches the threshold; the masks need not be kept.
    Ranking and interpolation are COCO's own, from N images as if they were one. Detections with equal scores rank as
    they come. To COCO the IoU of two empty masks is 0.

    Args:
      intersection: (N,) pixels that both masks share.
      predicted: (N,) pixels of the detections.
      true: (N,) pixels of the objects.
      score: (N,) of the detections, finite.

    Returns:
      "coco_map" over IoU .50:.05:.95; "coco_ap50" and "coco_ap75" at one IoU; "coco_small", "coco_medium" and
      "coco_large" over objects of up to 32 x 32 pixels, up to 96 x 96, and larger; of sizes that occur.
    """
    iou = intersection / np.maximum(predicted + true - intersection, 1)
    evaluator = COCOeval(iouType="segm")
    params = evaluator.params
    params.useCats, params.imgIds, params.maxDets = 0, [0], [len(iou)]
    matches = iou >= np.minimum(params.iouThrs, 1 - 1e-10)[:, None]
    evaluator.evalImgs = []
    for smallest, largest in params.areaRng:
        other_object, other_detection = ((area < smallest) | (area > largest) for area in (true, predicted))
        ignored = np.where(matches, other_object, other_detection)
        evaluator.evalImgs.append(
            {"dtMatches": matches, "dtScores": score, "dtIgnore": ignored, "gtIgnore": other_object}
        )
    evaluator._paramsEval = params  # as its evaluate() leaves it
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, 0, :, 0]  # (IoU, recall, size); -1 for a size without an object
    everything = precision[:, :, 0].mean(axis=1)
    sizes = precision.mean(axis=(0, 1))[1:]
    return {
        "coco_map": float(everything.mean()),
        "coco_ap50": float(everything[0]),
        "coco_ap75": float(everything[5]),
        **{f"coco_{name}": float(ap) for name, ap in zip(params.areaRngLbl[1:], sizes, strict=True) if ap >= 0},
    }
