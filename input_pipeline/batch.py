"""The contract between the input pipeline and the model: the fields of a batch.

    name             shape          dtype    meaning
    frame            (B/K, H, W, 3) uint8    RGB frame, resized to the model's input size (aspect ratio not kept)
    earlier_frame    (B/K, H, W, 3) uint8    a frame of the same video some frames before, resized alike
    words            (B, N, D)      float32  word vectors, zero for unknown words and padding; or the precomputed
                                             features of a frozen transformer
                  or (B, N)         int32    token ids, for a transformer that is part of the computation
    word_mask        (B, N)         bool     True for tokens, False for padding; at least one True per sample
    target           (B, H, W)      uint8    1 inside the object, 0 elsewhere (training only)
    name             (B,)           object   "video/frame/instance: sentence", for messages; stays on the host. The
                                             sentence of the dataset, also where augmentation has mirrored it

A batch has B samples, K of them on the same frame pair (K = 1 as published): sample i belongs to frame pair i // K.
H and W are multiples of 32. N is the number of tokens (25 as published), D the size of a word vector (300 as
published).
"""

from __future__ import annotations

import numpy as np

Batch = dict[str, np.ndarray]

#: The model's inputs, in the order of its arguments. Training adds `target`.
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
    """Returns a random batch that satisfies the contract, for initialization, tests and benchmarks.

    Args:
      batch_size: B, number of samples.
      image_size: (H, W) in pixels, multiples of 32.
      max_words: N, tokens per sentence including padding.
      word_vector_size: D, size of a word vector.
      seed: of the random numbers.
      sentences_per_frame: K, a divisor of B.
      vocabulary_size: number of tokens of a transformer. If positive, `words` are random token ids; if 0, random
        word vectors.

    Returns:
      All fields of the table above except `name`. Sentences have 1 to N tokens, targets are rectangles.
    """
    rng = np.random.default_rng(seed)
    height, width = image_size
    frames = rng.integers(0, 256, (2, batch_size // sentences_per_frame, height, width, 3), dtype=np.uint8)
    lengths = rng.integers(1, max_words + 1, batch_size)
    word_mask = np.arange(max_words) < lengths[:, None]
    words: np.ndarray
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
