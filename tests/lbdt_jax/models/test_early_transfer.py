"""The network with a third transfer after res3, which is ours."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from tiny import WORD_VECTOR_SIZE, tiny_config, tiny_variables

from input_pipeline.batch import MODEL_FIELDS, random_batch
from lbdt_jax.inference.explain import explain
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.models.early_transfer import EarlyTransferLBDT
from lbdt_jax.step import initial_variables, make_model


@pytest.fixture(scope="module")
def config() -> ConfigDict:
    config = tiny_config()
    config.model.early_transfer_layers = 2
    return config


@pytest.fixture(scope="module")
def inputs(config: ConfigDict) -> list[np.ndarray]:
    batch = random_batch(2, config.image_size, config.max_words, WORD_VECTOR_SIZE, seed=0)
    return [batch[name] for name in MODEL_FIELDS]


def variables_of(config: ConfigDict, gate: float) -> dict[str, Any]:
    """The parameters of LBDT, and a transfer after res3 whose last normalization multiplies its output by `gate`."""
    variables = jax.device_get(initial_variables(make_model(config), config, WORD_VECTOR_SIZE))
    transfer = variables["params"]["duplex_transfer3"]
    for stream in ("spatial_expand", "temporal_expand"):
        transfer[stream]["norm"]["scale"] = np.full_like(transfer[stream]["norm"]["scale"], gate)
    published = tiny_variables()
    return {
        "params": {**variables["params"], **published["params"]},
        "batch_stats": {**variables["batch_stats"], **published["batch_stats"]},
    }


def test_it_is_lbdt_where_the_early_transfer_adds_nothing(config: ConfigDict, inputs: list[np.ndarray]) -> None:
    model, published = make_model(config), make_model(tiny_config())
    assert isinstance(model, EarlyTransferLBDT) and not isinstance(published, EarlyTransferLBDT)
    expected = np.asarray(published.apply(tiny_variables(), *inputs))
    same = model.apply(variables_of(config, 0.0), *inputs)
    np.testing.assert_allclose(same, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    other = model.apply(variables_of(config, 1.0), *inputs)
    assert np.abs(other - expected).max() > 1e-3 * np.abs(expected).max()


def test_prediction_and_attention(config: ConfigDict, inputs: list[np.ndarray]) -> None:
    model, variables = make_model(config), variables_of(config, 1.0)
    expected = np.asarray(model.apply(variables, *inputs))
    frame, earlier_frame, words, word_mask = inputs
    predictor = BatchedPredictor(model, variables, 2, 2)
    examples = [(frame[i], earlier_frame[i], words[i : i + 1], word_mask[i : i + 1]) for i in range(2)]
    for i, (_, logits) in enumerate(predictor.segment(examples, lambda example: example)):
        np.testing.assert_allclose(logits[0], expected[i], rtol=0, atol=1e-5 * np.abs(expected).max())
    explanation = explain(model, variables, *(array[0] for array in inputs))
    assert [(bridge.stage, bridge.layer) for bridge in explanation.bridges[::2]] == [(3, 1), (3, 2), (4, 1), (5, 1)]
    assert explanation.bridges[0].target_from_words.shape[:2] == (8, 8)
