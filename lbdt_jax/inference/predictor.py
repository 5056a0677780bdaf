"""Batched prediction over all local devices: each frame pair is encoded once, however many sentences it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import PartitionSpec

from input_pipeline.errors import UserError
from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.types import Array, FramePairFeatures
from lbdt_jax.parallel import DATA_AXIS, make_mesh, replicate, shard_batch

Item = TypeVar("Item")

#: frame and earlier_frame: (H, W, 3) uint8 RGB. words: (S, N, D) float32 or (S, N) int32, and word_mask: (S, N) bool,
#: see `input_pipeline.batch`, of S sentences.
ModelInputs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class _SentenceIndex(NamedTuple):
    """Which sentence of which frame pair of a batch."""

    frame_pair: int
    sentence: int


def check_finite(logits: np.ndarray) -> np.ndarray:
    """Returns the logits. Raises UserError if one is infinite or not a number: such masks would mean nothing."""
    if not np.isfinite(logits).all():
        raise UserError(
            "The model's output is not finite (NaN or infinite): its weights are damaged, or its training diverged, or "
            "they are too large for bfloat16. Use an earlier checkpoint, or convert or download it again."
        )
    return logits


class BatchedPredictor:
    """Runs a model on any number of frame pairs and sentences.

    Batches are padded to two fixed sizes, so that `encode` and `segment` are compiled once each.

    Args:
      model: the network.
      variables: {"params", "batch_stats"}.
      frames: frame pairs encoded at once on each device.
      sentences: sentences segmented at once on each device.
    """

    def __init__(self, model: LBDT, variables: dict[str, Any], frames: int, sentences: int) -> None:
        self._mesh = make_mesh(jax.local_devices())
        self.use(variables)
        self._devices, self._frames, self._sentences = self._mesh.size, frames, sentences

        def encode(variables: dict[str, Any], frames: dict[str, Array]) -> FramePairFeatures:
            features: Any = model.apply(variables, frames["frame"], frames["earlier_frame"], method="encode")
            return features

        def segment(variables: dict[str, Any], features: FramePairFeatures, sentences: dict[str, Array]) -> Array:
            features = features.for_sentences(sentences["frame_of_sentence"])
            words, word_mask = sentences["words"], sentences["word_mask"]
            logits: Any = model.apply(variables, features, words, word_mask, method="segment")
            return logits

        self._encode = self._on_all_devices(encode, batch_arguments=1)
        self._segment = self._on_all_devices(segment, batch_arguments=2)

    def _on_all_devices(self, function: Callable[..., Any], batch_arguments: int) -> Any:
        """Compiles a function of the variables, which all devices share, and of batches, which are split."""
        batch = PartitionSpec(DATA_AXIS)
        specs = (PartitionSpec(), *[batch] * batch_arguments)
        return jax.jit(jax.shard_map(function, mesh=self._mesh, in_specs=specs, out_specs=batch, check_vma=False))

    def use(self, variables: dict[str, Any]) -> None:
        """Replaces the variables, without compiling again."""
        self._variables = replicate(variables, self._mesh)

    def segment(
        self, items: Iterable[Item], inputs: Callable[[Item], ModelInputs]
    ) -> Iterator[tuple[Item, np.ndarray]]:
        """Predicts the masks of all sentences about each frame pair; reads ahead by one batch at most.

        Args:
          items: anything that stands for a frame pair and its sentences.
          inputs: returns the arrays of an item.

        Yields:
          Each item, in order, with its logits (S, H, W) float32.

        Raises:
          UserError: a logit is infinite or not a number.
        """
        batch: list[Item] = []
        for item in items:
            batch.append(item)
            if len(batch) == self._devices * self._frames:
                yield from zip(batch, self._segment_batch([inputs(item) for item in batch]), strict=True)
                batch = []
        if batch:
            yield from zip(batch, self._segment_batch([inputs(item) for item in batch]), strict=True)

    def _segment_batch(self, batch: Sequence[ModelInputs]) -> list[np.ndarray]:
        """The logits (S, H, W) of each frame pair, of at most as many as are encoded at once."""
        padded = [*batch, *[batch[-1]] * (self._devices * self._frames - len(batch))]
        frames, earlier_frames, _, _ = zip(*padded, strict=True)
        features = self._encode(
            self._variables,
            shard_batch({"frame": np.stack(frames), "earlier_frame": np.stack(earlier_frames)}, self._mesh),
        )
        # Device d holds the frame pairs from d * frames on, and segments their sentences.
        pending: list[list[_SentenceIndex]] = [[] for _ in range(self._devices)]
        for index, (_, _, words, _) in enumerate(batch):
            pending[index // self._frames] += [_SentenceIndex(index, sentence) for sentence in range(len(words))]
        logits: list[list[np.ndarray]] = [[] for _ in batch]
        while any(pending):
            current = [sentences[: self._sentences] for sentences in pending]
            pending = [sentences[self._sentences :] for sentences in pending]
            arrays = shard_batch(self._sentence_arrays(batch, current), self._mesh)
            outputs = np.asarray(self._segment(self._variables, features, arrays))
            for device, sentences in enumerate(current):
                for row, (index, _) in enumerate(sentences, start=device * self._sentences):
                    logits[index].append(check_finite(outputs[row]))
        return [np.stack(rows) for rows in logits]

    def _sentence_arrays(
        self, batch: Sequence[ModelInputs], current: Sequence[Sequence[_SentenceIndex]]
    ) -> dict[str, np.ndarray]:
        """The sentences of all devices, padded on each with one zero word about its first frame pair."""
        _, _, words, word_mask = batch[0]
        total = self._devices * self._sentences
        arrays = {
            "frame_of_sentence": np.zeros(total, np.int32),
            "words": np.zeros((total, *words.shape[1:]), words.dtype),
            "word_mask": np.zeros((total, *word_mask.shape[1:]), bool),
        }
        arrays["word_mask"][:, 0] = True
        for device, sentences in enumerate(current):
            for row, (index, sentence) in enumerate(sentences, start=device * self._sentences):
                _, _, words, word_mask = batch[index]
                arrays["frame_of_sentence"][row] = index - device * self._frames
                arrays["words"][row] = words[sentence]
                arrays["word_mask"][row] = word_mask[sentence]
        return arrays
