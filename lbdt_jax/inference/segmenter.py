"""A trained model as a library: any frames, any sentences; numpy in and out, neither TensorFlow nor torch.

Every frame is looked at once, however many sentences ask about it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.images import resize_frame
from input_pipeline.text.encoders import SentenceEncoder
from input_pipeline.text.word_vectors import WordVectors, extend
from lbdt_jax.checkpoint import Checkpoint, CheckpointError, shapes
from lbdt_jax.inference.explain import Explanation, explain
from lbdt_jax.inference.predictor import BatchedPredictor
from lbdt_jax.metrics import foreground_score, resize_logits
from lbdt_jax.step import initial_variables, make_model

#: Frames encoded, and sentences answered, at once on each device.
AT_ONCE = 4


class LazyFrame:
    """A frame of a video, which is resized once, and only if a question needs it.

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
      time: of the frame, seconds.
      picture, earlier_picture: both frames. Their arrays are also here as `original_frame`, `original_earlier_frame`,
        (h, w, 3) uint8 RGB, and as `frame`, `earlier_frame`, (H, W, 3) at the model's size.
    """

    index: int
    time: float
    picture: LazyFrame
    earlier_picture: LazyFrame

    @property
    def original_frame(self) -> np.ndarray:
        return self.picture.original

    @property
    def original_earlier_frame(self) -> np.ndarray:
        return self.earlier_picture.original

    @property
    def frame(self) -> np.ndarray:
        return self.picture.resized

    @property
    def earlier_frame(self) -> np.ndarray:
        return self.earlier_picture.resized


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What a model finds at a frame_pair for each of S sentences.

    Attributes:
      frame_pair: the frames it was asked about.
      masks: (S, h, w) bool, at the frame's own size.
      scores: (S,) float32 in [0, 1], the mean probability of the pixels found; 0 where nothing was found. It ranks the
        answers of a model; it is no promise that one of them is right.
    """

    frame_pair: TimedFramePair
    masks: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class _Question:
    """A frame_pair and all its sentences, as `BatchedPredictor` asks them."""

    frame_pair: TimedFramePair
    words: np.ndarray
    word_mask: np.ndarray

    @property
    def frame(self) -> np.ndarray:
        return self.frame_pair.frame

    @property
    def earlier_frame(self) -> np.ndarray:
        return self.frame_pair.earlier_frame


class Segmenter:
    """A checkpoint, ready to segment. Compiled once, at the first question, for any video and number of sentences.

    Args:
      checkpoint: the model.
      word_vectors: see `lbdt_jax.load`.

    Raises:
      CheckpointError: the checkpoint does not fit its own configuration.
      UserError: word vectors are given for a model that reads none.
    """

    def __init__(self, checkpoint: Checkpoint, word_vectors: str = "") -> None:
        if word_vectors and not isinstance(checkpoint.sentence_encoder, WordVectors):
            raise UserError(
                f"{checkpoint.path} reads sentences with the tokenizer of {checkpoint.config.text_encoder}, which it "
                f"holds: it has no use for word vectors ({word_vectors})."
            )
        self.checkpoint = checkpoint
        self._source = word_vectors
        self._reader = checkpoint.sentence_encoder
        self._looked_up: set[str] = set()
        self._model = make_model(checkpoint.config)
        check_fits(checkpoint)

    @functools.cached_property
    def _predictor(self) -> BatchedPredictor:
        return BatchedPredictor(self._model, self.checkpoint.variables, AT_ONCE, AT_ONCE)

    @property
    def seconds_between(self) -> float:
        """From an earlier frame to its frame, as in the data that the model was trained with."""
        config = self.checkpoint.config
        return config.frame_interval / config.frame_rate

    @property
    def trained_words(self) -> tuple[str, ...]:
        """The words that it was trained with; none for a transformer, which reads any."""
        own = self.checkpoint.sentence_encoder
        return own.words if isinstance(own, WordVectors) else ()

    def tokens(self, sentence: str) -> list[str]:
        """The tokens that the model reads of a sentence: its first max_words."""
        return self._reader.tokens(sentence, self.checkpoint.config.max_words)

    def unknown_words(self, sentences: Iterable[str]) -> list[str]:
        """The distinct words that are not known, so that the model reads them as blanks; commonest first.

        Raises:
          UserError: the given word vectors are missing, malformed or not those that the model was trained with.
        """
        sentences = list(sentences)
        reader, limit = self._encoder_for(sentences), self.checkpoint.config.max_words
        words = Counter(word for sentence in sentences for word in reader.unknown_words(sentence, limit))
        return [word for word, _ in words.most_common()]

    def knows(self, sentence: str) -> bool:
        """Whether the model knows any word of a sentence. Raises UserError as `unknown_words` does."""
        return self._encoder_for([sentence]).knows(sentence, self.checkpoint.config.max_words)

    def encode(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What the model reads of S sentences.

        Returns:
          words: (S, N, D) float32 word vectors, those of unknown words zero; or (S, N) int32 ids of tokens.
          word_mask: (S, N) bool, True for a token.

        Raises:
          UserError: there is no sentence, or one has no word that the model knows.
        """
        if isinstance(sentences, str) or not len(sentences):
            raise UserError(f"Expected a list of sentences, and not {sentences!r}.")
        reader, limit = self._encoder_for(sentences), self.checkpoint.config.max_words
        for number, sentence in enumerate(sentences, start=1):
            if reader.knows(sentence, limit):
                continue
            if not reader.unknown_words(sentence, limit):
                raise UserError(f"Sentence {number} is empty.")
            message = f"The model knows no word of sentence {number}, {sentence.strip()[:80]!r}."
            if known := self.trained_words:
                message += (
                    f" Its checkpoint holds {len(known)} words ({', '.join(known[:: max(1, len(known) // 8)][:8])} "
                    "...); others are looked up in the word vectors that it was trained with, "
                    f"{self._source or self.checkpoint.config.word_vectors}: --word_vectors says where they are."
                )
            raise UserError(message)
        words, word_mask = zip(*(reader.encode(sentence, limit) for sentence in sentences), strict=True)
        return np.stack(words), np.stack(word_mask)

    def segment(
        self, frames: Sequence[np.ndarray] | np.ndarray, sentences: Sequence[str], rate: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds what each sentence means in every frame of a clip that fits into memory.

        Args:
          frames: T frames (h, w, 3) uint8 RGB, or one array of them, in the order of the video.
          sentences: S of them, at least one.
          rate: frames per second; None means that of the data that the model was trained with.

        Returns:
          masks: (T, S, h, w) bool.
          scores: (T, S) float32 in [0, 1], see `Segmentation`.

        Raises:
          UserError: a frame is not of that kind, or a sentence has no word that the model knows.
        """
        rate = self.checkpoint.config.frame_rate if rate is None else rate
        if not rate > 0:
            raise UserError(f"The rate must be above 0 frames per second, and not {rate}.")
        frame_pairs = self.frame_pairs((index / rate, frame) for index, frame in enumerate(frames))
        found = [(answer.masks, answer.scores) for answer in self.segment_frame_pairs(frame_pairs, sentences)]
        if not found:
            raise UserError("There is no frame to segment.")
        masks, scores = zip(*found, strict=True)
        return np.stack(masks), np.stack(scores)

    def frame_pairs(self, frames: Iterable[tuple[float, np.ndarray]]) -> Iterator[TimedFramePair]:
        """Finds the earlier frame of every frame: the one nearest to `seconds_between` before it.

        That holds for any and for changing frame rates. Where a video begins, it is the first frame. Where frames lie
        more than twice as far apart, and at the first frame, it is the frame itself, so that nothing seems to move.

        Args:
          frames: (time in seconds, (h, w, 3) uint8 RGB), times rising.

        Raises:
          UserError: a frame is not of that kind, differs in size from those before it, or is not later than they are.
        """
        size = tuple(self.checkpoint.config.image_size)
        recent: deque[tuple[float, LazyFrame]] = deque()
        for index, (time, original) in enumerate(frames):
            if original.dtype != np.uint8 or original.ndim != 3 or original.shape[2] != 3 or not original.size:
                raise UserError(
                    f"Frame {index} is {original.dtype} of shape {original.shape}; expected uint8 (height, width, 3)."
                )
            if recent and recent[-1][1].original.shape != original.shape:
                raise UserError(
                    f"Frame {index} has shape {original.shape}, those before it {recent[-1][1].original.shape}."
                )
            if recent and not time > recent[-1][0]:
                raise UserError(f"Frame {index} has the time {time} s, the one before it {recent[-1][0]} s.")
            recent.append((time, LazyFrame(original, size)))
            wanted = time - self.seconds_between
            while len(recent) > 1 and abs(recent[1][0] - wanted) <= abs(recent[0][0] - wanted):
                recent.popleft()
            yield TimedFramePair(index, time, recent[-1][1], recent[0][1])

    def segment_frame_pairs(
        self, frame_pairs: Iterable[TimedFramePair], sentences: Sequence[str]
    ) -> Iterator[Segmentation]:
        """Answers all sentences about each frame_pair, in order; holds a few frame_pairs at a time.

        Raises:
          UserError: there is no sentence, or one has no word that the model knows.
        """
        words, word_mask = self.encode(sentences)
        questions = (_Question(frame_pair, words, word_mask) for frame_pair in frame_pairs)
        for question, logits in self._predictor(questions):
            size = question.frame_pair.original_frame.shape[:2]
            masks = np.stack([resize_logits(each, size) > 0 for each in logits])
            yield Segmentation(
                question.frame_pair, masks, np.array([foreground_score(each) for each in logits], np.float32)
            )

    def explain(self, frame_pair: TimedFramePair, sentence: str) -> Explanation:
        """What the model attends to when it answers a sentence; `attention_sheet` draws it."""
        words, word_mask = self.encode([sentence])
        frames = frame_pair.frame, frame_pair.earlier_frame
        return explain(self._model, self.checkpoint.variables, *frames, words[0], word_mask[0])

    def _encoder_for(self, sentences: Iterable[str]) -> SentenceEncoder:
        """What reads these sentences: new words are looked up first, each once, since the file may be large."""
        if not isinstance(self._reader, WordVectors):
            return self._reader
        limit = self.checkpoint.config.max_words
        new = {word for sentence in sentences for word in self._reader.unknown_words(sentence, limit)}
        new -= self._looked_up
        if new and self._source:
            self._reader = extend(self._reader, self._source, new)
        elif new:
            # A source that happens to be there helps; without it the checkpoint's own words must do.
            with contextlib.suppress(UserError):
                self._reader = extend(self._reader, self.checkpoint.config.word_vectors, new)
        self._looked_up |= new
        return self._reader


def check_fits(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError if a checkpoint's arrays are not those of the network that its configuration describes."""
    size = checkpoint.sentence_encoder.size
    wanted = jax.eval_shape(lambda: initial_variables(make_model(checkpoint.config), checkpoint.config, size))
    expected, found = shapes(wanted), shapes(checkpoint.variables)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise CheckpointError(
                f"{checkpoint.path} does not fit its own configuration, or is of another version of lbdt_jax: {name} "
                f"is {found.get(name, 'missing')}, and should be {expected.get(name, 'absent')}."
            )
