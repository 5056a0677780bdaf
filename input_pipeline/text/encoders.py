"""Sentence encoders convert sentences to the fields `words` and `word_mask` of a batch.

`SentenceEncoder` is their interface. This module has the tokenizer of a transformer and the precomputed features of a
frozen transformer; word vectors are in `input_pipeline.text.word_vectors`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from input_pipeline.errors import UserError, library_errors
from input_pipeline.files import check_regular_file, read_limited

#: A max_words that truncates no word.
_NO_LIMIT = 10_000
#: Limit for tokenizer.json. That of XLM-RoBERTa, with a quarter of a million tokens, has 17 MB.
MAX_TOKENIZER_BYTES = 64 * 2**20
#: How many times as long a tokenizer may make a sentence, by replacing characters and repeating it. No real one
#: replaces a character by more than three.
MAX_GROWTH = 64
#: Limit for sentences.json, 200 bytes for each of five million sentences.
_MAX_SENTENCES_BYTES = 2**30


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
      UserError: the contents can't be read, or would make sentences many times as long; there is no token with the
        padding's id; or the library `tokenizers` is not installed. Encoding raises it where the library fails.
    """

    size = 0

    def __init__(self, tokenizer: str, padding_id: int) -> None:
        try:
            from tokenizers import Tokenizer  # only models with a transformer need it
        except ImportError as error:
            raise UserError(
                f"This text encoder needs the library tokenizers: pip install -r requirements.txt ({error})"
            ) from error
        if not isinstance(tokenizer, str) or len(tokenizer) > MAX_TOKENIZER_BYTES:
            raise UserError(f"The tokenizer is no text, or has more than {MAX_TOKENIZER_BYTES:,} bytes.")
        with _library_errors("can't read this tokenizer"):
            description = json.loads(tokenizer)
            growth = _growth(description)
            if growth > MAX_GROWTH:
                raise UserError(f"This tokenizer would make a sentence up to {growth:.3g} times as long.")
            self._tokenizer = Tokenizer.from_str(tokenizer)
            model = description["model"]
            # Sentences are truncated and padded here, to any max_words.
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            unknown_token, unknown_id = model.get("unk_token"), model.get("unk_id")
            self._unknown_id = unknown_id if unknown_token is None else self._tokenizer.token_to_id(unknown_token)
        is_id = isinstance(padding_id, int) and not isinstance(padding_id, bool) and 0 <= padding_id < 2**31
        if not is_id or self._tokenizer.id_to_token(padding_id) is None:
            raise UserError(f"The tokenizer has no token with the padding's id, {padding_id!r:.100}.")
        self._padding_id = padding_id

    def check_fits(self, vocabulary: int, max_words: int) -> None:
        """Raises UserError if a token's id is none of a vocabulary of this size, or N tokens can't hold a sentence."""
        if self.special_tokens >= max_words:
            raise UserError(
                f"The tokenizer adds {self.special_tokens} special tokens to a sentence, of which {max_words} tokens "
                "(config.max_words) are read."
            )
        with _library_errors("can't list the tokens"):
            largest = max(*self._tokenizer.get_vocab(True).values(), *self._tokenizer.encode("").ids, 0)
        if largest >= vocabulary:
            raise UserError(
                f"The tokenizer has a token with the id {largest}, the weights are for {vocabulary} tokens. They "
                "belong to different models."
            )

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
        with _library_errors("can't count the special tokens"):
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
        tokens = self._tokenize(sentence, max_words)
        with _library_errors("can't decode a token"):
            return [
                self._tokenizer.decode([token.id], skip_special_tokens=False).strip() or token.name for token in tokens
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
        with _library_errors("can't tokenize the sentence"):
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


def _library_errors(problem: str) -> contextlib.AbstractContextManager[None]:
    """`library_errors` for the library tokenizers."""
    return library_errors(lambda error: f"The library tokenizers {problem}: {str(error) or type(error).__name__:.500}")


def _growth(description: Any) -> float:
    """How many times as long a tokenizer may make a sentence.

    Args:
      description: tokenizer.json, parsed.

    Returns:
      The product of the factors by which its parts may lengthen text.
    """
    post_processor = description.get("post_processor")
    parts = [*_parts(description.get("normalizer"), "normalizers"), *_parts(description.get("decoder"), "decoders")]
    parts += _parts(description.get("pre_tokenizer"), "pretokenizers")
    growth = math.prod(map(_growth_of_part, parts))
    for processor in _parts(post_processor, "processors"):
        for template in (processor.get("single"), processor.get("pair")):
            growth *= max(1, sum("Sequence" in piece for piece in template or ()))
    return float(growth)


def _parts(part: Any, name: str) -> list[dict[str, Any]]:
    """A part of a tokenizer, or the parts of which it is a sequence, under that name, also of sequences."""
    if not isinstance(part, dict):
        return []
    inner = part.get(name)
    return [leaf for child in inner for leaf in _parts(child, name)] if isinstance(inner, list) else [part]


def _growth_of_part(part: dict[str, Any]) -> float:
    if part.get("type") == "Prepend":  # once for each sentence
        return max(1, len(part.get("prepend") or ""))
    if part.get("type") != "Replace":
        return 1  # Unicode's normal forms lengthen text by a small factor
    pattern, content = part["pattern"], len(part.get("content") or "")
    if "String" in pattern:
        return max(1, content / len(pattern["String"])) if pattern["String"] else math.inf
    return 1 + content  # a regular expression may match nothing, between all characters


class PrecomputedFeatures:
    """The features of a frozen transformer for the sentences of a dataset, as a `SentenceEncoder`.

    The files are made by `lbdt_jax.text_features.precomputed_features`; features are read from disk on access. All
    methods except `encode` are those of the transformer's tokenizer.

    Args:
      folder: with the files sentences.json and features.npy.
      tokenizer: of the transformer.
      others: the features of other datasets, for sentences that are not among these.

    Raises:
      UserError: a file is missing, or the files do not match.
    """

    def __init__(
        self, folder: Path, tokenizer: TransformerTokenizer, others: PrecomputedFeatures | None = None
    ) -> None:
        self._folder, self._others = folder, others
        try:
            check_regular_file(folder / "features.npy")
            index = json.loads(read_limited(folder / "sentences.json", _MAX_SENTENCES_BYTES))
            sentences, lengths = index["sentences"], index["lengths"]
            self._features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
            if not all(type(length) is int and 0 < length <= len(self._features) for length in lengths):
                raise ValueError("a sentence without tokens")
            ends = list(itertools.accumulate(lengths))
            self._rows = {
                sentence: (end - length, end) for sentence, length, end in zip(sentences, lengths, ends, strict=True)
            }
            if self._features.ndim != 2 or len(self._features) != (ends[-1] if ends else 0):
                raise ValueError(f"features of shape {self._features.shape} for {ends[-1:]} tokens")
            if self._features.dtype != np.float32:
                raise ValueError(f"features are {self._features.dtype}, not float32")
        except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
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
        if sentence not in self._rows and self._others is not None:
            return self._others.encode(sentence, max_words)
        begin, end = self._rows.get(sentence, (0, max_words + 1))
        if end - begin > max_words:
            raise UserError(
                f"{self._folder} has no features of {sentence!r} with up to {max_words} tokens. Delete the folder; it "
                "will be made again."
            )
        words = np.zeros((max_words, self.size), np.float32)
        words[: end - begin] = self._features[begin:end]
        return words, np.arange(max_words) < end - begin
