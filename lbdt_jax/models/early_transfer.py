"""Beyond the paper: language enters one stage earlier, `config.model.early_transfer_layers`.

LBDT's transfers work at strides 16 and 32. On small images and small objects, several objects then share one position,
and no transfer can tell them apart. This network has a third duplex transfer after res3, at stride 8. Everything else
is LBDT's, and so are the names of its parameters; those of the new transfer are in `duplex_transfer3`.

The price: res4 depends on the sentence, so it is computed again for each sentence about a frame pair.
"""

from __future__ import annotations

import jax.numpy as jnp

from lbdt_jax.models.duplex_transfer import DuplexTransfer
from lbdt_jax.models.image_encoder import output_channels
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.resize import upsample_and_sum
from lbdt_jax.models.types import Array, FramePairFeatures


class EarlyTransferLBDT(LBDT):
    """LBDT with a duplex transfer after res3 as well.

    Attributes:
      early_transfer_layers: number of bridges after res3, at least 1; `transfer_layers` are those after res4 and res5.
      The others: see LBDT.
    """

    early_transfer_layers: int = 1

    def setup(self) -> None:
        super().setup()
        _, res3, _, _ = output_channels(self.encoder, self.resnet_depth, self.stream_width)
        self.duplex_transfer3 = DuplexTransfer(
            self.early_transfer_layers,
            self.transfer_width,
            self.attention_heads,
            self.dropout,
            res3,
            self.rematerialise,
            norm_axis_name=self.norm_axis_name,
            dtype=self.dtype,
        )

    def encode_normalized(self, frame: Array, motion: Array, train: bool = False) -> FramePairFeatures:
        """As `LBDT.encode_normalized`, but only up to res3."""
        spatial_res2, spatial_res3 = self.spatial_stream.stem_to_res3(frame, train)
        temporal_res2, temporal_res3 = self.temporal_stream.stem_to_res3(motion, train)
        spatial_reduced, temporal_reduced = self.duplex_transfer3.reduce(spatial_res3, temporal_res3, train)
        return FramePairFeatures(
            spatial_res4=None,
            temporal_res4=None,
            spatial_res3=spatial_res3,
            temporal_res3=temporal_res3,
            spatial_reduced=spatial_reduced,
            temporal_reduced=temporal_reduced,
            spatial_high_resolution=self.spatial_decoder.res2_branch(spatial_res2, train),
            temporal_high_resolution=self.temporal_decoder.res2_branch(temporal_res2, train),
        )

    def segment(
        self,
        features: FramePairFeatures,
        words: Array,
        word_mask: Array,
        image_mask: Array | None = None,
        train: bool = False,
    ) -> Array:
        """As `LBDT.segment`."""
        word_features, sentence = self.text_encoder(words, word_mask, train)
        # At strides 8 and 16 the mask is repeated end to end, as in LBDT.
        res3_mask, res4_mask = (None if image_mask is None else jnp.tile(image_mask, (1, times)) for times in (16, 4))

        def transfer(
            duplex_transfer: DuplexTransfer, spatial: Array, temporal: Array, mask: Array | None
        ) -> tuple[Array, Array]:
            reduced = duplex_transfer.reduce(spatial, temporal, train)
            return duplex_transfer(spatial, temporal, *reduced, word_features, word_mask, mask, train)

        assert features.spatial_res3 is not None and features.temporal_res3 is not None
        assert features.spatial_reduced is not None and features.temporal_reduced is not None
        spatial_res3, temporal_res3 = self.duplex_transfer3(
            features.spatial_res3,
            features.temporal_res3,
            features.spatial_reduced,
            features.temporal_reduced,
            word_features,
            word_mask,
            res3_mask,
            train,
        )
        spatial_res4 = self.spatial_stream.res4(spatial_res3, train)
        temporal_res4 = self.temporal_stream.res4(temporal_res3, train)
        if self.transfer_layers:
            spatial_res4, temporal_res4 = transfer(self.duplex_transfer4, spatial_res4, temporal_res4, res4_mask)
        spatial_res5 = self.spatial_stream.res5(spatial_res4, train)
        temporal_res5 = self.temporal_stream.res5(temporal_res4, train)
        if self.transfer_layers:
            spatial_res5, temporal_res5 = transfer(self.duplex_transfer5, spatial_res5, temporal_res5, image_mask)

        spatial_res3 = upsample_and_sum([(self.spatial_decoder.res3_branch(spatial_res3, train), 2)])
        temporal_res3 = upsample_and_sum([(self.temporal_decoder.res3_branch(temporal_res3, train), 2)])
        spatial = self.spatial_decoder(
            features.spatial_high_resolution + spatial_res3, spatial_res4, spatial_res5, train
        )
        temporal = self.temporal_decoder(
            features.temporal_high_resolution + temporal_res3, temporal_res4, temporal_res5, train
        )
        return self.head(self.bilateral_channel_activation(spatial, temporal, sentence, train), train)
