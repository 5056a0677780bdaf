"""The two programs as functions of weights and inputs, and the shapes of these: what every format is made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.models.types import Array, FramePairFeatures
from lbdt_jax.step import make_model


@dataclasses.dataclass(frozen=True)
class Program:
    """One program before it is compiled or translated.

    Attributes:
      function: (weights, *inputs) -> output; all of them dictionaries of arrays by name, but the logits.
      weights: shapes and dtypes of all variables, by name.
      inputs: shapes and dtypes, with the symbolic dimensions B (frame pairs) and S (sentences).
    """

    function: Callable[..., Any]
    weights: dict[str, jax.ShapeDtypeStruct]
    inputs: tuple[dict[str, jax.ShapeDtypeStruct], ...]


def make_programs(checkpoint: Checkpoint) -> dict[str, Program]:
    """`encode` and `segment`.

    "encode": (weights, {"frame", "earlier_frame"}: (B, H, W, 3) uint8) -> features, by the names of
      `FramePairFeatures`, each (B, ...).
    "segment": (weights, features, {"words": (S, N, D) float32 or (S, N) int32, "word_mask": (S, N) bool,
      "frame_of_sentence": (S,) int32 in [0, B)}) -> logits (S, H, W) float32, positive in the object.
    The weights of both are all variables, {name: array}, as from `flat_weights`.
    """
    model = make_model(checkpoint.config)

    def encode(weights: dict[str, Array], frames: dict[str, Array]) -> dict[str, Array]:
        variables = unflatten_dict(weights, "/")
        features: Any = model.apply(variables, frames["frame"], frames["earlier_frame"], method="encode")
        named = {field.name: getattr(features, field.name) for field in dataclasses.fields(features)}
        return {name: value for name, value in named.items() if value is not None}

    def segment(weights: dict[str, Array], features: dict[str, Array], sentences: dict[str, Array]) -> Array:
        variables = unflatten_dict(weights, "/")
        all_features: dict[str, Any] = {field.name: None for field in dataclasses.fields(FramePairFeatures)} | features
        repeated = FramePairFeatures(**all_features).for_sentences(sentences["frame_of_sentence"])
        words, word_mask = sentences["words"], sentences["word_mask"]
        logits: Any = model.apply(variables, repeated, words, word_mask, method="segment")
        return logits

    frame_pair_count, sentence_count = export.symbolic_shape("B, S")
    frame = jax.ShapeDtypeStruct((frame_pair_count, *checkpoint.config.image_size, 3), np.uint8)
    frames = {"frame": frame, "earlier_frame": frame}
    shape, size = (sentence_count, checkpoint.config.max_words), checkpoint.sentence_encoder.size
    sentences = {
        "words": jax.ShapeDtypeStruct(shape, np.int32)
        if model.transformer
        else jax.ShapeDtypeStruct((*shape, size), np.float32),
        "word_mask": jax.ShapeDtypeStruct(shape, bool),
        "frame_of_sentence": jax.ShapeDtypeStruct((sentence_count,), np.int32),
    }
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in flat_weights(checkpoint).items()}
    features = jax.eval_shape(encode, weights, frames)
    return {
        "encode": Program(encode, weights, (frames,)),
        "segment": Program(segment, weights, (features, sentences)),
    }


def flat_weights(checkpoint: Checkpoint) -> dict[str, Array]:
    """The checkpoint's variables by name, "params/head/project/bias"."""
    return flatten_dict(checkpoint.variables, sep="/")
