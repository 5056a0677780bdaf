"""Moving Shapes: each sentence is true of one shape only, masks show the shapes, files have A2D-Sentences' layout."""

from __future__ import annotations

import filecmp
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from reader_checks import read_all

from input_pipeline.errors import UserError
from input_pipeline.moving_shapes import raw_layout
from input_pipeline.moving_shapes.expressions import TIERS
from input_pipeline.moving_shapes.raw_layout import write_raw
from input_pipeline.moving_shapes.reader import GROUPS, MovingShapes
from input_pipeline.moving_shapes.scenes import SPLITS, Scene, make_scene
from input_pipeline.moving_shapes.shapes import (
    ANNOTATED_FRAMES,
    COLORS,
    HALF_EXTENTS,
    HEIGHT,
    NUM_FRAMES,
    WIDTH,
    Shape,
)
from input_pipeline.moving_shapes.stills import SEED as STILLS_SEED
from input_pipeline.moving_shapes.stills import write_stills
from input_pipeline.moving_shapes.wording import HELD_OUT_WORDINGS, HELD_OUT_WORDS, LEXICON, WORDINGS
from input_pipeline.readers.a2d_sentences import read_masks
from input_pipeline.readers.refcoco import RefCOCO
from input_pipeline.text.tokenizer import tokenize
from input_pipeline.text.word_vectors import PACKAGE, load_word_vectors
from input_pipeline.types import FramePair

SMALL = {"train": 3, "test": 2, "validation": 1, "unseen_words": 2, "unseen_wordings": 1}


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    """Scenes of every split, enough to check fractions and balances."""
    return {split: [make_scene(0, split, index) for index in range(60)] for split in SPLITS}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("data") / "moving_shapes"
    write_raw(raw, seed=3, scenes=SMALL, workers=2)
    return raw


# -- The meaning of the sentences, derived independently from their text and the geometry.

RELATIONS = r"(left of|right of|above|below|like|way as|direction as)"
SUPERLATIVES = ("largest", "smallest", "leftmost", "rightmost", "topmost", "lowest", "fastest", "slowest")


def simplify(text: str) -> str:
    """Replaces every word by the most common one for its concept; removes punctuation."""
    for concept, words in LEXICON.items():
        held_out = [word for word, meaning in HELD_OUT_WORDS.items() if meaning == concept]
        for word in sorted([*words, *held_out], key=len, reverse=True):
            text = re.sub(rf"\b{word}\b", words[0], text)
    return text.replace(",", "").rstrip(".")


def find_shapes(phrase: str, shapes: tuple[Shape, ...]) -> set[int]:
    """Ids of the shapes that a noun phrase fits."""
    words = phrase.split()
    colors, kinds = [w for w in words if w in COLORS], [w for w in words if w in HALF_EXTENTS]
    assert len(colors) <= 1 and len(kinds) <= 1 and (kinds or "shape" in words)
    return {
        i
        for i, shape in enumerate(shapes)
        if shape.color in (colors or [shape.color]) and shape.kind in (kinds or [shape.kind])
    }


def center(shape: Shape, frame: int, axis: int) -> float:
    velocity = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}[shape.direction]
    return shape.start[axis] + velocity[axis] * shape.speed * (frame - 1)


def find_extreme(ids: set[int], value: Callable[[int, int], float], margin: float) -> set[int]:
    """The one id whose value is greatest by the margin in every annotated frame, as a set."""
    return {
        i
        for i in ids
        if all(value(i, frame) >= value(j, frame) + margin for frame in ANNOTATED_FRAMES for j in ids - {i})
    }


def interpret(text: str, shapes: tuple[Shape, ...]) -> tuple[str, set[int], set[int]]:
    """(tier, ids that the noun phrase alone fits, ids that the sentence is true of)."""
    text = simplify(text)
    head, relation, landmark = (re.split(rf"\b{RELATIONS}\b", text, maxsplit=1) + [None, None])[:3]
    ids = find_shapes(head, shapes)
    if relation:
        (landmark_id,) = find_shapes(landmark, shapes)
        ids -= {landmark_id}
        if relation in ("like", "way as", "direction as"):
            assert shapes[landmark_id].direction != "still"
            return "relation", ids, {i for i in ids if shapes[i].direction == shapes[landmark_id].direction}
        axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
        offsets = {
            i: [
                sign * (center(shapes[i], frame, axis) - center(shapes[landmark_id], frame, axis))
                for frame in ANNOTATED_FRAMES
            ]
            for i in ids
        }
        assert all(min(o) >= 10 or max(o) <= -4 for o in offsets.values()), "on neither side"
        return "relation", ids, {i for i in ids if min(offsets[i]) >= 10}
    superlatives = [word for word in SUPERLATIVES if word in head.split()]
    if superlatives:
        size, speed = (lambda i, _: np.log(shapes[i].size)), (lambda i, _: np.log(shapes[i].speed))
        x, y = (lambda i, frame: center(shapes[i], frame, 0)), (lambda i, frame: center(shapes[i], frame, 1))
        value, sign, margin = {
            "largest": (size, 1, np.log(1.25)),
            "smallest": (size, -1, np.log(1.25)),
            "leftmost": (x, -1, 10),
            "rightmost": (x, 1, 10),
            "topmost": (y, -1, 10),
            "lowest": (y, 1, 10),
            "fastest": (speed, 1, np.log(1.5)),
            "slowest": (speed, -1, np.log(1.5)),
        }[superlatives[0]]
        return "comparison", ids, find_extreme(ids, lambda i, frame: sign * value(i, frame), margin)
    direction = re.search(r"\b(left|right|up|down)", head)
    if direction:
        return "motion", ids, {i for i in ids if shapes[i].direction == direction[1]}
    if re.search(r"\b(not|motionless)\b", head):
        return "motion", ids, {i for i in ids if shapes[i].direction == "still"}
    if re.search(r"\b(moving|moves)\b", head):
        return "motion", ids, {i for i in ids if shapes[i].direction != "still"}
    return "attribute", ids, ids


@pytest.mark.parametrize("split", SPLITS)
def test_every_sentence_is_true_of_its_shape_alone_and_many_nouns_are_ambiguous(
    scenes: dict[str, list[Scene]], split: str
) -> None:
    ambiguous: dict[str, list[bool]] = {tier: [] for tier in TIERS}
    for scene in scenes[split]:
        for sentence in scene.sentences:
            if sentence.group.startswith("reworded"):
                continue  # means the same as the sentence before it, see below
            tier, ids, targets = interpret(sentence.text, scene.shapes)
            assert targets == {sentence.instance}, sentence
            assert split.startswith("unseen") or tier == sentence.group, sentence
            ambiguous[tier].append(len(ids) >= 2)
    if split != "unseen_words":
        assert not any(ambiguous["attribute"])
        assert all(ambiguous["comparison"])
        assert np.mean(ambiguous["motion"]) >= 0.5
        assert np.mean(ambiguous["relation"]) >= 0.5


def test_tiers_are_balanced_and_wordings_varied(scenes: dict[str, list[Scene]]) -> None:
    for split in ("train", "test"):
        sentences = [sentence for scene in scenes[split] for sentence in scene.sentences]
        counts = Counter(sentence.group for sentence in sentences)
        attributes = counts.pop("attribute")
        assert counts == dict.fromkeys(TIERS[1:], 2 * len(scenes[split]))
        per_scene = attributes / len(scenes[split])
        assert per_scene == 2 if split == "test" else 3 < per_scene <= 4
    sentences = [sentence for scene in scenes["train"] for sentence in scene.sentences]
    patterns = {" ".join(w for w in simplify(s.text).split() if w not in COLORS) for s in sentences}
    assert len(patterns) > 80
    words_used = {word for sentence in sentences for word in tokenize(sentence.text, 25)}
    assert {"scarlet", "ball", "box", "leftward", "motionless"} <= words_used


def test_every_scene_has_two_shapes_of_a_kind_and_many_of_the_same_color(scenes: dict[str, list[Scene]]) -> None:
    same_color = [len({(s.kind, s.color) for s in scene.shapes}) < len(scene.shapes) for scene in scenes["train"]]
    assert np.mean(same_color) > 0.4
    assert all(len({s.kind for s in scene.shapes}) < len(scene.shapes) for scene in scenes["train"])


def test_unseen_words_come_in_pairs_that_differ_in_one_word(scenes: dict[str, list[Scene]]) -> None:
    used = Counter()
    for scene in scenes["unseen_words"]:
        assert scene.sentences
        for seen, unseen in zip(scene.sentences[::2], scene.sentences[1::2], strict=True):
            assert seen.group == "seen words" and seen.instance == unseen.instance
            before, after = tokenize(seen.text, 25), tokenize(unseen.text, 25)
            ((old, new),) = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert unseen.group == f"{new} for {old}" and old == LEXICON[HELD_OUT_WORDS[new]][0]
            used[new] += 1
    assert set(used) == set(HELD_OUT_WORDS) and min(used.values()) >= 5


def test_unseen_wordings_come_in_pairs_that_name_the_same_shapes(scenes: dict[str, list[Scene]]) -> None:
    seen = {wording for group in WORDINGS.values() for wording in group}
    unseen = {wording for group in HELD_OUT_WORDINGS.values() for wording in group}
    assert not seen & unseen and WORDINGS.keys() >= HELD_OUT_WORDINGS.keys() - {("",)}
    content_words = COLORS.keys() | HALF_EXTENTS.keys() | {"shape"} | set(SUPERLATIVES) | {"above", "below"}
    used = Counter()
    for scene in scenes["unseen_wordings"]:
        pairs = list(zip(scene.sentences[::2], scene.sentences[1::2], strict=True))
        assert [reworded.group for _, reworded in pairs] == [f"reworded {tier}" for tier in TIERS]
        for plain, reworded in pairs:
            assert plain.group == "seen wordings" and plain.instance == reworded.instance
            tier, _, _ = interpret(plain.text, scene.shapes)
            assert reworded.group == f"reworded {tier}" and plain.text != reworded.text
            contents = [Counter(w for w in tokenize(s.text, 25) if w in content_words) for s in (plain, reworded)]
            assert contents[0] == contents[1], (plain, reworded)
            used.update({token for token in tokenize(reworded.text, 25) if token in ("which", "find", "rest", "so")})
    assert len(used) == 4
    texts = {sentence.text for split in ("train", "test") for scene in scenes[split] for sentence in scene.sentences}
    assert not texts & {s.text for scene in scenes["unseen_wordings"] for s in scene.sentences[1::2]}


def test_words_are_held_out_and_every_word_has_a_vector(scenes: dict[str, list[Scene]]) -> None:
    words_used = {
        split: {word for scene in split_scenes for sentence in scene.sentences for word in tokenize(sentence.text, 25)}
        for split, split_scenes in scenes.items()
    }
    for split in ("train", "test", "validation"):
        assert not words_used[split] & set(HELD_OUT_WORDS)
    possible = {word for words in LEXICON.values() for phrase in words for word in phrase.split()}
    assert not possible & set(HELD_OUT_WORDS)
    words = set.union(*words_used.values(), possible, HELD_OUT_WORDS) - {", "}
    assert set(load_word_vectors(PACKAGE, words).words) == words


# -- Drawing.


def test_scene_depends_on_seed_split_and_index_alone() -> None:
    scene, repeated = make_scene(0, "train", 5), make_scene(0, "train", 5)
    assert repeated.shapes == scene.shapes and repeated.sentences == scene.sentences
    np.testing.assert_array_equal(repeated.frames, scene.frames)
    assert make_scene(1, "train", 5).shapes != scene.shapes


def test_no_two_scenes_are_the_same(scenes: dict[str, list[Scene]]) -> None:
    layouts = {frozenset(scene.shapes) for split_scenes in scenes.values() for scene in split_scenes}
    assert len(layouts) == sum(map(len, scenes.values()))


def test_frames_and_masks_show_the_shapes(scenes: dict[str, list[Scene]]) -> None:
    for scene in scenes["train"][:20]:
        assert scene.frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3) and scene.frames.dtype == np.uint8
        for frame in ANNOTATED_FRAMES:
            masks = scene.masks[frame]
            assert masks.sum(0).max() == 1, "masks overlap"
            for shape, mask in zip(scene.shapes, masks, strict=True):
                assert 0.55 * shape.size**2 < mask.sum() < 1.1 * shape.size**2
                color = np.median(scene.frames[frame - 1][mask], axis=0)
                nearest = min(COLORS, key=lambda name: np.abs(color - COLORS[name]).sum())
                assert nearest == shape.color
        top = scene.shapes[-1]  # no shape hides it
        for frame in ANNOTATED_FRAMES:
            rows, columns = np.nonzero(scene.masks[frame][-1])
            middle = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
            assert np.abs(np.subtract(middle, (center(top, frame, 0), center(top, frame, 1)))).max() < 1.1


def test_only_moving_shapes_differ_from_the_earlier_frame(scenes: dict[str, list[Scene]]) -> None:
    for scene in scenes["train"][:20]:
        for frame in ANNOTATED_FRAMES:
            change = np.abs(scene.frames[frame - 1].astype(int) - scene.frames[frame - 7]).max(-1)
            moving = np.zeros((HEIGHT, WIDTH), bool)
            for shape in scene.shapes:
                if shape.direction == "still":
                    continue
                assert shape.speed * 6 >= 4, "the motion is too small to be visible"
                half = np.multiply(HALF_EXTENTS[shape.kind], shape.size) + 1.5
                (left, right), (top, bottom) = (
                    sorted((center(shape, frame, axis), center(shape, frame - 6, axis))) for axis in (0, 1)
                )
                assert left - half[0] >= 0 and right + half[0] <= WIDTH
                moving[
                    int(top - half[1]) : int(bottom + half[1]) + 1, int(left - half[0]) : int(right + half[0]) + 1
                ] = 1
            assert not change[~moving].any(), "the background moves"


# -- Files.


def test_reader_returns_the_scenes_with_their_groups(raw: Path) -> None:
    reader = MovingShapes(raw)
    assert {split: len(reader.videos(split)) for split in reader.splits()} == SMALL
    assert set(MovingShapes.SUBSETS) == set(SPLITS) and reader.skipped() == ()
    for split in SPLITS:
        for index, video in enumerate(reader.videos(split)):
            scene = make_scene(3, split, index)
            pairs = list(reader.read(video))
            assert all(isinstance(pair, FramePair) for pair in pairs)
            assert [pair.frame_index for pair in pairs] == list(ANNOTATED_FRAMES)
            for pair in pairs:
                assert pair.sentences == scene.sentences
                assert pair.earlier_rule == "interval"
                for instance, mask in pair.masks.items():
                    np.testing.assert_array_equal(mask, scene.masks[pair.frame_index][instance])
                error = np.abs(pair.frame.astype(int) - scene.frames[pair.frame_index - 1])
                earlier_error = np.abs(pair.earlier_frame.astype(int) - scene.frames[pair.frame_index - 7])
                assert error.mean() < 4 and earlier_error.mean() < 4, "compression changed the frames too much"


def test_layout_is_that_of_a2d_sentences(raw: Path) -> None:
    rows = [line.split(",") for line in (raw / "Release/videoset.csv").read_text().splitlines()]
    assert len(rows) == sum(SMALL.values()) and {len(row) for row in rows} == {9}
    assert rows[0] == ["train_00000", "0", "0", "1.33", str(HEIGHT), str(WIDTH), str(NUM_FRAMES), "2", "0"]
    with h5py.File(raw / "text_annotations/a2d_annotation_with_instances/train_00000/00008.h5") as file:
        count = len(file["instance"])
        assert file["reMask"].shape == (count, WIDTH, HEIGHT) and file["reBBox"].shape == (4, count)
        x1, y1, x2, y2 = file["reBBox"][:, 0].astype(int)
        columns, rows = np.nonzero(file["reMask"][0])
        assert (x1, x2, y1, y2) == (columns.min() + 1, columns.max() + 1, rows.min() + 1, rows.max() + 1)


def test_single_mask_has_no_first_axis(tmp_path: Path) -> None:
    mask = make_scene(0, "train", 0).masks[8][:1]
    raw_layout._write_masks(tmp_path / "00008.h5", mask)
    with h5py.File(tmp_path / "00008.h5") as file:
        assert file["reMask"].shape == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(read_masks(tmp_path / "00008.h5", (HEIGHT, WIDTH), {0})[0], mask[0])


def test_files_do_not_depend_on_the_number_of_workers(raw: Path, tmp_path: Path) -> None:
    write_raw(tmp_path / "again", seed=3, scenes=SMALL, workers=1)
    files = [path.relative_to(raw) for path in raw.rglob("*") if path.is_file()]
    assert len(files) == 4 + 3 * sum(SMALL.values())
    assert filecmp.cmpfiles(raw, tmp_path / "again", files, shallow=False) == (files, [], [])


def test_running_again_changes_nothing(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    write_raw(raw, seed=4)
    assert "exists already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before


def test_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(results, *_, **__):
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr(raw_layout, "tqdm", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_raw(tmp_path / "moving_shapes", scenes={"train": 40}, workers=1)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_of_the_user_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is not Moving Shapes"):
        write_raw(tmp_path, scenes=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UserError, match="Unknown splits.*valid'"):
        write_raw(tmp_path / "new", scenes={"valid": 1})


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: lines[:-1], "no group for"),
        (lambda lines: [lines[0], "train_00000,zero,motion,the circle"], r"groups\.csv:2: expected"),
        (None, "can't be read"),
    ],
)
def test_error_names_a_damaged_file_of_groups(
    raw: Path, tmp_path: Path, change: Callable[[list[str]], list[str]] | None, message: str
) -> None:
    for part in ("Release", "text_annotations"):
        (tmp_path / part).mkdir()
        for path in (raw / part).iterdir():
            (tmp_path / part / path.name).symlink_to(path)
    lines = (raw / GROUPS).read_text().splitlines()
    (tmp_path / GROUPS).unlink()
    if change:
        (tmp_path / GROUPS).write_text("\n".join(change(lines)) + "\n")
    with pytest.raises(UserError, match=message):
        MovingShapes(tmp_path).videos("train")


# -- Still images in RefCOCO's format.


def test_stills_are_read_by_the_reader_of_refcoco(tmp_path: Path) -> None:
    raw = tmp_path / "stills"
    write_stills(raw, train=2, val=1, workers=2)
    reader = RefCOCO(raw)
    assert reader.splits() == ("train", "val") and reader.skipped() == ()
    videos = [video for split in ("train", "val") for video in reader.videos(split)]
    assert len(videos) == 3
    for number, video in enumerate(videos, 1):
        scene, frame = make_scene(STILLS_SEED, "train", number), ANNOTATED_FRAMES[number % 2]
        (pair,), skipped = read_all(reader, video)
        assert skipped == [] and pair.sentences
        assert np.abs(pair.frame.astype(int) - scene.frames[frame - 1]).mean() < 2  # JPEG
        for sentence in pair.sentences:
            tier, _, (shape,) = interpret(sentence.text, scene.shapes)
            assert sentence.instance is not None and tier != "motion"
            assert not {"fastest", "slowest", "like", "way", "direction"} & set(simplify(sentence.text).split())
            np.testing.assert_array_equal(pair.masks[sentence.instance], scene.masks[frame][shape])
    with pytest.raises(UserError, match=r"stills exists\. Name another folder"):
        write_stills(raw)
