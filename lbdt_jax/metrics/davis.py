"""Ref-DAVIS17 scores as in the public davis2017 evaluation code, task "unsupervised", with which the results agree.

The predicted objects of a video have no identity: they are matched to the true ones so that the mean of J and F over
all frames is maximal. J and F are then averaged over the frames of each true object, and over the objects of all
videos. The benchmark scores the sentences of each of its four annotators this way and averages the four.

Sources: Caelles et al., "The 2019 DAVIS Challenge on VOS: Unsupervised Multi-Object Segmentation", arXiv 1905.00737;
`merge_objects`: the Ref-DAVIS17 evaluator of ReferFormer, which its successors share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from lbdt_jax.metrics.boundary import boundary_accuracies

MAX_PROPOSALS = 20  # in a video, as the public code allows
VOID = 255  # label of pixels to ignore, in true label maps
_BACKGROUND = 0.1


def merge_objects(probabilities: np.ndarray) -> np.ndarray:
    """Merges the masks of a frame's objects, one per object, into a label map.

    Probabilities below .5 become 0, and the background has a constant .1; the largest wins, the first of equals.

    Args:
      probabilities: (O, h, w) float in [0, 1], at the frame's size.

    Returns:
      (h, w) uint8: 0 for the background, o + 1 for object o (from 0).

    Raises:
      ValueError: more than 254 objects, or a probability is not finite.
    """
    if len(probabilities) >= VOID:
        raise ValueError(f"{len(probabilities)} objects do not fit into a label map of 8 bits")
    if not np.isfinite(probabilities).all():
        raise ValueError("a probability is not finite: the model's weights are broken")
    planes = np.pad(probabilities, ((1, 0), (0, 0), (0, 0)), constant_values=_BACKGROUND)
    planes[1:][probabilities < 0.5] = 0
    return planes.argmax(axis=0).astype(np.uint8)


@dataclasses.dataclass
class MatchedScores:
    """The scores of frames; `MatchedScores()` is the empty state. A frame takes a few hundred bytes.

    Attributes:
      frames: video -> frame index -> (2, predicted objects + 1, true objects + 1) float64: J and F of every pair, up to
        the largest labels in the frame. The last row and column belong to an empty mask.
    """

    frames: dict[str, dict[int, np.ndarray]] = dataclasses.field(default_factory=dict)

    def add(self, video: str, frame_index: int, labels: np.ndarray, true_labels: np.ndarray) -> None:
        """Scores one frame. All frames of a video must be added, in any order.

        Args:
          video: its name.
          frame_index: index of the frame in the video. The largest true label in the video's first frame is its number
            of objects: larger labels, of objects that appear later, are ignored.
          labels: (h, w) uint8, predicted: 0 for the background, o + 1 for object o.
          true_labels: (h, w) uint8, ground truth: 0 for the background, 255 for void, o + 1 for object o.

        Raises:
          ValueError: the shapes differ, a predicted label exceeds 20, or the frame was added before.
        """
        frame = f"{video}, frame {frame_index}"
        if labels.shape != true_labels.shape:
            raise ValueError(
                f"{frame}: predicted labels of shape {labels.shape}, true ones of shape {true_labels.shape}"
            )
        if labels.max() > MAX_PROPOSALS:
            raise ValueError(
                f"{frame}: predicted label {labels.max()}, but a video may have at most {MAX_PROPOSALS} objects"
            )
        if frame_index in self.frames.get(video, {}):
            raise ValueError(f"{frame} was scored twice")
        void = true_labels == VOID
        proposals = int(labels.max())  # counts labels in void pixels, as the public code does
        predicted, true = np.where(void, 0, labels), np.where(void, 0, true_labels)
        objects = int(true.max())
        # One label more than there are, for the empty mask.
        f = boundary_accuracies(
            [predicted == label for label in range(1, proposals + 2)],
            [true == label for label in range(1, objects + 2)],
        )
        shape = (proposals + 2, objects + 2)
        pairs = np.ravel_multi_index((predicted.ravel(), true.ravel()), shape)
        pixels = np.bincount(pairs, minlength=math.prod(shape)).reshape(shape)
        intersection = pixels[1:, 1:]
        union = pixels.sum(1)[1:, None] + pixels.sum(0)[1:] - intersection
        j = np.where(union, intersection / np.maximum(union, 1), 1.0)
        self.frames.setdefault(video, {})[frame_index] = np.stack([j, f])

    def merge(self, other: MatchedScores) -> MatchedScores:
        """The scores of the frames of both, which may belong to the same videos.

        Raises:
          ValueError: a frame was scored in both.
        """
        frames = {video: dict(by_index) for video, by_index in self.frames.items()}
        for video, by_index in other.frames.items():
            duplicates = frames.setdefault(video, {}).keys() & by_index.keys()
            if duplicates:
                raise ValueError(f"{video}, frame {min(duplicates)} was scored twice")
            frames[video].update(by_index)
        return MatchedScores(frames)

    def compute(self) -> dict[str, float]:
        """{"j", "f", "j_and_f"} in [0, 1]: means over the frames of each object, then over the objects of all videos.

        Raises:
          ValueError: no frame was added, or none with an object.
        """
        matched = [_match([by_index[index] for index in sorted(by_index)]) for by_index in self.frames.values()]
        if not sum(scores.shape[1] for scores in matched):
            raise ValueError("no object was scored")
        j, f = map(float, np.concatenate(matched, axis=1).mean(axis=1))
        return {"j": j, "f": f, "j_and_f": (j + f) / 2}


def _match(frames: Sequence[np.ndarray]) -> np.ndarray:
    """A video's entries of `MatchedScores.frames` in order of time -> (2, objects) J and F of the best matching."""
    objects = frames[0].shape[2] - 1
    proposals = max(objects, *(scores.shape[1] - 1 for scores in frames))
    sums = np.zeros((2, proposals, objects))
    for scores in frames:
        rows = np.minimum(np.arange(proposals), scores.shape[1] - 1)  # labels missing in the frame are empty masks
        columns = np.minimum(np.arange(objects), scores.shape[2] - 1)
        sums += scores[:, rows[:, None], columns]
    return sums[:, *linear_sum_assignment(sums.sum(axis=0), maximize=True)] / len(frames)
