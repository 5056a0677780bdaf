"""Attention maps and gates are those of the forward pass (lbdt_jax/inference/explain.py).

test_forward.py compares the maps with the published ones, together with all other intermediate values:
helpers/published.py takes them from `explain.collect`.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from tiny import tiny_batch, tiny_config, tiny_variables

from input_pipeline.batch import MODEL_FIELDS
from lbdt_jax.inference.explain import STREAMS, explain
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.step import make_model

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
