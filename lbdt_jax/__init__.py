"""Referring video object segmentation in JAX: given a video and a sentence, predict the mask of that object.

    import lbdt_jax

    model = lbdt_jax.load()  # the small model in the package; or lbdt_jax.load("runs/mine")
    masks, scores = model.segment(frames, ["the red circle moving left", "the blue square"], rate=12)

`frames` are T frames (h, w, 3) uint8 RGB at 12 frames per second; `masks` (T, 2, h, w) bool, one for each frame and
sentence; `scores` (T, 2) the mean probability of each mask's pixels. For videos that don't fit into memory:

    timed_frames = ((index / 12, frame) for index, frame in enumerate(frames))  # (seconds, frame)
    for segmentation in model.segment_frame_pairs(model.frame_pairs(timed_frames), sentences):
        segmentation.frame_pair.time, segmentation.masks, segmentation.scores

`model.explain(frame_pair, sentence)` returns the attention maps behind a mask.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lbdt_jax.inference.segmenter import Segmenter

#: A small model of Moving Shapes; its folder also has the commands that made it, and its scores.
DEFAULT_CHECKPOINT = Path(__file__).parent / "pretrained"


def load(checkpoint: str | Path = DEFAULT_CHECKPOINT, word_vectors: str = "") -> Segmenter:
    """Loads a trained or converted model.

    Args:
      checkpoint: a checkpoint's folder, WORKDIR for the newest one in it, WORKDIR/best for the best; or OWNER/NAME, a
        repository of the Hugging Face Hub, at a revision OWNER/NAME@REVISION. The default is a small model of colored
        shapes, which knows nothing else. A leading ~ is the home folder, as in word_vectors.
      word_vectors: where to look up words that the checkpoint has no vectors of: a GloVe text file or a package's name.
        "" tries the word vectors of the training, and does without if they are not there. A model with a transformer as
        text encoder uses none.

    Returns:
      The model, with the methods `segment`, `frame_pairs`, `segment_frame_pairs` and `explain`; see
      `lbdt_jax.inference.segmenter.Segmenter`.

    Raises:
      CheckpointError: there is no checkpoint, or it is broken.
      UserError: word vectors are given for a model that uses none; or a repository can't be downloaded.
    """
    # Imported here, so that `import lbdt_jax` takes no time.
    from input_pipeline.files import expand_home
    from lbdt_jax.checkpoint import load_checkpoint
    from lbdt_jax.hub import locate_checkpoint
    from lbdt_jax.inference.segmenter import Segmenter

    return Segmenter(load_checkpoint(locate_checkpoint(checkpoint)), expand_home(word_vectors or ""))
