"""The scores equal those of the released code, of davis2017 and of COCO; simple cases come out as counted by hand."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from inputs_rule import checksum
from scipy import ndimage

from lbdt_jax.metrics import (
    PaperScores,
    StandardScores,
    boundary_accuracy,
    foreground_score,
    format_table,
    region_similarity,
    resize_logits,
)

GOLDEN = Path(__file__).parent / "golden"
EXPECTED = json.loads((GOLDEN / "metrics.json").read_text())
PAIRS = EXPECTED["pairs"]


@pytest.fixture(scope="module")
def pairs():
    """Per pair: (probability at 320x320, target at 320x320, mask at its own size, nearest rows, nearest columns)."""
    arrays = dict(np.load(GOLDEN / "metrics.npz"))

    def unpack(name: str, height: int, width: int) -> np.ndarray:
        return np.unpackbits(arrays[name], count=height * width).reshape(height, width)

    return [
        (
            arrays["probability_x64"][index].astype(np.float32) / 64,
            unpack(f"gt_320/{index}", 320, 320),
            unpack(f"gt_original/{index}", pair["height"], pair["width"]).astype(bool),
            arrays[f"nearest_from_320/{pair['height']}"],
            arrays[f"nearest_from_320/{pair['width']}"],
        )
        for index, pair in enumerate(PAIRS)
    ]


def score_paper(pairs) -> PaperScores:
    scores = PaperScores()
    for probability, target, mask, _, _ in pairs:
        scores.add(probability, target, mask.shape)
    return scores


def score_standard(pairs, via_320: bool, constant_score: bool = False) -> StandardScores:
    scores = StandardScores()
    for pair, (probability, target, mask, rows, columns) in zip(PAIRS, pairs, strict=True):
        prediction = (probability > 0.5)[rows][:, columns]
        assert checksum(prediction.astype(np.uint8)) == pair["crc_pred"]
        truth = target.astype(bool)[rows][:, columns] if via_320 else mask
        scores.add(prediction, truth, 1.0 if constant_score else pair["score"])
    return scores


def test_paper_scores_equal_the_released_code(pairs):
    scores = score_paper(pairs)
    for pair, (iou, intersection, union, f1) in zip(PAIRS, scores.samples, strict=True):
        expected = pair["reference"]
        assert (intersection, union) == (expected["intersection"], expected["union"])
        assert (iou, f1) == (pytest.approx(expected["iou"], abs=1e-12), pytest.approx(expected["f"], abs=1e-6))
    expected = EXPECTED["aggregate"]["reference"]
    assert scores.compute() == pytest.approx(
        {
            **{f"precision@0.{tenth}": expected[f"P@0.{tenth}"] for tenth in range(5, 10)},
            "mean_precision": expected["mAP"],
            "overall_iou": expected["overall_iou"],
            "mean_iou": expected["mean_iou"],
            "f1": expected["mean_f"],
        },
        abs=1e-8,
    )


@pytest.mark.parametrize("name", ["standard_via_320", "standard_original"])
def test_standard_scores_equal_davis_and_coco(pairs, name):
    scores = score_standard(pairs, via_320=name == "standard_via_320")
    for pair, (j, intersection, union, f) in zip(PAIRS, scores.samples, strict=True):
        expected = pair[name]
        assert (intersection, union) == (expected["a2d_intersection"], expected["a2d_union"])
        assert (j, f) == pytest.approx((expected["davis_j"], expected["davis_f"]), abs=1e-12)
        assert j == pytest.approx(expected["a2d_iou"], abs=1e-6)
    expected = EXPECTED["aggregate"][name]
    assert scores.compute() == pytest.approx(
        {
            "coco_map": expected["coco_seeded_scores"]["mAP 0.5:0.95"],
            **{f"precision@0.{tenth}": expected[f"P@0.{tenth}"] for tenth in range(5, 10)},
            "overall_iou": expected["overall_iou"],
            "mean_iou": pytest.approx(expected["mean_iou"], abs=1e-6),  # in float32 there
            "j": expected["davis_j_mean"],
            "f": expected["davis_f_mean"],
            "j_and_f": expected["davis_j_and_f"],
        },
        abs=1e-12,
    )
    constant = score_standard(pairs, via_320=name == "standard_via_320", constant_score=True).compute()
    assert constant["coco_map"] == pytest.approx(expected["coco_constant_scores"]["mAP 0.5:0.95"], abs=1e-12)


def test_merged_halves_equal_the_whole(pairs, capsys):
    for whole in (score_paper(pairs), score_standard(pairs, via_320=False)):
        halves = [
            type(whole)(*(values[part] for values in vars(whole).values())) for part in (slice(17), slice(17, 99))
        ]
        merged = pickle.loads(pickle.dumps(halves[0])).merge(halves[1])
        assert merged.compute() == type(whole)().merge(merged).compute() == whole.compute()
        assert halves[0].compute() != whole.compute()
    assert capsys.readouterr().out == ""  # pycocotools is kept silent


SQUARE = np.zeros((40, 50), bool)
SQUARE[10:20, 10:30] = True
EMPTY = np.zeros_like(SQUARE)


@pytest.mark.parametrize(
    ("prediction", "truth", "value"),
    [(SQUARE, SQUARE, 1.0), (EMPTY, SQUARE, 0.0), (SQUARE, EMPTY, 0.0), (EMPTY, EMPTY, 1.0)],
)
def test_perfect_is_one_and_empty_is_zero(prediction, truth, value):
    paper, standard = PaperScores(), StandardScores()
    assert paper.add(prediction.astype(np.float32), truth.astype(np.uint8), (40, 50)) == pytest.approx(value, abs=1e-6)
    assert standard.add(prediction, truth, 0.5) == value
    assert set(np.round(list(paper.compute().values()), 6)) == {value}
    measures = standard.compute()
    if not truth.any() and not prediction.any():
        assert measures.pop("coco_map") == 0.0  # to COCO the IoU of two empty masks is 0
    assert set(np.round(list(measures.values()), 6)) == {value}


def test_counted_by_hand():
    half = SQUARE.copy()
    half[10:15] = False  # 100 of 200 pixels
    paper, standard = PaperScores(), StandardScores()
    assert standard.add(half, SQUARE, 0.9) == 0.5
    assert standard.add(SQUARE, SQUARE, 0.1) == 1.0
    for prediction in (half, SQUARE):
        paper.add(prediction.astype(np.float32), SQUARE.astype(np.uint8), (40, 50))
    assert paper.compute()["precision@0.5"] == 1.0 and standard.compute()["precision@0.5"] == 0.5  # >= and >
    assert paper.compute()["mean_precision"] == pytest.approx(0.55)  # 1 at .50, then .5 nine times
    assert paper.compute()["overall_iou"] == standard.compute()["overall_iou"] == 300 / 400
    assert paper.compute()["f1"] == pytest.approx((2 / 3 + 1) / 2)
    # At .50 both detections are right: 1. Above, the first is wrong, the second right: recall .5 at precision .5.
    assert standard.compute()["coco_map"] == pytest.approx((1 + 9 * 0.5 * 51 / 101) / 10)


def test_paper_compares_at_the_original_size():
    probability = np.array([[0.9, 0.5], [0.1, 0.9]], np.float32)  # .5 is not the object
    target = np.array([[1, 1], [0, 0]], np.uint8)
    scores = PaperScores()
    scores.add(probability, target, (3, 5))  # rows 0 0 1 and columns 0 0 0 1 1 of the model's pixels
    assert scores.samples[0][1:3] == (2 * 3, 2 * 5 + 1 * 2)


def test_boundary_accuracy_equals_a_distance_transform():
    rng = np.random.default_rng(0)
    for shape in [(1, 1), (1, 9), (9, 1), (40, 3), (37, 53), (90, 161), (240, 320)]:
        for roughness in (0.5, 2.0, 9.0):
            prediction, mask = (ndimage.gaussian_filter(rng.standard_normal(shape), roughness) > 0 for _ in range(2))
            assert boundary_accuracy(prediction, mask) == pytest.approx(
                slow_boundary_accuracy(prediction, mask), abs=1e-12
            )


def slow_boundary_accuracy(prediction: np.ndarray, mask: np.ndarray) -> float:
    """F from its definition, by Euclidean distances over the whole picture."""
    tolerance = math.ceil(0.008 * math.hypot(*mask.shape))
    boundaries = []
    for picture in (prediction, mask):
        padded = np.pad(picture, ((0, 1), (0, 1)), "edge")
        boundaries.append((picture != padded[:-1, 1:]) | (picture != padded[1:, :-1]) | (picture != padded[1:, 1:]))
    if not all(boundary.any() for boundary in boundaries):
        return float(not any(boundary.any() for boundary in boundaries))
    near = [ndimage.distance_transform_edt(~boundary) <= tolerance for boundary in boundaries]
    precision, recall = near[1][boundaries[0]].mean(), near[0][boundaries[1]].mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_region_similarity():
    assert region_similarity(EMPTY, EMPTY) == 1.0
    assert region_similarity(SQUARE, ~EMPTY) == 200 / 2000


def test_resized_logits_are_bilinear_between_pixel_centres():
    logits = np.random.default_rng(0).standard_normal((32, 40), dtype=np.float32)
    np.testing.assert_array_equal(resize_logits(logits, (32, 40)), logits)
    for height, width in [(48, 71), (24, 30), (20, 90), (5, 3)]:  # enlarged and reduced, never antialiased
        rows, columns = (
            np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
            for n, m in zip((height, width), (32, 40), strict=True)
        )
        expected = ndimage.map_coordinates(logits, np.meshgrid(rows, columns, indexing="ij"), order=1)
        resized = resize_logits(logits, (height, width))
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, expected, atol=1e-5)


def test_foreground_score_is_the_mean_probability_of_the_object():
    assert foreground_score(np.array([[0.0, -3.0], [math.log(3), math.log(9)]], np.float32)) == pytest.approx(0.825)
    assert foreground_score(np.full((2, 2), -1, np.float32)) == 0.0


def test_broken_input_is_refused():
    nan = np.full(SQUARE.shape, np.nan, np.float32)
    with pytest.raises(ValueError, match="not finite"):
        PaperScores().add(nan, SQUARE.astype(np.uint8), SQUARE.shape)
    with pytest.raises(ValueError, match="not finite"):
        resize_logits(nan, (4, 4))
    with pytest.raises(ValueError, match="not finite"):
        StandardScores().add(SQUARE, SQUARE, math.nan)
    with pytest.raises(ValueError, match="differ"):
        PaperScores().add(SQUARE[:1].astype(np.float32), SQUARE.astype(np.uint8), SQUARE.shape)
    with pytest.raises(ValueError, match="differ"):
        StandardScores().add(SQUARE[:1], SQUARE, 0.5)
    for scores in (PaperScores(), StandardScores()):
        with pytest.raises(ValueError, match="no sample"):
            scores.compute()


def test_the_table_keeps_the_protocols_apart(pairs):
    group = {"samples": 40, "paper": score_paper(pairs).compute(), "standard": score_standard(pairs, False).compute()}
    lines = format_table({"all": group, "attribute": group}).splitlines()
    assert len(lines) == 9 and max(map(len, lines)) <= 120
    assert lines[0].startswith('Protocol "paper"') and lines[5].startswith('Protocol "standard"')
    assert lines[1].split()[:3] == ["samples", "P@.5", "P@.6"] and lines[6].split()[-3:] == ["J", "F", "J&F"]
    assert lines[2].split() == "all 40 67.5 60.0 57.5 55.0 52.5 55.8 44.8 65.8 71.1".split()
    assert lines[7].split() == "all 40 26.3 60.0 55.0 47.5 42.5 35.0 44.5 59.1 59.1 65.9 62.5".split()
    assert {len(line) for line in lines[1:4]} == {len(lines[1])} and {len(line) for line in lines[6:]} == {
        len(lines[6])
    }


def test_the_published_scores_stand_below_ours(pairs):
    group = {"samples": 40, "paper": score_paper(pairs).compute(), "standard": score_standard(pairs, False).compute()}
    lines = format_table({"all": group, "attribute": group}, {"precision@0.5": 0.7, "mean_iou": 0.6}).splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["all", "published", "difference", "attribute"]
    assert lines[3].split() == ["published", "70.0", "60.0"] and lines[4].split() == ["difference", "-2.5", "+5.8"]
    for line, measure in ((lines[3], "P@.5"), (lines[3], "mean IoU")):
        end = lines[1].index(measure) + len(measure)
        assert line[:end].rstrip() and line[end - 1].isdigit()
    assert "published" not in "".join(lines[6:])
