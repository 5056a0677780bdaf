"""Protocol "paper": the scores of LBDT's published tables, as its released code computes them.

Only for comparison with those tables. The ground truth is first resized to the model's size, which makes small objects
larger, and back. The paper's mAP is called "mean precision" here, since it is not COCO's, and its F is called "F1",
since it is not the boundary measure. (The released code also drops the last incomplete batch, this code does not.)
"""

from __future__ import annotations

import array
import dataclasses

import numpy as np

from input_pipeline.images import resize_target

_EPSILON = 1e-6  # added to areas, so that two empty masks agree


def resize_as_published(binary: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a prediction to its frame's size as the released code does for the Refer-YouTube-VOS server.

    The published scores of that benchmark come from such masks: the binary prediction is interpolated bilinearly with
    aligned corners and thresholded at > 0, which makes masks larger by up to one pixel of the model's resolution.

    Args:
      binary: (H, W) bool, the prediction at the model's size.
      size: (h, w) of the frame.

    Returns:
      (h, w) bool.
    """
    return resize_target(binary, size).astype(bool)


@dataclasses.dataclass
class PaperScores:
    """The scores of samples; `PaperScores()` is the empty state. A sample takes 32 bytes.

    Attributes:
      values: the rows of `samples` one after the other, float64.
    """

    values: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))

    @property
    def samples(self) -> np.ndarray:
        """(number of samples, 4) float64: IoU, intersection, union, F1; areas in pixels of the original frame."""
        return np.array(self.values).reshape(-1, 4)

    def add(self, probability: np.ndarray, target: np.ndarray, original_size: tuple[int, int]) -> float:
        """Scores one sample.

        Args:
          probability: (H, W) float in [0, 1], at the model's size; object pixels are > 0.5.
          target: (H, W) uint8 of 0 and 1, the training target at the model's size (`images.resize_target`).
          original_size: (h, w) of the annotated frame, to which both masks are resized (nearest neighbor).

        Returns:
          IoU = (intersection + 1e-6) / (union + 1e-6).

        Raises:
          ValueError: shapes differ, or a probability is not finite.
        """
        if probability.shape != target.shape:
            raise ValueError(f"probability of shape {probability.shape} and target of shape {target.shape} differ")
        if not np.isfinite(probability).all():
            raise ValueError("a probability is not finite: the model's weights are broken")
        # Nearest neighbor: original pixel i is pixel (i * H) // h of the model.
        rows, columns = (
            np.arange(original) * size // original for original, size in zip(original_size, target.shape, strict=True)
        )
        predicted, true = ((mask[rows][:, columns]) for mask in (probability > 0.5, target > 0))
        intersection, union = np.count_nonzero(predicted & true), np.count_nonzero(predicted | true)
        iou = (intersection + _EPSILON) / (union + _EPSILON)
        f1 = 2 * (intersection + _EPSILON) / (intersection + union + 2 * _EPSILON)  # P + G = I + U
        self.values.extend(map(float, (iou, intersection, union, f1)))
        return float(iou)

    def merge(self, other: PaperScores) -> PaperScores:
        """The scores of the samples of both."""
        return PaperScores(self.values + other.values)

    def compute(self) -> dict[str, float]:
        """The scores, fractions in [0, 1]; mean precision is over the thresholds .50, .55, ..., .95.

        Raises:
          ValueError: no sample was added.
        """
        if not self.values:
            raise ValueError("no sample was scored")
        iou, intersection, union, f1 = self.samples.T
        precision = [float(np.mean(iou >= percent / 100)) for percent in range(50, 100, 5)]
        return {
            **{f"precision@0.{tenth}": precision[2 * tenth - 10] for tenth in range(5, 10)},
            "mean_precision": float(np.mean(precision)),
            "overall_iou": float(intersection.sum() / union.sum()) if union.any() else 1.0,
            "mean_iou": float(iou.mean()),
            "f1": float(f1.mean()),
        }
