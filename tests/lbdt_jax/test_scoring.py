"""Scores by the rules of each benchmark, and the files for its official scorer (lbdt_jax/scoring.py)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import resize_target
from input_pipeline.pipeline import EvaluationExample
from input_pipeline.readers.ref_davis17 import ANNOTATORS
from input_pipeline.types import Sentence
from lbdt_jax.metrics import resize_as_published
from lbdt_jax.scoring import SCORERS, Scorer

#: Printed by the public evaluator of MeViS: J, F and J&F over all expressions, and over those with a target.
PUBLIC_ALL = (0.6041580136956388, 0.5790956770457216, 0.5916268453706802)
PUBLIC_TARGETS = (0.5069300228260647, 0.46515946174286943, 0.48604474228446704)

SIZE, MODEL = (48, 64), (32, 32)  # of the frames, and of a model with a lower resolution


def box(top: int, left: int, height: int = 12, width: int = 16) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def make_example(
    video: str,
    index: int,
    masks: dict[Sentence, np.ndarray | None],
    labels: np.ndarray | None = None,
    model: tuple[int, int] = SIZE,
) -> EvaluationExample:
    """A black frame pair with sentences and their true masks; `model` is the size of the model's input."""
    frame, small = np.zeros((*SIZE, 3), np.uint8), np.zeros((*model, 3), np.uint8)
    return EvaluationExample(
        video=video,
        frame_index=index,
        original_frame=frame,
        original_earlier_frame=frame,
        frame=small,
        earlier_frame=small,
        sentences=tuple(masks),
        words=np.zeros((len(masks), 5, 8), np.float32),
        word_mask=np.ones((len(masks), 5), bool),
        targets=tuple(None if mask is None else resize_target(mask, model) for mask in masks.values()),
        masks=tuple(masks.values()),
        labels=labels,
    )


def logits(*masks: np.ndarray) -> np.ndarray:
    """The logits of a confident model for these masks, at the original size."""
    return np.where(np.stack(masks), 9.0, -9.0).astype(np.float32)


def all_scores(scores: dict) -> list[float]:
    """All scores in a result, at any depth, without the sample counts."""
    values = []
    for name, value in scores.items():
        if isinstance(value, dict):
            values += all_scores(value)
        elif name != "samples":
            values.append(value)
    return values


def davis_labels(*masks: np.ndarray, void: np.ndarray | None = None) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    for label, mask in enumerate(masks, start=1):
        labels[mask] = label
    if void is not None:
        labels[void] = 255
    return labels


def davis_sentences(objects: int) -> list[Sentence]:
    return [
        Sentence(f"object {o}", o + 1, annotator, str(4 * o + index))
        for o in range(objects)
        for index, annotator in enumerate(ANNOTATORS)
    ]


@pytest.mark.parametrize("dataset", ["a2d_sentences", "ref_davis17", "refer_youtube_vos"])
@pytest.mark.parametrize("perfect", [True, False])
def test_ground_truth_scores_one_and_empty_masks_score_zero(dataset: str, perfect: bool, tmp_path: Path) -> None:
    left, right = box(5, 6), box(20, 40)
    with SCORERS.get(dataset, Scorer)(tmp_path / "x") as scorer:
        for index in range(3):
            truth = {sentence: (left, right)[sentence.instance - 1] for sentence in davis_sentences(2)}
            example = make_example("a", index, truth, davis_labels(right, left))  # labels in the other order
            predictions = [mask if perfect else np.zeros(SIZE, bool) for mask in truth.values()]
            results = scorer.add(example, logits(*predictions))
            assert [iou for _, iou in results] == [float(perfect)] * 8
        result = scorer.compute()
    assert result["samples"] == 24 and len(all_scores(result)) > 10
    np.testing.assert_allclose(all_scores(result), float(perfect), atol=1e-6)


def test_refer_youtube_vos_weights_every_expression_equally(tmp_path: Path) -> None:
    """J by hand: expression 0 is right in one of four frames, expression 1 in its only one."""
    mask, nothing = box(5, 6), np.zeros(SIZE, bool)
    first, second = Sentence("a", 1, "", "0"), Sentence("b", 1, "", "1")
    with SCORERS["refer_youtube_vos"](tmp_path / "x") as scorer:
        scorer.add(make_example("v", 0, {first: mask, second: mask}), logits(mask, mask))
        for index in (5, 10, 15):
            scorer.add(make_example("v", index, {first: mask}), logits(nothing))
        result = scorer.compute()
    for protocol in ("paper", "standard"):
        assert result[protocol]["j"] == pytest.approx((1 / 4 + 1) / 2)
        assert result[protocol]["f"] == pytest.approx((1 / 4 + 1) / 2)
    assert result["standard"]["mean_iou"] == pytest.approx(2 / 5)


def test_coco_ranks_predictions_by_their_confidence(tmp_path: Path) -> None:
    """AP by hand: the right one comes first, so precision is 1 at 51 of COCO's 101 recalls, those up to 1 of 2."""
    mask, elsewhere, sentence = box(5, 6), box(30, 40), Sentence("a", 1, "", "0")
    with Scorer(tmp_path / "x") as scorer:
        scorer.add(make_example("wrong", 0, {sentence: mask}), logits(elsewhere) / 18)
        scorer.add(make_example("right", 0, {sentence: mask}), logits(mask))
        result = scorer.compute()
    for name in ("coco_map", "coco_ap50", "coco_ap75"):
        assert result["standard"][name] == pytest.approx(51 / 101)


def test_own_clips_have_scores_for_each_video_unless_they_are_many(tmp_path: Path) -> None:
    mask, sentence = box(5, 6), Sentence("a", 1, "", "0")
    with SCORERS["own"](tmp_path / "x") as scorer:
        for number in range(31):
            scorer.add(make_example(f"v{number}", 0, {sentence: mask}), logits(mask if number else ~mask))
            if number in (1, 30):
                result = scorer.compute()
                assert {name: group["standard"]["j"] for name, group in result["groups"].items()} == (
                    {"v0": 0, "v1": 1} if number == 1 else {}
                )
    assert result["samples"] == 31 and result["standard"]["j"] == pytest.approx(30 / 31)


def test_the_zips_for_the_server_hold_expressions_with_and_without_ground_truth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    public, hidden = Sentence("a", 1, "", "0"), Sentence("b", None, "", "7")
    predicted_logits = rng.standard_normal((2, *MODEL)).astype(np.float32).cumsum(1)
    with SCORERS["refer_youtube_vos"](tmp_path / "x") as scorer:
        example = make_example("v", 25, {public: box(1, 2), hidden: None}, model=MODEL)
        results = scorer.add(example, predicted_logits)
        assert scorer.compute()["samples"] == 1
    assert [iou is None for _, iou in results] == [False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-paper.zip", "x-standard.zip"] == scorer.files
    for protocol in ("paper", "standard"):
        with zipfile.ZipFile(tmp_path / f"x-{protocol}.zip") as file:
            assert file.namelist() == ["Annotations/v/0/00025.png", "Annotations/v/7/00025.png"]
            for name, logit, (prediction, _) in zip(file.namelist(), predicted_logits, results, strict=True):
                image = Image.open(io.BytesIO(file.read(name)))
                expected = resize_as_published(logit > 0, SIZE) if protocol == "paper" else prediction
                assert image.mode == "L" and expected.any() and not expected.all()
                np.testing.assert_array_equal(np.asarray(image), 255 * expected.astype(np.uint8))


def mevis_case() -> dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]]:
    """(video, expression) -> (truth, prediction) of each frame. Expressions "2" and "3" have no target."""
    nothing = np.zeros(SIZE, bool)
    a, b = box(4, 5), box(6, 30, height=20)
    disk = np.hypot(*(np.indices(SIZE) - np.array([[[24]], [[40]]]))) < 11
    return {
        ("v", "0"): [(a, box(4, 7)), (box(8, 9), box(10, 9, width=20)), (nothing, nothing)],
        ("v", "1"): [(a | b, b), (a | disk, box(14, 30, 20, 20)), (disk, disk | box(0, 0, 2, 2))],
        ("v", "2"): [(nothing, nothing)] * 3,
        ("w", "0"): [(disk, nothing), (disk, nothing)],
        ("w", "3"): [(nothing, nothing), (nothing, box(40, 60, 1, 1))],
    }


def test_mevis_agrees_with_the_public_evaluator(tmp_path: Path) -> None:
    """J, F and J&F are what tools/eval_mevis.py of henghuiding/MeViS prints for these masks."""
    case = mevis_case()
    groups = {"0": "one object", "1": "several objects", "2": "no target", "3": "no target"}
    with SCORERS["mevis"](tmp_path / "x") as scorer:
        for video, length in (("v", 3), ("w", 2)):
            for index in range(length):
                pairs = {name: pairs[index] for (its_video, name), pairs in case.items() if its_video == video}
                truth = {Sentence("t", int(n), groups[n], n): mask for n, (mask, _) in pairs.items()}
                scorer.add(make_example(video, index, truth), logits(*(mask for _, mask in pairs.values())))
        result = scorer.compute()
    everything = result["all_expressions"]
    assert (everything["j"], everything["f"], everything["j_and_f"]) == pytest.approx(PUBLIC_ALL, abs=1e-12)
    for protocol in ("standard", "paper"):  # here at one resolution
        scores = result[protocol]
        assert (scores["j"], scores["f"], scores["j_and_f"]) == pytest.approx(PUBLIC_TARGETS, abs=1e-12)
    assert (everything["n_acc"], everything["t_acc"]) == (result["standard"]["n_acc"], 2 / 3) == (1 / 2, 2 / 3)
    assert result["standard"]["final"] == pytest.approx((PUBLIC_TARGETS[2] + 1 / 2 + 2 / 3) / 3)
    assert everything["final"] == pytest.approx((PUBLIC_ALL[2] + 1 / 2 + 2 / 3) / 3)
    assert {name: group["samples"] for name, group in result["groups"].items()} == {
        "no target": 5,
        "one object": 5,
        "several objects": 3,
    }
    with zipfile.ZipFile(tmp_path / "x-standard.zip") as file:
        names = [f"{v}/{name}/{i:05d}.png" for (v, name), masks in case.items() for i in range(len(masks))]
        assert sorted(file.namelist()) == sorted(names)
        image = Image.open(io.BytesIO(file.read("w/3/00001.png")))
        assert image.mode == "L" and set(np.unique(image)) == {0, 255}


def test_grefcoco_agrees_with_the_public_evaluator(tmp_path: Path) -> None:
    """The scores are what ReferEvaluator of henghuiding/ReLA computes for these masks, every frame a sample."""
    with SCORERS["grefcoco"](tmp_path / "x") as scorer:
        for (video, name), pairs in mevis_case().items():
            group = "no target" if name in "23" else "one object"
            for index, (mask, prediction) in enumerate(pairs):
                scorer.add(make_example(video, index, {Sentence("t", 1, group): mask}), logits(prediction))
        result = scorer.compute()
    assert result["gres"] == pytest.approx(
        {
            "giou": 0.5817207850334294,
            "ciou": 0.5032918800292612,
            "t_acc": 0.625,
            "n_acc": 0.8,
            "precision@0.7": 0.25,
            "precision@0.8": 0.125,
            "precision@0.9": 0.125,
        },
        abs=1e-12,
    )
    assert result["groups"]["no target"]["gres"] == pytest.approx({"giou": 0.8, "ciou": 0, "n_acc": 0.8})
    assert scorer.files == []


def test_mevis_without_expressions_that_lack_a_target(tmp_path: Path) -> None:
    """As in version 1: the scores over targets are those over all, and there is no N-acc."""
    with SCORERS["mevis"](tmp_path / "x") as scorer:
        scorer.add(make_example("v", 0, {Sentence("t", 1, "one object", "0"): box(1, 1)}), logits(box(1, 1)))
        result = scorer.compute()
    assert result["all_expressions"] == {"j": 1, "f": 1, "j_and_f": 1} and "n_acc" not in result["standard"]
    with SCORERS["mevis"](tmp_path / "y") as scorer:
        nothing = np.zeros(SIZE, bool)
        scorer.add(make_example("v", 0, {Sentence("t", 0, "no target", "0"): nothing}), logits(nothing))
        result = scorer.compute()
    assert result["all_expressions"] == {"j": 1, "f": 1, "j_and_f": 1, "n_acc": 1} and "j" not in result["standard"]


def test_without_ground_truth_there_are_no_scores(tmp_path: Path) -> None:
    with SCORERS["refer_youtube_vos"](tmp_path / "x") as scorer:
        scorer.add(make_example("v", 0, {Sentence("a", None, "", "0"): None}), logits(box(1, 1)))
        assert scorer.compute() == {"samples": 1, "groups": {}}


def test_no_zips_for_the_server_without_official_expression_names(tmp_path: Path) -> None:
    with SCORERS["refer_youtube_vos"](tmp_path / "x", layout="prepared") as scorer:
        scorer.add(make_example("v", 0, {Sentence("a", 1, "", "0"): box(1, 1)}), logits(box(1, 1)))
        assert scorer.compute()["paper"]["j"] == pytest.approx(1)
    assert scorer.files == [] and not any(tmp_path.iterdir())


def test_davis_with_labels_but_without_masks(tmp_path: Path) -> None:
    sentence = Sentence("a", None, "annot1 first", "0")
    with SCORERS["ref_davis17"](tmp_path / "x") as scorer:
        scorer.add(make_example("v", 0, {sentence: None}, davis_labels(box(0, 0))), logits(box(0, 0)))
        result = scorer.compute()
    assert result["standard"]["j_and_f"] == pytest.approx(1 / 4) and result["per_expression"] == {}


def test_davis_with_too_many_objects(tmp_path: Path) -> None:
    sentence = Sentence("a", 21, "annot1 first", "80")
    with (
        pytest.raises(UserError, match="v has sentences about more than 20 objects"),
        SCORERS["ref_davis17"](tmp_path / "x") as scorer,
    ):
        scorer.add(make_example("v", 0, {sentence: box(0, 0)}, davis_labels(box(0, 0))), logits(box(0, 0)))


def test_davis_matches_objects_and_averages_the_annotators(tmp_path: Path) -> None:
    """By hand: annotator 0 finds both objects, annotator 1 swaps them, 2 and 3 find one."""
    left, right, nothing = box(5, 6), box(20, 40), np.zeros(SIZE, bool)
    predicted = {0: (left, right), 1: (right, left), 2: (left, nothing), 3: (nothing, right)}
    sentences = davis_sentences(2)
    truth = {sentence: (left, right)[sentence.instance - 1] for sentence in sentences}
    with SCORERS["ref_davis17"](tmp_path / "x") as scorer:
        for index in range(2):
            predictions = [predicted[int(s.expression) % 4][int(s.expression) // 4] for s in sentences]
            scorer.add(make_example("v", index, truth, davis_labels(left, right)), logits(*predictions))
        result = scorer.compute()
    assert [result["groups"][name]["standard"]["j"] for name in ANNOTATORS] == [1, 1, 0.5, 0.5]
    assert [result["groups"][name]["per_expression"]["f"] for name in ANNOTATORS] == [1, 0, 0.5, 0.5]
    assert result["standard"]["j_and_f"] == pytest.approx(0.75)
    assert result["per_expression"]["j"] == pytest.approx(0.5)
    folder = tmp_path / "x-annotators"
    assert sorted(path.name for path in folder.iterdir()) == ["anno_0", "anno_1", "anno_2", "anno_3"]
    with Image.open(folder / "anno_1/v/00001.png") as image:
        assert image.mode == "P" and image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        np.testing.assert_array_equal(np.asarray(image), davis_labels(right, left))


def test_davis_takes_the_most_confident_of_overlapping_predictions(tmp_path: Path) -> None:
    sentences = [Sentence("a", 1, "annot1 first", "0"), Sentence("b", 3, "annot1 first", "8")]  # object 1 has none
    weak, strong = np.where(box(0, 0, 40, 40), 1.0, -9.0), np.where(box(0, 0, 10, 10), 2.0, -9.0)
    truth = {sentence: box(0, 0) for sentence in sentences}
    with SCORERS["ref_davis17"](tmp_path / "x") as scorer:
        scorer.add(make_example("v", 0, truth, davis_labels(box(0, 0))), np.stack([weak, strong]).astype(np.float32))
    labels = np.asarray(Image.open(tmp_path / "x-annotators/anno_0/v/00000.png"))
    assert labels[5, 5] == 3 and labels[20, 20] == 1 and labels[45, 60] == 0 and set(np.unique(labels)) == {0, 1, 3}
    assert not np.asarray(Image.open(tmp_path / "x-annotators/anno_3/v/00000.png")).any()


def test_davis_without_labels(tmp_path: Path) -> None:
    with (
        pytest.raises(
            UserError, match=r"v, frame 3: .* put DAVIS/Annotations_unsupervised/480p, with a mask of every frame"
        ),
        SCORERS["ref_davis17"](tmp_path / "x") as scorer,
    ):
        scorer.add(make_example("v", 3, {Sentence("a", 1, "annot1 first", "0"): box(0, 0)}), logits(box(0, 0)))


@pytest.mark.parametrize("dataset, result", [("ref_davis17", "x-annotators"), ("refer_youtube_vos", "x-paper.zip")])
def test_earlier_files_are_replaced_only_when_all_is_written(dataset, result, tmp_path: Path) -> None:
    sentence = Sentence("a", 1, "annot1 first", "0")

    def run(index: int, fails: bool = False) -> list[Path]:
        with SCORERS[dataset](tmp_path / "x") as scorer:
            scorer.add(make_example("v", index, {sentence: box(0, 0)}, davis_labels(box(0, 0))), logits(box(0, 0)))
            if fails:
                raise KeyboardInterrupt
        return sorted(tmp_path.iterdir())

    def frames() -> list[str]:
        if dataset == "ref_davis17":
            return sorted({path.name for path in (tmp_path / result).rglob("*.png")})
        return [Path(name).name for name in zipfile.ZipFile(tmp_path / result).namelist()]

    before = run(1)
    with pytest.raises(KeyboardInterrupt):
        run(2, fails=True)
    assert sorted(tmp_path.iterdir()) == before and frames() == ["00001.png"]
    assert run(3) == before and frames() == ["00003.png"]
