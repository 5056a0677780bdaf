"""Types that several modules of the network share."""

from __future__ import annotations

import jax
from flax import struct

Array = jax.Array
#: Of a convolution, down and to the right; and zeros ((above, below), (left, right)) around what it sees.
Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]


@struct.dataclass
class FramePairFeatures:
    """What the network knows of a frame pair before it hears a sentence; B frame pairs of H x W pixels.

    Attributes:
      spatial_res4, temporal_res4: (B, H/16, W/16, C) outputs of res4.
      spatial_reduced, temporal_reduced: (B, H/16, W/16, width) the same, narrowed for the first duplex transfer;
        None in a network without transfer.
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
        """Repeats the features for S sentences; frame_of_sentence (S,) int32 tells which frame pair each is about."""
        return jax.tree.map(lambda x: x[frame_of_sentence], self)
