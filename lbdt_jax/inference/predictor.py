"""Look once, ask many: the network's two doors, compiled, over all local devices.

A frame pair is encoded once, however many sentences ask about it. Arrays are padded to two fixed sizes, so that each
door is compiled once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import PartitionSpec

from lbdt_jax.models.lbdt import LBDT
from lbdt_jax.models.types import Array, FramePairFeatures
from lbdt_jax.parallel import DATA_AXIS, make_mesh, replicate, shard_batch


class Questions(Protocol):
    """A frame pair and S sentences about it, at the model's size.

    Attributes:
      frame, earlier_frame: (H, W, 3) uint8 RGB.
      words: (S, N, D) float32 or (S, N) int32, see `input_pipeline.batch`.
      word_mask: (S, N) bool, True for a token.
    """

    frame: np.ndarray
    earlier_frame: np.ndarray
    words: np.ndarray
    word_mask: np.ndarray


Asked = TypeVar("Asked", bound=Questions)


class BatchedPredictor:
    """A model and its variables, ready to answer.

    Args:
      model: the network.
      variables: {"params", "batch_stats"}.
      frames: frame pairs encoded at once on each device.
      sentences: sentences answered at once on each device.
    """

    def __init__(self, model: LBDT, variables: dict[str, Any], frames: int, sentences: int) -> None:
        self._mesh = make_mesh(jax.local_devices())
        self.use(variables)
        self._devices, self._frames, self._sentences = self._mesh.size, frames, sentences

        def encode(variables: dict[str, Any], frames: dict[str, Array]) -> FramePairFeatures:
            return model.apply(variables, frames["frame"], frames["earlier_frame"], method="encode")

        def answer(variables: dict[str, Any], features: FramePairFeatures, asked: dict[str, Array]) -> Array:
            features = features.for_sentences(asked["frame_of_sentence"])
            return model.apply(variables, features, asked["words"], asked["word_mask"], method="segment")

        def over_devices(door: Any, arguments: int) -> Any:
            specs = (PartitionSpec(), *[PartitionSpec(DATA_AXIS)] * arguments)
            mapped = jax.shard_map(
                door, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec(DATA_AXIS), check_vma=False
            )
            return jax.jit(mapped)

        self._encode, self._answer = over_devices(encode, 1), over_devices(answer, 2)

    def use(self, variables: dict[str, Any]) -> None:
        """Answers with other variables from now on, without compiling again."""
        self._variables = replicate(variables, self._mesh)

    def __call__(self, examples: Iterable[Asked]) -> Iterator[tuple[Asked, np.ndarray]]:
        """Yields each example, in order, with its logits (S, H, W) float32."""
        chunk: list[Asked] = []
        for example in examples:
            chunk.append(example)
            if len(chunk) == self._devices * self._frames:
                yield from self._answer_chunk(chunk)
                chunk = []
        if chunk:
            yield from self._answer_chunk(chunk)

    def _answer_chunk(self, chunk: Sequence[Asked]) -> Iterator[tuple[Asked, np.ndarray]]:
        padded = [*chunk, *[chunk[-1]] * (self._devices * self._frames - len(chunk))]
        frames = {name: np.stack([getattr(e, name) for e in padded]) for name in ("frame", "earlier_frame")}
        features = self._encode(self._variables, shard_batch(frames, self._mesh))

        # Device d holds the frame pairs from d * frames on, and answers what is asked about those.
        waiting: list[list[tuple[int, int]]] = [[] for _ in range(self._devices)]
        for index, example in enumerate(chunk):
            waiting[index // self._frames] += [(index, sentence) for sentence in range(len(example.words))]
        logits: list[list[np.ndarray]] = [[] for _ in chunk]
        while any(waiting):
            now = [questions[: self._sentences] for questions in waiting]
            waiting = [questions[self._sentences :] for questions in waiting]
            answers = np.asarray(
                self._answer(self._variables, features, shard_batch(self._asked(chunk, now), self._mesh))
            )
            for device, questions in enumerate(now):
                for place, (index, _) in enumerate(questions):
                    logits[index].append(answers[device * self._sentences + place])
        for example, answered in zip(chunk, logits, strict=True):
            yield example, np.stack(answered)

    def _asked(self, chunk: Sequence[Asked], now: list[list[tuple[int, int]]]) -> dict[str, np.ndarray]:
        """The questions of all devices, each device's padded with its first frame pair and one zero word."""
        words, mask = chunk[0].words, chunk[0].word_mask
        total = self._devices * self._sentences
        asked = {
            "frame_of_sentence": np.zeros(total, np.int32),
            "words": np.zeros((total, *words.shape[1:]), words.dtype),
            "word_mask": np.zeros((total, *mask.shape[1:]), bool),
        }
        asked["word_mask"][:, 0] = True
        for device, questions in enumerate(now):
            for place, (index, sentence) in enumerate(questions, start=device * self._sentences):
                asked["frame_of_sentence"][place] = index - device * self._frames
                asked["words"][place] = chunk[index].words[sentence]
                asked["word_mask"][place] = chunk[index].word_mask[sentence]
        return asked
