"""A tiny checkpoint and clips for the tests of lbdt_jax.demo."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np
from tiny import STEPS_PER_EPOCH, tiny_config, tiny_variables

from input_pipeline.text.word_vectors import load_word_vectors
from lbdt_jax.checkpoint import CheckpointWriter
from lbdt_jax.demo.checks import Limits
from lbdt_jax.optimizer import make_optimizer
from lbdt_jax.parallel import make_mesh, replicate
from lbdt_jax.step import initial_state

LIMITS = Limits(seconds=1.0, megabytes=0.1, sentences=3)
TEXT = "the red dog\n\n  a black   cat "


def write_checkpoint(folder: Path) -> Path:
    """Writes an untrained model; the seed is one whose masks are neither empty nor full. Returns the folder."""
    config = tiny_config()
    config.word_vectors = "no/such/vectors"  # so that all other words are unknown
    vectors = load_word_vectors("random:6", {"the", "red", "dog", "a", "black", "cat"})
    with CheckpointWriter(folder / "checkpoints", 1) as writer:
        state = initial_state(tiny_variables(seed=3), make_optimizer(config, STEPS_PER_EPOCH))
        writer.save(replicate(state, make_mesh(jax.devices()[:1])), config, vectors)
    return folder


def write_clip(
    path: Path, times: Sequence[int] = range(6), size: tuple[int, int] = (48, 64), aspect: Fraction = Fraction(1)
) -> Path:
    """Writes a clip of noise that brightens, with a red upper left corner. Returns the path.

    Args:
      path: of the new file; its suffix determines the format.
      times: times of the frames, in units of 1/24 s.
      size: (h, w) in pixels.
      aspect: width of a pixel divided by its height.
    """
    rng = np.random.default_rng(0)
    codec, pixel_format = {".gif": ("gif", "rgb8")}.get(path.suffix, ("libx264", "yuv420p"))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width = size
        stream.pix_fmt = pixel_format
        stream.codec_context.sample_aspect_ratio = aspect
        for index, time in enumerate(times):
            image = np.full((*size, 3), 30 + 8 * index % 200, np.uint8) + rng.integers(0, 9, (*size, 3), dtype=np.uint8)
            image[: size[0] // 4, : size[1] // 4] = (220, 30, 30)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 24)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
