"""HDR, wide gamuts and transparency become what an SDR display shows (input_pipeline/colors.py)."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from lbdt_jax.inference.video import open_clip

NITS = np.array([0, 5, 20, 80, 203, 600, 1000.0])
PQ, HLG = ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67


def encode_nits(transfer: ColorTrc) -> np.ndarray:
    """The signal of gray patches: SMPTE ST 2084, or ITU-R BT.2100's HLG on a display of 1000 nits."""
    if transfer == PQ:
        power = (NITS / 10_000) ** (2610 / 16384)
        return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    scene = (NITS / 1000) ** (1 / 1.2)
    logarithm = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), logarithm)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_tone_mapped(tmp_path: Path, transfer: ColorTrc) -> None:
    luma = np.round(64 + 876 * encode_nits(transfer)).astype(np.uint16).repeat(16)[None].repeat(16, axis=0)
    frame = av.VideoFrame(luma.shape[1], 16, "yuv420p10le")
    for plane, values in zip(frame.planes, [luma, *2 * [np.full((8, luma.shape[1] // 2), 512)]], strict=True):
        content = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        content[:, : values.shape[1]] = values
        plane.update(content.tobytes())
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, luma.shape[1], "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries = transfer, ColorPrimaries.BT2020
        context.colorspace, context.color_range = Colorspace.BT2020, ColorRange.MPEG
        for time in range(2):
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    warnings: list[str] = []
    shown = [image for _, image in open_clip(tmp_path / "a.mkv", warn=warnings.append)][1][8, 8::16].astype(int)
    assert np.abs(shown - shown[:, :1]).max() <= 2  # gray stays gray
    # Below the knee, luminance is kept: as on an SDR display whose white is the reference white, of 203 nits.
    assert shown[:4, 0] == pytest.approx(255 * (NITS[:4] / 203) ** (1 / 2.4), abs=6)
    assert 215 < shown[4, 0] < 240 and shown[4, 0] < shown[5, 0] < 252 and 245 < shown[6, 0]
    assert [f"HDR video ({'PQ' if transfer == PQ else 'HLG'})" in warning for warning in warnings] == [True]
