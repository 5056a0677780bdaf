"""The library: a trained model that segments the objects in a video that sentences describe.

It takes and returns numpy arrays, and needs neither TensorFlow nor torch. `lbdt_jax.load` makes a `Segmenter`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import reprlib
import sys
import threading
import warnings
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from fractions import Fraction
from typing import TypeVar

import numpy as np
import numpy.typing
from PIL import Image

from input_pipeline.errors import UserError, first_few
from input_pipeline.images import resize_frame
from input_pipeline.text.encoders import SentenceEncoder
from input_pipeline.text.word_vectors import WordVectors, check_same_source, extend
from lbdt_jax.checkpoint import Checkpoint
from lbdt_jax.checkpoint_checks import CheckpointError, expected_shapes, misfit_message, shapes
from lbdt_jax.inference.explain import Explanation, explain
from lbdt_jax.inference.predictor import BatchedPredictor, ModelInputs
from lbdt_jax.metrics import foreground_score, resize_logits
from lbdt_jax.step import make_model

Item = TypeVar("Item")

MAX_RECENT_BYTES = 2**31  # of the frames that are kept as earlier frames
BATCH_SIZE = 4  # frame pairs encoded, and sentences segmented, at once on each device
MAX_RATE = 1e9  # frames per second


class LazyFrame:
    """A frame of a video that is resized at most once, and only if the model needs it.

    Args:
      original: (h, w, 3) uint8 RGB.
      size: (H, W) of the model.
    """

    def __init__(self, original: np.ndarray, size: tuple[int, int]) -> None:
        self.original, self._size = original, size

    @functools.cached_property
    def resized(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        return resize_frame(self.original, self._size)


@dataclasses.dataclass(frozen=True, eq=False)
class TimedFramePair:
    """A frame of a video and its earlier frame.

    Attributes:
      index: of the frame in the video, from 0.
      time: of the frame, in seconds.
      frame, earlier_frame: `original` as in the video, and `resized` for the model.
    """

    index: int
    time: float
    frame: LazyFrame
    earlier_frame: LazyFrame


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """The masks of S sentences in one frame.

    Attributes:
      frame_pair: the frame, with its earlier frame.
      masks: (S, h, w) bool, at the frame's original size.
      scores: (S,) float32 in [0, 1], the mean probability of the mask's pixels; 0 for an empty mask. They rank the
        masks of one model, and are not calibrated.
    """

    frame_pair: TimedFramePair
    masks: np.ndarray
    scores: np.ndarray


class Segmenter:
    """A checkpoint, ready to segment any video with any number of sentences.

    It is compiled once, when the first frames are segmented. Several threads may use it at once.

    Args:
      checkpoint: the model.
      word_vectors: as for `lbdt_jax.load`.

    Raises:
      CheckpointError: the checkpoint does not fit its own configuration.
      UserError: word vectors are given for a model that uses none, or random ones for a model that uses others.
    """

    def __init__(self, checkpoint: Checkpoint, word_vectors: str = "") -> None:
        if word_vectors and not isinstance(checkpoint.sentence_encoder, WordVectors):
            raise UserError(
                f"{checkpoint.path} has its own tokenizer, that of {checkpoint.config.text_encoder}; it has no use for "
                f"word vectors ({word_vectors})."
            )
        if word_vectors.startswith("random:") and isinstance(checkpoint.sentence_encoder, WordVectors):
            check_same_source(checkpoint.sentence_encoder, word_vectors)  # even if no word needs it
        self.checkpoint = checkpoint
        self._word_vectors = word_vectors
        self._sentence_encoder = checkpoint.sentence_encoder
        self._looked_up: set[str] = set()
        self._checked_sentences: set[str] = set()
        self._extending = threading.Lock()
        self._model = make_model(checkpoint.config)
        check_fits(checkpoint)

    @functools.cached_property
    def _predictor(self) -> BatchedPredictor:
        return BatchedPredictor(self._model, self.checkpoint.variables, BATCH_SIZE, BATCH_SIZE)

    @property
    def seconds_between(self) -> float:
        """Seconds from an earlier frame to its frame, as in the training data."""
        config = self.checkpoint.config
        return config.frame_interval / config.frame_rate

    @property
    def trained_words(self) -> tuple[str, ...]:
        """The words that the model was trained with; none for a transformer, which reads any word."""
        encoder = self.checkpoint.sentence_encoder
        return encoder.words if isinstance(encoder, WordVectors) else ()

    def tokens(self, sentence: str) -> list[str]:
        """The tokens that the model reads of a sentence, max_words at most."""
        return self._sentence_encoder.tokens(sentence, self.checkpoint.config.max_words)

    def unknown_words(self, sentences: Iterable[str]) -> list[str]:
        """The distinct words without a vector, which the model can't tell apart; the most frequent first.

        Raises:
          UserError: the given word vectors are missing, malformed or not those that the model was trained with; or what
            is given is no collection of strings.
        """
        sentences = sentences if isinstance(sentences, str) else list(sentences)
        if sentences:
            check_sentences(sentences)
        encoder, max_words = self._encoder_for(sentences), self.checkpoint.config.max_words
        words = Counter(word for sentence in sentences for word in encoder.unknown_words(sentence, max_words))
        return [word for word, _ in words.most_common()]

    def knows(self, sentence: str) -> bool:
        """Whether the model knows any word of a sentence. Raises UserError as `unknown_words` does."""
        return self._encoder_for([sentence]).knows(sentence, self.checkpoint.config.max_words)

    def words_left_out(self, sentences: Sequence[str]) -> list[str]:
        """Messages about sentences that are longer than what the model reads, with the tokens that it leaves out.

        `encode` warns of them, too, except of those that were checked here before.
        """
        check_sentences(sentences)
        self._checked_sentences = {*sentences}
        messages = []
        for number, sentence in enumerate(sentences, start=1):
            read, tokens = self.tokens(sentence), self._sentence_encoder.tokens(sentence, sys.maxsize)
            # The special tokens at the end of a transformer's sentence are read in any case.
            first = next((index for index, token in enumerate(read) if token != tokens[index]), len(read))
            if left_out := tokens[first : len(tokens) - (len(read) - first)]:
                messages.append(
                    f"Sentence {number} has {len(tokens):,} tokens, and the model reads {len(read)}. Left out: "
                    f"{first_few([*map(repr, left_out)])}."
                )
        return messages

    def encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Turns S sentences into arrays for the model.

        Returns:
          words: (S, N, D) float32 word vectors, zeros for unknown words; or (S, N) int32 token ids.
          word_mask: (S, N) bool, True for a token.

        Raises:
          UserError: there is no sentence, or one has no word that the model knows.
        """
        check_sentences(sentences)
        encoder, max_words = self._encoder_for(sentences), self.checkpoint.config.max_words
        for number, sentence in enumerate(sentences, start=1):
            if not encoder.knows(sentence, max_words):
                if not encoder.unknown_words(sentence, max_words):
                    raise UserError(f"Sentence {number} is empty.")
                raise UserError(self._explain_unknown(number, sentence))
        if not self._checked_sentences.issuperset(sentences):
            for message in self.words_left_out(sentences):
                warnings.warn(message, stacklevel=2)
        words, word_mask = zip(*(encoder.encode(sentence, max_words) for sentence in sentences), strict=True)
        return np.stack(words), np.stack(word_mask)

    def _explain_unknown(self, number: int, sentence: str) -> str:
        message = f"The model knows no word of sentence {number}, {sentence.strip()[:80]!r}."
        if vocabulary := self.trained_words:
            examples = ", ".join(vocabulary[:: max(1, len(vocabulary) // 8)][:8])
            message += (
                f" Its checkpoint has vectors of {len(vocabulary)} words ({examples} ...); other words are looked up "
                f"in the word vectors of its training, {self._word_vectors or self.checkpoint.config.word_vectors}; "
                "--word_vectors gives another location."
            )
        return message

    def segment(
        self, frames: Sequence[np.ndarray] | np.ndarray, sentences: Sequence[str], rate: float | Fraction | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Segments every frame of a clip that fits into memory.

        Args:
          frames: T frames (h, w, 3) uint8 RGB, or one array of them, in the order of the video.
          sentences: S sentences, at least one.
          rate: frames per second; None means that of the training data.

        Returns:
          masks: (T, S, h, w) bool.
          scores: (T, S) float32 in [0, 1], see `Segmentation`.

        Raises:
          UserError: there is no frame, or one has another type or shape; the model knows no word of a sentence; or the
            rate is out of range.
        """
        rate = self.checkpoint.config.frame_rate if rate is None else rate
        if isinstance(rate, np.generic):
            rate = rate.item()  # NumPy's short types would round the times, or can't hold the indices
        if not (isinstance(rate, int | float | Fraction | np.floating) and 0 < rate < MAX_RATE):
            raise UserError(f"The rate must be a number above 0 frames per second, and not {rate!r:.100}.")
        timed_frames = ((float(index / rate), frame) for index, frame in enumerate(iterate_frames(frames)))
        frame_pairs = self.frame_pairs(timed_frames)
        masks, scores = [], []
        for segmentation in self.segment_frame_pairs(frame_pairs, sentences):
            masks.append(segmentation.masks)
            scores.append(segmentation.scores)
        if not masks:
            raise UserError("There is no frame to segment.")
        return np.stack(masks), np.stack(scores)

    def frame_pairs(self, frames: Iterable[tuple[float, np.ndarray]]) -> Iterator[TimedFramePair]:
        """Pairs every frame with its earlier frame: the one nearest to `seconds_between` before it.

        This works for any frame rate, and for changing ones. At the beginning of a video, the earlier frame is the
        first frame. If frames are at least twice as far apart, it is the frame itself: a pair without motion.

        Args:
          frames: (time in seconds, (h, w, 3) uint8 RGB), with increasing times.

        Yields:
          One pair for each frame; only the frames of the last `seconds_between` are kept in memory.

        Raises:
          UserError: a frame has another type or shape, differs in size from those before it, or is not later.
        """
        height, width = self.checkpoint.config.image_size
        recent: deque[tuple[float, LazyFrame]] = deque()
        for index, item in enumerate(iterate_frames(frames)):
            try:
                time, frame = item
                time = float(time)
            except (TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"Frame {index} has no time: expected (seconds, frame), got {reprlib.repr(item)}."
                ) from error
            original = copy_frame(frame, index)
            if original.dtype != np.uint8 or original.ndim != 3 or original.shape[2] != 3 or not original.size:
                raise UserError(
                    f"Frame {index} is {original.dtype} of shape {original.shape}; expected uint8 (height, width, 3)."
                )
            if recent and recent[-1][1].original.shape != original.shape:
                raise UserError(
                    f"Frame {index} has shape {original.shape}, those before it {recent[-1][1].original.shape}."
                )
            if not math.isfinite(time):
                raise UserError(f"Frame {index} has the time {time} s.")
            if recent and not time > recent[-1][0]:
                raise UserError(f"Frame {index} has the time {time} s, the one before it {recent[-1][0]} s.")
            spacing = self.seconds_between / max(16, MAX_RECENT_BYTES // original.nbytes)
            if len(recent) > 1 and recent[-1][0] - recent[-2][0] < spacing:  # at a higher rate than cameras have
                recent.pop()
            recent.append((time, LazyFrame(original, (height, width))))
            target = time - self.seconds_between
            while len(recent) > 1 and abs(recent[1][0] - target) <= abs(recent[0][0] - target):
                recent.popleft()
            yield TimedFramePair(index, time, recent[-1][1], recent[0][1])

    def segment_frame_pairs(
        self, frame_pairs: Iterable[TimedFramePair], sentences: Sequence[str]
    ) -> Iterator[Segmentation]:
        """Segments a stream of frame pairs with all sentences; a few pairs at a time are in memory.

        Yields:
          The segmentation of each frame pair, in order.

        Raises:
          UserError: there is no sentence, the model knows no word of one, or something else than a frame pair is given.
        """
        words, word_mask = self.encode(sentences)

        def inputs(frame_pair: TimedFramePair) -> ModelInputs:
            check_frame_pair(frame_pair)
            return frame_pair.frame.resized, frame_pair.earlier_frame.resized, words, word_mask

        for frame_pair, logits in self._predictor.segment(iterate_frames(frame_pairs), inputs):
            size = frame_pair.frame.original.shape[:2]
            masks = np.stack([resize_logits(sentence_logits, size) > 0 for sentence_logits in logits])
            scores = np.array([foreground_score(sentence_logits) for sentence_logits in logits], np.float32)
            yield Segmentation(frame_pair, masks, scores)

    def explain(self, frame_pair: TimedFramePair, sentence: str) -> Explanation:
        """The attention and the channel gates behind one mask; `attention_sheet` draws them.

        Raises:
          UserError: the model knows no word of the sentence, or it is given something else than a frame pair.
        """
        check_frame_pair(frame_pair)
        words, word_mask = self.encode([sentence])
        frames = frame_pair.frame.resized, frame_pair.earlier_frame.resized
        return explain(self._model, self.checkpoint.variables, *frames, words[0], word_mask[0])

    def _encoder_for(self, sentences: Iterable[str]) -> SentenceEncoder:
        """The sentence encoder, with vectors of new words. Each word is looked up once: the file may be large."""
        if not isinstance(self._sentence_encoder, WordVectors):
            return self._sentence_encoder
        with self._extending:  # words that another thread adds meanwhile would get lost
            encoder, max_words = self._sentence_encoder, self.checkpoint.config.max_words
            new = {word for sentence in sentences for word in encoder.unknown_words(sentence, max_words)}
            new -= self._looked_up
            if new and self._word_vectors:
                encoder = extend(encoder, self._word_vectors, new)
            elif new:
                # The training's word vectors may not be on this machine; the checkpoint's own suffice for most
                # sentences.
                with contextlib.suppress(UserError):
                    encoder = extend(encoder, self.checkpoint.config.word_vectors, new)
            self._looked_up |= new
            self._sentence_encoder = encoder
            return encoder


def check_sentences(sentences: Sequence[str]) -> None:
    """Raises UserError unless this is an ordered collection of strings, at least one."""
    ordered = isinstance(sentences, Collection) and not isinstance(sentences, str | Set | Mapping)
    ordered = ordered and getattr(sentences, "shape", None) != ()  # a NumPy scalar
    if not ordered or not len(sentences) or not all(isinstance(text, str) for text in sentences):
        raise UserError(f"Expected a list of sentences, got {reprlib.repr(sentences)}.")


def iterate_frames(frames: Iterable[Item]) -> Iterator[Item]:
    """An iterator over frames. Raises UserError if they can't be iterated over."""
    try:
        return iter(frames)
    except TypeError as error:
        raise UserError(f"Expected the frames of a clip, got {reprlib.repr(frames)}.") from error


def check_frame_pair(item: object) -> None:
    """Raises UserError unless this is a pair that `Segmenter.frame_pairs` made."""
    if not isinstance(item, TimedFramePair):
        raise UserError(f"Expected a frame pair of the method frame_pairs, got {reprlib.repr(item)}.")


def copy_frame(frame: np.typing.ArrayLike, index: int) -> np.ndarray:
    """A frame as an array of its own, of any shape and dtype: decoders may fill the same array again.

    Raises:
      UserError: it is no array, or a picture of other colors than RGB; `index` is that of the frame, for the message.
    """
    if isinstance(frame, Image.Image) and frame.mode != "RGB":
        raise UserError(f"Frame {index} is a picture of mode {frame.mode}; expected RGB: use its convert('RGB').")
    try:
        return np.array(frame)
    except (TypeError, ValueError) as error:
        raise UserError(f"Frame {index} is no array: {error}.") from error


def check_fits(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError if a checkpoint's arrays are not those of the network that its configuration describes."""
    expected = expected_shapes(checkpoint.config, checkpoint.sentence_encoder.size)
    found = shapes(checkpoint.variables)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(misfit_message(checkpoint.path, name, found.get(name), expected.get(name)))
