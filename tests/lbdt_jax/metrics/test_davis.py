"""Ref-DAVIS17's scores equal those of the public davis2017 evaluation; simple cases equal scores computed by hand."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from inputs_rule import checksum
from paths import GOLDEN
from weights_rule import stream

from lbdt_jax.metrics import MatchedScores, boundary_accuracy, merge_objects, region_similarity

# Results of the public code for the videos below: J and F of each object, and their means over all objects.
EXPECTED = json.loads((GOLDEN / "davis.json").read_text())


class Rule(NamedTuple):
    """How a video is generated. Every label moves on a straight line, from its first frame to its last one.

    objects: true label -> (first, last frame).
    proposals: predicted label -> (the true label that it follows, 0 for none; first, last frame).
    void: share of the pixels around a true object that are void.
    """

    size: tuple[int, int]
    frames: int
    objects: dict[int, tuple[int, int]]
    proposals: dict[int, tuple[int, int, int]]
    void: float = 0.0


ALWAYS = (0, 99)
VIDEOS = {
    "full-size": Rule((480, 854), 3, {1: ALWAYS, 2: ALWAYS}, {1: (2, *ALWAYS), 2: (0, *ALWAYS), 3: (1, *ALWAYS)}, 0.2),
    "more-proposals": Rule((37, 53), 9, {1: ALWAYS, 2: (0, 5)}, {n: (n % 3, *ALWAYS) for n in range(1, 6)}),
    "fewer-proposals": Rule((64, 45), 7, {n: ALWAYS for n in range(1, 5)}, {1: (3, *ALWAYS), 2: (1, 2, 4)}, 0.1),
    "later-objects": Rule(
        (50, 90), 8, {1: (3, 6), 2: (0, 4), 3: (2, 7)}, {1: (3, *ALWAYS), 2: (1, *ALWAYS), 3: (2, 0, 3)}, 0.1
    ),
    "late-proposal": Rule((61, 61), 6, {1: (0, 1), 2: ALWAYS}, {1: (2, *ALWAYS), 4: (1, 4, 5)}),
    "no-proposal": Rule((40, 71), 5, {1: ALWAYS, 2: (0, 2)}, {}),
    "no-object-at-first": Rule((40, 70), 4, {1: (1, 3)}, {1: (1, *ALWAYS)}),
    "twenty-proposals": Rule(
        (90, 161), 4, {n: ALWAYS for n in range(1, 7)}, {n: (n % 7, *ALWAYS) for n in range(1, 21)}
    ),
    "one-tiny-frame": Rule((5, 7), 1, {1: ALWAYS}, {1: (1, *ALWAYS)}),
    "mostly-void": Rule((33, 47), 6, {1: ALWAYS, 2: (0, 0)}, {1: (1, *ALWAYS), 2: (2, *ALWAYS)}, 0.9),
}


def generate(video: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(predicted labels, true labels) of each frame, (h, w) uint8; equal on every machine."""
    rule, rng = VIDEOS[video], stream(video, 0)
    paths = {label: rng.random((2, 3)) for label in rule.objects}  # (start, end) x (y, x, size)
    proposal_paths = {}
    for label, (true, *_) in rule.proposals.items():
        drawn = rng.random((2, 3))
        proposal_paths[label] = paths[true] + 0.15 * (drawn - 0.5) if true else drawn
    for frame in range(rule.frames):
        truth, labels = np.zeros(rule.size, np.uint8), np.zeros(rule.size, np.uint8)
        for label, (first, last) in rule.objects.items():
            if first <= frame <= last:
                truth[_ellipse(rule, paths[label], frame, 1.15) & (rng.random(rule.size) < rule.void)] = 255
                truth[_ellipse(rule, paths[label], frame)] = label
        for label, (_, first, last) in rule.proposals.items():
            if first <= frame <= last:
                labels[_ellipse(rule, proposal_paths[label], frame)] = label
        if rule.void > 0.5:
            truth[rng.random(rule.size) < rule.void] = 255
            labels[truth == 255] = 3  # only in void pixels, but still a proposal
        yield labels, truth


def _ellipse(rule: Rule, path: np.ndarray, frame: int, scale: float = 1.0) -> np.ndarray:
    y, x, size = path[0] + (path[1] - path[0]) * frame / rule.frames
    height, width = rule.size
    rows, columns = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width) + 0.5) / width
    return ((rows - y) / (0.3 + 0.2 * size)) ** 2 + ((columns - x) / (0.4 - 0.2 * size)) ** 2 < scale


@pytest.mark.parametrize("video", VIDEOS)
def test_each_video_equals_the_public_code(video) -> None:
    expected, frames = EXPECTED["videos"][video], list(generate(video))
    assert checksum(np.array(frames)) == expected["crc"]
    if expected["j"]:
        j, f = (np.mean(expected[measure]) for measure in "jf")
        assert of_frames(*frames) == pytest.approx({"j": j, "f": f, "j_and_f": (j + f) / 2}, abs=1e-9)
    else:
        with pytest.raises(ValueError, match="no object"):
            of_frames(*frames)


def test_all_videos_equal_the_public_code_in_any_order() -> None:
    parts = [MatchedScores() for _ in range(3)]
    for video in VIDEOS:
        for index, (labels, truth) in reversed(list(enumerate(generate(video)))):
            parts[index % 3].add(video, index, labels, truth)
    merged = parts[2].merge(pickle.loads(pickle.dumps(parts[0]))).merge(parts[1])
    assert merged.compute() == pytest.approx(EXPECTED["all"], abs=1e-9)
    assert merged.compute() == MatchedScores().merge(merged).compute()
    assert parts[0].compute() != merged.compute()  # merging didn't change the parts
    assert len(pickle.dumps(merged)) < 2_000 * sum(rule.frames for rule in VIDEOS.values())


SQUARE = np.zeros((40, 50), np.uint8)
SQUARE[10:20, 10:30] = 1
EMPTY = np.zeros_like(SQUARE)
BOTH = SQUARE.copy()
BOTH[25:35, 10:30] = 2


def of_frames(*frames: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    scores = MatchedScores()
    for index, (labels, truth) in enumerate(frames):
        scores.add("video", index, labels, truth)
    return scores.compute()


def test_perfect_is_one_and_empty_is_zero() -> None:
    assert set(of_frames((BOTH, BOTH)).values()) == {1.0}
    swapped = np.array([0, 2, 1], np.uint8)[BOTH]  # predicted objects have no identity
    assert set(of_frames((swapped, BOTH), (2 * SQUARE, SQUARE)).values()) == {1.0}
    assert set(of_frames((EMPTY, BOTH)).values()) == {0.0}


def test_scores_computed_by_hand() -> None:
    half = BOTH.copy()
    half[10:15] = 0  # 100 of the first object's 200 pixels
    scores = of_frames((half, BOTH))
    f = boundary_accuracy(half == 1, BOTH == 1)
    assert scores == pytest.approx({"j": (0.5 + 1) / 2, "f": (f + 1) / 2, "j_and_f": (1.5 + f + 1) / 4})
    # The first object is missing in the second frame, but its proposal isn't: (1 + 0) / 2; the other: (1 + 1) / 2.
    assert of_frames((BOTH, BOTH), (BOTH, np.where(BOTH == 2, 2, 0)))["j"] == (0.5 + 1) / 2
    # The second object is missed in one frame of two.
    assert of_frames((BOTH, BOTH), (SQUARE, BOTH))["j"] == (1 + 0.5) / 2


def test_objects_are_matched_over_the_whole_video() -> None:
    """A proposal covers one object in two frames and the other in one: it is matched to the first."""
    second = np.where(BOTH == 2, 1, 0).astype(np.uint8)
    assert of_frames((SQUARE, BOTH), (SQUARE, BOTH), (second, BOTH))["j"] == pytest.approx((2 / 3 + 0) / 2)


def test_void_pixels_are_ignored() -> None:
    truth = np.where(BOTH == 2, 255, BOTH).astype(np.uint8)
    assert set(of_frames((BOTH, truth)).values()) == {1.0}
    assert set(of_frames((np.where(truth == 255, 1, truth).astype(np.uint8), truth)).values()) == {1.0}


def test_objects_that_appear_after_the_first_frame_are_ignored() -> None:
    assert set(of_frames((SQUARE, SQUARE), (SQUARE, BOTH)).values()) == {1.0}


def test_invalid_input_raises() -> None:
    scores = MatchedScores()
    with pytest.raises(ValueError, match="no object"):
        scores.compute()
    with pytest.raises(ValueError, match=r"bike, frame 3: predicted labels of shape \(1, 50\)"):
        scores.add("bike", 3, BOTH[:1], BOTH)
    with pytest.raises(ValueError, match="bike, frame 3: predicted label 21, but a video may have at most 20"):
        scores.add("bike", 3, 21 * SQUARE, BOTH)
    scores.add("bike", 3, BOTH, BOTH)
    with pytest.raises(ValueError, match="bike, frame 3 was scored twice"):
        scores.add("bike", 3, BOTH, BOTH)
    with pytest.raises(ValueError, match="bike, frame 3 was scored twice"):
        scores.merge(scores)
    with pytest.raises(ValueError, match="not finite"):
        merge_objects(np.full((1, 2, 2), np.nan, np.float32))
    with pytest.raises(ValueError, match="255 objects"):
        merge_objects(np.zeros((255, 1, 1), np.float32))


def test_objects_are_merged_by_probability() -> None:
    probabilities = np.array([[[0.9, 0.6, 0.5, 0.49, 0.0]], [[0.8, 0.7, 0.5, 0.4, 0.51]]], np.float32)
    labels = merge_objects(probabilities)
    assert labels.dtype == np.uint8 and labels.tolist() == [[1, 2, 1, 0, 2]]
    assert merge_objects(np.zeros((0, 2, 3), np.float32)).tolist() == [[0, 0, 0]] * 2


def test_one_object_without_void_scores_like_a_pair_of_masks() -> None:
    for labels, truth in generate("more-proposals"):
        prediction, mask = labels == 1, truth == 1
        expected = region_similarity(prediction, mask), boundary_accuracy(prediction, mask)
        scores = of_frames((prediction.astype(np.uint8), mask.astype(np.uint8)))
        assert (scores["j"], scores["f"]) == pytest.approx(expected, abs=1e-12)
