"""The scores equal those of the released code, davis2017 and COCO; simple cases equal scores computed by hand."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re

import numpy as np
import PIL.Image
import pytest
from inputs_rule import checksum
from paths import GOLDEN, ROOT
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from lbdt_jax.metrics import (
    PaperScores,
    StandardScores,
    boundary_accuracy,
    foreground_score,
    format_table,
    region_similarity,
    resize_as_published,
    resize_logits,
)

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


def test_paper_scores_equal_the_released_code(pairs) -> None:
    scores = score_paper(pairs)
    for pair, (_, target, _, rows, columns), sample in zip(PAIRS, pairs, scores.samples, strict=True):
        expected, (iou, intersection, union, f1) = pair["reference"], sample
        assert checksum(target[rows][:, columns]) == pair["crc_gt_via_320"]
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
    assert (scores.compute()["overall_iou"] + scores.compute()["mean_iou"]) / 2 == pytest.approx(
        expected["returned_a2d"], abs=1e-8
    )
    assert (scores.compute()["mean_iou"] + scores.compute()["f1"]) / 2 == pytest.approx(
        expected["returned_ytvos"], abs=1e-8
    )


def test_resized_predictions_equal_those_of_the_released_code(pairs) -> None:
    for pair, (probability, *_) in zip(PAIRS, pairs, strict=True):
        mask = resize_as_published(probability > 0.5, (pair["height"], pair["width"]))
        assert mask.dtype == bool
        assert (checksum(mask.astype(np.uint8)), mask.sum()) == (pair["crc_saved"], pair["areas"]["saved"])


@pytest.mark.parametrize("name", ["standard_via_320", "standard_original"])
def test_standard_scores_equal_davis_and_coco(pairs, name) -> None:
    scores = score_standard(pairs, via_320=name == "standard_via_320")
    truth = "gt_via_320" if name == "standard_via_320" else "gt_original"
    for pair, (j, f, intersection, predicted, true, score, key) in zip(PAIRS, scores.samples, strict=True):
        expected = pair[name]
        assert (predicted, true) == (pair["areas"]["pred"], pair["areas"][truth])
        assert (intersection, predicted + true - intersection) == (expected["a2d_intersection"], expected["a2d_union"])
        assert (j, f) == pytest.approx((expected["davis_j"], expected["davis_f"]), abs=1e-12)
        assert j == pytest.approx(expected["a2d_iou"], abs=1e-6)
        assert (score, key) == (pair["score"], -1)
    expected = EXPECTED["aggregate"][name]
    assert scores.compute() == pytest.approx(
        {
            **with_our_names(expected["coco_seeded_scores"]),
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
    expected = with_our_names(expected["coco_constant_scores"])
    assert {measure: constant[measure] for measure in expected} == pytest.approx(expected, abs=1e-12)


def with_our_names(coco: dict[str, float]) -> dict[str, float]:
    names = {"mAP 0.5:0.95": "coco_map", "AP 0.5": "coco_ap50", "AP 0.75": "coco_ap75"}
    return {names.get(name, name.replace("AP ", "coco_")): value for name, value in coco.items()}


def evaluate_with_coco(samples: list[tuple[np.ndarray, np.ndarray, float]]) -> dict[str, float]:
    """COCO's complete evaluation, from run-length encodings of (predicted mask, true mask, score) of each image."""
    truth, detections = COCO(), []
    truth.dataset = {"images": [], "annotations": [], "categories": [{"id": 1}]}
    for image_id, (prediction, mask, score) in enumerate(samples, start=1):  # to COCO, id 0 means "no match"
        predicted, true = (coco_mask.encode(np.asfortranarray(pixels, np.uint8)) for pixels in (prediction, mask))
        truth.dataset["images"].append({"id": image_id, "height": mask.shape[0], "width": mask.shape[1]})
        area = float(coco_mask.area(true))
        common = {"image_id": image_id, "category_id": 1}
        truth.dataset["annotations"].append(
            {**common, "id": image_id, "segmentation": true, "area": area, "iscrowd": 0},
        )
        detections.append({**common, "segmentation": predicted, "score": score})
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(detections), "segm")
    evaluator.params.useCats = 0
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    names = ("coco_map", "coco_ap50", "coco_ap75", "coco_small", "coco_medium", "coco_large")
    return dict(zip(names, evaluator.stats[:6].tolist(), strict=True))


def random_samples(seed: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Boxes of all sizes, nested or empty, with IoU at and around COCO's thresholds and tied scores."""
    rng = np.random.default_rng(seed)
    samples = []
    for size in rng.choice([20, 32, 60, 96, 200], 150):
        mask, prediction = np.zeros((2, size + 3, size + 7), bool)
        share = rng.choice([0, 0.3, 0.5, 0.55, 0.6, 0.75, 0.8, 0.95, 1])
        mask[:size, :size] = rng.random() < 0.9
        prediction[: round(size * share), :size] = True
        pair = (prediction, mask) if rng.random() < 0.5 else (mask, prediction)
        samples.append((*pair, float(rng.integers(0, 9)) / 8))
    return samples


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_coco(seed, capsys) -> None:
    samples = random_samples(seed)
    if seed == 2:  # no small and no medium object
        samples = [sample for sample in samples if sample[1].sum() > 96**2]
    scores = StandardScores()
    for sample in samples:
        scores.add(*sample)
    computed, expected = scores.compute(), evaluate_with_coco(samples)
    assert {name: computed.get(name, -1.0) for name in expected} == pytest.approx(expected, abs=1e-12)
    assert ("coco_small" in computed) == (seed != 2) and 0.1 < computed["coco_map"] < 0.9


def test_merged_halves_equal_the_whole(pairs, capsys) -> None:
    for complete in (score_paper(pairs), score_standard(pairs, via_320=False)):
        columns = complete.samples.shape[1]
        for middle in (0, 1, 17, 40):
            first, second = (
                dataclasses.replace(complete, values=complete.values[part])
                for part in (slice(middle * columns), slice(middle * columns, None))
            )
            merged = pickle.loads(pickle.dumps(first)).merge(second)
            assert merged.compute() == type(complete)().merge(merged).compute() == complete.compute()
        assert len(complete.samples) == 40 and len(first.merge(complete).samples) == 80
    assert capsys.readouterr().out == ""  # pycocotools doesn't print


def test_j_and_f_are_means_over_frames_and_then_over_expressions(pairs) -> None:
    """As for Refer-YouTube-VOS; the other measures are over all samples."""
    keys = [("video", "0"), ("video", "1"), ("other", "0"), None]
    sample_keys = [keys[min(index % 7, 3)] if index else None for index in range(40)]  # in another order in each part
    complete, parts = StandardScores(), [StandardScores(), StandardScores()]
    for index, (probability, _, mask, rows, columns) in enumerate(pairs):
        prediction, score = (probability > 0.5)[rows][:, columns], PAIRS[index]["score"]
        complete.add(prediction, mask, score, sample_keys[index])
        parts[index >= 12].add(prediction, mask, score, sample_keys[index])
    computed = complete.compute()
    for measure, values in (("j", complete.samples[:, 0]), ("f", complete.samples[:, 1])):
        means = [np.mean([value for value, key in zip(values, sample_keys, strict=True) if key == k]) for k in keys[:3]]
        alone = [value for value, key in zip(values, sample_keys, strict=True) if key is None]
        assert computed[measure] == pytest.approx(np.mean([*means, *alone]), abs=1e-12)
    assert computed["j_and_f"] == (computed["j"] + computed["f"]) / 2
    assert computed["mean_iou"] == EXPECTED["aggregate"]["standard_original"]["davis_j_mean"] != computed["j"]
    assert parts[0].merge(parts[1]).compute() == computed
    other_order = parts[1].merge(parts[0])
    assert other_order.compute() == pytest.approx(computed, abs=1e-12)  # no scores tie here


def test_states_stay_small(pairs) -> None:
    """A sample takes a few numbers, however large its masks."""
    for scores in (score_paper(pairs), score_standard(pairs, via_320=False)):
        assert len(pickle.dumps(scores)) < 100 * len(scores.samples)


SQUARE = np.zeros((40, 50), bool)
SQUARE[10:20, 10:30] = True
EMPTY = np.zeros_like(SQUARE)


@pytest.mark.parametrize(
    ("prediction", "truth", "value"),
    [(SQUARE, SQUARE, 1.0), (EMPTY, SQUARE, 0.0), (SQUARE, EMPTY, 0.0), (EMPTY, EMPTY, 1.0)],
)
def test_perfect_is_one_and_empty_is_zero(prediction, truth, value) -> None:
    paper, standard = PaperScores(), StandardScores()
    assert paper.add(prediction.astype(np.float32), truth.astype(np.uint8), (40, 50)) == pytest.approx(value, abs=1e-6)
    assert standard.add(prediction, truth, 0.5) == value
    assert set(np.round(list(paper.compute().values()), 6)) == {value}
    measures = standard.compute()
    if not truth.any() and not prediction.any():
        coco = {measures.pop(name) for name in list(measures) if name.startswith("coco")}
        assert coco == {0.0}  # to COCO the IoU of two empty masks is 0
    assert set(np.round(list(measures.values()), 6)) == {value}


@pytest.mark.parametrize(
    ("intersection", "union", "thresholds"),
    [(1, 2, [0.5]), (4, 8, [0.5]), (100, 200, []), (86400, 172800, []), (3, 5, [0.5, 0.6]), (7, 10, [0.5, 0.6, 0.7])],
)
def test_precision_rounds_as_the_public_code(intersection: int, union: int, thresholds: list[float]) -> None:
    # In float32, (I + 1e-6) / (U + 1e-6) exceeds one half for small areas only, and 3 / 5 exceeds .6.
    scores, mask = StandardScores(), np.zeros((480, 400), bool)
    mask.flat[:union] = True
    prediction = np.zeros_like(mask)
    prediction.flat[:intersection] = True
    scores.add(prediction, mask, 1.0)
    computed = scores.compute()
    assert [tenth / 10 for tenth in range(5, 10) if computed[f"precision@0.{tenth}"]] == thresholds


def test_scores_computed_by_hand() -> None:
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
    # At .50 both detections are correct: 1. Above, only the second is: recall .5 at precision .5.
    assert standard.compute()["coco_map"] == pytest.approx((1 + 9 * 0.5 * 51 / 101) / 10)


def test_paper_compares_at_the_original_size() -> None:
    probability = np.array([[0.9, 0.5], [0.1, 0.9]], np.float32)  # .5 is not the object
    target = np.array([[1, 1], [0, 0]], np.uint8)
    scores = PaperScores()
    scores.add(probability, target, (3, 5))  # rows 0 0 1 and columns 0 0 0 1 1 of the model's pixels
    assert scores.samples[0, 1:3].tolist() == [2 * 3, 2 * 5 + 1 * 2]


def test_boundary_accuracy_equals_a_distance_transform() -> None:
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (1, 9), (9, 1), (40, 3), (37, 53), (90, 161), (240, 320)]:
        for roughness in (0.5, 2.0, 9.0):
            for part in (slice(None), slice(width // 3), slice(width // 2, None), slice(width // 3, -(width // 3))):
                pair = np.zeros((2, height, width), bool)
                noise = rng.standard_normal(pair[..., part].shape)
                pair[..., part] = ndimage.gaussian_filter(noise, (0, roughness, roughness)) > 0
                assert boundary_accuracy(*pair) == pytest.approx(slow_boundary_accuracy(*pair), abs=1e-12)


def slow_boundary_accuracy(prediction: np.ndarray, mask: np.ndarray) -> float:
    """F from its definition, by Euclidean distances over the whole image."""
    tolerance = math.ceil(0.008 * math.hypot(*mask.shape))
    boundaries = []
    for pixels in (prediction, mask):
        padded = np.pad(pixels, ((0, 1), (0, 1)), "edge")
        boundaries.append((pixels != padded[:-1, 1:]) | (pixels != padded[1:, :-1]) | (pixels != padded[1:, 1:]))
    if not all(boundary.any() for boundary in boundaries):
        return float(not any(boundary.any() for boundary in boundaries))
    near = [ndimage.distance_transform_edt(~boundary) <= tolerance for boundary in boundaries]
    precision, recall = near[1][boundaries[0]].mean(), near[0][boundaries[1]].mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_boundary_accuracy_of_bools_with_other_bytes_than_0_and_1() -> None:
    """Pillow and other libraries return such arrays."""
    rng = np.random.default_rng(0)
    prediction, mask = (rng.random((50, 70)) > 0.5 for _ in range(2))
    other = (255 * mask.astype(np.uint8)).view(bool)
    assert other.dtype == bool and other.view(np.uint8).max() == 255
    assert boundary_accuracy(prediction, other) == boundary_accuracy(prediction, mask) != boundary_accuracy(mask, mask)


def test_region_similarity() -> None:
    assert region_similarity(EMPTY, EMPTY) == 1.0
    assert region_similarity(SQUARE, ~EMPTY) == 200 / 2000


def test_resized_logits_are_bilinear_between_pixel_centers() -> None:
    logits = np.random.default_rng(0).standard_normal((32, 40), dtype=np.float32)
    np.testing.assert_array_equal(resize_logits(logits, (32, 40)), logits)
    for height, width in [(48, 71), (24, 30), (20, 90), (5, 3)]:  # upsampled and downsampled, never antialiased
        rows, columns = (
            np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
            for n, m in zip((height, width), (32, 40), strict=True)
        )
        expected = ndimage.map_coordinates(logits, np.meshgrid(rows, columns, indexing="ij"), order=1)
        resized = resize_logits(logits, (height, width))
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, expected, atol=1e-5)

        # As the documentation of exported programs describes it.
        [code] = re.findall(r"`(PIL.Image.fromarray\(logits\).*?)`", (ROOT / "docs" / "predict.md").read_text("utf-8"))
        names = {"PIL": PIL, "logits": logits, "H": 32, "W": 40, "h": height, "w": width}
        np.testing.assert_allclose(eval(code, names), expected, atol=1e-5)


def test_foreground_score_is_the_mean_probability_of_the_object() -> None:
    assert foreground_score(np.array([[0.0, -3.0], [math.log(3), math.log(9)]], np.float32)) == pytest.approx(0.825)
    assert foreground_score(np.full((2, 2), -1, np.float32)) == 0.0


def test_invalid_input_raises() -> None:
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


def lines_of(*arguments) -> list[str]:
    lines = format_table(*arguments).splitlines()
    assert max(map(len, lines)) <= 120
    return lines


def test_the_table_keeps_the_protocols_apart(pairs) -> None:
    group = {"samples": 40, "paper": score_paper(pairs).compute(), "standard": score_standard(pairs, False).compute()}
    lines = lines_of({"all": group, "a name of 14..": group})
    assert len(lines) == 9
    assert lines[0].startswith('Protocol "paper"') and lines[5].startswith('Protocol "standard"')
    assert lines[1].split()[:3] == ["samples", "P@.5", "P@.6"] and lines[6].split()[-3:] == ["J", "F", "J&F"]
    assert lines[2].split() == "all 40 67.5 60.0 57.5 55.0 52.5 55.8 44.8 65.8 71.1".split()
    assert lines[7].split() == "all 40 26.3 60.0 55.0 47.5 42.5 35.0 44.5 59.1 59.1 65.9 62.5".split()
    for table in (lines[1:4], lines[6:]):
        assert {len(line) for line in table} == {len(table[0])}


def test_the_table_has_published_scores_below_ours(pairs) -> None:
    group = {"samples": 40, "paper": score_paper(pairs).compute(), "standard": score_standard(pairs, False).compute()}
    published = [("paper", "precision@0.5", 0.7), ("standard", "j", 0.5), ("paper", "mean_iou", 0.6)]
    lines = lines_of({"all": group, "attribute": group}, published)
    for first, numbers, differences, measures in (
        (2, "70.0 60.0", "-2.5 +5.8", ("P@.5", "mean IoU")),
        (9, "50.0", "+9.1", ("J",)),
    ):
        rows = lines[first : first + 4]
        assert [line.split()[0] for line in rows] == ["all", "published", "difference", "attribute"]
        assert (rows[1].split()[1:], rows[2].split()[1:]) == (numbers.split(), differences.split())
        head = lines[first - 1] + " "
        for measure in measures:
            end = head.index(f" {measure} ") + 1 + len(measure)
            assert rows[1][end - 1].isdigit() and rows[1][end : end + 1] in ("", " ")
    only_paper = lines_of({"all": group}, published[:1])
    assert "published" in "".join(only_paper[:5]) and "published" not in "".join(only_paper[5:])


def test_the_table_leaves_out_missing_scores() -> None:
    three = {"j": 0.5, "f": 0.25, "j_and_f": 0.375}
    groups = {
        "all": {"samples": 7, "standard": {**three, "coco_ap50": 0.9}, "per_expression": three},
        "with paper": {"samples": 6, "paper": {"mean_iou": 0.5, "j": 0.125}, "standard": {"f": 1.0, "mean_iou": 0.0}},
        "without truth": {"samples": 5},
    }
    published = [("standard", "j_and_f", 0.4), ("standard", "overall_iou", 0.1), ("paper", "j", 0.125)]
    assert lines_of(groups, published) == [
        "Protocol \"paper\": as in LBDT's tables, through the model's size (percent)",
        "               samples  mean IoU      J",
        "with paper           6      50.0   12.5",
        "published                          12.5",
        "difference                         +0.0",
        "",
        'Protocol "standard": original resolution, untouched masks (percent)',
        "               samples  overall IoU  mean IoU      J      F    J&F",
        "all                  7                          50.0   25.0   37.5",
        "published                      10.0                           40.0",
        "difference                                                    -2.5",
        "with paper           6                    0.0         100.0",
        "",
        "Per expression: J and F of every sentence by itself, as newer papers report (percent)",
        "               samples      J      F    J&F",
        "all                  7   50.0   25.0   37.5",
    ]
    assert format_table({"all": {"samples": 3}}, published) == "" == format_table({})
