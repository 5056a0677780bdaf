"""The image encoders that a stream can be: `config.model.encoder`.

An image encoder is a module with `stem_to_res4(x, train)`, which turns a picture (B, H, W, 3) into res2, res3 and res4
at strides 4, 8 and 16, and `res5(x, train)`, which turns res4 into res5 at stride 32. They are apart since the first
duplex transfer is between them. To add one, write such a module and its lines here and in lbdt_jax/config.py.
"""

from __future__ import annotations

from lbdt_jax.models import convnext, resnet
from lbdt_jax.models.convnext import CONVNEXTS, ConvNeXt
from lbdt_jax.models.resnet import ResNet


def make_encoder(
    name: str, resnet_depth: int, width: int, rematerialise: bool, norm_axis_name: str | None, dtype: str
) -> ResNet | ConvNeXt:
    """One stream. The arguments are those of LBDT; ConvNeXt has no batch statistics, and no `resnet_depth`."""
    if name in CONVNEXTS:
        return ConvNeXt(name, width, rematerialise, dtype)
    return ResNet(resnet_depth, width, rematerialise, norm_axis_name, dtype)


def output_channels(name: str, resnet_depth: int, width: int) -> tuple[int, int, int, int]:
    """Channels of res2..res5; the arguments are those of LBDT."""
    if name in CONVNEXTS:
        return convnext.output_channels(name, width)
    return resnet.output_channels(resnet_depth, width)
