"""The library: frames and sentences in, masks out (lbdt_jax/inference/segmenter.py)."""

from __future__ import annotations

import dataclasses
import time
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from clips import SENTENCES, numbered_frame, tiny_checkpoint, tiny_segmenter
from PIL import Image
from tiny import tiny_config

import lbdt_jax
from input_pipeline.errors import UserError
from input_pipeline.images import resize_frame
from input_pipeline.text.word_vectors import WordVectors
from lbdt_jax.checkpoint import Checkpoint, CheckpointError
from lbdt_jax.inference import segmenter as segmenter_module
from lbdt_jax.inference.segmenter import LazyFrame, Segmenter, TimedFramePair
from lbdt_jax.metrics import resize_logits
from lbdt_jax.step import make_model

pytestmark = pytest.mark.usefixtures("fast_compilation")

SMALL_FRAMES = np.zeros((2, 8, 8, 3), np.uint8)


def with_config(checkpoint: Checkpoint, **changes: object) -> Checkpoint:
    config = checkpoint.config.copy_and_resolve_references()
    config.update(changes)
    return dataclasses.replace(checkpoint, config=config)


@pytest.mark.parametrize(("rate", "interval"), [(30, 6), (60, 12), (15, 3), (10, 2), (2, 0)])
def test_earlier_frame_is_a_fifth_of_a_second_before(rate: int, interval: int) -> None:
    segmenter = tiny_segmenter()
    assert segmenter.seconds_between == 0.2  # 6 frames at 30 per second, as published
    frame_pairs = list(segmenter.frame_pairs((index / rate, numbered_frame(index)) for index in range(20)))
    assert [frame_pair.index for frame_pair in frame_pairs] == list(range(20))
    for frame_pair in frame_pairs:
        # At 2 frames per second, the frame before is farther from 0.2 s than the frame itself.
        earlier = max(frame_pair.index - interval, 0)
        np.testing.assert_array_equal(frame_pair.earlier_frame.original, numbered_frame(earlier))
        np.testing.assert_array_equal(frame_pair.earlier_frame.resized, resize_frame(numbered_frame(earlier), (64, 64)))
        np.testing.assert_array_equal(
            frame_pair.frame.resized, resize_frame(numbered_frame(frame_pair.index), (64, 64))
        )


def test_an_array_that_is_filled_again_is_copied() -> None:
    def decode() -> Iterator[tuple[float, np.ndarray]]:
        buffer = numbered_frame(0)
        for index in range(10):
            buffer[:] = numbered_frame(index)
            yield index / 10, buffer

    for index, pair in enumerate(tiny_segmenter().frame_pairs(decode())):
        np.testing.assert_array_equal(pair.earlier_frame.original, numbered_frame(max(index - 2, 0)))


def test_memory_is_limited_at_any_frame_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: weakref.WeakSet[LazyFrame] = weakref.WeakSet()

    class CountedFrame(LazyFrame):
        def __init__(self, original: np.ndarray, size: tuple[int, int]) -> None:
            super().__init__(original, size)
            kept.add(self)

    monkeypatch.setattr("lbdt_jax.inference.segmenter.LazyFrame", CountedFrame)
    monkeypatch.setattr("lbdt_jax.inference.segmenter.MAX_RECENT_BYTES", 100 * 3)
    frames = ((index / 10_000, np.full((1, 1, 3), index // 100, np.uint8)) for index in range(6000))
    for frame_pair in tiny_segmenter().frame_pairs(frames):
        assert len(kept) <= 104
        brightness = [int(frame.original[0, 0, 0]) for frame in (frame_pair.frame, frame_pair.earlier_frame)]
        assert abs(brightness[0] - brightness[1] - min(20, brightness[0])) <= 1  # 0.2 s are 2000 frames


@pytest.mark.parametrize(("rate", "interval"), [(None, 6), (15, 3)])
def test_segment_is_the_model_on_every_frame(rate: float | None, interval: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 48, 64, 3), dtype=np.uint8)
    masks, scores = tiny_segmenter().segment(frames, SENTENCES, rate=rate)
    assert masks.shape == (9, 2, 48, 64) and masks.dtype == bool and scores.shape == (9, 2)

    # The plain forward pass on all 18 pairs of a frame and a sentence.
    encoded = [tiny_checkpoint().sentence_encoder.encode(sentence, 5) for sentence in SENTENCES]
    words, word_mask = (np.stack(arrays * 9) for arrays in zip(*encoded, strict=True))
    resized = np.stack([resize_frame(frame, (64, 64)) for frame in frames])
    index = np.arange(9).repeat(2)
    forward = jax.jit(make_model(tiny_config()).apply)
    logits = np.asarray(
        forward(tiny_checkpoint().variables, resized[index], resized[np.maximum(index - interval, 0)], words, word_mask)
    )
    for expected, mask, score in zip(logits, masks.reshape(18, 48, 64), scores.reshape(18), strict=True):
        upsampled = resize_logits(expected, (48, 64))
        clear = np.abs(upsampled) > 1e-4
        np.testing.assert_array_equal(mask[clear], upsampled[clear] > 0)
        probability = 1 / (1 + np.exp(-expected[expected > 0]))
        assert score == pytest.approx(probability.mean() if probability.size else 0, abs=1e-4)
    assert 0 < masks.mean() < 1


@pytest.mark.parametrize(
    ("frames", "sentences", "message"),
    [
        (SMALL_FRAMES[..., 0], ["the dog"], "Frame 0 is uint8 of shape"),
        (SMALL_FRAMES.astype(np.float32), ["the dog"], "Frame 0 is float32"),
        ([SMALL_FRAMES[0], np.zeros((8, 9, 3), np.uint8)], ["the dog"], "Frame 1 has shape"),
        (SMALL_FRAMES[:0], ["the dog"], "no frame"),
        (SMALL_FRAMES, ["the dog", " "], "Sentence 2 is empty"),
        (SMALL_FRAMES, [], "list of sentences"),
        (SMALL_FRAMES, "the dog", "list of sentences"),
        (SMALL_FRAMES, np.array("the dog"), "list of sentences"),
        ([Image.new("YCbCr", (8, 8))], ["the dog"], "Frame 0 is a picture of mode YCbCr"),
    ],
)
def test_invalid_input_is_explained(frames: Any, sentences: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_segmenter().segment(frames, sentences)


def test_what_is_no_frame_pair_is_explained() -> None:
    segmenter = tiny_segmenter()
    timed_frames: Any = [(0.0, SMALL_FRAMES[0])]
    for segment in (
        lambda: list(segmenter.segment_frame_pairs(timed_frames, SENTENCES)),
        lambda: segmenter.explain(timed_frames[0], SENTENCES[0]),
    ):
        with pytest.raises(UserError, match="Expected a frame pair"):
            segment()


@pytest.mark.parametrize("rate", [Fraction(100), np.float16(100), np.uint8(100)])
def test_rates_of_other_types(rate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    def no_frame_pairs(frames: Iterable[tuple[float, np.ndarray]]) -> Iterator[TimedFramePair]:
        times.extend(time for time, _ in frames)
        return iter(())

    segmenter = tiny_segmenter()
    monkeypatch.setattr(segmenter, "frame_pairs", no_frame_pairs)
    with pytest.raises(UserError, match="no frame"):
        segmenter.segment(np.zeros((1001, 1, 1, 3), np.uint8), SENTENCES, rate)
    assert times == [index / 100 for index in range(1001)]  # half precision has 1/128 s at 10 s


# -- words without a vector in the checkpoint


def test_words_without_a_vector_are_looked_up() -> None:
    # The source of the word vectors in training, random:6, has a vector for every word.
    segmenter = tiny_segmenter()
    assert segmenter.unknown_words(["the purple dog"]) == []
    words, word_mask = segmenter.encode(["the purple dog"])
    assert word_mask.sum() == 3 and np.abs(words[0, :3]).min() > 0


def test_each_word_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = []
    monkeypatch.setattr(
        "lbdt_jax.inference.segmenter.extend",
        lambda word_vectors, source, words: lookups.append(sorted(words)) or word_vectors,
    )
    monkeypatch.setattr("lbdt_jax.inference.segmenter.check_fits", lambda _: None)  # slow, and tested below
    segmenter = lbdt_jax.load(word_vectors="glove.txt")
    for _ in range(3):
        segmenter.encode(["the circle, running"])
    assert lookups == [[", ", "running"]]


def test_threads_look_up_words_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbdt_jax.inference.segmenter.check_fits", lambda _: None)  # slow, and tested below
    extend, segmenter = segmenter_module.extend, Segmenter(tiny_checkpoint())

    def extend_slowly(trained: WordVectors, source: str, words: Iterable[str]) -> WordVectors:
        time.sleep(0.05)
        return extend(trained, source, words)

    monkeypatch.setattr(segmenter_module, "extend", extend_slowly)
    words = ["purple", "orange", "brown", "white"]
    with ThreadPoolExecutor(len(words)) as threads:
        list(threads.map(lambda word: segmenter.encode([word]), words))
    assert segmenter.unknown_words(words) == []
    for word in words:
        np.testing.assert_array_equal(segmenter.encode([word])[0], Segmenter(tiny_checkpoint()).encode([word])[0])


def test_unknown_words_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbdt_jax.inference.segmenter.check_fits", lambda _: None)  # slow, and tested below
    checkpoint = with_config(tiny_checkpoint(), word_vectors="no/such/file")
    segmenter = Segmenter(checkpoint)
    assert segmenter.unknown_words(["the purple dog"]) == ["purple"]
    with pytest.raises(UserError, match="list of sentences"):
        segmenter.unknown_words("purple")  # and not its letters
    with pytest.raises(UserError, match="knows no word of sentence 2, '一只狗'.*no/such/file; --word_vectors"):
        segmenter.encode(["the dog", "一只狗"])
    with pytest.raises(UserError, match="no/such/other: no such file"):
        Segmenter(checkpoint, "no/such/other").encode(["the purple dog"])
    with pytest.raises(UserError, match="other word vectors"):
        Segmenter(checkpoint, "random:7").encode(["the purple dog"])


def test_checkpoint_that_does_not_fit_its_configuration() -> None:
    config = tiny_config()
    config.model.transfer_layers = 2
    with pytest.raises(CheckpointError, match="another version of lbdt_jax: .*bridges_1.* is missing"):
        Segmenter(dataclasses.replace(tiny_checkpoint(), config=config))
