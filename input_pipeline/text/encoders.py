"""Sentence encoders convert sentences to the fields `words` and `word_mask` of a batch.

`SentenceEncoder` is their interface. This module has the tokenizer of a transformer and the precomputed features of a
frozen transformer; word vectors are in `input_pipeline.text.word_vectors`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from input_pipeline.errors import UserError

#: A max_words that truncates no word.
_NO_LIMIT = 10_000


class SentenceEncoder(Protocol):
    """Converts sentences to the fields `words` and `word_mask` of `input_pipeline.batch`.

    Attributes:
      size: D, size of a word vector or feature; 0 if `words` are token ids.
    """

    @property
    def size(self) -> int: ...

    def encode(self, sentence: str, max_words: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes a sentence.

        Args:
          sentence: any text; it is truncated to N tokens.
          max_words: N.

        Returns:
          words: (N, D) float32, or (N,) int32 token ids.
          word_mask: (N,) bool, True for tokens; at least one.
        """
        ...

    def tokens(self, sentence: str, max_words: int) -> list[str]:
        """Returns the 1 to N tokens where `word_mask` is True, for display."""
        ...

    def unknown_words(self, sentence: str, max_words: int) -> list[str]:
        """Returns the words among the tokens that are not in the vocabulary, in order and with repetitions."""
        ...

    def knows(self, sentence: str, max_words: int) -> bool:
        """Returns whether any word among the tokens is in the vocabulary."""
        ...

    def coverage(self, vocabulary: Iterable[str]) -> tuple[float, list[str]]:
        """Compares the words of a dataset with the vocabulary of this encoder.

        Returns:
          The share of words that are in the vocabulary, in [0, 1], and the distinct unknown words, most frequent first.
        """
        ...


class _Token(NamedTuple):
    """A token of a transformer.

    Attributes:
      id: index in the vocabulary.
      name: entry of the vocabulary.
      text: the part of the sentence that it stands for; "" for special tokens.
    """

    id: int
    name: str
    text: str


class TransformerTokenizer:
    """The tokenizer of a transformer, as a `SentenceEncoder` that returns token ids.

    Args:
      tokenizer: contents of tokenizer.json, the format of the library `tokenizers`.
      padding_id: id of the padding token.

    Raises:
      UserError: the contents can't be read, or the library `tokenizers` is not installed.
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
        except Exception as error:  # the library raises plain Exceptions
            raise UserError(f"The library tokenizers can't read this tokenizer: {error}") from error
        # Sentences are truncated and padded here, to any max_words.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._padding_id = padding_id
        unknown_token = model.get("unk_token")
        self._unknown_id = model.get("unk_id") if unknown_token is None else self._tokenizer.token_to_id(unknown_token)

    @property
    def text(self) -> str:
        """The contents of tokenizer.json, without truncation and padding."""
        return self._tokenizer.to_str()

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self._tokenizer.get_vocab_size()

    @property
    def special_tokens(self) -> int:
        """Number of special tokens that are added to each sentence, such as [CLS] and [SEP]."""
        return self._tokenizer.num_special_tokens_to_add(False)

    def text_for(self, max_words: int) -> str:
        """Returns the contents of tokenizer.json with truncation and padding to exactly `max_words` tokens."""
        tokenizer = type(self._tokenizer).from_str(self.text)
        tokenizer.enable_truncation(max_words)
        padding = tokenizer.id_to_token(self._padding_id)
        tokenizer.enable_padding(length=max_words, pad_id=self._padding_id, pad_token=padding)
        return tokenizer.to_str()

    def encode(self, sentence: str, max_words: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SentenceEncoder`. Token ids (N,) int32; special tokens count as tokens in the mask.

        A long sentence loses its last words, never the special tokens after them.
        """
        ids = [token.id for token in self._tokenize(sentence, max_words)]
        words = np.full(max_words, self._padding_id, np.int32)
        words[: len(ids)] = ids
        return words, np.arange(max_words) < len(ids)

    def tokens(self, sentence: str, max_words: int) -> list[str]:
        """See `SentenceEncoder`. A token that decodes to no text is shown by its name in the vocabulary."""
        return [
            self._tokenizer.decode([token.id], skip_special_tokens=False).strip() or token.name
            for token in self._tokenize(sentence, max_words)
        ]

    def unknown_words(self, sentence: str, max_words: int) -> list[str]:
        """See `SentenceEncoder`. Returns the parts of the sentence that became the unknown token."""
        return [
            token.text for token in self._tokenize(sentence, max_words) if token.text and token.id == self._unknown_id
        ]

    def knows(self, sentence: str, max_words: int) -> bool:
        """See `SentenceEncoder`."""
        return any(token.text and token.id != self._unknown_id for token in self._tokenize(sentence, max_words))

    def coverage(self, vocabulary: Iterable[str]) -> tuple[float, list[str]]:
        """See `SentenceEncoder`."""
        words = [word for word in vocabulary if self.knows(word, _NO_LIMIT) or self.unknown_words(word, _NO_LIMIT)]
        unknown = Counter(word for word in words if self.unknown_words(word, _NO_LIMIT))
        share = 1.0 - unknown.total() / len(words) if words else 1.0
        return share, [word for word, _ in unknown.most_common()]

    def _tokenize(self, sentence: str, max_words: int) -> list[_Token]:
        """Returns at most `max_words` tokens, special tokens included."""
        sentence = sentence.encode("utf-8", "replace").decode()  # a command line may contain lone surrogates
        encoding = self._tokenizer.encode(sentence)
        is_special = encoding.special_tokens_mask
        tokens = [
            _Token(token_id, name, "" if special else sentence[begin:end])
            for token_id, name, special, (begin, end) in zip(
                encoding.ids, encoding.tokens, is_special, encoding.offsets, strict=True
            )
        ]
        if len(tokens) <= max_words:
            return tokens
        suffix = len(list(itertools.takewhile(bool, reversed(is_special))))  # special tokens at the end
        return tokens[: max_words - suffix] + tokens[len(tokens) - suffix :]


class PrecomputedFeatures:
    """The features of a frozen transformer for the sentences of a dataset, as a `SentenceEncoder`.

    The files are made by `lbdt_jax.text_features.precomputed_features`; features are read from disk on access. All
    methods except `encode` are those of the transformer's tokenizer.

    Args:
      folder: with the files sentences.json and features.npy.
      tokenizer: of the transformer.

    Raises:
      UserError: a file is missing, or the files do not match.
    """

    def __init__(self, folder: Path, tokenizer: TransformerTokenizer) -> None:
        self._folder = folder
        try:
            index = json.loads((folder / "sentences.json").read_text("utf-8"))
            self._features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
            ends = np.cumsum(index["lengths"])
            self._rows = {
                sentence: (int(end) - length, int(end))
                for sentence, length, end in zip(index["sentences"], index["lengths"], ends, strict=True)
            }
            if self._features.ndim != 2 or len(self._features) != (ends[-1] if len(ends) else 0):
                raise ValueError(f"features of shape {self._features.shape} for {ends[-1:]} tokens")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"The features in {folder} are incomplete ({error}). Delete the folder; it will be made again."
            ) from error
        self.size = self._features.shape[1]
        self.tokens, self.unknown_words = tokenizer.tokens, tokenizer.unknown_words
        self.knows, self.coverage = tokenizer.knows, tokenizer.coverage

    def encode(self, sentence: str, max_words: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SentenceEncoder`. Features (N, D) float32, zero for padding.

        Raises:
          UserError: the sentence is not in the dataset, or the features were computed with a larger max_words.
        """
        begin, end = self._rows.get(sentence, (0, max_words + 1))
        if end - begin > max_words:
            raise UserError(
                f"{self._folder} has no features of {sentence!r} with up to {max_words} tokens. Delete the folder; it "
                "will be made again."
            )
        words = np.zeros((max_words, self.size), np.float32)
        words[: end - begin] = self._features[begin:end]
        return words, np.arange(max_words) < end - begin
