"""Encoding once and segmenting many gives the results of the plain forward pass (lbdt_jax/inference/predictor.py)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import WORD_VECTOR_SIZE, tiny_config, tiny_variables

from input_pipeline.batch import random_batch
from lbdt_jax.inference import predictor as predictor_module
from lbdt_jax.inference.predictor import BatchedPredictor, ModelInputs
from lbdt_jax.models.lbdt import LBDT, normalize_frames
from lbdt_jax.models.types import FramePairFeatures
from lbdt_jax.parallel import make_mesh
from lbdt_jax.step import make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

SENTENCES = (1, 5, 2, 7, 3)  # of each frame pair; up to more than are segmented at once


@pytest.fixture(scope="module")
def model() -> LBDT:
    return make_model(tiny_config())


@pytest.fixture(scope="module")
def examples() -> list[ModelInputs]:
    config = tiny_config()
    frames = random_batch(len(SENTENCES), config.image_size, config.max_words, WORD_VECTOR_SIZE)
    result = []
    for index, count in enumerate(SENTENCES):
        sentences = random_batch(count, (32, 32), config.max_words, WORD_VECTOR_SIZE, seed=1 + index)
        result.append(
            (frames["frame"][index], frames["earlier_frame"][index], sentences["words"], sentences["word_mask"])
        )
    return result


@pytest.fixture(scope="module")
def expected(model: LBDT, examples: list[ModelInputs]) -> list[np.ndarray]:
    """The logits of the plain forward pass, one sentence with one frame pair at a time."""
    forward = jax.jit(model.apply)
    return [
        np.concatenate(
            [
                forward(tiny_variables(), frame[None], earlier_frame[None], one_words[None], one_mask[None])
                for one_words, one_mask in zip(words, word_mask, strict=True)
            ]
        )
        for frame, earlier_frame, words, word_mask in examples
    ]


@pytest.mark.parametrize(("devices", "frames", "sentences"), [(1, 2, 3), (8, 1, 2)])
def test_logits_equal_the_plain_forward_pass(
    devices: int,
    frames: int,
    sentences: int,
    model: LBDT,
    examples: list[ModelInputs],
    expected: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predictor_module, "make_mesh", lambda _: make_mesh(jax.devices()[:devices]))
    predictor = BatchedPredictor(model, tiny_variables(), frames, sentences)
    encode_calls, segment_calls = [], []
    encode, segment = predictor._encode, predictor._segment
    predictor._encode = lambda variables, arrays: encode_calls.append(arrays) or encode(variables, arrays)
    predictor._segment = lambda *arguments: segment_calls.append(arguments) or segment(*arguments)

    results = predictor.segment(iter(range(len(examples))), lambda index: examples[index])
    for index, (item, logits) in enumerate(results):
        assert item == index
        assert logits.shape == (SENTENCES[index], 64, 64) and logits.dtype == np.float32
        np.testing.assert_allclose(logits, expected[index], rtol=0, atol=1e-5 * np.abs(expected[index]).max())
    assert index == len(examples) - 1

    # Each frame pair is encoded once and in order; the last batch is padded with the last pair.
    encoded = np.concatenate([np.asarray(arrays["frame"]) for arrays in encode_calls])
    order = np.minimum(np.arange(len(encoded)), len(examples) - 1)
    assert len(encoded) - len(examples) < devices * frames
    np.testing.assert_array_equal(encoded, np.stack([frame for frame, *_ in examples])[order])
    # `segment` runs as often as the device with the most sentences needs.
    rounds = {1: -(-6 // 3) + -(-9 // 3) + -(-3 // 3), 8: -(-7 // 2)}[devices]
    assert len(segment_calls) == rounds
    assert (encode._cache_size(), segment._cache_size()) == (1, 1)


def test_no_items_no_results(model: LBDT) -> None:
    assert list(BatchedPredictor(model, tiny_variables(), 1, 1).segment([], lambda item: item)) == []


def test_several_sentences_per_frame_equal_one_by_one(
    model: LBDT, examples: list[ModelInputs], expected: list[np.ndarray]
) -> None:
    frames, earlier_frames, words, word_mask = zip(examples[2], examples[1], strict=True)
    logits = jax.jit(model.apply)(
        tiny_variables(),
        np.stack(frames),
        np.stack(earlier_frames),
        np.concatenate([array[:2] for array in words]),
        np.concatenate([array[:2] for array in word_mask]),
    )
    expected_logits = np.concatenate([expected[2][:2], expected[1][:2]])
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-5 * np.abs(expected_logits).max())


def test_without_the_frame_difference_the_temporal_stream_reads_the_earlier_frame(
    model: LBDT, examples: list[ModelInputs]
) -> None:
    frame, earlier_frame = examples[0][0][None], examples[0][1][None]

    def temporal_res4(model: LBDT, method: str, *inputs: np.ndarray) -> np.ndarray:
        return np.asarray(model.apply(tiny_variables(), *inputs, method=method).temporal_res4)

    without = temporal_res4(model.clone(frame_difference=False), "encode", frame, earlier_frame)
    normalized = normalize_frames(frame), normalize_frames(earlier_frame)
    np.testing.assert_array_equal(without, temporal_res4(model, "encode_normalized", *normalized))
    assert not np.allclose(without, temporal_res4(model, "encode", frame, earlier_frame))


def test_features_for_sentences() -> None:
    features = FramePairFeatures(
        *(jnp.arange(3.0)[:, None] + 10 * number for number in range(2)), None, None, *[jnp.arange(3)] * 2
    )
    repeated = features.for_sentences(jnp.asarray([2, 0, 0, 1]))
    np.testing.assert_array_equal(repeated.temporal_res4[:, 0], [12, 10, 10, 11])
    np.testing.assert_array_equal(repeated.spatial_high_resolution, [2, 0, 0, 1])
    assert repeated.spatial_reduced is None
