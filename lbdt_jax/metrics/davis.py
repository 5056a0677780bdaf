"""Ref-DAVIS17 by the rule of the public davis2017 evaluation code, task "unsupervised", whose numbers these equal.

A video's predicted objects carry no names: they are matched with the true ones so that the mean of J and F over all
frames is largest. J and F are then means over the frames of each true object and over the objects of all videos. The
benchmark scores the sentences of each of its four annotators this way and takes the mean of the four.

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
VOID = 255  # of a true label map: pixels that count for nobody
_BACKGROUND = 0.1


def merge_objects(probabilities: np.ndarray) -> np.ndarray:
    """One label map of the masks that sentences found in a frame, each sentence for an object of its own.

    Probabilities below .5 become 0, a background of constant .1 stands before them, the largest wins, the first of
    equals.

    Args:
      probabilities: (O, h, w) float in [0, 1], at the frame's size.

    Returns:
      (h, w) uint8: o + 1 for the o-th object, counted from 0; 0 is the background.

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
    """What is known of the frames so far; `MatchedScores()` knows of none. A frame takes some hundred bytes.

    Attributes:
      frames: video -> index of the frame -> (2, predicted objects + 1, true objects + 1) float64: J and F of each with
        each, counting to the largest label in the frame. The last row and column are those of an empty mask.
    """

    frames: dict[str, dict[int, np.ndarray]] = dataclasses.field(default_factory=dict)

    def add(self, video: str, frame_index: int, labels: np.ndarray, truth: np.ndarray) -> None:
        """Scores one frame. All frames of a video count; they may come in any order.

        Args:
          video: its name.
          frame_index: of the frame in its video. The largest label in the true map of the earliest frame is the
            number of the video's objects: labels above it, of objects that appear later, do not count.
          labels: (h, w) uint8, 0 the background, o + 1 the o-th predicted object.
          truth: (h, w) uint8, 0 the background, 255 void, o + 1 the o-th true object.

        Raises:
          ValueError: the shapes differ, a predicted label exceeds 20, or the frame was scored already.
        """
        place = f"{video}, frame {frame_index}"
        if labels.shape != truth.shape:
            raise ValueError(f"{place}: predicted labels of shape {labels.shape}, true ones of shape {truth.shape}")
        if labels.max() > MAX_PROPOSALS:
            raise ValueError(
                f"{place}: predicted label {labels.max()}, but {MAX_PROPOSALS} objects a video are allowed"
            )
        if frame_index in self.frames.get(video, {}):
            raise ValueError(f"{place} was scored twice")
        void = truth == VOID
        proposals = int(labels.max())  # with those in void pixels, as in the public code
        predicted, true = (np.where(void, 0, each) for each in (labels, truth))
        objects = int(true.max())
        # A label more than there are, on both sides: the empty mask.
        f = boundary_accuracies(
            [predicted == label for label in range(1, proposals + 2)],
            [true == label for label in range(1, objects + 2)],
        )
        shape = (proposals + 2, objects + 2)
        pixels = np.bincount(np.ravel_multi_index((predicted.ravel(), true.ravel()), shape), minlength=math.prod(shape))
        pixels = pixels.reshape(shape)
        intersection = pixels[1:, 1:]
        union = pixels.sum(1)[1:, None] + pixels.sum(0)[1:] - intersection
        j = np.where(union, intersection / np.maximum(union, 1), 1.0)
        self.frames.setdefault(video, {})[frame_index] = np.stack([j, f])

    def merge(self, other: MatchedScores) -> MatchedScores:
        """The scores of the frames of both, which may be of the same videos.

        Raises:
          ValueError: a frame was scored in both.
        """
        frames = {video: dict(own) for video, own in self.frames.items()}
        for video, others in other.frames.items():
            twice = frames.setdefault(video, {}).keys() & others.keys()
            if twice:
                raise ValueError(f"{video}, frame {min(twice)} was scored twice")
            frames[video].update(others)
        return MatchedScores(frames)

    def compute(self) -> dict[str, float]:
        """{"j", "f", "j_and_f"} in [0, 1], means over the frames of an object, then over the objects of all videos.

        Raises:
          ValueError: no frame was added, or none with an object.
        """
        matched = [_match([own[index] for index in sorted(own)]) for own in self.frames.values()]
        if not sum(each.shape[1] for each in matched):
            raise ValueError("no object was scored")
        j, f = map(float, np.concatenate(matched, axis=1).mean(axis=1))
        return {"j": j, "f": f, "j_and_f": (j + f) / 2}


def _match(frames: Sequence[np.ndarray]) -> np.ndarray:
    """A video's entries of `MatchedScores.frames`, the earliest first -> (2, objects) J and F of the best matching."""
    objects = frames[0].shape[2] - 1
    proposals = max(objects, *(each.shape[1] - 1 for each in frames))  # missing ones are empty masks
    sums = np.zeros((2, proposals, objects))
    for each in frames:
        rows = np.minimum(np.arange(proposals), each.shape[1] - 1)  # labels that the frame lacks are empty masks
        columns = np.minimum(np.arange(objects), each.shape[2] - 1)
        sums += each[:, rows[:, None], columns]
    return sums[:, *linear_sum_assignment(sums.sum(axis=0), maximize=True)] / len(frames)
