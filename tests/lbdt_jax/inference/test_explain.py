"""Attention maps and gates are those of the forward pass, and are drawn in the right place.

That the maps equal the published ones is tested together with all other intermediate values, in test_forward.py:
`published.py` takes them from `explain.collect`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config, tiny_variables

from input_pipeline.batch import MODEL_FIELDS
from lbdt_jax.inference.explain import STREAMS, BridgeAttention, ChannelGates, Explanation, explain
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.step import make_model
from lbdt_jax.visualization.attention import attention_sheet
from lbdt_jax.visualization.contact_sheet import Example, contact_sheet

pytestmark = pytest.mark.usefixtures("fast_compilation")


@functools.cache
def network() -> tuple[LBDT, dict[str, Any]]:
    """A tiny network with two layers, and its variables."""
    config = tiny_config()
    config.model.transfer_layers = 2
    return make_model(config), tiny_variables(transfer_layers=2)


def model_inputs() -> dict[str, np.ndarray]:
    """A frame pair of noise, and a sentence of three words and two of padding."""
    batch = tiny_batch(tiny_config())
    inputs = {name: batch[name][0] for name in MODEL_FIELDS}
    return inputs | {"word_mask": np.arange(5) < 3}


def test_every_map_is_a_distribution() -> None:
    explanation = explain(*network(), **model_inputs())
    assert [(bridge.stage, bridge.layer, bridge.source, bridge.target) for bridge in explanation.bridges] == [
        (stage, layer, *direction)
        for stage in (4, 5)
        for layer in (1, 2)
        for direction in (("temporal", "spatial"), ("spatial", "temporal"))
    ]
    for bridge in explanation.bridges:
        size = {4: 64 // 16, 5: 64 // 32}[bridge.stage]
        assert bridge.words_to_words.shape == (5, 5)
        assert bridge.words_from_source.shape == (5, size, size)
        assert bridge.target_from_words.shape == (size, size, 5)
        np.testing.assert_allclose(bridge.words_to_words.sum(axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(bridge.words_from_source.sum(axis=(1, 2)), 1, rtol=1e-5)
        np.testing.assert_allclose(bridge.target_from_words.sum(axis=2), 1, rtol=1e-5)
        for weights in (bridge.words_to_words, bridge.target_from_words):
            assert (weights[..., :3] > 0).all() and (weights[..., 3:] == 0).all()


def test_source_and_target_are_not_swapped() -> None:
    """Another earlier frame changes the temporal stream, and nothing in the spatial stream before stage 5."""
    inputs = model_inputs()
    before = explain(*network(), **inputs).bridges[:2]
    after = explain(*network(), **(inputs | {"earlier_frame": 255 - inputs["earlier_frame"]})).bridges
    for old, new in zip(before, after, strict=False):
        same = np.array_equal(old.words_from_source, new.words_from_source)
        assert same == (old.source == "spatial")


def test_logits_and_gates_are_those_of_the_plain_forward_pass() -> None:
    model, variables = network()
    inputs = model_inputs()
    explanation = explain(model, variables, **inputs)

    @jax.jit
    def forward(variables: dict[str, Any], *batch: np.ndarray) -> Any:
        return model.apply(variables, *batch, capture_intermediates=True, mutable=["intermediates"])

    logits, collections = forward(variables, *(inputs[name][None] for name in MODEL_FIELDS))
    np.testing.assert_allclose(explanation.logits, logits[0], atol=1e-5)
    assert tuple(explanation.gates) == STREAMS
    activation = collections["intermediates"]["bilateral_channel_activation"]
    for stream, gates in explanation.gates.items():
        for kind, gate in (("language", gates.language), ("enhance", gates.enhance)):
            gate_logits = activation[f"{stream}_{kind}"]["__call__"][0][0]
            np.testing.assert_allclose(gate, 1 / (1 + np.exp(-gate_logits)), rtol=1e-5)


def test_network_without_bridges_and_gates_has_no_maps() -> None:
    model, variables = network()  # the smaller network ignores the variables that it does not use
    explanation = explain(model.clone(transfer_layers=0, channel_gates=False), variables, **model_inputs())
    assert explanation.logits.shape == (64, 64)
    assert (explanation.bridges, explanation.gates) == ((), {})
    alone = attention_sheet(example(), ["circle"], explanation, "Attention")
    assert alone.size == contact_sheet([example()], "Attention").size


# -- drawing


def made_up(layers: int, words: int, size: tuple[int, int] = (64, 96)) -> Explanation:
    """Attention of noise."""
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
    nothing = np.zeros((height, width), bool)
    values = {"mask": nothing, "prediction": nothing, "sentence": "the circle", "iou": 0.5, "name": "clip/7/1"}
    return Example(frames[0], frames[1], **(values | changes))


def sheet(explanation: Explanation, tokens: list[str], **changes: Any) -> np.ndarray:
    return np.asarray(attention_sheet(example(**changes), tokens, explanation, "Attention")).astype(int)


def test_the_sheet_grows_with_layers_and_words() -> None:
    one, four = sheet(made_up(1, 25), ["word"] * 3), sheet(made_up(4, 25), ["word"] * 3)
    with_example = contact_sheet([example()], "Attention").height
    assert one.shape[1] == four.shape[1] == 1132
    without = sheet(Explanation(np.zeros((64, 96)), (), made_up(1, 1).gates), ["word"]).shape[0]
    assert without > with_example
    assert four.shape[0] - without == 4 * (one.shape[0] - without)
    assert sheet(made_up(1, 25), ["word"] * 25).shape[1] > 25 * 96


@pytest.mark.parametrize("tokens", [[""], ["x" * 100], [", "] * 25, ["红色"]])
@pytest.mark.parametrize("size", [(64, 96), (2000, 64), (720, 1280)])
def test_any_words_and_any_frame_can_be_drawn(tokens: list[str], size: tuple[int, int]) -> None:
    drawn = sheet(made_up(1, 25), tokens, height=size[0], width=size[1], mask=None, iou=None)
    assert drawn.shape[1] >= 1132


def test_a_map_is_drawn_in_its_word_s_column_and_only_there() -> None:
    """Two sheets in which the second word attends to other positions differ in its map only, at those positions."""
    explanations = made_up(1, 3), made_up(1, 3)
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
    explanations = made_up(1, 5), made_up(1, 5)
    for bridge in explanations[1].bridges:
        bridge.words_from_source[3:] = 9
    np.testing.assert_array_equal(*(sheet(explanation, ["a", "b", "c"]) for explanation in explanations))
