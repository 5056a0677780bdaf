"""Types shared by the modules of the network."""

from __future__ import annotations

import jax
from flax import struct

Array = jax.Array


@struct.dataclass
class FramePairFeatures:
    """Features of B frame pairs of H x W pixels, before any sentence plays a part.

    Attributes:
      spatial_res4, temporal_res4: (B, H/16, W/16, C) outputs of res4 of both streams.
      spatial_reduced, temporal_reduced: (B, H/16, W/16, transfer width) the same, reduced for the first duplex
        transfer; None in a network without one.
      spatial_high_resolution, temporal_high_resolution: (B, H/4, W/4, decoder width) the decoders' sums over res2 and
        res3.
    """

    spatial_res4: Array
    temporal_res4: Array
    spatial_reduced: Array | None
    temporal_reduced: Array | None
    spatial_high_resolution: Array
    temporal_high_resolution: Array

    def for_sentences(self, frame_of_sentence: Array) -> FramePairFeatures:
        """One frame pair for each of S sentences: frame_of_sentence (S,) int32 is the index of its frame pair."""
        return jax.tree.map(lambda x: x[frame_of_sentence], self)
