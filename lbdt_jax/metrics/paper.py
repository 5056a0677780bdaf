"""Protocol "paper": the scores of LBDT's published tables, as its released code computes them.

Kept for comparison with those tables only. Prediction and truth are compared after the truth's trip through the
model's size, which fattens small objects; "mean precision" is called mAP there and is not COCO's; "F1" is called F
there and is not the boundary measure. (The released code also drops the last incomplete batch; here every sample
counts.)
"""

from __future__ import annotations

import array
import dataclasses

import numpy as np

from input_pipeline.images import resize_target

_EPSILON = 1e-6  # added to areas, so that two empty masks agree


def enlarge_as_published(binary: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Brings a prediction to its frame's size as the released code does for the Refer-YouTube-VOS server.

    The published figures of that benchmark were computed from such masks. They are made of the prediction that is
    already binary, by bilinear interpolation with aligned corners, then > 0: fatter by up to a pixel of the model's.

    Args:
      binary: (H, W) bool, the prediction at the model's size.
      size: (h, w) of the frame.

    Returns:
      (h, w) bool.
    """
    return resize_target(binary, size).astype(bool)


@dataclasses.dataclass
class PaperScores:
    """What is known of the samples so far; `PaperScores()` knows of none. A sample takes 32 bytes.

    Attributes:
      numbers: the rows of `samples` one after the other, float64.
    """

    numbers: array.array[float] = dataclasses.field(default_factory=lambda: array.array("d"))

    @property
    def samples(self) -> np.ndarray:
        """(number of samples, 4) float64: IoU, intersection, union, F1; areas in pixels of the original frame."""
        return np.array(self.numbers).reshape(-1, 4)

    def add(self, probability: np.ndarray, target: np.ndarray, original_size: tuple[int, int]) -> float:
        """Scores one sample.

        Args:
          probability: (H, W) float in [0, 1], at the model's size; > 0.5 is the object.
          target: (H, W) uint8 of 0 and 1, the training target at the model's size (`images.resize_target`).
          original_size: (h, w) of the frame as annotated. Both masks are brought there by the nearest pixel.

        Returns:
          IoU = (intersection + 1e-6) / (union + 1e-6).

        Raises:
          ValueError: shapes differ, or a probability is not finite.
        """
        if probability.shape != target.shape:
            raise ValueError(f"probability of shape {probability.shape} and target of shape {target.shape} differ")
        if not np.isfinite(probability).all():
            raise ValueError("a probability is not finite: the model's weights are broken")
        # Each original pixel reads pixel (i * H) // h, so a pixel counts as often as it is read.
        rows, columns = (
            np.arange(original) * size // original for original, size in zip(original_size, target.shape, strict=True)
        )
        predicted, true = ((mask[rows][:, columns]) for mask in (probability > 0.5, target > 0))
        intersection, union = np.count_nonzero(predicted & true), np.count_nonzero(predicted | true)
        iou = (intersection + _EPSILON) / (union + _EPSILON)
        f1 = 2 * (intersection + _EPSILON) / (intersection + union + 2 * _EPSILON)  # P + G = I + U
        self.numbers.extend((iou, intersection, union, f1))
        return iou

    def merge(self, other: PaperScores) -> PaperScores:
        """The scores of the samples of both."""
        return PaperScores(self.numbers + other.numbers)

    def compute(self) -> dict[str, float]:
        """The table's row, fractions in [0, 1]; mean precision is over the thresholds .50, .55, ..., .95.

        Raises:
          ValueError: no sample was added.
        """
        if not self.numbers:
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
