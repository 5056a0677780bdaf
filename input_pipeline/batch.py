"""The contract between the input pipeline and the model: what one batch holds.

    name             shape          dtype    meaning
    frame            (B/K, H, W, 3) uint8    RGB frame, resized to the model's size (aspect not kept)
    earlier_frame    (B/K, H, W, 3) uint8    the same video a few frames before, resized alike
    words            (B, N, D)      float32  word vectors; unknown words and padding are zero. Of a frozen transformer
                                             text encoder: its features
                  or (B, N)         int32    ids of the tokens, for a transformer that is run
    word_mask        (B, N)         bool     True for a token; every sample has at least one
    target           (B, H, W)      uint8    1 where the object is (training only)
    name             (B,)           object   "video/frame/instance: sentence", for messages; stays on the host

B samples, K of them about the same frame pair (1 as published): sample i is about frame pair i // K. H and W are
multiples of 32; N tokens (25 as published), D numbers per word vector (300 as published).
"""

from __future__ import annotations

import numpy as np

Batch = dict[str, np.ndarray]

#: What the model reads, in the order of its arguments; `target` joins them in training.
MODEL_FIELDS = ("frame", "earlier_frame", "words", "word_mask")


def random_batch(
    batch_size: int,
    image_size: tuple[int, int] = (320, 320),
    max_words: int = 25,
    word_vector_size: int = 300,
    seed: int = 0,
    sentences_per_frame: int = 1,
    vocabulary_size: int = 0,
) -> Batch:
    """A batch of noise that keeps the contract: for initialisation, tests and benchmarks.

    Args:
      batch_size: B, samples.
      image_size: (H, W) in pixels, multiples of 32.
      max_words: N, tokens per sentence, padding included.
      word_vector_size: D, numbers per word vector.
      seed: of the noise.
      sentences_per_frame: K, a divisor of B.
      vocabulary_size: of a transformer's tokenizer; above 0, words are ids below it.

    Returns:
      Every field of the table above but `name`; sentences have 1 to N tokens, targets are boxes.
    """
    rng = np.random.default_rng(seed)
    height, width = image_size
    frames = rng.integers(0, 256, (2, batch_size // sentences_per_frame, height, width, 3), dtype=np.uint8)
    lengths = rng.integers(1, max_words + 1, batch_size)
    word_mask = np.arange(max_words) < lengths[:, None]
    if vocabulary_size:
        words = rng.integers(vocabulary_size, size=(batch_size, max_words), dtype=np.int32) * word_mask
    else:
        words = 0.4 * rng.standard_normal((batch_size, max_words, word_vector_size), dtype=np.float32)
        words *= word_mask[..., None]
    target = np.zeros((batch_size, height, width), np.uint8)
    for sample, (top, left) in enumerate(rng.random((batch_size, 2)) * 0.5):
        rows = slice(int(top * height), int((top + 0.4) * height))
        target[sample, rows, int(left * width) : int((left + 0.4) * width)] = 1
    return {
        "frame": frames[0],
        "earlier_frame": frames[1],
        "words": words,
        "word_mask": word_mask,
        "target": target,
    }
