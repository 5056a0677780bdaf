"""From a sentence to the two text fields of a batch, whatever the text encoder reads: see `SentenceEncoder`.

`input_pipeline.text.word_vectors.WordVectors` gives word vectors; here are the token ids that a transformer reads, and
features that one has computed before.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from input_pipeline.errors import UserError

_MANY = 10_000  # more tokens than any sentence has


class SentenceEncoder(Protocol):
    """Turns a sentence into `words` and `word_mask` of `input_pipeline.batch`.

    Attributes:
      size: D, numbers for each token; 0 where `words` are token ids.
    """

    @property
    def size(self) -> int: ...

    def encode(self, sentence: str, max_words: int) -> tuple[np.ndarray, np.ndarray]:
        """words (N, D) float32 or (N,) int32 with N = max_words, and word_mask (N,) bool, at least one of it True."""

    def tokens(self, sentence: str, max_words: int) -> list[str]:
        """The tokens that `word_mask` stands for, to be shown: 1 to N."""

    def unknown_words(self, sentence: str, max_words: int) -> list[str]:
        """The words among the tokens that are read as blanks, in their order, repeated as they are."""

    def knows(self, sentence: str, max_words: int) -> bool:
        """Whether any word among the tokens is known."""

    def coverage(self, vocabulary: Iterable[str]) -> tuple[float, list[str]]:
        """The share of words that are known, in [0, 1], and the distinct others, commonest first."""


class TransformerTokenizer:
    """The ids of a transformer's tokens.

    Args:
      tokenizer: what tokenizer.json holds, the format of the library `tokenizers`.
      padding_id: stands behind the last token; never attended to.

    Raises:
      UserError: it is no such text, or that library is not installed.
    """

    size = 0

    def __init__(self, tokenizer: str, padding_id: int) -> None:
        try:
            from tokenizers import Tokenizer  # only models with a transformer need it
        except ImportError as error:
            raise UserError(
                f"This text encoder needs the library tokenizers: pip install -r requirements-text.txt ({error})"
            ) from error
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
            model = json.loads(tokenizer)["model"]
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"No tokenizer that the library tokenizers can read: {error}") from error
        # Sentences are cut and padded here, so that max_words can be any.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._padding_id = padding_id
        named, numbered = model.get("unk_token"), model.get("unk_id")
        self._unknown_id = numbered if named is None else self._tokenizer.token_to_id(named)

    @property
    def text(self) -> str:
        """What tokenizer.json holds, without cutting and padding."""
        return self._tokenizer.to_str()

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below it."""
        return self._tokenizer.get_vocab_size()

    @property
    def special_tokens(self) -> int:
        """How many tokens are added to a sentence, such as [CLS] and [SEP]."""
        return self._tokenizer.num_special_tokens_to_add(False)

    def text_for(self, max_words: int) -> str:
        """As `text`, but with cutting and padding to exactly max_words tokens."""
        tokenizer = type(self._tokenizer).from_str(self.text)
        tokenizer.enable_truncation(max_words)
        padding = tokenizer.id_to_token(self._padding_id)
        tokenizer.enable_padding(length=max_words, pad_id=self._padding_id, pad_token=padding)
        return tokenizer.to_str()

    def encode(self, sentence: str, max_words: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (N,) int32, and the mask (N,) bool that is True for them, special tokens included.

        Of a sentence that is too long the last words are cut off; the special tokens behind it stay.
        """
        ids = [number for number, _, _ in self._read(sentence, max_words)]
        words = np.full(max_words, self._padding_id, np.int32)
        words[: len(ids)] = ids
        return words, np.arange(max_words) < len(ids)

    def tokens(self, sentence: str, max_words: int) -> list[str]:
        """See `SentenceEncoder`. A token without a text of its own is shown by its name in the tokenizer."""
        read = self._read(sentence, max_words)
        return [self._tokenizer.decode([number], skip_special_tokens=False).strip() or name for number, name, _ in read]

    def unknown_words(self, sentence: str, max_words: int) -> list[str]:
        """See `SentenceEncoder`: the parts of the sentence that became the unknown token."""
        return [word for number, _, word in self._read(sentence, max_words) if word and number == self._unknown_id]

    def knows(self, sentence: str, max_words: int) -> bool:
        """See `SentenceEncoder`."""
        return any(word and number != self._unknown_id for number, _, word in self._read(sentence, max_words))

    def coverage(self, vocabulary: Iterable[str]) -> tuple[float, list[str]]:
        """See `SentenceEncoder`."""
        words = [word for word in vocabulary if self.knows(word, _MANY) or self.unknown_words(word, _MANY)]
        unknown = Counter(word for word in words if self.unknown_words(word, _MANY))
        share = 1.0 - unknown.total() / len(words) if words else 1.0
        return share, [word for word, _ in unknown.most_common()]

    def _read(self, sentence: str, max_words: int) -> list[tuple[int, str, str]]:
        """(id, name in the tokenizer, what it stands for in the sentence; "" for special tokens) of every token."""
        sentence = sentence.encode("utf-8", "replace").decode()  # a command line may hold halves of characters
        encoding = self._tokenizer.encode(sentence)
        added = encoding.special_tokens_mask
        words = [
            "" if special else sentence[slice(*span)] for special, span in zip(added, encoding.offsets, strict=True)
        ]
        read = list(zip(encoding.ids, encoding.tokens, words, strict=True))
        if len(read) <= max_words:
            return read
        behind = len(list(itertools.takewhile(bool, reversed(added))))  # special tokens at the end
        return read[: max_words - behind] + read[len(read) - behind :]


class PrecomputedFeatures:
    """Features that a frozen transformer has computed of the sentences of a data set; all else as its tokens are.

    Args:
      folder: what `lbdt_jax.text.precomputed_features` has made; features are read as they are needed.
      reader: of the transformer's tokens.

    Raises:
      UserError: the files are missing or do not fit together.
    """

    def __init__(self, folder: Path, reader: TransformerTokenizer) -> None:
        self._folder = folder
        try:
            described = json.loads((folder / "sentences.json").read_text("utf-8"))
            self._features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
            ends = np.cumsum(described["lengths"])
            self._places = {
                sentence: (int(end) - length, int(end))
                for sentence, length, end in zip(described["sentences"], described["lengths"], ends, strict=True)
            }
            if self._features.ndim != 2 or len(self._features) != (ends[-1] if len(ends) else 0):
                raise ValueError(f"{self._features.shape} features for {ends[-1:]} tokens")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder} holds no whole features ({error}). Delete it; it will be made again.") from error
        self.size = self._features.shape[1]
        self.tokens, self.unknown_words = reader.tokens, reader.unknown_words
        self.knows, self.coverage = reader.knows, reader.coverage

    def encode(self, sentence: str, max_words: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (N, D) float32, zero behind the last token, and the mask (N,) bool that is True for tokens.

        Raises:
          UserError: the sentence is not one of the data set, or max_words is another than that of the features.
        """
        begin, end = self._places.get(sentence, (0, max_words + 1))
        if end - begin > max_words:
            raise UserError(
                f"{self._folder} has no features of {sentence!r} with up to {max_words} tokens. Delete it; it will be "
                "made again."
            )
        words = np.zeros((max_words, self.size), np.float32)
        words[: end - begin] = self._features[begin:end]
        return words, np.arange(max_words) < end - begin
