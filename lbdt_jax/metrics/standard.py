"""Protocol "standard": the scores that the field reports, at the original resolution against the original masks.

Logits, not binary masks, are resized to the frame (`resize_logits`); object pixels have a logit > 0.
- precision@K: share of samples with (intersection + 1e-6) / (union + 1e-6) > K in float32, as the field's public code
  computes it since MTTR (https://github.com/mttr2021/MTTR, metrics.py); see `exceeds`.
- overall IoU: sum of intersections over sum of unions; mean IoU.
- coco_map: COCO's segmentation AP over (sample, mask, score), IoU .50:.05:.95, as MTTR and its successors compute it.
- j, f: region similarity and boundary accuracy of DAVIS, averaged over samples or, for Refer-YouTube-VOS, over the
  frames of each expression and then over expressions.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import io
from collections.abc import Container, Hashable

import numpy as np
from PIL import Image
from pycocotools.cocoeval import COCOeval

from lbdt_jax.metrics.boundary import boundary_accuracy, region_similarity


def resize_logits(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes logits bilinearly with pixel centers at half-integers and without antialiasing, as most evaluators do.

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
    image, (height, width) = Image.fromarray(logits), size
    if height >= image.height and width >= image.width:
        # Four times faster with the same result: `resize` antialiases only when it shrinks.
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    scale = (image.width / width, 0, 0, 0, image.height / height, 0)
    return np.asarray(image.transform((width, height), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR))


def foreground_score(logits: np.ndarray) -> float:
    """A prediction's score for COCO's ranking: the mean probability of its object pixels (logit > 0), 0 without any.

    LBDT itself predicts no score; this definition is ours.
    """
    foreground = logits[logits > 0]
    return float(np.mean(1 / (1 + np.exp(-foreground)))) if foreground.size else 0.0


@dataclasses.dataclass
class StandardScores:
    """The scores of samples; `StandardScores()` is the empty state. A sample takes 56 bytes.

    Attributes:
      values: the rows of `samples` one after the other, float64.
      keys: key of samples -> its index, in order of appearance.
    """

    values: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))
    keys: dict[Hashable, int] = dataclasses.field(default_factory=dict)

    @property
    def samples(self) -> np.ndarray:
        """(number of samples, 7) float64: J, F, intersection, predicted area, true area, score, key index.

        Areas are in pixels; the key index is -1 for a sample without a key.
        """
        return np.array(self.values).reshape(-1, 7)

    def add(self, prediction: np.ndarray, mask: np.ndarray, score: float, key: Hashable = None) -> float:
        """Scores one sample.

        Args:
          prediction: (h, w) bool, at the original resolution.
          mask: (h, w) bool, as annotated.
          score: confidence by which COCO's AP ranks predictions, such as `foreground_score`.
          key: what the sample is a frame of, such as (video, expression): j and f are averaged over the frames of each
            key, then over keys. None for a sample by itself.

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
        areas = (float(np.count_nonzero(pixels)) for pixels in (prediction & mask, prediction, mask))
        key_index = -1 if key is None else self.keys.setdefault(key, len(self.keys))
        self.values.extend((iou, boundary_accuracy(prediction, mask), *areas, score, key_index))
        return iou

    def merge(self, other: StandardScores) -> StandardScores:
        """The scores of the samples of both, this one's first.

        COCO's AP ranks predictions of equal score by their order, so states must be merged in order.
        """
        keys = dict(self.keys)
        new_index = {-1: -1} | {index: keys.setdefault(key, len(keys)) for key, index in other.keys.items()}
        merged = self.values + other.values
        merged[len(self.values) + 6 :: 7] = array.array("d", [new_index[int(index)] for index in other.values[6::7]])
        return StandardScores(merged, keys)

    def select(self, keys: Container[Hashable]) -> StandardScores:
        """The scores of the samples with one of the keys."""
        chosen = {index: key for key, index in self.keys.items() if key in keys}
        new_index = {index: number for number, index in enumerate(chosen)}
        rows = self.samples[np.isin(self.samples[:, 6], list(chosen))]
        rows[:, 6] = [new_index[int(index)] for index in rows[:, 6]]
        return StandardScores(array.array("d", rows.ravel()), {key: new_index[index] for index, key in chosen.items()})

    def share_of_nonempty_keys(self) -> float:
        """The share of keys, such as expressions, with a predicted pixel in some frame; every sample has a key."""
        predicted, key = self.samples[:, 3], self.samples[:, 6].astype(int)
        return float(np.mean(np.bincount(key, predicted) > 0))

    def compute(self) -> dict[str, float]:
        """The scores, fractions in [0, 1], with COCO's other five AP (see `coco_average_precision`).

        Raises:
          ValueError: no sample was added.
        """
        if not self.values:
            raise ValueError("no sample was scored")
        j, f, intersection, predicted, true, score, key = self.samples.T
        union = predicted + true - intersection
        j_mean, f_mean = _mean_over_keys(j, key.astype(int)), _mean_over_keys(f, key.astype(int))
        return {
            **coco_average_precision(intersection, predicted, true, score),
            **{
                f"precision@0.{tenth}": float(np.mean(exceeds(intersection, union, tenth / 10)))
                for tenth in range(5, 10)
            },
            "overall_iou": float(intersection.sum() / union.sum()) if union.any() else 1.0,
            "mean_iou": float(j.mean()),
            "j": j_mean,
            "f": f_mean,
            "j_and_f": (j_mean + f_mean) / 2,
        }


def exceeds(intersection: np.ndarray, union: np.ndarray, threshold: float) -> np.ndarray:
    """Whether the IoU of samples exceeds a threshold, by the rounding of the field's public code.

    That code adds 1e-6 to both areas in float32. An IoU of exactly one half therefore counts as above .5 in small
    masks, such as 1 of 2 pixels, and not in large ones, where 1e-6 is lost; 3 of 5 always counts as above .6.

    Args:
      intersection: (N,) areas of the intersections, in pixels.
      union: (N,) areas of the unions.
      threshold: such as 0.5.

    Returns:
      (N,) bool.
    """
    epsilon = np.float32(1e-6)
    iou = (intersection.astype(np.float32) + epsilon) / (union.astype(np.float32) + epsilon)
    return iou.astype(np.float64) > threshold


def _mean_over_keys(values: np.ndarray, key: np.ndarray) -> float:
    """The mean over keys of the mean over each key's samples; a sample without a key (-1) counts as a key."""
    alone, keyed = values[key < 0], key[key >= 0]
    means = np.bincount(keyed, values[key >= 0]) / np.bincount(keyed)
    return float(np.mean(np.concatenate([alone, means])))


def coco_average_precision(
    intersection: np.ndarray, predicted: np.ndarray, true: np.ndarray, score: np.ndarray
) -> dict[str, float]:
    """COCO's segmentation AP of N images with one object and one detection each, computed by pycocotools.

    With one object per image, a detection is correct if its IoU reaches the threshold, so the masks need not be kept.
    Ranking and interpolation are COCO's own; all N images are passed as one. Detections of equal score keep their
    order. In COCO the IoU of two empty masks is 0.

    Args:
      intersection: (N,) areas of the intersections, in pixels.
      predicted: (N,) areas of the detections.
      true: (N,) areas of the objects.
      score: (N,) confidences of the detections, finite.

    Returns:
      "coco_map" over IoU .50:.05:.95; "coco_ap50" and "coco_ap75" at one IoU; "coco_small", "coco_medium" and
      "coco_large" over objects of up to 32 x 32 pixels, up to 96 x 96, and larger, for the sizes that occur.
    """
    iou = intersection / np.maximum(predicted + true - intersection, 1)
    evaluator = COCOeval(iouType="segm")
    params = evaluator.params
    params.useCats, params.imgIds, params.maxDets = 0, [0], [len(iou)]
    matches = iou >= np.minimum(params.iouThrs, 1 - 1e-10)[:, None]
    evaluator.evalImgs = []
    for smallest, largest in params.areaRng:
        ignore_object, ignore_detection = ((area < smallest) | (area > largest) for area in (true, predicted))
        ignore = np.where(matches, ignore_object, ignore_detection)
        evaluator.evalImgs.append(
            {"dtMatches": matches, "dtScores": score, "dtIgnore": ignore, "gtIgnore": ignore_object}
        )
    evaluator._paramsEval = params  # as evaluator.evaluate() sets it
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, 0, :, 0]  # (IoU, recall, size); -1 for a size without an object
    all_sizes = precision[:, :, 0].mean(axis=1)
    by_size = precision.mean(axis=(0, 1))[1:]
    return {
        "coco_map": float(all_sizes.mean()),
        "coco_ap50": float(all_sizes[0]),
        "coco_ap75": float(all_sizes[5]),
        **{f"coco_{name}": float(ap) for name, ap in zip(params.areaRngLbl[1:], by_size, strict=True) if ap >= 0},
    }
