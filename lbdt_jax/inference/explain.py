"""Attention maps and channel gates behind a predicted mask, as numpy arrays.

`lbdt_jax.visualization.attention` draws them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lbdt_jax.inference.predictor import check_finite
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.types import Array

STREAMS = ("spatial", "temporal")  # the order of the duplex transfer's leading axis


@dataclasses.dataclass(frozen=True)
class BridgeAttention:
    """The attention of one layer of the duplex transfer in one direction (section 3.2), averaged over the heads.

    The names are those of `LanguageBridge`. The feature map has h x w positions: one for each 16 x 16 pixels in stage
    4, and for each 32 x 32 in stage 5. Padding among the N words has weight 0 as a key; as a query it has weights too,
    but nothing uses them.

    Attributes:
      stage: 4 or 5, the ResNet stage before the transfer.
      layer: counted from 1.
      source, target: "spatial" and "temporal", or the other way round.
      words_to_words: (N, N) weights of each word (row) over all words; rows sum to 1. Equal in both directions.
      words_from_source: (N, h, w) weights of each word over the source stream; sums to 1 over h and w.
      target_from_words: (h, w, N) weights of each position of the target stream over the words; sums to 1 over N.
    """

    stage: int
    layer: int
    source: str
    target: str
    words_to_words: np.ndarray
    words_from_source: np.ndarray
    target_from_words: np.ndarray


@dataclasses.dataclass(frozen=True)
class ChannelGates:
    """The gates of one stream in the Bilateral Channel Activation (section 3.3); their product scales its channels.

    Attributes:
      language: (C,) in (0, 1), from the sentence and the stream.
      enhance: (C,) in (0, 1), from both streams.
    """

    language: np.ndarray
    enhance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The attention and gates behind the mask of one sentence in one frame.

    Attributes:
      logits: (H, W) float32; positive means object.
      bridges: by stage, layer and target, the spatial one first; empty in a network without duplex transfer.
      gates: by stream, "spatial" and "temporal"; empty in a network without channel gates.
    """

    logits: np.ndarray
    bridges: tuple[BridgeAttention, ...]
    gates: dict[str, ChannelGates]


def explain(
    model: LBDT,
    variables: dict[str, Any],
    frame: np.ndarray,
    earlier_frame: np.ndarray,
    words: np.ndarray,
    word_mask: np.ndarray,
) -> Explanation:
    """Segments one sentence in one frame pair, and keeps its attention and gates. Compiled once per model and size.

    Args:
      model: the network.
      variables: {"params", "batch_stats"}.
      frame, earlier_frame: (H, W, 3) uint8 RGB, H and W multiples of 32.
      words: (N, D) float32 or (N,) int32, see `input_pipeline.batch`.
      word_mask: (N,) bool, True for a token.

    Raises:
      UserError: a logit is infinite or not a number.
    """
    batch = (x[None] for x in (frame, earlier_frame, words, word_mask))
    logits, collections = _forward(model, variables, *batch)
    check_finite(np.asarray(logits))
    return collect(logits, collections, 0)


@functools.partial(jax.jit, static_argnames="model")
def _forward(model: LBDT, variables: dict[str, Any], *batch: Array) -> Any:
    return model.apply(variables, *batch, mutable=["attention"])


def collect(logits: Array, collections: Mapping[str, Any], sample: int) -> Explanation:
    """Arranges the values that the modules sowed during a forward pass.

    Args:
      logits: (B, H, W).
      collections: the variables that `LBDT.apply` returns if the collection "attention" is mutable.
      sample: index in the batch.
    """
    attention = collections.get("attention", {})
    height, width = logits.shape[1:]
    bridges = []
    for stage, stride in ((4, 16), (5, 32)):
        layers = attention.get(f"duplex_transfer{stage}", {})
        size = height // stride, width // stride
        for layer in range(len(layers)):
            weights = {
                # Before attending to the source, the words are the same in both directions: their axis has length 1.
                name: np.broadcast_to(value["weights"][0], (2, *value["weights"][0].shape[1:]))[:, sample]
                for name, value in layers[f"bridges_{layer}"].items()
            }
            bridges += [
                BridgeAttention(
                    stage,
                    layer + 1,
                    STREAMS[1 - direction],
                    target,
                    weights["words_to_words"][direction],
                    weights["words_from_source"][direction].reshape(-1, *size),
                    weights["target_from_words"][direction].reshape(*size, -1),
                )
                for direction, target in enumerate(STREAMS)
            ]
    gates = {
        stream: ChannelGates(*(np.asarray(gate[sample], np.float32) for gate in pair))
        for activation in attention.get("bilateral_channel_activation", {}).get("gates", ())
        for stream, pair in activation.items()
    }
    return Explanation(np.asarray(logits[sample]), tuple(bridges), gates)
