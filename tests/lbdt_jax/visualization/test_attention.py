"""Sheets of attention maps show every map where it belongs (lbdt_jax/visualization/attention.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lbdt_jax.inference.explain import STREAMS, BridgeAttention, ChannelGates, Explanation
from lbdt_jax.visualization.attention import attention_sheet
from lbdt_jax.visualization.contact_sheet import Example, contact_sheet


def random_explanation(layers: int, words: int, size: tuple[int, int] = (64, 96)) -> Explanation:
    """Attention maps and gates of noise, with as many words per map as `words`."""
    rng = np.random.default_rng(0)
    bridges = []
    for stage, stride in ((4, 16), (5, 32)):
        positions = size[0] // stride, size[1] // stride
        for layer in range(1, layers + 1):
            for target, source in zip(STREAMS, reversed(STREAMS), strict=True):
                maps = rng.random((words, words)), rng.random((words, *positions)), rng.random((*positions, words))
                bridges.append(BridgeAttention(stage, layer, source, target, *maps))
    gates = {stream: ChannelGates(rng.random(8), rng.random(8)) for stream in STREAMS}
    return Explanation(np.zeros(size), tuple(bridges), gates)


def example(height: int = 64, width: int = 96, **changes: Any) -> Example:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    empty = np.zeros((height, width), bool)
    values = {"mask": empty, "prediction": empty, "sentence": "the circle", "iou": 0.5, "name": "clip/7/1"}
    return Example(frames[0], frames[1], **(values | changes))


def sheet(explanation: Explanation, tokens: list[str], **changes: Any) -> np.ndarray:
    return np.asarray(attention_sheet(example(**changes), tokens, explanation, "Attention")).astype(int)


def test_the_sheet_grows_with_layers_and_words() -> None:
    one, four = sheet(random_explanation(1, 25), ["word"] * 3), sheet(random_explanation(4, 25), ["word"] * 3)
    with_example = contact_sheet([example()], "Attention").height
    assert one.shape[1] == four.shape[1] == 1132
    gates_only = sheet(Explanation(np.zeros((64, 96)), (), random_explanation(1, 1).gates), ["word"]).shape[0]
    assert gates_only > with_example
    assert four.shape[0] - gates_only == 4 * (one.shape[0] - gates_only)
    assert sheet(random_explanation(1, 25), ["word"] * 25).shape[1] > 25 * 96


def test_an_explanation_without_maps_and_gates_shows_the_example_alone() -> None:
    without = attention_sheet(example(), ["circle"], Explanation(np.zeros((64, 96)), (), {}), "Attention")
    assert without.size == contact_sheet([example()], "Attention").size


@pytest.mark.parametrize("tokens", [[""], ["x" * 100], [", "] * 25, ["红色"]])
@pytest.mark.parametrize("size", [(64, 96), (2000, 64), (720, 1280)])
def test_any_words_and_any_frame_can_be_drawn(tokens: list[str], size: tuple[int, int]) -> None:
    drawn = sheet(random_explanation(1, 25), tokens, height=size[0], width=size[1], mask=None, iou=None)
    assert drawn.shape[1] >= 1132


def test_a_map_is_drawn_only_in_the_column_of_its_word() -> None:
    """Two sheets in which the second word attends to other positions differ in its map only, at those positions."""
    explanations = random_explanation(1, 3), random_explanation(1, 3)
    for explanation, index in zip(explanations, (0, -1), strict=True):
        weights = explanation.bridges[2].words_from_source
        weights[...] = 0.001
        weights[1, index, index] = 1
        weights[0, 0, 0] = 1  # the scale is the same in both
    first, second = (sheet(explanation, ["a", "b", "c"]) for explanation in explanations)
    rows, columns = np.nonzero((first != second).any(axis=-1))
    left = 36 + 190 + 128 + 4  # margin, label, the first word's map
    assert (columns.min() >= left) and (columns.max() < left + 128)
    assert rows.max() - rows.min() < 128 * 64 // 96
    brighter = (second - first).sum(axis=-1)
    upper_left, lower_right = (rows.min(), columns.min()), (rows.max(), columns.max())
    assert brighter[upper_left] < 0 < brighter[lower_right]


def test_padding_is_not_drawn() -> None:
    """The weights of padding change nothing, not even the scale."""
    explanations = random_explanation(1, 5), random_explanation(1, 5)
    for bridge in explanations[1].bridges:
        bridge.words_from_source[3:] = 9
    np.testing.assert_array_equal(*(sheet(explanation, ["a", "b", "c"]) for explanation in explanations))
