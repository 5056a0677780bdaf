"""Referring video object segmentation in JAX: a video and a sentence go in, the mask of that object comes out.

model = lbdt_jax.load()  # the small model of coloured shapes that is in the package; or load("runs/mine")
masks, scores = model.segment(frames, ["the red circle moving left"])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbdt_jax.inference.segmenter import Segmenter

#: A small model of Moving Shapes, and beside it the commands that made it and its scores.
DEFAULT_CHECKPOINT = Path(__file__).parent / "pretrained"


def load(checkpoint: str | Path = DEFAULT_CHECKPOINT, word_vectors: str = "") -> Segmenter:
    """Loads a trained or converted model, ready to segment; see `lbdt_jax.inference.segmenter.Segmenter`.

    Args:
      checkpoint: a checkpoint's folder, or WORKDIR for the newest one in it; by default one that knows a few coloured
        shapes and how they move, and nothing else.
      word_vectors: where words are looked up that the checkpoint does not hold: a GloVe text file or a package's name;
        "" tries the source that the model was trained with, and goes without where it is not there. A model with a
        transformer as text encoder needs none.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken.
      UserError: word vectors are given for a model that reads none.
    """
    # Imported late, so that `import lbdt_jax` takes no time.
    from lbdt_jax.checkpoint import load_checkpoint
    from lbdt_jax.inference.segmenter import Segmenter

    return Segmenter(load_checkpoint(checkpoint), word_vectors)
