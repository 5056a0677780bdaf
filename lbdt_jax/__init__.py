"""Referring video object segmentation in JAX: a video and a sentence go in, the mask of that object comes out.

model = lbdt_jax.load("runs/shapes")
masks, scores = model.segment(frames, ["the red circle moving left"])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbdt_jax.segmenter import Segmenter


def load(checkpoint: str | Path, word_vectors: str = "") -> Segmenter:
    """Loads a trained or converted model, ready to segment; see `lbdt_jax.segmenter.Segmenter`.

    Args:
      checkpoint: a checkpoint's folder, or WORKDIR for the newest one in it.
      word_vectors: where words are looked up that the checkpoint does not hold: a GloVe text file or a package's name;
        "" tries the source that the model was trained with, and goes without where it is not there.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken.
    """
    # Imported late, so that `import lbdt_jax` takes no time.
    from lbdt_jax.checkpoint import load_checkpoint
    from lbdt_jax.segmenter import Segmenter

    return Segmenter(load_checkpoint(checkpoint), word_vectors)
