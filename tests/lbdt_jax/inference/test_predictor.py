"""Look once, ask many: the same answers as the plain forward pass (lbdt_jax/ask.py)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import WORD_VECTOR_SIZE, tiny_config, tiny_variables

from input_pipeline.batch import MODEL_FIELDS, random_batch
from lbdt_jax.inference import predictor as predictor_module
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.types import FramePairFeatures
from lbdt_jax.parallel import make_mesh
from lbdt_jax.step import make_model

SENTENCES = (1, 5, 2, 7, 3)  # of each example; more than are answered at once


@dataclasses.dataclass
class Example:
    frame: np.ndarray
    earlier_frame: np.ndarray
    words: np.ndarray
    word_mask: np.ndarray


@pytest.fixture(scope="module")
def model() -> LBDT:
    return make_model(tiny_config())


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    config = tiny_config()
    frames = random_batch(len(SENTENCES), config.image_size, config.max_words, WORD_VECTOR_SIZE)
    found = []
    for index, sentences in enumerate(SENTENCES):
        asked = random_batch(sentences, (32, 32), config.max_words, WORD_VECTOR_SIZE, seed=1 + index)
        found.append(
            Example(frames["frame"][index], frames["earlier_frame"][index], asked["words"], asked["word_mask"])
        )
    return found


@pytest.fixture(scope="module")
def expected(model: LBDT, examples: list[Example]) -> list[np.ndarray]:
    """The logits of the plain forward pass, one sentence with one frame pair at a time."""
    forward = jax.jit(model.apply)
    return [
        np.concatenate(
            [
                forward(tiny_variables(), e.frame[None], e.earlier_frame[None], words[None], mask[None])
                for words, mask in zip(e.words, e.word_mask, strict=True)
            ]
        )
        for e in examples
    ]


@pytest.mark.parametrize(("devices", "frames", "sentences"), [(1, 2, 3), (8, 1, 2)])
def test_answers_equal_the_plain_forward_pass(
    devices: int, frames: int, sentences: int, model: LBDT, examples: Any, expected: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(predictor_module, "make_mesh", lambda _: make_mesh(jax.devices()[:devices]))
    predictor = BatchedPredictor(model, tiny_variables(), frames, sentences)
    encoded, answered = [], []
    encode, answer = predictor._encode, predictor._answer
    predictor._encode = lambda variables, arrays: encoded.append(arrays) or encode(variables, arrays)
    predictor._answer = lambda *arguments: answered.append(arguments) or answer(*arguments)

    for (example, logits), given, wanted in zip(predictor(iter(examples)), examples, expected, strict=True):
        assert example is given
        assert logits.shape == (len(given.words), 64, 64) and logits.dtype == np.float32
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())

    # Each frame pair is encoded once and in order; what fills the last chunk is the last pair again.
    seen = np.concatenate([np.asarray(arrays["frame"]) for arrays in encoded])
    places = np.minimum(np.arange(len(seen)), len(examples) - 1)
    assert len(seen) - len(examples) < devices * frames
    np.testing.assert_array_equal(seen, np.stack([e.frame for e in examples])[places])
    # On each device as few rounds as its frame pairs have sentences.
    rounds = {1: -(-6 // 3) + -(-9 // 3) + -(-3 // 3), 8: -(-7 // 2)}[devices]
    assert len(answered) == rounds
    assert (encode._cache_size(), answer._cache_size()) == (1, 1)


def test_no_examples_no_answers(model: LBDT) -> None:
    assert list(BatchedPredictor(model, tiny_variables(), 1, 1)([])) == []


def test_several_sentences_per_frame_equal_one_by_one(model: LBDT, examples: list[Example], expected: Any) -> None:
    two, five = examples[2], examples[1]
    frame, earlier_frame = (np.stack([getattr(e, name) for e in (two, five)]) for name in MODEL_FIELDS[:2])
    words, word_mask = (np.concatenate([getattr(e, name)[:2] for e in (two, five)]) for name in MODEL_FIELDS[2:])
    logits = jax.jit(model.apply)(tiny_variables(), frame, earlier_frame, words, word_mask)
    wanted = np.concatenate([expected[2][:2], expected[1][:2]])
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_features_for_sentences() -> None:
    features = FramePairFeatures(
        *(jnp.arange(3.0)[:, None] + 10 * number for number in range(2)), None, None, *[jnp.arange(3)] * 2
    )
    repeated = features.for_sentences(jnp.asarray([2, 0, 0, 1]))
    np.testing.assert_array_equal(repeated.temporal_res4[:, 0], [12, 10, 10, 11])
    np.testing.assert_array_equal(repeated.spatial_high_resolution, [2, 0, 0, 1])
    assert repeated.spatial_reduced is None
